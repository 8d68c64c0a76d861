from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.ope.evaluate import OPEResult, evaluate_policy
from experiments.ope.logged_dataset import FloatArray, LoggedDataError, LoggedDataset

NAMES = ["DM", "IPS", "SNIPS", "PDIS", "PDWIS", "DR", "WDR", "MAGIC"]
ONE_STEP_NAMES = ["DM", "IPS", "SNIPS", "DR", "SNDR", "SWITCH-DR", "DRos"]
LINEAR = ("DM", "IPS", "SNIPS", "PDIS", "PDWIS", "DR", "WDR")
"""Linear in the outcome; MAGIC chooses its blend by it."""


def evaluate(log: LoggedDataset, target: FloatArray, **options: Any) -> dict[str, OPEResult]:
    results = evaluate_policy(
        log, target, policy="target", rng=np.random.default_rng(11), **({"n_bootstrap": 300} | options)
    )
    names = NAMES if log.n_steps > log.n_episodes else ONE_STEP_NAMES
    assert [result.estimator for result in results] == names + ["MIPS"] * ("offer_group" in options)
    assert {result.policy for result in results} == {"target"}
    return {result.estimator: result for result in results}


def test_every_estimator_finds_the_true_value_and_cost(chain: Any) -> None:
    market = chain(advance=0.7, noise=1.0)
    log, target, _ = market.log(np.random.default_rng(0), 4000)
    paid = replace_reward_by_cost(market)
    for outcome, truth in (
        ("reward", market.values()[1][-1].mean()),
        ("cost", paid.values()[1][-1].mean()),
    ):
        results = evaluate(
            log, target, outcome=outcome, discount_factor=market.discount_factor, confidence=0.999
        )
        for result in results.values():
            assert result.ci_low < truth < result.ci_high, (outcome, result, truth)
            assert result.ci_low < result.value < result.ci_high
            assert result.value == pytest.approx(truth, rel=0.1)
            assert result.verdict != "do not use", result
        assert results["DR"].verdict == "trust", results["DR"]
        width = {name: result.ci_high - result.ci_low for name, result in results.items()}
        assert width["DR"] < width["PDIS"] < width["IPS"]


def replace_reward_by_cost(market: Any) -> Any:
    return replace(market, mean_reward=np.tile([0.0, 1.0], (3, 1)))


def test_behaviour_as_target_gives_the_mean_return(chain: Any) -> None:
    log, _, _ = chain(noise=1.0).log(np.random.default_rng(1), 300)
    assert log.behaviour_probabilities is not None
    results = evaluate(log, log.behaviour_probabilities)
    for name in ("IPS", "PDIS", "SNIPS", "PDWIS"):
        assert results[name].value == pytest.approx(log.reward.sum() / log.n_episodes)
        assert results[name].ess == pytest.approx(log.n_episodes)
        assert results[name].verdict != "do not use"


def test_same_generator_same_results_and_own_outcome_array(chain: Any) -> None:
    log, target, _ = chain(noise=1.0).log(np.random.default_rng(2), 100)
    assert evaluate(log, target) == evaluate(log, target)
    assert evaluate(log, target, outcome=log.reward) == evaluate(log, target)
    net = evaluate(log, target, outcome=log.reward - 2 * log.cost)
    parts = evaluate(log, target), evaluate(log, target, outcome="cost")
    for name in LINEAR:
        assert net[name].value == pytest.approx(parts[0][name].value - 2 * parts[1][name].value)


def test_estimated_propensities_lower_the_verdict(chain: Any) -> None:
    log, target, _ = chain(noise=1.0).log(np.random.default_rng(3), 1500, propensity_source="estimated")
    for result in evaluate(log, target).values():
        assert result.verdict != "trust"
        assert "propensities are estimated" in result.reason


