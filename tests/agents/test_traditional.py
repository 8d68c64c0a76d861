from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.pacing import expected_commitment
from agents.policy import Policy
from agents.traditional import (
    SPEND_RESPONSE,
    EveryoneAtSetTimes,
    FixedCategory,
    LoyaltyCriterion,
    LoyaltyReward,
    WelcomeGift,
    traditional_strategies,
)
from envs.campaign import Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.observation import CONTEXT_FEATURES, LOG_DUAL_PRICE, ObservationLayout
from envs.offers import Catalogue, Channel, Offer, OfferKind

K = len(Catalogue.built_in())
LAYOUT = ObservationLayout(4, K)
NONE = Offer("nothing", OfferKind.NONE)
SEEDS = st.integers(0, 2**31)


def user(n: int = 1, price: float = 1.0, **features: float) -> torch.Tensor:
    """Rows of one user like any other but for the features given."""
    rows = torch.zeros(n, LAYOUT.width)
    rows[:, LOG_DUAL_PRICE] = float(np.log(price))
    for name, value in features.items():
        rows[:, CONTEXT_FEATURES.index(name)] = value
    return rows


def sent(policy: Policy, rows: torch.Tensor, offer: int) -> list[float]:
    """Probability of the offer where all are allowed."""
    mask = torch.ones(len(rows), K, dtype=torch.bool)
    return [float(p) for p in policy.probabilities(rows, mask)[:, offer]]


def all_policies() -> list[Policy]:
    return [
        EveryoneAtSetTimes(3, every_weeks=2),
        WelcomeGift(2),
        LoyaltyReward(9, 2.0),
        LoyaltyReward(9, 2.0, LoyaltyCriterion.FREQUENCY),
        FixedCategory(2),
    ]


def rows_and_mask(seed: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = 3.0 * torch.randn(n, LAYOUT.width, generator=generator)
    rows[:, CONTEXT_FEATURES.index("weeks_left")] = torch.randint(1, 9, (n,), generator=generator).float()
    mask = torch.rand(n, K, generator=generator) < 0.7
    mask[:, 0] = True
    return rows, mask


@pytest.mark.parametrize("policy", all_policies(), ids=lambda policy: policy.name)
@given(seed=SEEDS)
def test_rows_are_distributions_within_the_mask_and_do_not_depend_on_each_other(
    policy: Policy, seed: int
) -> None:
    rows, mask = rows_and_mask(seed)
    probabilities = policy.probabilities(rows, mask)
    assert (probabilities >= 0).all()
    assert (probabilities[~mask] == 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(12), rtol=0, atol=1e-6)
    # Nothing but the one offer is ever sent.
    assert int(((probabilities[:, 1:] > 0).any(dim=0)).sum()) <= 1
    alone = torch.cat([policy.probabilities(rows[k : k + 1], mask[k : k + 1]) for k in range(12)])
    torch.testing.assert_close(alone, probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", all_policies(), ids=lambda policy: policy.name)
@given(seed=SEEDS, factor=st.floats(1.0, 100.0))
def test_a_higher_price_never_sends_more_to_anyone(policy: Policy, seed: int, factor: float) -> None:
    rows, mask = rows_and_mask(seed)
    dearer = rows.clone()
    dearer[:, LOG_DUAL_PRICE] += float(np.log(factor))
    none, none_dearer = (policy.probabilities(each, mask)[:, 0] for each in (rows, dearer))
    assert (none_dearer >= none - 1e-6).all()


@pytest.mark.parametrize("which", range(4))
def test_pacing_can_set_the_spend_of_each_from_nothing_to_all(which: int) -> None:
    market = demo_market(n_users=200)
    running = Campaign(market, market.predictor, start=0, users=torch.arange(200), budget=1e5, seed=0)
    policy = traditional_strategies(market)[which]
    spends = []
    for price in np.geomspace(1e-3, 1e3, 100):
        observation = running.observation(torch.full((200,), float(price)))
        spends.append(expected_commitment(running, policy.probabilities(observation, running.mask))[0] / 200)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(spends))
    assert spends[-1] < 0.002 * spends[0]
    # No step in between that pacing could not stop at.
    assert max(-np.diff(spends)) < 0.25 * spends[0]


# Each strategy -------------------------------------------------------------------------------------


def test_everyone_gets_it_at_set_times_and_only_then() -> None:
    policy = EveryoneAtSetTimes(2, every_weeks=3)
    shares = [sent(policy, user(price=1.0, weeks_left=float(left)), 2)[0] for left in range(9, 0, -1)]
    assert shares == pytest.approx([0.5, 0, 0, 0.5, 0, 0, 0.5, 0, 0])
    prices = [0.01, 0.25, 4.0, 99.0]
    shares = [sent(policy, user(price=price, weeks_left=3.0), 2)[0] for price in prices]
    assert shares == pytest.approx([1 / (1 + price) for price in prices])
    # Once the campaign is over there is no time left.
    assert sent(policy, user(weeks_left=0.0), 2) == [0.0]


def test_the_gift_goes_to_who_came_lately_but_seldom() -> None:
    policy = WelcomeGift(3)
    newcomer = user(slow_visit_logit=-2.0, log_visit_recency=0.0)
    regular = user(slow_visit_logit=1.5, log_visit_recency=0.0)
    lapsed = user(slow_visit_logit=-2.0, log_visit_recency=float(np.log(5.0)))
    assert sent(policy, torch.cat([newcomer, regular, lapsed]), 3) == pytest.approx([1, 0, 0], abs=1e-6)
    # Four weeks ago is still lately.
    four = user(slow_visit_logit=-2.0, log_visit_recency=float(np.log(4.0)))
    assert sent(policy, four, 3) == pytest.approx([1.0], abs=1e-6)
    # At price λ new is who visits with odds below 1 / λ; the edge lies at one half.
    edge = user(price=5.0, slow_visit_logit=float(np.log(1 / 5)), log_visit_recency=0.0)
    assert sent(policy, edge, 3) == pytest.approx([0.5])


def test_the_reward_for_spend_goes_to_who_is_worth_it_at_the_price() -> None:
    policy = LoyaltyReward(9, 2.0)
    # SPEND_RESPONSE · m > λ · 2 with m the margin expected this week.
    margin = 2.0 * 1.0 / SPEND_RESPONSE
    for factor, share in ((2.0, 1.0), (1.0, 0.5), (0.5, 0.0)):
        rows = user(visit_probability=0.5, expected_basket_margin=2.0 * margin * factor)
        assert sent(policy, rows, 9) == pytest.approx([share], abs=1e-3)
    # No visit, no reward; and no NaN.
    assert sent(policy, user(visit_probability=0.0, expected_basket_margin=9.0), 9) == [
        pytest.approx(0.0, abs=1e-9)
    ]


def test_the_reward_for_frequency_goes_to_who_comes_often() -> None:
    policy = LoyaltyReward(9, 2.0, LoyaltyCriterion.FREQUENCY)
    rows = torch.cat([user(price=3.0, slow_visit_logit=float(np.log(odds))) for odds in (9.0, 3.0, 1.0)])
    assert sent(policy, rows, 9) == pytest.approx([1.0, 0.5, 0.0], abs=1e-4)


def test_the_fixed_category_is_the_same_for_all() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, LAYOUT.width, generator=generator)
    rows[:, LOG_DUAL_PRICE] = float(np.log(3.0))
    assert sent(FixedCategory(2), rows, 2) == pytest.approx([0.25] * 30)


