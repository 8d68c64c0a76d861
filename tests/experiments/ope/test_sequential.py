from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.ope import sequential
from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.logged_dataset import FloatArray, LoggedDataError

WEIGHTED: dict[str, Callable[..., EpisodeTerms]] = {
    "IPS": sequential.inverse_propensity,
    "PDIS": sequential.per_decision,
    "SNIPS": sequential.self_normalised,
    "PDWIS": sequential.weighted_per_decision,
}
MODELLED: dict[str, Callable[..., EpisodeTerms]] = {
    "DR": sequential.doubly_robust,
    "WDR": sequential.weighted_doubly_robust,
}
HAND: dict[str, Any] = {
    "outcome": np.array([1.0, 2.0, 4.0]),
    "ratio": np.array([2.0, 0.5, 3.0]),
    "episode": np.array([0, 0, 1]),
    "position": np.array([0, 1, 0]),
    "discount_factor": 0.5,
}
"""Episode 0: r = 1, 2, w = 2, 1. Episode 1: r = 4, w = 3, carried to position 1."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IPS", (1 * (1 + 1) + 3 * 4) / 2),
        ("PDIS", (2 * 1 + 1 * 1 + 3 * 4) / 2),
        ("SNIPS", (1 * (1 + 1) + 3 * 4) / (1 + 3)),
        ("PDWIS", (2 * 1 + 3 * 4) / (2 + 3) + (1 * 1) / (1 + 3)),
    ],
)
def test_weighted_estimators_by_hand(name: str, value: float) -> None:
    assert WEIGHTED[name](**HAND).estimate() == pytest.approx(value, rel=1e-14)


def test_model_based_estimators_by_hand() -> None:
    q, v = np.array([1.5, 1.0, 3.0]), np.array([2.0, 3.0, 5.0])
    direct = sequential.direct_method(v=v, episode=HAND["episode"], position=HAND["position"])
    assert direct.estimate() == (2 + 5) / 2
    first = 2 + 2 * (1 - 1.5) + 0.5 * (2 * 3 + 1 * (2 - 1))
    second = 5 + 3 * (4 - 3)
    assert sequential.doubly_robust(**HAND, q=q, v=v).estimate() == pytest.approx((first + second) / 2)
    weighted = sequential.weighted_doubly_robust(**HAND, q=q, v=v)
    columns = [(2 + 5) / 2, (2 * (1 - 1.5 + 0.5 * 3) + 3 * (4 - 3)) / (2 + 3), 1 * 0.5 * (2 - 1) / (1 + 3)]
    ratios = weighted.numerator.sum(axis=0) / weighted.denominator.sum(axis=0)
    np.testing.assert_allclose(ratios, columns, rtol=1e-14)
    assert weighted.estimate() == pytest.approx(sum(columns))


def trajectories(chain: Any) -> list[tuple[float, list[tuple[int, int]]]]:
    """Every trajectory of the chain from state 0: its probability under the behaviour policy, and steps."""
    found: list[tuple[float, list[tuple[int, int]]]] = []

    def walk(state: int, probability: float, steps: list[tuple[int, int]]) -> None:
        for offer in (0, 1):
            p = probability * chain.behaviour[state, offer]
            path = [*steps, (state, offer)]
            if len(path) == chain.horizon or chain.ends(state, offer):
                found.append((p, path))
            elif offer == 0:
                walk(state, p, path)
            else:
                walk(min(state + 1, 2), p * chain.advance, path)
                if chain.advance < 1:
                    walk(state, p * (1 - chain.advance), path)

    walk(0, 1.0, [])
    return found


def enumerated(
    market: Any,
) -> tuple[FloatArray, dict[str, Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every trajectory as one episode: its probability [E], the log, and the rows' states and offers."""
    paths = trajectories(market)
    probability = np.array([p for p, _ in paths])
    assert probability.sum() == pytest.approx(1)
    assert len({len(path) for _, path in paths}) > 1
    state, offer = np.array([step for _, path in paths for step in path]).T
    lengths = [len(path) for _, path in paths]
    log: dict[str, Any] = {
        "outcome": market.mean_reward[state, offer],
        "ratio": (market.target / market.behaviour)[state, offer],
        "episode": np.repeat(np.arange(len(paths)), lengths),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        "discount_factor": market.discount_factor,
    }
    return probability, log, state, offer


