from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.history import user_features
from envs.campaign import Campaign, MarketSpec
from envs.coupons import HeldCoupons
from envs.demo_market import demo_market
from envs.market import issued_coupons
from envs.observation import (
    CONTEXT_FEATURES,
    LOG_DUAL_PRICE,
    OFFER_FEATURES,
    ObservationLayout,
    Prediction,
    Recommender,
    observe,
    predict,
)
from envs.offers import Catalogue, Offer, OfferKind
from envs.simulator import Expectation, Outlook, expected_discount

N = 20


@pytest.fixture
def campaign() -> Campaign:
    return started(demo_market(n_users=N))


def started(market: MarketSpec, weeks: int = 3) -> Campaign:
    """A campaign under way: some users tired, some with a coupon."""
    generator = torch.Generator().manual_seed(1)
    running = Campaign(market, market.predictor, start=0, users=torch.arange(N), budget=1e5, seed=1)
    for _ in range(weeks):
        running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
    return running


def look(running: Campaign, weeks_left: int) -> Prediction:
    return predict(running.state, running.spec.shop, running.calendar, weeks_left)


def outlook_of(running: Campaign) -> Outlook:
    """The predictor's outlook on the coming week, in arrays of its own."""
    predictor, state = running.spec.predictor, running.state
    week = predictor.coefficients(running.calendar)
    people = predictor.people(state.history, state.embedding, week)
    found = predictor.outlook(people, state.history, state.embedding, state.deals, week, pull=True)
    return found.rows(torch.arange(running.n_users))


