from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.ope.diagnostics import (
    Diagnostics,
    EstimateCheck,
    ModelCheck,
    Verdict,
    check_estimate,
    check_model,
    diagnose,
    effective_sample_size,
    judge,
)
from experiments.ope.pareto import pareto_shape

GOOD = Diagnostics(
    n_episodes=1000,
    n_clusters=500,
    ess=700.0,
    largest_weight_share=0.01,
    pareto_k=0.3,
    mean_weight=1.01,
    mean_weight_z=0.5,
    masked_mass=0.0,
    unsupported_mass=0.0,
    support_known=True,
    propensity_source="logged",
)
GOOD_CHECK = EstimateCheck(half_width_share=0.04, effective_clusters=250.0)


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


def test_the_worst_position_sets_the_tail(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(0), 200)
    rng = np.random.default_rng(1)
    weight = np.exp(np.array([0.1, 1.5]) * rng.standard_normal((200, 2)))
    found = diagnose(log, target, weight, n_clusters=200)
    assert found.pareto_k == pareto_shape(weight[:, 1])
    assert found.pareto_k > pareto_shape(weight[:, 0])


def test_estimate_check_by_hand() -> None:
    check = check_estimate(-4.0, -5.0, -2.0, np.array([3.0, -1.0, -1.0, -1.0]))
    assert check.half_width_share == pytest.approx(1.5 / 4)
    assert check.effective_clusters == pytest.approx(12**2 / (81 + 3))
    even = check_estimate(1.0, 0.9, 1.1, np.array([1.0, -1.0, 1.0, -1.0]))
    assert even.effective_clusters == pytest.approx(4.0)


def test_estimate_check_without_variance_or_value() -> None:
    assert check_estimate(2.0, 2.0, 2.0, np.zeros(7)) == EstimateCheck(0.0, 7.0)
    undefined = check_estimate(np.nan, np.nan, np.nan, np.full(7, np.nan))
    assert undefined.half_width_share == np.inf
    assert judge(GOOD, uses_weights=True, check=undefined).verdict == "do not use"
    assert check_estimate(0.0, -1.0, 1.0, np.array([1.0, -1.0])).half_width_share == np.inf


def test_model_check_by_hand() -> None:
    found = check_model(8.0, 10.0, np.array([1.0, 1.0, -2.0]), np.array([2.0, 0.0, -2.0]))
    assert found.gap_share == pytest.approx(0.2)
    assert found.gap_z == pytest.approx(2.0 / np.sqrt(2 / 6))
    same = np.array([1.0, -1.0])
    assert check_model(5.0, 5.0, same, same) == ModelCheck(gap_share=0.0, gap_z=0.0)


WEIGHTS_ONLY: list[tuple[dict[str, Any], Verdict, str]] = [
    ({}, "trust", "effective sample size is 700.0 of 1000 episodes and the target is supported"),
    ({"ess": 399.0}, "caution", "effective sample size is 399.0"),
    ({"ess": 49.0}, "do not use", "effective sample size is 49.0"),
    ({"ess": 0.0}, "do not use", "effective sample size is 0.0"),
    ({"largest_weight_share": 0.06}, "caution", "6.0% of all weight is on one episode"),
    ({"largest_weight_share": 0.5}, "do not use", "50.0% of all weight is on one episode"),
    ({"pareto_k": 0.72}, "caution", "Pareto k 0.72"),
    ({"pareto_k": 0.6}, "trust", "the target is supported"),
    ({"pareto_k": 0.6, "n_episodes": 150}, "caution", "Pareto k 0.60"),
    ({"pareto_k": np.inf}, "caution", "Pareto k inf"),
    ({"pareto_k": -np.inf}, "trust", "the target is supported"),
    ({"mean_weight": 0.8, "mean_weight_z": 3.0}, "caution", "mean weight is 0.800, not 1"),
    ({"mean_weight": 0.5, "mean_weight_z": np.inf}, "do not use", "mean weight is 0.500, not 1"),
]
WITH_MODEL: list[tuple[dict[str, Any], Verdict, str]] = [
    ({"ess": 201.0}, "trust", "the target is supported"),
    ({"ess": 199.0}, "caution", "effective sample size is 199.0"),
    ({"ess": 19.0}, "do not use", "effective sample size is 19.0"),
    ({"largest_weight_share": 0.09}, "trust", "the target is supported"),
    ({"largest_weight_share": 0.3}, "caution", "30.0% of all weight is on one episode"),
    ({"largest_weight_share": 0.5}, "do not use", "50.0% of all weight is on one episode"),
    ({"pareto_k": 0.8}, "trust", "the target is supported"),
    ({"pareto_k": 0.95}, "caution", "Pareto k 0.95"),
    ({"mean_weight": 0.8, "mean_weight_z": 3.9}, "trust", "the target is supported"),
    ({"mean_weight": 0.5, "mean_weight_z": np.inf}, "caution", "mean weight is 0.500, not 1"),
]
SUPPORT: list[tuple[dict[str, Any], Verdict, str]] = [
    ({"unsupported_mass": 0.01}, "caution", "1.0% of target decisions are never in the log"),
    ({"unsupported_mass": 0.2}, "do not use", "20.0% of target decisions are never in the log"),
    ({"masked_mass": 0.2}, "do not use", "20.0% of target decisions are masked-out offers"),
    ({"n_clusters": 12}, "caution", "only 12 clusters"),
    ({"propensity_source": "estimated"}, "caution", "propensities are estimated"),
    ({"propensity_source": "estimated", "ess": 150.0}, "do not use", "effective sample size is 150.0"),
    ({"support_known": False}, "trust", "support was checked against the mask only"),
]