def test_wrong_propensities_are_noticed(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(4), 3000)
    wrong = replace(log, propensity=np.full(log.n_steps, 0.9), behaviour_probabilities=None)
    result = evaluate(wrong, target)["IPS"]
    assert result.verdict == "do not use"
    assert "not 1: the log hardly acts like this policy" in result.reason


def test_clusters_may_be_campaigns(chain: Any) -> None:
    log, target, _ = chain(noise=1.0).log(np.random.default_rng(5), 200)
    campaigns = replace(log, campaign=log.user % 8)
    results = evaluate(campaigns, target, cluster="campaign")
    assert "only 8 clusters" in results["DR"].reason
    assert results["DR"].value == pytest.approx(evaluate(campaigns, target)["DR"].value)
    with pytest.raises(ValueError, match="at least 2 clusters"):
        evaluate(log, target, cluster="campaign")


def test_input_that_does_not_fit_the_log(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(6), 20)
    with pytest.raises(LoggedDataError, match=r"target_probabilities has shape \(3, 2\)"):
        evaluate(log, target[:3])
    with pytest.raises(LoggedDataError, match=r"target_probabilities: row 0 is 1.2: is the row's sum"):
        evaluate(log, np.full(target.shape, 0.6))
    with pytest.raises(LoggedDataError, match="outcome has shape"):
        evaluate(log, target, outcome=np.zeros(3))
    with pytest.raises(LoggedDataError, match="outcome: row 0 is nan"):
        evaluate(log, target, outcome=np.full(log.n_steps, np.nan))


def test_every_one_step_estimator_finds_the_true_value(chain: Any) -> None:
    market = chain(horizon=1, noise=1.0)
    log, target, _ = market.log(np.random.default_rng(8), 4000)
    truth = market.values()[1][0].mean()
    for interval in ("percentile", "bca", "studentised"):
        for result in evaluate(log, target, confidence=0.999, interval=interval).values():
            assert result.ci_low < truth < result.ci_high, result
            assert result.ci_low < result.value < result.ci_high
            assert result.value == pytest.approx(truth, rel=0.1)


def test_offers_of_one_group_give_mips_and_no_ratio_at_all(chain: Any) -> None:
    """One group of all offers: its ratio is 1, and MIPS the mean of what was logged."""
    log, target, _ = chain(horizon=1, noise=1.0).log(np.random.default_rng(9), 200)
    results = evaluate(log, target, offer_group=np.zeros(2, dtype=np.int64))
    assert results["MIPS"].value == pytest.approx(log.reward.mean())
    assert results["MIPS"].ess == pytest.approx(200)
    apart = evaluate(log, target, offer_group=np.arange(2))
    assert apart["MIPS"].value == pytest.approx(apart["IPS"].value)
    assert apart["MIPS"].ess == pytest.approx(apart["IPS"].ess) != 200
    with pytest.raises(ValueError, match="needs the whole behaviour distribution"):
        evaluate(replace(log, behaviour_probabilities=None), target, offer_group=np.arange(2))
    longer, target, _ = chain().log(np.random.default_rng(9), 50)
    with pytest.raises(ValueError, match="one step an episode"):
        evaluate(longer, target, offer_group=np.arange(2))


def test_weights_without_a_tail_have_no_pareto_k(chain: Any) -> None:
    log, target, _ = chain(noise=1.0).log(np.random.default_rng(10), 2000)
    assert log.behaviour_probabilities is not None
    assert {row.pareto_k for row in evaluate(log, log.behaviour_probabilities).values()} == {None}
    assert all(isinstance(row.pareto_k, float) for row in evaluate(log, target).values())


@pytest.mark.parametrize("discount_factor", [0.0, 1.5])
def test_discount_factor_out_of_range(chain: Any, discount_factor: float) -> None:
    log, target, _ = chain().log(np.random.default_rng(7), 20)
    with pytest.raises(ValueError, match="discount_factor"):
        evaluate(log, target, discount_factor=discount_factor)
