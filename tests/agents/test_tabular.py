from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.tabular import PacedRules, PlayedCampaign, play_campaign, price_ladder
from envs.tabular_campaign import TabularCampaign
from envs.tabular_market import REFERENCE_BUDGET_PER_USER, TabularMarket
from envs.tabular_solution import (
    LagrangianBound,
    evaluate,
    lagrangian_bound,
    myopic_rule,
    no_offer_rule,
    solve,
)

PRICES = price_ladder(0.25, 4.0, 200)
SHORT_PRICES = price_ladder(0.2, 4.0, 60)


@cache
def short_market() -> TabularMarket:
    return TabularMarket.demo(horizon_weeks=12, offer_weeks=9)


@cache
def paced_index() -> PacedRules:
    return PacedRules(short_market(), solve(short_market(), SHORT_PRICES).rule)


@cache
def demo_market() -> TabularMarket:
    return TabularMarket.demo()


@cache
def demo_index() -> PacedRules:
    return PacedRules(demo_market(), solve(demo_market(), PRICES).rule)


def random_rules(market: TabularMarket, n_prices: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    shape = (n_prices, *market.allowed.shape[:-1])
    weight = (torch.from_numpy(rng.dirichlet(np.full(market.n_actions, 0.5), shape)) + 1e-9) * market.allowed
    return weight / weight.sum(dim=-1, keepdim=True)


def played(paced: PacedRules, bound: LagrangianBound, n_users: int, seeds: int) -> list[PlayedCampaign]:
    return [play_campaign(paced, bound, n_users=n_users, seed=seed) for seed in range(seeds)]


# Pacing.


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.0, 40.0), st.booleans())
def test_pacing_never_overspends_and_never_asks_for_what_is_masked(
    seed: int, n_users: int, budget: float, random: bool
) -> None:
    market = short_market()
    # Even of rules without order, at few prices.
    paced = PacedRules(market, random_rules(market, 3, seed)) if random else paced_index()
    generator = torch.Generator().manual_seed(seed)
    campaign = TabularCampaign(market, n_users=n_users, budget=budget, generator=generator)
    while not campaign.done:
        actions = paced.decide(campaign, generator)
        assert bool(campaign.mask.gather(1, actions[:, None]).all())
        campaign.step(actions)
        assert int(campaign.ledger.available) >= 0
    assert int(campaign.ledger.spent) <= int(campaign.ledger.budget)


@pytest.mark.parametrize("budget", [1.5, 3.0, 6.0])
def test_a_binding_budget_is_used(budget: float) -> None:
    bound = lagrangian_bound(demo_market(), budget)
    assert bound.dual_price > 0.5
    for campaign in played(demo_index(), bound, n_users=1_000, seeds=2):
        assert 0.97 * budget <= campaign.spend <= budget


def test_what_is_more_than_enough_is_not_spent() -> None:
    market = short_market()
    generous = SHORT_PRICES[:1]
    paced = PacedRules(market, solve(market, generous).rule)
    expected = evaluate(market, solve(market, float(generous)).rule)
    bound = lagrangian_bound(market, 100.0)
    spends = [campaign.spend for campaign in played(paced, bound, n_users=2_000, seeds=4)]
    assert np.mean(spends) == pytest.approx(float(expected.cost), rel=0.03)


def test_without_money_nothing_is_sent() -> None:
    market = short_market()
    campaign = TabularCampaign(market, n_users=50, budget=0.0, generator=torch.Generator())
    assert int(paced_index().decide(campaign, torch.Generator()).max()) == 0


def test_rules_that_all_cost_too_much_are_mixed_with_sending_nothing() -> None:
    market = short_market()
    always_large = torch.where(
        market.allowed[..., 3:], torch.tensor([0.0, 0.0, 0.0, 1.0]), no_offer_rule(market)
    )
    paced = PacedRules(market, always_large.double()[None])
    bound = lagrangian_bound(market, 0.5)
    for campaign in played(paced, bound, n_users=2_000, seeds=2):
        assert 0.97 * 0.5 <= campaign.spend <= 0.5