@pytest.mark.parametrize(
    ("uses_model", "change", "verdict", "reason"),
    [(False, *case) for case in WEIGHTS_ONLY + SUPPORT] + [(True, *case) for case in WITH_MODEL + SUPPORT],
)
def test_verdicts(uses_model: bool, change: dict[str, Any], verdict: Verdict, reason: str) -> None:
    judgement = judge(replace(GOOD, **change), uses_weights=True, uses_model=uses_model, check=GOOD_CHECK)
    assert judgement.verdict == verdict
    assert reason in judgement.reason


@pytest.mark.parametrize(
    ("uses_model", "change", "verdict", "reason"),
    [
        (False, {"half_width_share": 0.2}, "caution", "20.0% either way is its interval"),
        (True, {"half_width_share": 0.4}, "do not use", "40.0% either way is its interval"),
        (False, {"effective_clusters": 50.0}, "caution", "50 clusters carry its variance"),
        (True, {"effective_clusters": 50.0}, "trust", "the target is supported"),
        (True, {"effective_clusters": 10.0}, "caution", "10 clusters carry its variance"),
        (False, {"effective_clusters": 3.0}, "do not use", "3 clusters carry its variance"),
    ],
)
def test_verdicts_on_the_estimate(
    uses_model: bool, change: dict[str, Any], verdict: Verdict, reason: str
) -> None:
    check = replace(GOOD_CHECK, **change)
    judgement = judge(GOOD, uses_weights=True, uses_model=uses_model, check=check)
    assert judgement.verdict == verdict
    assert reason in judgement.reason


def test_who_leans_on_a_model_is_never_trusted() -> None:
    judgement = judge(GOOD, uses_weights=True, uses_model=True, leans_on_model=True, check=GOOD_CHECK)
    assert judgement.verdict == "caution"
    assert "leans on the value model" in judgement.reason


@pytest.mark.parametrize("uses_model", [False, True])
def test_a_worse_log_never_gets_a_better_verdict(uses_model: bool) -> None:
    levels = ("trust", "caution", "do not use")

    def level(**change: Any) -> int:
        found = replace(GOOD, **change)
        return levels.index(judge(found, uses_weights=True, uses_model=uses_model).verdict)

    by_ess = [level(ess=ess) for ess in np.geomspace(1, 1000, 60)]
    assert by_ess == sorted(by_ess, reverse=True)
    for name, worst in (("largest_weight_share", 1.0), ("pareto_k", 3.0), ("mean_weight_z", 20.0)):
        by_value = [level(**{name: value}) for value in np.linspace(0, worst, 60)]
        assert by_value == sorted(by_value)


def test_a_model_alone_is_never_trusted_but_does_not_need_weights() -> None:
    judgement = judge(replace(GOOD, ess=3.0, largest_weight_share=0.9), uses_weights=False)
    assert judgement.verdict == "caution"
    assert "value model alone" in judgement.reason
    assert judge(replace(GOOD, unsupported_mass=0.3), uses_weights=False).verdict == "do not use"


@pytest.mark.parametrize(
    ("gap_share", "gap_z", "verdict"),
    [
        (0.4, 2.0, "caution"),  # the weights cannot tell
        (0.05, -5.0, "caution"),
        (-0.4, -5.0, "do not use"),
    ],
)
def test_a_model_that_the_log_contradicts(gap_share: float, gap_z: float, verdict: Verdict) -> None:
    judgement = judge(GOOD, uses_weights=False, model=ModelCheck(gap_share, gap_z))
    assert judgement.verdict == verdict
    assert ("contradicts the value model" in judgement.reason) == (abs(gap_z) > 3)
    # Beside weights a model may be wrong.
    assert judge(GOOD, uses_weights=True, model=ModelCheck(gap_share, gap_z)).verdict == "trust"


def test_an_exact_zero_is_not_infinitely_uncertain() -> None:
    assert check_estimate(0.0, 0.0, 0.0, np.zeros(5)).half_width_share == 0.0
    assert check_estimate(0.0, -1.0, 1.0, np.ones(5)).half_width_share == np.inf
    assert check_estimate(2.0, np.nan, np.nan, np.ones(5)).half_width_share == np.inf
