from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.ope import one_step
from experiments.ope.episode_terms import EpisodeTerms

HAND: dict[str, Any] = {
    "reward": np.array([1.0, 2.0, 4.0]),
    "ratio": np.array([2.0, 0.5, 3.0]),
    "q": np.array([1.5, 1.0, 3.0]),
    "v": np.array([2.0, 3.0, 5.0]),
}
ROBUST: dict[str, Callable[..., EpisodeTerms]] = {
    "DR": one_step.doubly_robust,
    "SNDR": one_step.self_normalised_doubly_robust,
    "SWITCH-DR": lambda **log: one_step.switch_doubly_robust(**log, threshold=2.0),
    "DRos": lambda **log: one_step.optimistic_shrinkage(**log, shrinkage=4.0),
}


def test_by_hand() -> None:
    weighted = {key: HAND[key] for key in ("reward", "ratio")}
    assert one_step.direct_method(v=HAND["v"]).estimate() == pytest.approx(10 / 3)
    assert one_step.inverse_propensity(**weighted).estimate() == pytest.approx((2 + 1 + 12) / 3)
    assert one_step.self_normalised(**weighted).estimate() == pytest.approx(15 / 5.5)
    residual = [2 * -0.5, 0.5 * 1.0, 3 * 1.0]
    expected = {
        "DR": (10 + sum(residual)) / 3,
        "SNDR": 10 / 3 + sum(residual) / 5.5,
        "SWITCH-DR": (10 + residual[0] + residual[1]) / 3,
        "DRos": (10 + residual[0] * 4 / (4 + 4) + residual[1] * 4 / (0.25 + 4) + residual[2] * 4 / (9 + 4))
        / 3,
    }
    found = {name: estimator(**HAND).estimate() for name, estimator in ROBUST.items()}
    assert found == pytest.approx(expected, rel=1e-14)


def test_settings_run_from_the_direct_method_to_doubly_robust() -> None:
    direct, robust = one_step.direct_method(v=HAND["v"]).estimate(), one_step.doubly_robust(**HAND).estimate()
    for estimator in (
        lambda setting: one_step.switch_doubly_robust(**HAND, threshold=setting),
        lambda setting: one_step.optimistic_shrinkage(**HAND, shrinkage=setting),
    ):
        assert estimator(0.0).estimate() == pytest.approx(direct)
        assert estimator(np.inf).estimate() == pytest.approx(robust)


@st.composite
def bandits(draw: st.DrawFn) -> dict[str, Any]:
    """Contexts with behaviour and target distributions, mean rewards and a model, all enumerable."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, n_offers = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    return {
        "behaviour": rng.dirichlet(np.ones(n_offers), size=n),
        "target": rng.dirichlet(np.ones(n_offers), size=n),
        "reward": rng.normal(size=(n, n_offers)),
        "model": rng.normal(size=(n, n_offers)),
        "group": rng.integers(2, size=n_offers),
    }


def enumerated(bandit: dict[str, Any], model: str) -> tuple[Any, dict[str, Any]]:
    """Every (context, offer) as a row: its probability, and the log."""
    n, n_offers = bandit["target"].shape
    context, offer = np.repeat(np.arange(n), n_offers), np.tile(np.arange(n_offers), n)
    q = bandit[model]
    log = {
        "reward": bandit["reward"][context, offer],
        "ratio": (bandit["target"] / bandit["behaviour"])[context, offer],
        "q": q[context, offer],
        "v": (bandit["target"] * q).sum(axis=1)[context],
    }
    return bandit["behaviour"][context, offer] / n, log


def expectation(probability: Any, terms: EpisodeTerms) -> float:
    return float(((probability @ terms.numerator) / (probability @ terms.denominator)).sum())


@given(bandits())
@settings(deadline=None, max_examples=100)
def test_expectation_over_all_offers_is_the_true_value(bandit: dict[str, Any]) -> None:
    truth = (bandit["target"] * bandit["reward"]).sum(axis=1).mean()
    probability, log = enumerated(bandit, "model")
    weighted = {key: log[key] for key in ("reward", "ratio")}
    terms = [one_step.inverse_propensity(**weighted), one_step.self_normalised(**weighted)]
    terms += [ROBUST["DR"](**log), ROBUST["SNDR"](**log)]
    for found in terms:
        assert expectation(probability, found) == pytest.approx(truth, abs=1e-9)


@given(bandits())
@settings(deadline=None, max_examples=50)
def test_exact_model_makes_every_robust_estimator_the_direct_method(bandit: dict[str, Any]) -> None:
    probability, log = enumerated(bandit, "reward")
    direct = expectation(probability, one_step.direct_method(v=log["v"]))
    for estimator in ROBUST.values():
        assert expectation(probability, estimator(**log)) == pytest.approx(direct, abs=1e-9)


@given(bandits())
@settings(deadline=None, max_examples=100)
def test_marginal_ratios_are_unbiased_where_offers_of_a_group_do_the_same(bandit: dict[str, Any]) -> None:
    n, n_offers = bandit["target"].shape
    bandit["reward"] = bandit["reward"][:, bandit["group"]]  # the first two columns, by group
    probability, log = enumerated(bandit, "model")
    context, offer = np.repeat(np.arange(n), n_offers), np.tile(np.arange(n_offers), n)
    ratio = one_step.marginal_ratio(
        target_probabilities=bandit["target"][context],
        behaviour_probabilities=bandit["behaviour"][context],
        action=offer,
        group=bandit["group"] * 7 - 3,  # names of groups are any integers
    )
    truth = (bandit["target"] * bandit["reward"]).sum(axis=1).mean()
    terms = one_step.inverse_propensity(reward=log["reward"], ratio=ratio)
    assert expectation(probability, terms) == pytest.approx(truth, abs=1e-9)
    # E[w | x, group] is the marginal ratio, so it varies no more than w.
    assert probability @ ratio**2 <= probability @ log["ratio"] ** 2 + 1e-9


def test_marginal_ratio_by_hand_and_its_ends() -> None:
    arguments = {
        "target_probabilities": np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]]),
        "behaviour_probabilities": np.array([[0.4, 0.4, 0.2], [0.0, 0.5, 0.5]]),
        "action": np.array([1, 2]),
    }
    grouped = one_step.marginal_ratio(**arguments, group=np.array([5, 5, 9]))
    np.testing.assert_allclose(grouped, [0.3 / 0.8, 0.0])
    np.testing.assert_allclose(one_step.marginal_ratio(**arguments, group=np.zeros(3, dtype=int)), [1, 1])
    single = one_step.marginal_ratio(**arguments, group=np.arange(3))
    np.testing.assert_allclose(single, [0.2 / 0.4, 0.0 / 0.5])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        one_step.doubly_robust(**(HAND | {"q": np.zeros(2)}))
    with pytest.raises(ValueError, match="threshold must be at least 0, not nan"):
        one_step.switch_doubly_robust(**HAND, threshold=np.nan)
    with pytest.raises(ValueError, match="shrinkage must be at least 0, not -1"):
        one_step.optimistic_shrinkage(**HAND, shrinkage=-1.0)
    arguments = {
        "target_probabilities": np.full((2, 2), 0.5),
        "behaviour_probabilities": np.array([[1.0, 0.0], [1.0, 0.0]]),
        "action": np.array([0, 1]),
    }
    with pytest.raises(ValueError, match="row 1 gives the group of the offer sent, 1, no probability"):
        one_step.marginal_ratio(**arguments, group=np.arange(2))
    with pytest.raises(ValueError, match=r"group \(3,\)"):
        one_step.marginal_ratio(**arguments, group=np.arange(3))
