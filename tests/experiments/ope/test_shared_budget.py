"""The budget equation: its solution by hand, its error by the delta method and by repeated logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit

from experiments.ope.influence import cluster_influence
from experiments.ope.logged_dataset import FloatArray, IntArray, LoggedDataset
from experiments.ope.price_curves import (
    PriceCurves,
    estimate_curves,
    level_terms,
    logging_policy_values,
)
from experiments.ope.shared_budget import at_place, cautious_interval, solve_budget, value_under_budget

LEVELS = np.geomspace(0.4, 2.5, 9)
NAN = float("nan")


@dataclass(frozen=True)
class Shop:
    """Two weeks, two kinds of users, one coupon; nothing that happens in one week changes the next.

    The target sends with probability σ(worth_x - 3 log λ), the log with one half. Margin and cost of a price
    level are sums over kinds and weeks, known exactly.
    """

    worth: FloatArray
    base: FloatArray
    uplift: FloatArray
    cost: FloatArray
    noise: float = 1.0

    @classmethod
    def example(cls) -> Shop:
        return cls(
            worth=np.array([-0.5, 0.5]),
            base=np.array([2.0, 6.0]),
            uplift=np.array([2.0, 3.0]),
            cost=np.array([0.5, 1.0]),
        )

    def sends(self, level: float) -> FloatArray:
        return np.asarray(expit(self.worth - 3 * np.log(level)))

    def margin(self, level: float) -> float:
        return float(2 * (self.base + self.uplift * self.sends(level)).mean())

    def use(self, level: float) -> float:
        return float(2 * (self.cost * self.sends(level)).mean())

    def level_of(self, budget: float) -> float:
        return float(brentq(lambda level: self.use(level) - budget, 0.01, 100))

    def log(self, rng: np.random.Generator, n_users: int) -> LoggedDataset:
        kind = np.repeat(rng.integers(2, size=n_users), 2)
        n = kind.size
        action = rng.integers(2, size=n)
        redeemed = rng.random(n) < 0.5
        one_hot = np.eye(2, dtype=np.float32)[kind]
        last = np.tile([False, True], n_users)
        return LoggedDataset(
            observation=one_hot,
            action=action,
            mask=np.ones((n, 2), dtype=np.bool_),
            propensity=np.full(n, 0.5),
            reward=self.base[kind] + self.uplift[kind] * action + self.noise * rng.standard_normal(n),
            cost=2 * self.cost[kind] * action * redeemed,
            next_observation=one_hot,
            terminated=last,
            truncated=np.zeros(n, dtype=np.bool_),
            user=np.repeat(np.arange(n_users), 2),
            campaign=np.zeros(n, dtype=np.int64),
            week=np.tile(np.array([5, 6]), n_users),
            dual_price=np.tile(np.array([3.0, 1.5]), n_users),
            observation_names=("light", "heavy"),
            propensity_source="logged",
            behaviour_probabilities=np.full((n, 2), 0.5),
        )

    def target(self, log: LoggedDataset) -> Callable[[float], FloatArray]:
        kind: IntArray = log.observation.argmax(axis=1)

        def probabilities(level: float) -> FloatArray:
            send = self.sends(level)[kind]
            return np.stack([1 - send, send], axis=1)

        return probabilities

    def curves(self, seed: int, n_users: int, n_bootstrap: int = 300) -> PriceCurves:
        rng = np.random.default_rng(seed)
        log = self.log(rng, n_users)
        return estimate_curves(
            log,
            self.target(log),
            levels=LEVELS,
            values=logging_policy_values(log, rng=rng),
            rng=rng,
            n_bootstrap=n_bootstrap,
        )


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop.example()


@pytest.mark.parametrize(
    ("use", "weight", "budget", "place"),
    [
        ([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], 3.0, 0.5),
        ([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], 1.25, 1.75),
        ([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], 1.0, 2.0),
        ([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], 4.0, 0.0),
        ([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], 9.0, 0.0),
        ([4.0, 2.0, 1.0], [1.0, 1.0, 1.0], 0.9, NAN),
        ([4.0, 1.0, 3.0, 0.5], [1.0, 1.0, 1.0, 1.0], 1.25, 2.5),  # 1 and 3 are pooled to 2
        ([4.0, 1.0, 3.0, 0.5], [1.0, 3.0, 1.0, 1.0], 1.5, 1.0),  # … with the weights to 1.5
        ([4.0, NAN, 1.0], [1.0, 1.0, 1.0], 2.0, NAN),
    ],
)
def test_where_the_use_meets_the_budget(
    use: list[float], weight: list[float], budget: float, place: float
) -> None:
    found = solve_budget(np.array(use), budget, np.array(weight))
    assert float(found) == pytest.approx(place, nan_ok=True)
    both = solve_budget(np.array([use, use[::-1]]), budget, np.array(weight))
    assert both.shape == (2,)
    assert both[0] == pytest.approx(place, nan_ok=True)


@given(
    st.lists(st.floats(0, 10), min_size=2, max_size=8),
    st.floats(0, 10),
    st.floats(0, 10),
    st.integers(0, 2**32 - 1),
)
def test_a_larger_budget_never_needs_a_higher_price(
    use: list[float], one: float, two: float, seed: int
) -> None:
    curve = np.array(use)
    weight = np.random.default_rng(seed).uniform(0.1, 5, size=curve.size)
    places = [float(solve_budget(curve, budget, weight)) for budget in sorted((one, two))]
    if not np.isnan(places[0]):
        assert places[0] >= places[1] - 1e-9
    decreasing = isotonic_regression(curve, weights=weight, increasing=False).x
    for budget, place in zip(sorted((one, two)), places, strict=True):
        if np.isnan(place):
            assert decreasing[-1] > budget
        elif place > 0:
            spent = float(at_place(decreasing, np.array(place)))
            assert spent == pytest.approx(budget, rel=1e-6, abs=1e-6)
        else:
            assert decreasing[0] <= budget


def test_values_between_grid_points() -> None:
    curve = np.array([1.0, 3.0, NAN])
    found = at_place(np.tile(curve, (4, 1)), np.array([0.0, 0.25, 1.0, NAN]))
    np.testing.assert_allclose(found, [1.0, 1.5, 3.0, NAN])
    assert float(at_place(np.array([1.0, 3.0]), np.array(1.0))) == 3.0


def test_a_resample_without_a_root_counts_as_outside_at_both_ends() -> None:
    values = np.arange(1.0, 101.0)
    interval = cautious_interval(values, 0.9)
    assert (interval.low, interval.high) == (5.0, 96.0)
    values[[10, 50, 90]] = NAN
    interval = cautious_interval(values, 0.9)
    assert (interval.low, interval.high) == (2.0, 99.0)
    values[:10] = NAN
    assert cautious_interval(values, 0.9).high == np.inf
    with pytest.raises(ValueError, match="confidence"):
        cautious_interval(values, 1.0)


def test_the_logging_policy_at_the_budget_that_it_used_is_the_log_itself(shop: Shop) -> None:
    rng = np.random.default_rng(0)
    log = shop.log(rng, 400)
    n = log.n_steps

    def same_at_level_one(level: float) -> FloatArray:
        send = float(expit(-3 * np.log(level)))
        return np.tile([1 - send, send], (n, 1))

    curves = estimate_curves(
        log,
        same_at_level_one,
        levels=[0.5, 1.0, 2.0],
        values=np.zeros((n, 2)),
        rng=rng,
        n_bootstrap=50,
    )
    spent = log.cost.sum() / 400
    found = value_under_budget(curves, spent, policy="logged")
    assert found.level == pytest.approx(1.0)
    assert found.dual_price == pytest.approx(3.0)
    assert found.cost == pytest.approx(spent)
    assert found.use == pytest.approx(spent)
    assert found.value == pytest.approx(log.reward.sum() / 400)
    assert found.ess == pytest.approx(400)
    assert found.binding == "binding"
    assert (found.verdict, found.policy, found.budget) == ("trust", "logged", spent)


def test_price_and_margin_where_both_are_known_exactly(shop: Shop) -> None:
    curves = shop.curves(seed=1, n_users=20_000)
    for level in (0.7, 1.0, 1.4):
        budget = shop.use(level)
        found = value_under_budget(curves, budget, policy="σ")
        assert found.level == pytest.approx(level, rel=0.03)
        assert found.value == pytest.approx(shop.margin(level), rel=0.01)
        assert found.cost == pytest.approx(budget, rel=1e-6)  # what is paid is the use here
        assert found.dual_price == pytest.approx(3.0 * found.level)
        assert found.ci_low < shop.margin(level) < found.ci_high
        assert found.verdict == "trust"
    assert shop.level_of(shop.use(1.4)) == pytest.approx(1.4)


def test_intervals_cover_margin_and_price_over_many_logs(shop: Shop) -> None:
    """Without the error of λ* the intervals would be too narrow: margin follows the price closely here."""
    quiet = replace(shop, noise=0.05, base=np.array([2.0, 2.0]))
    budget, level = quiet.use(0.9), 0.9
    price, margin = 3.0 * level, quiet.margin(level)
    hits = np.zeros(3)
    trials = 150
    for seed in range(trials):
        curves = quiet.curves(seed=100 + seed, n_users=250, n_bootstrap=200)
        found = value_under_budget(curves, budget, policy="σ")
        at_known_price = at_place(curves.resampled.margin, np.full(200, np.interp(level, LEVELS, range(9))))
        naive = cautious_interval(at_known_price, 0.95)
        centre = found.value - float(np.median(at_known_price))
        hits += [
            found.ci_low <= margin <= found.ci_high,
            found.dual_price_low <= price <= found.dual_price_high,
            naive.low + centre <= margin <= naive.high + centre,
        ]
    share = hits / trials
    assert 0.90 <= share[0] <= 0.99
    assert 0.90 <= share[1] <= 0.99
    assert share[2] < share[0] - 0.05


def test_bootstrap_agrees_with_the_delta_method(shop: Shop) -> None:
    curves = shop.curves(seed=3, n_users=3000, n_bootstrap=2000)
    budget = shop.use(1.1)
    found = value_under_budget(curves, budget, policy="σ")
    log = curves.dataset
    values = logging_policy_values(log, rng=np.random.default_rng(9))
    left = int(np.searchsorted(LEVELS, found.level)) - 1
    margins, uses, influences = [], [], []
    for level in LEVELS[[left, left + 1]]:
        terms = level_terms(log, curves.target(level), values=values, use=log.cost)
        margins.append(terms.margin.estimate())
        uses.append(terms.use.estimate())
        influences.append([cluster_influence(part, log.user[::2]) for part in (terms.margin, terms.use)])
    # place = (U_0 - b) / (U_0 - U_1), value = M_0 + place (M_1 - M_0), log λ = log λ_0 + place Δ.
    place = (uses[0] - budget) / (uses[0] - uses[1])
    of_place = ((1 - place) * influences[0][1] + place * influences[1][1]) / (uses[0] - uses[1])
    of_value = (
        (1 - place) * influences[0][0] + place * influences[1][0] + of_place * (margins[1] - margins[0])
    )
    n = of_value.size

    def width(influence: FloatArray) -> float:
        return float(2 * 1.96 * np.sqrt((influence**2).sum() / (n * (n - 1))))

    step = float(np.log(LEVELS[1] / LEVELS[0]))
    assert found.ci_high - found.ci_low == pytest.approx(width(of_value), rel=0.1)
    price_width = np.log(found.dual_price_high / found.dual_price_low)
    assert price_width == pytest.approx(width(of_place * step), rel=0.1)


def test_a_budget_that_does_not_bind(shop: Shop) -> None:
    curves = shop.curves(seed=4, n_users=2000)
    found = value_under_budget(curves, 100.0, policy="σ")
    assert found.binding == "never binding"
    assert found.level == pytest.approx(LEVELS[0])
    assert found.value == pytest.approx(curves.point.margin[0])
    assert found.use < 100
    assert found.reason.startswith("the budget does not bind: even at the lowest price")
    assert found.dual_price_low == pytest.approx(found.dual_price_high)


def test_a_budget_below_what_any_price_of_the_grid_spends(shop: Shop) -> None:
    curves = shop.curves(seed=4, n_users=2000)
    found = value_under_budget(curves, 1e-6, policy="σ")
    assert found.binding == "beyond the grid"
    assert found.verdict == "do not use"
    assert "extend the grid upwards" in found.reason
    row = found.to_dict()
    assert row["value"] is row["ci_low"] is row["ci_high"] is row["dual_price"] is None
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_budget_at_the_edge_of_the_grid_is_no_longer_trusted(shop: Shop) -> None:
    curves = shop.curves(seed=4, n_users=2000)
    edge = float(curves.point.use[-1]) * 1.001
    found = value_under_budget(curves, edge, policy="σ")
    assert found.binding == "binding"
    assert found.verdict == "do not use"
    assert "of the resamples exceed the budget at every price" in found.reason
    assert found.dual_price_high == np.inf
    assert found.to_dict()["dual_price_high"] is None


def test_a_wide_interval_is_of_no_use_however_good_the_weights(shop: Shop) -> None:
    found = value_under_budget(replace(shop, noise=200.0).curves(seed=6, n_users=2000), 0.7, policy="σ")
    assert found.ess > 1500
    assert np.isfinite([found.ci_low, found.ci_high]).all()
    assert (found.ci_high - found.ci_low) / 2 > 0.25 * abs(found.value)
    assert found.verdict == "do not use"
    assert "either way is its interval" in found.reason


def test_a_target_that_nobody_acted_like(shop: Shop) -> None:
    rng = np.random.default_rng(5)
    log = shop.log(rng, 50)
    log = replace(
        log,
        action=np.zeros(100, dtype=np.int64),
        propensity=np.ones(100),
        behaviour_probabilities=np.tile([1.0, 0.0], (100, 1)),
    )
    curves = estimate_curves(
        log,
        lambda level: np.tile([0.0, 1.0], (100, 1)),
        levels=[0.5, 1.0],
        values=np.zeros((100, 2)),
        rng=rng,
        n_bootstrap=20,
    )
    found = value_under_budget(curves, 0.5, policy="all")
    assert found.verdict == "do not use"
    assert np.isnan(found.value)
    assert "nobody in the log acted like the policy" in found.reason


@pytest.mark.parametrize("budget", [-1.0, NAN, np.inf])
def test_budgets_that_are_none(shop: Shop, budget: float) -> None:
    curves = shop.curves(seed=4, n_users=50, n_bootstrap=10)
    with pytest.raises(ValueError, match="budget per user"):
        value_under_budget(curves, budget, policy="σ")


@pytest.mark.parametrize(
    ("levels", "message"),
    [([1.0], "two or more"), ([2.0, 1.0], "ascending"), ([0.0, 1.0], "positive"), ([1.0, 1.0], "ascending")],
)
def test_grids_that_are_none(shop: Shop, levels: list[float], message: str) -> None:
    rng = np.random.default_rng(6)
    log = shop.log(rng, 10)
    with pytest.raises(ValueError, match=message):
        estimate_curves(log, shop.target(log), levels=levels, values=np.zeros((20, 2)), rng=rng)


def test_logs_that_are_at_no_price_path(shop: Shop) -> None:
    rng = np.random.default_rng(7)
    log = shop.log(rng, 10)

    def estimate(log: LoggedDataset) -> PriceCurves:
        return estimate_curves(log, shop.target(log), levels=LEVELS, values=np.zeros((20, 2)), rng=rng)

    own = log.dual_price.copy()
    own[4] = 2.0
    with pytest.raises(ValueError, match=r"row 4 has 2.0 in week 5, others of that week another one"):
        estimate(replace(log, dual_price=own))
    with pytest.raises(ValueError, match="at the price 0"):
        estimate(replace(log, dual_price=np.zeros(20)))
    # Campaigns may differ in their prices, users of one may not.
    two = np.repeat([0, 1], 10)
    curves = estimate(replace(log, campaign=two, dual_price=log.dual_price * (1 + 3 * two)))
    assert curves.first_price == pytest.approx(6.0)  # the geometric mean of 3 and 12
    with pytest.raises(ValueError, match="has no behaviour_probabilities"):
        logging_policy_values(replace(log, behaviour_probabilities=None), rng=rng)