@pytest.mark.parametrize("policy", all_policies(), ids=lambda policy: policy.name)
def test_what_cannot_be_sent_is_not_replaced(policy: Policy) -> None:
    rows, _ = rows_and_mask(3)
    mask = torch.ones(12, K, dtype=torch.bool)
    offer = policy.offer  # type: ignore[attr-defined]
    mask[:, offer] = False
    assert policy.probabilities(rows, mask)[:, 0].tolist() == [1.0] * 12


# The catalogue -------------------------------------------------------------------------------------


def of_catalogue(*offers: Offer) -> MarketSpec:
    return replace(demo_market(n_users=4), catalogue=Catalogue((NONE, *offers)))


def percent(name: str, slot: int, depth: float) -> Offer:
    return Offer(name, OfferKind.PERCENT, slot=slot, depth=depth, max_discount=2 * depth, validity_weeks=2)


def threshold(name: str, min_spend: float) -> Offer:
    return Offer(name, OfferKind.THRESHOLD, min_spend=min_spend, max_discount=2.0, validity_weeks=1)


def names(market: MarketSpec) -> list[str]:
    chosen = [policy.offer for policy in traditional_strategies(market)]  # type: ignore[attr-defined]
    return [market.catalogue.offers[k].name for k in chosen]


def test_offers_are_chosen_by_what_they_are_not_by_where_they_stand() -> None:
    offers = [
        Offer("push", OfferKind.PUSH, delivery_cost=0.02),
        threshold("60", 60.0),
        percent("second", 2, 0.1),
        percent("deep", 1, 0.5),
        threshold("30", 30.0),
        percent("shallow", 1, 0.2),
    ]
    expected = ["shallow", "deep", "30", "shallow"]
    assert names(of_catalogue(*offers)) == expected
    assert names(of_catalogue(*reversed(offers))) == expected
    assert [policy.name for policy in traditional_strategies(of_catalogue(*offers))] == [
        "everyone at set times",
        "welcome gift",
        "reward for spend",
        "fixed category",
    ]
    assert names(demo_market(n_users=4)) == ["20% slot 1", "40% slot 1", "spend 40 save 2", "20% slot 1"]


@pytest.mark.parametrize(
    "only",
    [
        Offer("free push", OfferKind.PUSH),
        percent("some", 2, 0.3),
        replace(threshold("letter", 20.0), channel=Channel.MAIL),
    ],
    ids=lambda offer: offer.name,
)
def test_one_offer_is_enough(only: Offer) -> None:
    market = of_catalogue(only)
    assert names(market) == [only.name] * 4
    running = Campaign(market, market.predictor, start=0, users=torch.arange(4), budget=50.0, seed=0)
    for policy in traditional_strategies(market):
        probabilities = policy.probabilities(running.observation(torch.full((4,), 0.1)), running.mask)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))


def test_a_catalogue_without_offers_is_refused() -> None:
    with pytest.raises(ValueError, match="no offer that can be sent"):
        traditional_strategies(of_catalogue())


def test_short_campaigns_still_have_a_set_time() -> None:
    market = demo_market(n_users=8, horizon_weeks=2)
    policy = traditional_strategies(market)[0]
    running = Campaign(market, market.predictor, start=0, users=torch.arange(8), budget=1e5, seed=0)
    probabilities = policy.probabilities(running.observation(torch.full((8,), 0.1)), running.mask)
    assert float(probabilities[:, 1:].sum()) > 0


def test_bad_arguments_are_refused() -> None:
    for make in (EveryoneAtSetTimes, WelcomeGift, FixedCategory, lambda k: LoyaltyReward(k, 1.0)):
        with pytest.raises(ValueError, match="offer must be the index"):
            make(0)
    with pytest.raises(ValueError, match="every_weeks"):
        EveryoneAtSetTimes(1, every_weeks=0)
    for cost in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="most_cost"):
            LoyaltyReward(1, cost)
    with pytest.raises(ValueError, match="not in a catalogue of 11 offers"):
        sent(FixedCategory(11), user(), 0)