def test_a_randomised_rule_is_drawn_as_it_says() -> None:
    market = short_market()
    rule = random_rules(market, 1, seed=0)
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    campaign = TabularCampaign(market, n_users=n, budget=1e7, generator=generator)
    actions = PacedRules(market, rule).decide(campaign, generator)
    expected = rule[0, 0, campaign.user_type, campaign.state].mean(dim=0)
    drawn = torch.nn.functional.one_hot(actions, market.n_actions).double().mean(dim=0)
    error = (drawn - expected).abs()
    assert bool((error <= 4.0 * (expected * (1.0 - expected) / n).sqrt()).all())


def test_the_estimate_by_advantages_agrees_with_realised_margins() -> None:
    market = short_market()
    bound = lagrangian_bound(market, 0.5)
    paced = PacedRules(market, myopic_rule(market, SHORT_PRICES))
    campaigns = played(paced, bound, n_users=500, seeds=40)
    expected = np.array([campaign.expected_margin for campaign in campaigns])
    realised = np.array([campaign.margin for campaign in campaigns])
    difference = realised - expected
    assert abs(difference.mean()) < 4.0 * difference.std() / len(campaigns) ** 0.5
    # That is what it is for.
    assert expected.std() < 0.3 * realised.std()


def test_equal_seeds_play_equal_campaigns_and_policies_share_their_luck() -> None:
    market = short_market()
    bound = lagrangian_bound(market, 0.5)
    one, two = (play_campaign(paced_index(), bound, n_users=100, seed=3) for _ in range(2))
    assert one == two
    assert one != play_campaign(paced_index(), bound, n_users=100, seed=4)
    # At no price is anything sent: the policy draws, and changes nothing.
    nothing = PacedRules(market, no_offer_rule(market)[None])
    expensive = PacedRules(market, solve(market, torch.tensor([50.0]).double()).rule)
    of_nothing, of_expensive = (play_campaign(p, bound, n_users=100, seed=3) for p in (nothing, expensive))
    assert of_nothing == of_expensive
    assert of_nothing.spend == 0.0


def test_foresight_reaches_the_bound_and_myopia_does_not() -> None:
    bound = lagrangian_bound(demo_market(), REFERENCE_BUDGET_PER_USER)

    def shares(paced: PacedRules) -> list[float]:
        campaigns = played(paced, bound, n_users=1000, seeds=8)
        return [bound.share_of_bound(campaign.expected_margin) for campaign in campaigns]

    foresight = shares(demo_index())
    myopia = shares(PacedRules(demo_market(), myopic_rule(demo_market(), PRICES)))
    assert 0.99 <= np.mean(foresight) <= 1.0
    assert np.std(foresight) < 0.01
    assert 0.66 <= np.mean(myopia) <= 0.78


# What is refused.


def test_ladders_rules_and_campaigns_that_make_no_sense_are_refused() -> None:
    market = short_market()
    for low, high in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="positive, finite and increasing"):
            price_ladder(low, high, 3)
    with pytest.raises(ValueError, match="n_prices must be >= 2"):
        price_ladder(0.5, 1.0, 1)
    rule = no_offer_rule(market)
    for bad, message in (
        (rule, r"rules must have shape \[L, T, G, S, K\]"),
        (rule[None, 1:], "a rule must be float64 of shape"),
        (rule[None] * 0.9, "sum to 1"),
        (torch.full_like(rule, 0.25)[None], "masked action"),
    ):
        with pytest.raises(ValueError, match=message):
            PacedRules(market, bad)
    campaign = TabularCampaign(
        replace(market, horizon_weeks=1, offer_weeks=1), n_users=2, budget=1.0, generator=torch.Generator()
    )
    campaign.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="the campaign is over"):
        paced_index().decide(campaign, torch.Generator())
    with pytest.raises(ValueError, match="n_users must be >= 1"):
        play_campaign(paced_index(), lagrangian_bound(market, 0.5), n_users=0, seed=0)


def test_the_ladder_is_even_in_logarithms() -> None:
    ladder = price_ladder(0.5, 2.0, 3)
    torch.testing.assert_close(ladder, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
