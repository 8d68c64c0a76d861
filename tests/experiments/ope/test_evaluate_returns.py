from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.ope.distribution import self_normalised
from experiments.ope.evaluate import evaluate_policy
from experiments.ope.evaluate_returns import ReturnResult, evaluate_returns
from experiments.ope.logged_dataset import FloatArray, LoggedDataError, LoggedDataset

Found = dict[tuple[str, float | None], ReturnResult]


def evaluate(log: LoggedDataset, target: FloatArray, **options: Any) -> Found:
    results = evaluate_returns(
        log, target, policy="target", rng=np.random.default_rng(3), **({"n_bootstrap": 200} | options)
    )
    return {(result.measure, result.level): result for result in results}


def true_returns(market: Any, rng: np.random.Generator, n: int) -> FloatArray:
    """Returns of the target itself, played."""
    log, _, _ = replace(market, behaviour=market.target).log(rng, n)
    gain = log.reward * market.discount_factor**log.position
    return np.asarray(np.bincount(log.episode, weights=gain), dtype=np.float64)


def test_intervals_hold_what_the_target_itself_returns(chain: Any) -> None:
    market = chain(advance=0.7, noise=1.0)
    log, target, _ = market.log(np.random.default_rng(0), 3000)
    truth = np.sort(true_returns(market, np.random.default_rng(1), 50_000))
    levels = (0.05, 0.25, 0.5)
    found = evaluate(log, target, levels=levels, discount_factor=market.discount_factor, confidence=0.999)
    expected: dict[tuple[str, float | None], float] = {
        ("mean", None): float(truth.mean()),
        ("standard deviation", None): float(truth.std()),
    }
    for level in levels:
        expected["quantile", level] = float(np.quantile(truth, level))
        expected["CVaR", level] = float(truth[: round(level * truth.size)].mean())
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].ci_low < value < found[key].ci_high, (key, value, found[key])
        assert found[key].value == pytest.approx(value, abs=0.5)
        assert found[key].verdict != "do not use"


def test_the_mean_is_the_self_normalised_estimate(chain: Any) -> None:
    log, target, _ = chain(noise=1.0).log(np.random.default_rng(2), 200)
    found = evaluate(log, target, discount_factor=0.9)
    rows = evaluate_policy(
        log, target, policy="target", rng=np.random.default_rng(4), discount_factor=0.9, n_bootstrap=10
    )
    snips = next(row for row in rows if row.estimator == "SNIPS")
    assert found["mean", None].value == pytest.approx(snips.value)
    assert found["mean", None].ess == pytest.approx(snips.ess)


def test_equals_resampling_campaigns_by_hand(chain: Any) -> None:
    log, target, _ = chain(noise=1.0, horizon=1).log(np.random.default_rng(5), 40)
    log = replace(log, campaign=log.user % 4)
    found = evaluate(log, target, levels=(0.3,), cluster="campaign", n_bootstrap=25)["CVaR", 0.3]
    weight = target[np.arange(40), log.action] / log.propensity
    draws, values = np.random.default_rng(3), []
    for _ in range(25):
        rows = np.concatenate([np.flatnonzero(log.campaign == k) for k in draws.integers(4, size=4)])
        resample = self_normalised(returns=log.reward[rows], weight=weight[rows])
        values.append(resample.conditional_value_at_risk(0.3))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_constant_return_has_no_spread_and_no_width(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(6), 100)
    outcome = np.where(log.position == 0, 2.5, 0.0)
    for (measure, _), result in evaluate(log, target, outcome=outcome).items():
        value = 0.0 if measure == "standard deviation" else 2.5
        assert [result.value, result.ci_low, result.ci_high] == pytest.approx([value] * 3, abs=1e-7)


def test_a_tail_is_judged_by_the_episodes_in_it(chain: Any) -> None:
    log, _, _ = chain(horizon=1, noise=1.0).log(np.random.default_rng(9), 1000)
    log = replace(log, propensity=np.full(1000, 0.5), behaviour_probabilities=None)
    target = np.full((1000, 2), 0.5)
    found = evaluate(log, target, levels=(0.004, 0.01, 0.5, 0.999), n_bootstrap=20)
    verdicts = {key: result.verdict for key, result in found.items()}
    assert {result.ess for result in found.values()} == {1000.0}
    assert verdicts["mean", None] == verdicts["quantile", 0.5] == verdicts["CVaR", 0.999] == "trust"
    assert verdicts["quantile", 0.01] == verdicts["CVaR", 0.01] == "caution"
    assert verdicts["quantile", 0.004] == verdicts["CVaR", 0.004] == "do not use"
    assert verdicts["quantile", 0.999] == "do not use"
    assert found["CVaR", 0.01].reason.startswith("its tail holds 10.0 effective episodes")


def test_a_target_that_nobody_acted_like_has_no_value_and_no_use(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(8), 60)
    never = np.eye(2)[1 - log.action]
    assert never.shape == target.shape
    for result in evaluate(log, never).values():
        assert np.isnan([result.value, result.ci_low, result.ci_high]).all()
        assert (result.ess, result.verdict) == (0.0, "do not use")
    rows = evaluate_policy(log, never, policy="never", rng=np.random.default_rng(0), n_bootstrap=20)
    assert {row.verdict for row in rows if row.estimator != "DM"} == {"do not use"}


def test_input_that_cannot_be_evaluated(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(7), 20)
    with pytest.raises(LoggedDataError, match=r"target_probabilities has shape \(3, 2\)"):
        evaluate(log, target[:3])
    with pytest.raises(LoggedDataError, match="outcome has shape"):
        evaluate(log, target, outcome=np.zeros(3))
    with pytest.raises(ValueError, match="at least 2 clusters"):
        evaluate(log, target, cluster="campaign")
    with pytest.raises(ValueError, match="level must lie in"):
        evaluate(log, target, levels=(5.0,))
    with pytest.raises(ValueError, match="discount_factor"):
        evaluate(log, target, discount_factor=0.0)