@pytest.mark.parametrize("name", [*WEIGHTED, "DR", "WDR"])
def test_expectation_over_all_trajectories_is_the_true_value(name: str, chain: Any) -> None:
    """Episodes end early with a probability that depends on the policy: lengths must be handled exactly."""
    market = chain(advance=0.7, horizon=4)
    probability, arguments, state, offer = enumerated(market)
    if name in MODELLED:  # any model of (state, week) will do
        model = np.random.default_rng(0).normal(size=(market.horizon, 3, 2))
        week = arguments["position"]
        arguments |= {
            "q": model[week, state, offer],
            "v": (market.target[state] * model[week, state]).sum(axis=1),
        }
    terms = (WEIGHTED | MODELLED)[name](**arguments)
    expected = (probability @ terms.numerator) / (probability @ terms.denominator)
    truth = market.values()[1][market.horizon - 1, 0]
    assert expected.sum() == pytest.approx(truth, rel=1e-12)


def test_exact_model_makes_doubly_robust_and_direct_method_equal_in_expectation(chain: Any) -> None:
    market = chain(advance=0.7, horizon=4)  # moves are random, so single episodes differ
    probability, log, state, offer = enumerated(market)
    q, v = market.values()
    stage = market.horizon - 1 - log["position"]
    log |= {"q": q[stage, state, offer], "v": v[stage, state]}
    robust = sequential.doubly_robust(**log).numerator[:, 0]
    direct = sequential.direct_method(v=log["v"], episode=log["episode"], position=log["position"])
    assert probability @ robust == pytest.approx(probability @ direct.numerator[:, 0], rel=1e-12)
    assert probability @ robust == pytest.approx(v[market.horizon - 1, 0], rel=1e-12)
    assert np.ptp(robust) > 0.1


def test_exact_model_leaves_doubly_robust_no_error_in_any_episode(chain: Any) -> None:
    market = chain()  # nothing is random but the offers
    log, _, state = market.log(np.random.default_rng(1), 50)
    q, v = market.values()
    stage = log.weeks_to_go
    arguments = {
        "outcome": log.reward,
        "ratio": (market.target / market.behaviour)[state, log.action],
        "q": q[stage, state, log.action],
        "v": v[stage, state],
        "episode": log.episode,
        "position": log.position,
        "discount_factor": market.discount_factor,
    }
    truth = v[market.horizon - 1, state[log.episode_starts]]
    terms = sequential.doubly_robust(**arguments)
    np.testing.assert_allclose(terms.numerator[:, 0], truth, rtol=1e-12)


