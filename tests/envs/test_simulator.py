from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from envs.assumptions import AssumedResponse
from envs.campaign import Campaign
from envs.demo_market import demo_heads, demo_market
from envs.market import draw_shocks, issue, transition
from envs.simulator import HeldCoupons, Simulator, expected_discount

Z = np.linspace(-9, 9, 40_001)
DENSITY = np.exp(-0.5 * Z**2) / np.sqrt(2 * np.pi)


def column(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(st.floats(-2, 4), st.floats(0.05, 1.5), st.floats(0.01, 1), st.floats(0.01, 20))
def test_expected_discount_against_quadrature(
    mean: float, deviation: float, depth: float, cap: float
) -> None:
    exact = np.trapezoid(np.minimum(depth * np.exp(mean + deviation * Z), cap) * DENSITY, Z)
    value = expected_discount(column(mean), column(deviation), column(depth), column(cap))
    assert float(value) == pytest.approx(exact, rel=1e-4)
    single = expected_discount(*(column(v).float() for v in (mean, deviation, depth, cap)))
    assert float(single) == pytest.approx(exact, rel=2e-3)
    assert float(value) <= min(cap, depth * np.exp(mean + deviation**2 / 2)) * (1 + 1e-9)


def test_no_depth_costs_nothing() -> None:
    zero = torch.zeros(2)
    assert expected_discount(zero, zero + 0.5, zero, zero + 1).tolist() == [0.0, 0.0]
    assert expected_discount(zero, zero + 0.5, zero, zero).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_margin_rate_is_a_fraction(rate: float) -> None:
    with pytest.raises(ValueError, match="margin_rate must be in"):
        Simulator(demo_heads(), AssumedResponse.central(), rate, "x")


def test_where_takes_coupons_user_by_user() -> None:
    held = HeldCoupons(
        torch.tensor([3, 4]), torch.rand(2), torch.rand(2), torch.tensor([5, 6]), torch.tensor([1, 2])
    )
    mixed = held.where(torch.tensor([True, False]), HeldCoupons.none(2))
    assert mixed.held.tolist() == [True, False]
    assert mixed.category.tolist() == [3, -1]
    assert mixed.liability.tolist() == [5, 0]
    assert mixed.depth.tolist() == [float(held.depth[0]), 0.0]


def test_message_and_coupon_lift_a_visit() -> None:
    market = demo_market(n_users=3)
    simulator = market.predictor
    campaign = Campaign(
        market, simulator, start=0, users=torch.arange(3), budget=1, generator=torch.Generator()
    )
    state = campaign.state
    utilities = simulator.utilities(state.history, state.embedding, campaign.calendar)
    yes = torch.ones(3, dtype=torch.bool)
    fatigue = torch.tensor([0.0, 0.5, 1.0])
    assumed = simulator.assumed
    lift = simulator.visit_logit(utilities, yes, fatigue, ~yes) - utilities.visit
    assert lift.tolist() == pytest.approx([assumed.message_lift * x for x in (1.0, 0.5, 0.0)], abs=1e-6)
    both = simulator.visit_logit(utilities, yes, fatigue, yes) - utilities.visit
    assert (both - lift).tolist() == pytest.approx([assumed.coupon_lift] * 3, abs=1e-6)


@pytest.mark.parametrize(("offer", "correlation"), [(0, 0.15), (1, 0.15), (3, 0.0), (3, 0.15), (6, 0.6)])
def test_the_expectation_is_the_mean_of_many_weeks(offer: int, correlation: float) -> None:
    n, repeats = 3000, 30
    market = demo_market(n_users=n)
    heads = copy.deepcopy(market.predictor.heads)
    heads.basket_correlation.fill_(correlation)
    heads.redemption_bias.fill_(0.0)
    world = replace(market.predictor, heads=heads)
    generator = torch.Generator().manual_seed(offer)
    campaign = Campaign(market, world, start=0, users=torch.arange(n), budget=1e6, generator=generator)
    wanted = torch.where(campaign.mask[:, offer], offer, 0)
    state, sent = issue(
        campaign.state,
        wanted,
        campaign.prediction.slots,
        market.offers,
        8,
        torch.rand(n),
    )
    totals = np.zeros((repeats, 3))
    for k in range(repeats):
        shocks = draw_shocks(n, market.population.n_categories, generator)
        _, outcome, expected = transition(
            state, sent, market.offers, world, campaign.calendar, shocks, world.assumed
        )
        discount = outcome.discount.double() / 10_000
        for column_, value in enumerate((outcome.visited.double(), outcome.margin.double(), discount)):
            totals[k, column_] = float(value.mean())
    error = 4.5 * totals.std(axis=0, ddof=1) / np.sqrt(repeats)
    mean = totals.mean(axis=0)
    for k, value in enumerate((expected.visit, expected.margin, expected.discount)):
        # The copula leaves every purchase its own probability: exact but for chance.
        assert abs(mean[k] - float(value.mean())) <= error[k] + 1e-4
    assert (mean[2] > 0.01) == (offer > 1)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_purchases_keep_their_probability_and_go_together_as_the_copula_says(correlation: float) -> None:
    # θ was fitted on marginal logits, so a coupon's lift must not shrink where visits share a random effect.
    n = 60_000
    market = demo_market(n_users=1)
    heads = copy.deepcopy(market.predictor.heads)
    heads.basket_correlation.fill_(correlation)
    world = replace(market.predictor, heads=heads)
    generator = torch.Generator().manual_seed(0)
    users = torch.zeros(n, dtype=torch.int64)
    campaign = Campaign(market, world, start=0, users=users, budget=1e6, generator=generator)
    offer = torch.full((n,), 3)
    state, sent = issue(campaign.state, offer, campaign.prediction.slots, market.offers, 8, torch.rand(n))
    shocks = draw_shocks(n, market.population.n_categories, generator)
    shocks = replace(shocks, visit=torch.zeros(n), notice=torch.zeros(n))  # all visit, all notice
    _, outcome, _ = transition(state, sent, market.offers, world, campaign.calendar, shocks, world.assumed)
    utilities = world.utilities(state.history, state.embedding, campaign.calendar)
    category = int(state.coupons.category[0])
    shelf = float(campaign.calendar.depth[category])
    extra = float(utilities.depth_slope[0, category]) * 0.4 * (1 - shelf)
    assert extra > 0.5
    logit = utilities.purchase[0].double()
    logit[category] += extra
    p = torch.sigmoid(logit).numpy()
    bought = outcome.bought.double().numpy()
    assert (np.abs(bought.mean(axis=0) - p) <= 4.5 * np.sqrt(p * (1 - p) / n)).all()
    # Two categories together against the bivariate normal distribution.
    for c, k in ((0, 1), (0, category), (5, 11)):
        if c == k:
            continue
        point = norm.ppf(p[[c, k]])
        both = float(multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf(point))
        observed = float((bought[:, c] * bought[:, k]).mean())
        assert observed == pytest.approx(both, abs=4.5 * np.sqrt(both * (1 - both) / n))