def test_layout_names_every_column(campaign: Campaign) -> None:
    layout = campaign.spec.layout
    names = layout.names()
    rows = campaign.observation(torch.full((N,), 2.0))
    assert len(names) == len(set(names)) == layout.width == rows.shape[1]
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()
    expected = {
        "log_dual_price": torch.full((N,), float(np.log(2.0))),
        "fatigue": campaign.state.fatigue,
        "opted_in": campaign.state.opted_in.float(),
        "coupon_held": campaign.state.coupons.held.float(),
        "coupon_depth": campaign.state.coupons.depth * campaign.state.coupons.held,
        "coupon_weeks_left": campaign.state.coupons.weeks_left.float(),
        "weeks_left": torch.full((N,), 5.0),
        "log_visit_recency": user_features(campaign.state.history)[:, 2],
        "embedding_2": campaign.state.embedding[:, 2],
        "uplift_3": campaign.prediction.uplift[:, 3],
        "cost_7": campaign.prediction.cost[:, 7],
        "allowed_1": campaign.mask[:, 1].float(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(rows[:, names.index(name)], value)
    for feature in OFFER_FEATURES:
        start = names.index(f"{feature}_0")
        block = rows[:, start : start + len(campaign.spec.catalogue)]
        assert torch.equal(layout.offer_block(rows, feature), block)
    assert names[LOG_DUAL_PRICE] == "log_dual_price"
    assert layout.n_context == len(CONTEXT_FEATURES) + 4
    assert ObservationLayout(0, 2).width == len(ObservationLayout(0, 2).names())


def test_sending_nothing_has_no_uplift_and_no_cost(campaign: Campaign) -> None:
    for weeks_left in (1, 2, 5):
        prediction = look(campaign, weeks_left)
        assert (prediction.uplift[:, 0] == 0).all()
        assert (prediction.cost[:, 0] == 0).all()
        assert float(prediction.reserve[0]) == 0


def test_uplift_is_never_negative_and_cost_within_what_is_reserved(campaign: Campaign) -> None:
    offers = campaign.spec.offers
    for weeks_left in (1, 2, 5):
        prediction = look(campaign, weeks_left)
        assert float(prediction.uplift.min()) >= -1e-6
        ceiling = (offers.liability + offers.delivery_cost) / 10_000
        assert (prediction.cost <= ceiling + 1e-6).all()
        assert (prediction.cost >= offers.delivery_cost / 10_000 - 1e-6).all()


def test_slots_are_the_likeliest_purchases_in_order(campaign: Campaign) -> None:
    order = torch.argsort(outlook_of(campaign).purchase_logit, dim=1, descending=True)
    assert torch.equal(campaign.prediction.slots, order[:, :3])


def test_one_week_of_a_coupon_is_the_simulators_expectation(campaign: Campaign) -> None:
    # The predictor's view of a single week equals the expectation of the same simulator.
    spec, state, calendar = campaign.spec, campaign.state, campaign.calendar
    prediction = look(campaign, 1)
    predictor = spec.predictor
    outlook = outlook_of(campaign)
    free = ~state.coupons.held
    quiet = torch.zeros(N, dtype=torch.bool)

    def expected(coupons: HeldCoupons, message: torch.Tensor) -> Expectation:
        terms = predictor.held_terms(outlook, calendar.depth, coupons)
        return predictor.expectation(outlook, terms, message, state.believed_fatigue, coupons.held)

    nothing = expected(state.coupons, quiet)
    for k, offer in enumerate(spec.catalogue.offers):
        coupons = state.coupons
        if offer.is_coupon:
            coupons = issued_coupons(torch.full((N,), k), prediction.slots, spec.offers, 1)
        sent = expected(coupons, quiet | offer.is_message)
        torch.testing.assert_close(
            prediction.uplift[free, k], (sent.margin - nothing.margin)[free], rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            prediction.cost[free, k], sent.discount[free] + offer.delivery_cost, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(("validity", "weeks_left"), [(1, 5), (2, 5), (5, 5), (5, 3), (4, 1)])
def test_a_long_coupon_against_a_week_by_week_sum(validity: int, weeks_left: int) -> None:
    offer = Offer(
        "long",
        OfferKind.PERCENT,
        slot=1,
        depth=0.4,
        max_discount=2.0,
        validity_weeks=validity,
        delivery_cost=0.05,
    )
    market = demo_market(n_users=N)
    heads = copy.deepcopy(market.predictor.heads)
    heads.redemption_bias.fill_(2.0)  # so often used that a second redemption would matter
    market = replace(
        market,
        catalogue=Catalogue((market.catalogue.offers[0], offer)),
        predictor=replace(market.predictor, heads=heads),
    )
    running = started(market, weeks=0)
    state, calendar, predictor = running.state, running.calendar, market.predictor
    prediction = look(running, weeks_left)

    # By the heads' own forward pass, not by the kernel that the market uses.
    utilities = heads(state.history, state.embedding, calendar)
    notice = torch.sigmoid(heads.redemption_logit(state.history, state.embedding))
    spends = torch.exp(utilities.log_spend) * heads.expected_spend_factor
    slot = prediction.slots[:, :1]
    logit = utilities.purchase.gather(1, slot)[:, 0]
    extra = utilities.depth_slope.gather(1, slot)[:, 0] * 0.4 * (1 - calendar.depth[slot[:, 0]])
    buy, buy_with = torch.sigmoid(logit), torch.sigmoid(logit + extra)
    spend = spends.gather(1, slot)[:, 0]
    basket = (torch.sigmoid(utilities.purchase) * spends).sum(dim=1)
    gain = notice * (buy_with - buy) * spend
    discount = expected_discount(
        utilities.log_spend.gather(1, slot)[:, 0],
        heads.spend_deviation[slot[:, 0]],
        torch.full((N,), 0.4),
        torch.full((N,), 2.0),
    )
    assumed = predictor.assumed
    base = torch.sigmoid(utilities.visit)
    margin, cost, held = torch.zeros(N), torch.full((N,), 0.05), torch.ones(N)
    for week in range(min(validity, weeks_left)):
        push = assumed.message_lift if week == 0 else 0.0
        visit = torch.sigmoid(utilities.visit + assumed.coupon_lift + push)
        margin = margin + held * predictor.margin_of_spend((visit - base) * basket, visit * gain)
        used = held * visit * notice * buy_with
        cost = cost + used * discount
        held = held - used
    torch.testing.assert_close(prediction.uplift[:, 1], margin, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(prediction.cost[:, 1], cost, rtol=2e-3, atol=1e-4)
    assert (prediction.cost[:, 1] <= 2.05).all()


def test_the_dual_price_is_the_only_thing_it_changes(campaign: Campaign) -> None:
    price = torch.linspace(0.5, 4.0, N)
    low, high = campaign.observation(torch.ones(N)), campaign.observation(price)
    other = torch.arange(low.shape[1]) != LOG_DUAL_PRICE
    assert torch.equal(low[:, other], high[:, other])
    torch.testing.assert_close(high[:, LOG_DUAL_PRICE], price.log())
    # And observing does not write into the prediction.
    again = observe(campaign.prediction, campaign.state.embedding, campaign.mask, torch.ones(N))
    assert torch.equal(low, again)


def test_net_uplift_reads_the_rows_themselves(campaign: Campaign) -> None:
    price = torch.linspace(0.5, 4.0, N)
    rows, seen = campaign.observation(price), campaign.prediction
    torch.testing.assert_close(
        campaign.spec.layout.net_uplift(rows), seen.uplift - price[:, None] * seen.budget_use
    )


def test_a_reserve_weighs_by_the_share_of_weeks_it_lasts(campaign: Campaign) -> None:
    for weeks_left, share in ((1, 1.0), (2, 1.0), (4, 0.5), (8, 0.25)):
        reserve = look(campaign, weeks_left).reserve
        caps = [offer.max_discount for offer in campaign.spec.catalogue.offers]
        assert reserve.tolist() == pytest.approx([share * cap for cap in caps])


def test_an_observation_after_the_last_week_is_finite() -> None:
    running = started(demo_market(n_users=N), weeks=8)
    assert running.done
    assert torch.isfinite(running.observation(torch.ones(N))).all()


def test_slots_by_uplift_per_cost_are_ranked_by_just_that(campaign: Campaign) -> None:
    spec = replace(campaign.spec, recommender=Recommender.UPLIFT_PER_COST)
    running = started(spec)
    outlook, heads = outlook_of(running), spec.predictor.heads
    percent = [o for o in spec.catalogue.offers if o.kind is OfferKind.PERCENT]
    depth = float(np.mean([o.depth for o in percent]))
    delivery = float(np.mean([o.delivery_cost for o in percent]))
    deeper = outlook.depth_slope * (1 - running.calendar.depth) * depth
    bought = torch.sigmoid(outlook.purchase_logit + deeper)
    spend = (
        torch.exp(outlook.log_spend_user[:, None] + outlook.log_spend_category) * heads.expected_spend_factor
    )
    visit = running.prediction.context[:, 0]
    chance = (visit * outlook.notice)[:, None] * spend
    gain = spec.predictor.margin_rate * chance * (bought - outlook.purchase)
    best = torch.argsort(gain / (delivery + chance * bought * depth), dim=1, descending=True)
    assert torch.equal(running.prediction.slots, best[:, :3])
    assert not torch.equal(running.prediction.slots, started(campaign.spec).prediction.slots)


def test_recommending_by_uplift_needs_a_coupon_to_rank_by() -> None:
    market = demo_market(n_users=4)
    with pytest.raises(ValueError, match="needs a percent coupon"):
        replace(
            market,
            catalogue=Catalogue(market.catalogue.offers[:2]),
            recommender=Recommender.UPLIFT_PER_COST,
        )