@st.composite
def ragged_logs(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = sum(lengths)
    ratio = rng.lognormal(size=n)
    if draw(st.booleans()):
        ratio *= rng.random(n) < 0.8  # a deterministic target never takes some logged offers
    return {
        "outcome": rng.normal(size=n) * 10,
        "ratio": ratio,
        "q": rng.normal(size=n),
        "v": rng.normal(size=n),
        "episode": np.repeat(np.arange(len(lengths)), lengths),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        "discount_factor": draw(st.sampled_from([1.0, 0.9, 0.3])),
    }


def slow_estimates(log: dict[str, Any]) -> dict[str, float]:
    """All estimators with plain loops; doubly robust by the backward recursion of the paper.

    WDR by its definition: DR with w_t over the sum of w_t, at which every episode counts.
    """
    gamma = log["discount_factor"]
    episodes: list[list[int]] = [[] for _ in range(log["episode"][-1] + 1)]
    for row, episode in enumerate(log["episode"]):
        episodes[episode].append(row)
    horizon = max(map(len, episodes))
    sums = dict.fromkeys(["DM", "IPS", "PDIS", "DR", "weight"], 0.0)
    tops, bottoms = [0.0] * horizon, [0.0] * horizon
    for rows in episodes:
        weight, total = 1.0, 0.0
        for t in range(horizon):
            if t < len(rows):
                weight *= log["ratio"][rows[t]]
                gain = gamma**t * log["outcome"][rows[t]]
                total += gain
                sums["PDIS"] += weight * gain
                tops[t] += weight * gain
            bottoms[t] += weight
        sums["IPS"] += weight * total
        sums["weight"] += weight
        robust = 0.0
        for row in reversed(rows):
            residual = log["outcome"][row] + gamma * robust - log["q"][row]
            robust = log["v"][row] + log["ratio"][row] * residual
        sums["DR"] += robust
        sums["DM"] += log["v"][rows[0]]
    values = {name: sums[name] / len(episodes) for name in ("DM", "IPS", "PDIS", "DR")}
    values["SNIPS"] = sums["IPS"] / sums["weight"] if sums["weight"] else np.nan
    terms = [top / bottom if bottom else np.nan for top, bottom in zip(tops, bottoms, strict=True)]
    values["PDWIS"] = sum(terms)
    values["WDR"] = 0.0
    for rows in episodes:
        weight, before = 1.0, 1 / len(episodes)
        for t in range(horizon):
            if t < len(rows):
                weight *= log["ratio"][rows[t]]
            share = weight / bottoms[t] if bottoms[t] else np.nan
            if t < len(rows):
                gain = share * (log["outcome"][rows[t]] - log["q"][rows[t]]) + before * log["v"][rows[t]]
                values["WDR"] += gamma**t * gain
            elif np.isnan(share):
                values["WDR"] = np.nan
            before = share
    return values


def fast_estimates(log: dict[str, Any]) -> dict[str, float]:
    plain = {key: value for key, value in log.items() if key not in ("q", "v")}
    values = {name: estimator(**plain).estimate() for name, estimator in WEIGHTED.items()}
    values |= {name: estimator(**log).estimate() for name, estimator in MODELLED.items()}
    values["DM"] = sequential.direct_method(
        v=log["v"], episode=log["episode"], position=log["position"]
    ).estimate()
    return values


@given(ragged_logs())
@settings(deadline=None, max_examples=200)
def test_agrees_with_loops(log: dict[str, Any]) -> None:
    slow, fast = slow_estimates(log), fast_estimates(log)
    for name, value in slow.items():
        scale = np.abs(log["outcome"]).max() * max(1.0, float(np.prod(np.maximum(log["ratio"], 1))))
        np.testing.assert_allclose(fast[name], value, rtol=1e-10, atol=1e-13 * scale, err_msg=name)


@given(ragged_logs())
@settings(deadline=None, max_examples=50)
def test_target_equal_to_behaviour_gives_the_mean_return(log: dict[str, Any]) -> None:
    log |= {"ratio": np.ones_like(log["ratio"])}
    gain = log["outcome"] * log["discount_factor"] ** log["position"]
    mean = gain.sum() / (log["episode"][-1] + 1)
    fast = fast_estimates(log)
    for name in WEIGHTED:
        assert fast[name] == pytest.approx(mean, rel=1e-10, abs=1e-10)


@given(ragged_logs(), st.floats(-100, 100))
@settings(deadline=None, max_examples=50)
def test_self_normalised_is_exact_for_a_constant_return(log: dict[str, Any], constant: float) -> None:
    log |= {"ratio": log["ratio"] + 0.1, "outcome": np.where(log["position"] == 0, constant, 0.0)}
    fast = fast_estimates(log)
    assert fast["SNIPS"] == pytest.approx(constant, rel=1e-12, abs=1e-300)
    assert fast["PDWIS"] == pytest.approx(constant, rel=1e-12, abs=1e-300)


def test_episodes_of_one_step_give_the_bandit_forms() -> None:
    rng = np.random.default_rng(2)
    n = 40
    reward, ratio, q, v = rng.normal(size=n), rng.lognormal(size=n), rng.normal(size=n), rng.normal(size=n)
    index = {"episode": np.arange(n), "position": np.zeros(n, dtype=np.int64)}
    fast = fast_estimates(
        {"outcome": reward, "ratio": ratio, "q": q, "v": v, "discount_factor": 0.5, **index}
    )
    ips, snips = np.mean(ratio * reward), np.average(reward, weights=ratio)
    expected = {"DM": v.mean(), "IPS": ips, "PDIS": ips, "SNIPS": snips, "PDWIS": snips}
    expected["DR"] = np.mean(v + ratio * (reward - q))
    expected["WDR"] = v.mean() + np.average(reward - q, weights=ratio)
    assert fast == pytest.approx(expected, rel=1e-12)


def test_no_weight_at_all_is_undefined_not_zero() -> None:
    log = HAND | {"ratio": np.zeros(3)}
    assert np.isnan(WEIGHTED["SNIPS"](**log).estimate())
    assert np.isnan(WEIGHTED["PDWIS"](**log).estimate())
    assert np.isnan(MODELLED["WDR"](**log, q=np.ones(3), v=np.ones(3)).estimate())
    assert WEIGHTED["IPS"](**log).estimate() == 0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        sequential.inverse_propensity(**(HAND | {"outcome": np.zeros(2), "ratio": np.zeros(2)}))
    with pytest.raises(ValueError, match=r"equal \[E, J\] shapes"):
        EpisodeTerms(np.zeros((3, 1)), np.zeros((3, 2)))


def test_weights_that_no_right_propensity_gives_are_refused() -> None:
    episode, position = np.repeat(np.arange(2), 160), np.tile(np.arange(160), 2)
    ratio = np.where(episode == 1, 500.0, 1.0)
    with pytest.raises(LoggedDataError, match=r"propensity: episode 1 has a weight above .* 500 \(row 160\)"):
        sequential.cumulative_ratio(ratio, episode, position)
    assert sequential.cumulative_ratio(ratio[:196], episode[:196], position[:196]).max() > 1e97
