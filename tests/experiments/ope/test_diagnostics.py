from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.ope.diagnostics import Diagnostics, Verdict, diagnose, effective_sample_size, judge

GOOD = Diagnostics(
    n_episodes=1000,
    n_clusters=500,
    ess=700.0,
    largest_weight_share=0.01,
    mean_weight=1.01,
    mean_weight_z=0.5,
    masked_mass=0.0,
    unsupported_mass=0.0,
    support_known=True,
    propensity_source="logged",
)


def test_effective_sample_size_by_hand() -> None:
    weight = np.array([[1.0, 2.0, 5.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(effective_sample_size(weight), [2.0, 9 / 5, 1.0, 0.0])


def test_weights_and_overlap_by_hand(chain: Any) -> None:
    log, _, _ = chain(horizon=1).log(np.random.default_rng(0), 4)
    weight = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    behaviour = np.tile([0.0, 1.0], (4, 1))
    log = replace(
        log, action=np.ones(4, dtype=np.int64), propensity=np.ones(4), behaviour_probabilities=behaviour
    )
    target = np.tile([0.25, 0.75], (4, 1))
    found = diagnose(log, target, weight, n_clusters=4)
    assert found.ess == pytest.approx(2 / (1 / 4 + 5 / 9))
    assert found.largest_weight_share == pytest.approx(2 / 3)
    assert found.mean_weight == 0.75
    assert found.mean_weight_z == pytest.approx(0.25 / (np.std([1, 0, 0, 2]) / 2))
    assert (found.masked_mass, found.unsupported_mass) == (0.0, 0.25)
    mask = np.tile([False, True], (4, 1))
    masked = diagnose(replace(log, mask=mask, behaviour_probabilities=None), target, weight, 4)
    assert (masked.masked_mass, masked.unsupported_mass, masked.support_known) == (0.25, 0.25, False)


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({}, "trust", "effective sample size is 700.0 of 1000 episodes and the target is supported"),
        ({"ess": 199.0}, "caution", "effective sample size is 199.0"),
        ({"ess": 49.0}, "do not use", "effective sample size is 49.0"),
        ({"ess": 0.0}, "do not use", "effective sample size is 0.0"),
        ({"largest_weight_share": 0.06}, "caution", "6.0% of all weight is on one episode"),
        ({"largest_weight_share": 0.5}, "do not use", "50.0% of all weight is on one episode"),
        ({"unsupported_mass": 0.01}, "caution", "1.0% of target decisions are never in the log"),
        ({"unsupported_mass": 0.2}, "do not use", "20.0% of target decisions are never in the log"),
        ({"masked_mass": 0.2}, "do not use", "20.0% of target decisions are masked-out offers"),
        ({"mean_weight": 0.8, "mean_weight_z": 4.0}, "caution", "mean weight is 0.800, not 1"),
        ({"mean_weight": 0.5, "mean_weight_z": np.inf}, "do not use", "mean weight is 0.500, not 1"),
        ({"n_clusters": 12}, "caution", "only 12 clusters"),
        ({"propensity_source": "estimated"}, "caution", "propensities are estimated"),
        ({"propensity_source": "estimated", "ess": 150.0}, "do not use", "effective sample size is 150.0"),
        ({"support_known": False}, "trust", "support was checked against the mask only"),
    ],
)
def test_verdicts(change: dict[str, Any], verdict: Verdict, reason: str) -> None:
    judgement = judge(replace(GOOD, **change), uses_weights=True)
    assert judgement.verdict == verdict
    assert reason in judgement.reason


def test_a_model_alone_is_never_trusted_but_does_not_need_weights() -> None:
    judgement = judge(replace(GOOD, ess=3.0, largest_weight_share=0.9), uses_weights=False)
    assert judgement.verdict == "caution"
    assert "value model alone" in judgement.reason
    assert judge(replace(GOOD, unsupported_mass=0.3), uses_weights=False).verdict == "do not use"
