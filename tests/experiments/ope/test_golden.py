"""Equality with independent implementations, whose answers stand in golden/ with the recipes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.ope import distribution, one_step, sequential
from experiments.ope.distribution import ReturnDistribution
from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.fitted_q import FittedQConfig, fit_q
from experiments.ope.intervals import delta_interval
from experiments.ope.logged_dataset import LoggedDataset

GOLDEN = Path(__file__).with_name("golden")
RTOL = 1e-8
"""SCOPE-RL adds 1e-10 to its denominators, and its grid stands 1e-12 beside each return."""


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def arrays(log: dict[str, Any]) -> dict[str, Any]:
    """The log as this package takes it."""
    behaviour, target, q = (np.array(log[key]) for key in ("behaviour", "target", "q"))
    action, lengths = np.array(log["action"]), log["lengths"]
    rows = np.arange(action.size)
    return {
        "outcome": np.array(log["reward"]),
        "ratio": target[rows, action] / behaviour[rows, action],
        "q": q[rows, action],
        "v": (target * q).sum(axis=1),
        "episode": np.repeat(np.arange(len(lengths)), lengths),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        "discount_factor": log["discount_factor"],
    }


def sequential_estimates(log: dict[str, Any]) -> dict[str, float]:
    modelled = arrays(log)
    weighted = {key: value for key, value in modelled.items() if key not in ("q", "v")}
    terms = {
        "DM": sequential.direct_method(**{key: modelled[key] for key in ("v", "episode", "position")}),
        "IPS": sequential.inverse_propensity(**weighted),
        "SNIPS": sequential.self_normalised(**weighted),
        "PDIS": sequential.per_decision(**weighted),
        "PDWIS": sequential.weighted_per_decision(**weighted),
        "DR": sequential.doubly_robust(**modelled),
        "WDR": sequential.weighted_doubly_robust(**modelled),
    }
    return {name: found.estimate() for name, found in terms.items()}


@pytest.mark.parametrize("log", ["fixed", "fixed_undiscounted", "variable"])
def test_sequential_estimators_equal_scope_rl(log: str) -> None:
    expected = golden("scope_rl")["values"][log]
    assert len(expected) == 7
    assert sequential_estimates(golden("logs")[log]) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize(("log", "size"), [("fixed", 6), ("fixed_undiscounted", 6), ("variable", 4)])
def test_sequential_estimators_equal_offline_rl_ope(log: str, size: int) -> None:
    expected = golden("offline_rl_ope")[log]
    assert len(expected) == size
    found = sequential_estimates(golden("logs")[log])
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=RTOL)


def one_step_terms() -> dict[str, EpisodeTerms]:
    log = arrays(golden("logs")["one_step"])
    weighted = {"reward": log["outcome"], "ratio": log["ratio"]}
    modelled = weighted | {"q": log["q"], "v": log["v"]}
    terms = {
        "DM": one_step.direct_method(v=log["v"]),
        "IPS": one_step.inverse_propensity(**weighted),
        "SNIPS": one_step.self_normalised(**weighted),
        "DR": one_step.doubly_robust(**modelled),
        "SNDR": one_step.self_normalised_doubly_robust(**modelled),
    }
    for threshold in (0.0, 0.5, 1.0, 2.0):
        terms[f"SWITCH-DR {threshold}"] = one_step.switch_doubly_robust(**modelled, threshold=threshold)
    for shrinkage in (0.0, 0.3, 1.0, 10.0):
        terms[f"DRos {shrinkage}"] = one_step.optimistic_shrinkage(**modelled, shrinkage=shrinkage)
    return terms


def test_one_step_estimators_equal_obp() -> None:
    found = {name: terms.estimate() for name, terms in one_step_terms().items()}
    assert found == pytest.approx(golden("obp"), rel=RTOL)


def test_one_step_estimators_equal_vw_estimators() -> None:
    terms, expected = one_step_terms(), golden("vw_estimators")
    for name in ("IPS", "SNIPS"):
        assert terms[name].estimate() == pytest.approx(expected[name], rel=RTOL)
    interval = delta_interval(terms["IPS"], np.arange(terms["IPS"].n_episodes))
    assert [interval.low, interval.high] == pytest.approx(expected["IPS interval"], rel=RTOL)


def return_distribution(name: str) -> ReturnDistribution:
    log = arrays(golden("logs")["fixed_undiscounted"])
    place = (log["episode"], log["position"])
    returns = sequential.discounted(log["outcome"], *place, 1.0).sum(axis=1)
    weight = sequential.cumulative_ratio(log["ratio"], *place)[:, -1]
    if name == "importance_sampling":
        return distribution.importance_sampling(returns=returns, weight=weight)
    if name == "self_normalised":
        return distribution.self_normalised(returns=returns, weight=weight)
    start_values = sequential.by_episode(log["v"], *place, 0.0)[:, :1]
    return distribution.doubly_robust(returns=returns, weight=weight, model_returns=start_values)


@pytest.mark.parametrize("name", ["importance_sampling", "self_normalised", "doubly_robust"])
def test_distributions_equal_scope_rl(name: str) -> None:
    expected = golden("scope_rl")["distributions"][name]
    found = return_distribution(name)
    np.testing.assert_allclose(found.probability(np.array(expected["grid"])), expected["cdf"], rtol=RTOL)
    assert found.mean() == pytest.approx(expected["mean"], rel=RTOL)
    assert found.variance() == pytest.approx(expected["variance"], rel=RTOL)
    for level, cvar in zip(expected["levels"], expected["cvar"], strict=True):
        # SCOPE-RL averages up to the first return at which F exceeds the level: CVaR at F there.
        above = found.cdf[found.cdf > level][0]
        assert found.conditional_value_at_risk(above) == pytest.approx(cvar, rel=RTOL)


def test_fitted_q_equals_d3rlpy() -> None:
    """With two users in two folds, each user's values are fitted on the other's rows, like the recipe's."""
    chain = golden("logs")["chain"]
    column = {name: np.array(chain[name]) for name in ("user", "campaign", "week", "state", "offer")}
    n = column["user"].size
    done = np.array(chain["done"])
    cells = np.eye(3, dtype=np.float32)[column["state"]]
    log = LoggedDataset(
        observation=cells,
        action=column["offer"],
        mask=np.ones((n, 2), dtype=np.bool_),
        propensity=np.full(n, 0.5),
        reward=np.array(chain["reward"]),
        cost=np.zeros(n),
        next_observation=cells,
        terminated=done,
        truncated=np.zeros(n, dtype=np.bool_),
        user=column["user"],
        campaign=column["campaign"],
        week=column["week"],
        dual_price=np.zeros(n),
        observation_names=("zero", "one", "two"),
        propensity_source="logged",
    )
    target = np.eye(2)[np.array(chain["target_offer"])[column["state"]]]
    fitted = fit_q(
        log,
        target,
        log.reward,
        rng=np.random.default_rng(0),
        discount_factor=chain["discount_factor"],
        config=FittedQConfig(ridge=0.0),
    )
    fitted_on_user = np.array(golden("d3rlpy")["fitted_on_user"])
    expected = fitted_on_user[1 - log.user, log.week * 3 + column["state"]]
    np.testing.assert_allclose(fitted.q, expected, rtol=RTOL)
