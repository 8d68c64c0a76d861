from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from experiments.monitor.findings import Level
from experiments.monitor.propensities import measure_propensities
from experiments.ope.logged_dataset import LoggedDataset

NAMES = ("no offer", "push", "coupon", "rare coupon")


def drawn(probabilities: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray((rng.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)).sum(axis=1))


def resent(log: LoggedDataset, action: np.ndarray, *, known: bool = True) -> LoggedDataset:
    """The log with other offers sent at the same propensities."""
    assert log.behaviour_probabilities is not None
    return replace(
        log,
        action=action,
        propensity=log.behaviour_probabilities[np.arange(log.n_steps), action],
        behaviour_probabilities=log.behaviour_probabilities if known else None,
    )


def test_z_and_shares_by_hand(reference: LoggedDataset) -> None:
    probabilities = reference.behaviour_probabilities
    assert probabilities is not None
    found = measure_propensities(reference, reference, NAMES, seed=0)
    for k, offer in enumerate(found.offers):
        p, sent = probabilities[:, k], reference.action == k
        assert offer.name == NAMES[k]
        assert offer.sent == offer.reference_sent == pytest.approx(sent.mean())
        assert offer.expected == pytest.approx(p.mean())
        assert offer.z == pytest.approx((sent - p).sum() / math.sqrt((p * (1 - p)).sum()))
    logs = np.log(probabilities)
    variance = ((probabilities * logs**2).sum(axis=1) - (probabilities * logs).sum(axis=1) ** 2).sum()
    difference = np.log(reference.propensity).sum() - (probabilities * logs).sum()
    assert found.sharpness_z == pytest.approx(difference / math.sqrt(variance))
    assert (found.mix.psi, found.mix.p_value) == (0.0, 1.0)


def test_propensities_that_are_true_are_called_so_at_the_nominal_rate(world: Callable[..., Any]) -> None:
    found = [
        measure_propensities(log, log, NAMES, seed=0)
        for log in (world(n_users=60).log(s) for s in range(150))
    ]
    p_values = np.array([one.p_value for one in found])
    assert (p_values <= 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
    assert not (p_values <= 0.001).any()
    assert {one.mix_level for one in found} == {Level.OK}


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 30.0])
def test_a_policy_that_is_sharper_or_flatter_than_it_says_is_an_alarm(
    world: Callable[..., Any], reference: LoggedDataset, sharpness: float
) -> None:
    found = measure_propensities(reference, world(sharpness=sharpness).log(1), NAMES, seed=0)
    assert found.level is Level.ALARM
    assert (found.sharpness_z > 0) == (sharpness > 1)


def test_only_the_sharpness_tells_favourites_from_favourites_of_others(reference: LoggedDataset) -> None:
    """Each offer as often as it should be, but always to those who were likeliest to get it."""
    probabilities = reference.behaviour_probabilities
    assert probabilities is not None
    best = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
    two = np.column_stack([best, np.zeros((len(best), 2))])
    log = replace(
        reference,
        behaviour_probabilities=two,
        action=np.zeros(len(best), dtype=np.int64),
        propensity=two[:, 0],
    )
    action = np.zeros(len(best), dtype=np.int64)
    action[np.argsort(-two[:, 1])[: round(two[:, 1].sum())]] = 1
    found = measure_propensities(reference, resent(log, action), NAMES, seed=0)
    assert max(abs(offer.z) for offer in found.offers if math.isfinite(offer.z)) < 0.1
    assert [math.isnan(offer.z) for offer in found.offers] == [False, False, True, True]
    assert found.level is Level.ALARM


def test_few_expected_sends_are_judged_exactly(reference: LoggedDataset) -> None:
    n = reference.n_steps
    rare = np.tile([1 - 1e-3, 1e-3, 0, 0], (n, 1))
    action = np.zeros(n, dtype=np.int64)
    action[:5] = 1
    log = replace(
        reference, behaviour_probabilities=rare, action=action, propensity=rare[np.arange(n), action]
    )
    found = measure_propensities(reference, log, NAMES, seed=0)
    # Equal probabilities: the binomial is exact. Its two-sided p-value here is twice the tail.
    tail = binomtest(5, n, 1e-3, alternative="greater").pvalue
    assert found.offers[1].p_value == pytest.approx(2 * tail)
    assert found.offers[1].p_value > 2 * math.erfc(found.offers[1].z / math.sqrt(2))


def test_without_distributions_the_mean_weights_tell(
    world: Callable[..., Any], reference: LoggedDataset
) -> None:
    log = world(n_users=1000).log(2)
    assert log.behaviour_probabilities is not None
    fair = measure_propensities(reference, resent(log, log.action, known=False), NAMES, seed=0)
    assert fair.level is Level.OK
    assert all(math.isnan(offer.expected) for offer in fair.offers)
    assert math.isnan(fair.sharpness_z)
    sharper = world(n_users=1000, sharpness=2.0).log(2)
    favourite = measure_propensities(reference, resent(log, sharper.action, known=False), NAMES, seed=0)
    assert favourite.level is Level.ALARM


def test_a_new_mix_is_a_warning_even_if_propensities_are_true(
    world: Callable[..., Any], reference: LoggedDataset
) -> None:
    log = world().log(3)
    pushes = np.tile([0.1, 0.7, 0.1, 0.1], (log.n_steps, 1))
    action = drawn(pushes, 0)
    moved = replace(
        log, behaviour_probabilities=pushes, action=action, propensity=pushes[np.arange(len(action)), action]
    )
    found = measure_propensities(reference, moved, NAMES, seed=0)
    assert found.level is Level.OK
    assert found.mix_level is Level.WARNING
    counts = [np.bincount(side.action, minlength=4) + 0.5 for side in (reference, moved)]
    e, a = (side / side.sum() for side in counts)
    assert found.mix.psi == pytest.approx(((a - e) * np.log(a / e)).sum())
    assert "push" in found.findings()[1].words
