from __future__ import annotations

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from encoders.history import user_features
from envs.campaign import Campaign, MarketSpec
from envs.coupons import DealMemory, HeldCoupons
from envs.demo_market import demo_market
from envs.market import MarketState, messages_left
from envs.observation import (
    CONTEXT_FEATURES,
    LOG_DUAL_PRICE,
    OFFER_FEATURES,
    PRESSURE,
    ObservationLayout,
    Prediction,
    Recommender,
    observe,
    predict,
)
from envs.offers import Catalogue, Channel, Offer, OfferKind
from envs.simulator import Outlook, expected_discount

N = 128


@pytest.fixture
def campaign() -> Campaign:
    return started(market())


def market() -> MarketSpec:
    """The demo market with thresholds within reach."""
    spec = demo_market(n_users=N)
    offers = [
        replace(offer, min_spend=0.2 * offer.min_spend) if offer.kind is OfferKind.THRESHOLD else offer
        for offer in spec.catalogue.offers
    ]
    return replace(spec, catalogue=Catalogue(tuple(offers), spec.catalogue.cap))


def started(spec: MarketSpec, weeks: int = 3) -> Campaign:
    """A campaign under way: some users tired, some with a coupon, some remembering deals."""
    generator = torch.Generator().manual_seed(1)
    running = Campaign(spec, spec.predictor, start=0, users=torch.arange(N), budget=1e5, seed=1)
    for _ in range(weeks):
        running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
    return running


def look(running: Campaign, weeks_left: int, state: MarketState | None = None) -> Prediction:
    return predict(state or running.state, running.spec.shop, running.calendar, weeks_left)


def outlook_of(running: Campaign) -> Outlook:
    """The predictor's outlook for all users, in arrays that stay."""
    state, predictor = running.state, running.spec.predictor
    week = predictor.coefficients(running.calendar)
    people = predictor.people(state.history, state.embedding, week)
    outlook = predictor.outlook(people, state.history, state.embedding, state.deals, week, pull=True)
    return Outlook(**{f.name: getattr(outlook, f.name).clone() for f in fields(Outlook)})


def test_layout_names_every_column(campaign: Campaign) -> None:
    layout = campaign.spec.layout
    names = layout.names()
    rows = campaign.observation(torch.full((N,), 2.0))
    assert len(names) == len(set(names)) == layout.width == rows.shape[1]
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()
    outlook, predictor = outlook_of(campaign), campaign.spec.predictor
    expected = {
        "log_dual_price": torch.full((N,), float(np.log(2.0))),
        "expected_basket_margin": predictor.margin_of_spend(outlook.basket),
        "notice_probability": outlook.notice,
        "fatigue": campaign.state.believed_fatigue,
        "opted_in": campaign.state.opted_in.float(),
        "coupon_held": campaign.state.coupons.held.float(),
        "coupon_depth": campaign.state.coupons.depth,
        "coupon_weeks_left": campaign.state.coupons.weeks_left.float(),
        "weeks_left": torch.full((N,), 5.0),
        "log_visit_recency": user_features(campaign.state.history)[:, 2],
        "embedding_2": campaign.state.embedding[:, 2],
        "uplift_3": campaign.prediction.uplift[:, 3],
        "cost_7": campaign.prediction.cost[:, 7],
        "reserve_9": campaign.prediction.reserve(1.0)[9].expand(N),
        "allowed_1": campaign.mask[:, 1].float(),
        "messages_left": messages_left(campaign.state.messages, campaign.spec.offers).float(),
        "pressure": torch.ones(N),
    }
    for name, value in expected.items():
        torch.testing.assert_close(rows[:, names.index(name)], value)
    visit = rows[:, names.index("visit_probability")]
    held = campaign.state.coupons.held
    torch.testing.assert_close(
        visit, torch.sigmoid(outlook.visit_logit + predictor.assumed.coupon_lift * held)
    )
    for feature in OFFER_FEATURES:
        start = names.index(f"{feature}_0")
        block = rows[:, start : start + len(campaign.spec.catalogue)]
        assert torch.equal(layout.offer_block(rows, feature), block)
    assert names[LOG_DUAL_PRICE] == "log_dual_price"
    assert names[PRESSURE] == "pressure"
    assert layout.n_context == len(CONTEXT_FEATURES) + 4
    assert ObservationLayout(0, 2).width == len(ObservationLayout(0, 2).names())


def test_sending_nothing_has_no_uplift_and_no_cost(campaign: Campaign) -> None:
    for weeks_left in (1, 2, 5):
        prediction = look(campaign, weeks_left)
        assert (prediction.uplift[:, 0] == 0).all()
        assert (prediction.cost[:, 0] == 0).all()
        assert float(prediction.reserved[0]) == float(prediction.at_end[0]) == 0


def test_uplift_is_never_negative_and_cost_within_what_is_reserved(campaign: Campaign) -> None:
    offers = campaign.spec.offers
    for weeks_left in (1, 2, 5):
        prediction = look(campaign, weeks_left)
        assert float(prediction.uplift.min()) >= -1e-6
        ceiling = (offers.liability + offers.delivery_cost) / 10_000
        assert (prediction.cost <= ceiling + 1e-6).all()
        assert (prediction.cost >= offers.delivery_cost / 10_000 - 1e-6).all()
        probability = prediction.context[:, [0, CONTEXT_FEATURES.index("notice_probability")]]
        assert ((probability >= 0) & (probability <= 1)).all()


def test_the_shop_cannot_see_what_only_the_world_knows(campaign: Campaign) -> None:
    state = campaign.state
    other = replace(state, fatigue=1.0 - state.fatigue, receptivity=-state.receptivity)
    prediction, same = campaign.prediction, look(campaign, 5, other)
    for f in fields(Prediction):
        assert torch.equal(getattr(same, f.name), getattr(prediction, f.name))
    # What it believes of fatigue does enter: a tired user is moved less by a message.
    tired = look(campaign, 5, replace(state, believed_fatigue=torch.ones(N)))
    assert (tired.uplift[:, 1] <= prediction.uplift[:, 1] + 1e-6).all()
    assert float(tired.uplift[:, 1].abs().max()) < 1e-6


def test_slots_are_the_likeliest_purchases_in_order(campaign: Campaign) -> None:
    order = torch.argsort(outlook_of(campaign).purchase, dim=1, descending=True)
    assert torch.equal(campaign.prediction.slots, order[:, :3])
    # Deals of late make a category less likely, and the recommender heeds it.
    assert (campaign.state.deals.category >= 0).any()
    forgotten = replace(campaign.state, deals=DealMemory.none(N))
    assert not torch.equal(look(campaign, 5, forgotten).slots, campaign.prediction.slots)


def test_slots_by_what_a_coupon_brings_for_its_cost() -> None:
    offers = (
        Offer("nothing", OfferKind.NONE),
        Offer("a", OfferKind.PERCENT, slot=1, depth=0.2, max_discount=1.0, validity_weeks=1),
        Offer(
            "b", OfferKind.PERCENT, slot=2, depth=0.4, max_discount=1.0, validity_weeks=1, delivery_cost=0.1
        ),
        Offer("t", OfferKind.THRESHOLD, min_spend=9.0, max_discount=9.0, validity_weeks=1, delivery_cost=5.0),
    )
    spec = replace(market(), catalogue=Catalogue(offers), recommender=Recommender.UPLIFT_PER_COST)
    heads = copy.deepcopy(spec.predictor.heads)
    heads.depth_level.copy_(torch.linspace(-3.0, 0.0, 12))
    spec = replace(spec, predictor=replace(spec.predictor, heads=heads))
    running = started(spec, weeks=0)
    outlook, shelf = outlook_of(running), running.calendar.depth
    # At the mean depth, 30%, and the mean delivery, 0.05, of the two percent coupons.
    logit = outlook.purchase_logit.double()
    bought = torch.sigmoid(logit + outlook.depth_slope.double() * 0.3 * (1 - shelf))
    spend = torch.exp(
        (
            outlook.log_spend_user[:, None] + outlook.log_spend_category + 0.5 * heads.spend_deviation**2
        ).double()
    )
    visit = torch.sigmoid(outlook.visit_logit.double())[:, None] * outlook.notice.double()[:, None]
    gain = 0.28 * visit * (bought - torch.sigmoid(logit)) * spend
    cost = 0.05 + visit * bought * 0.3 * spend
    order = torch.argsort(gain / cost, dim=1, descending=True)
    assert torch.equal(running.prediction.slots, order[:, :2])
    plain = started(replace(spec, recommender=Recommender.PURCHASE), weeks=0)
    assert not torch.equal(running.prediction.slots, plain.prediction.slots)


def test_one_week_of_an_offer_is_the_simulators_expectation(campaign: Campaign) -> None:
    # The predictor's view of a single week equals the expectation of the same simulator.
    spec, state, calendar = campaign.spec, campaign.state, campaign.calendar
    prediction, predictor, outlook = look(campaign, 1), spec.predictor, outlook_of(campaign)
    free = ~state.coupons.held
    quiet = torch.zeros(N, dtype=torch.bool)
    without = predictor.held_terms(outlook, calendar.depth, HeldCoupons.none(N))
    nothing = predictor.expectation(outlook, without, quiet, state.believed_fatigue, quiet)
    for k, offer in enumerate(spec.catalogue.offers):
        coupons = HeldCoupons.none(N)
        if offer.is_coupon:
            on_category = offer.kind is OfferKind.PERCENT
            coupons = replace(
                coupons,
                category=prediction.slots[:, offer.slot - 1] if on_category else coupons.category,
                depth=torch.full((N,), offer.depth if on_category else offer.max_discount / offer.min_spend),
                min_spend=torch.full((N,), offer.min_spend),
                max_discount=torch.full((N,), offer.max_discount),
                weeks_left=torch.ones(N, dtype=torch.int64),
            )
        terms = predictor.held_terms(outlook, calendar.depth, coupons)
        message = quiet | offer.is_message
        sent = predictor.expectation(outlook, terms, message, state.believed_fatigue, coupons.held)
        torch.testing.assert_close(
            prediction.uplift[free, k], (sent.margin - nothing.margin)[free], rtol=1e-4, atol=2e-6
        )
        torch.testing.assert_close(
            prediction.cost[free, k], sent.discount[free] + offer.delivery_cost, rtol=1e-4, atol=2e-6
        )


@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize(("validity", "weeks_left"), [(1, 5), (2, 5), (5, 5), (5, 3), (4, 1)])
def test_a_long_coupon_against_a_week_by_week_sum(validity: int, weeks_left: int, channel: Channel) -> None:
    offer = Offer(
        "long",
        OfferKind.PERCENT,
        channel=channel,
        slot=1,
        depth=0.4,
        max_discount=2.0,
        validity_weeks=validity,
        delivery_cost=0.05,
    )
    spec = market()
    heads = copy.deepcopy(spec.predictor.heads)
    heads.redemption_bias.fill_(2.0)  # so often used that a second redemption would matter
    predictor = replace(spec.predictor, heads=heads)
    spec = replace(spec, catalogue=Catalogue((spec.catalogue.offers[0], offer)), predictor=predictor)
    running = started(spec, weeks=0)
    state, calendar, prediction = running.state, running.calendar, look(running, weeks_left)

    # By the heads' own forward pass, not by the kernel that the market uses.
    utilities = heads(state.history, state.embedding, calendar)
    notice = torch.sigmoid(heads.redemption_logit(state.history, state.embedding))
    spends = torch.exp(utilities.log_spend) * heads.expected_spend_factor
    slot = prediction.slots[:, :1]
    logit = utilities.purchase.gather(1, slot)[:, 0]
    extra = utilities.depth_slope.gather(1, slot)[:, 0] * 0.4 * (1 - calendar.depth[slot[:, 0]])
    buy, buy_with = torch.sigmoid(logit), torch.sigmoid(logit + extra)
    basket = (torch.sigmoid(utilities.purchase) * spends).sum(dim=1)
    gain = notice * (buy_with - buy) * spends.gather(1, slot)[:, 0]
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
        push = assumed.message_lift if week == 0 and channel is Channel.PUSH else 0.0
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


def test_pressure_changes_itself_and_the_reserve_alone(campaign: Campaign) -> None:
    price, pressure = torch.full((N,), 0.7), torch.linspace(0.0, 1.0, N)
    layout, seen = campaign.spec.layout, campaign.prediction
    base, other = campaign.observation(price), campaign.observation(price, pressure)
    torch.testing.assert_close(other[:, PRESSURE], pressure)
    by_hand = pressure[:, None] * seen.reserved + (1.0 - pressure)[:, None] * seen.at_end
    torch.testing.assert_close(layout.offer_block(other, "reserve"), by_hand)
    start = layout.names().index("reserve_0")
    reserve = torch.arange(start, start + len(campaign.spec.catalogue))
    same = torch.ones(layout.width, dtype=torch.bool)
    same[PRESSURE] = same[reserve] = False
    assert torch.equal(base[:, same], other[:, same])
    # One pressure for all is that of each.
    assert torch.equal(campaign.observation(price, 0.4), campaign.observation(price, torch.full((N,), 0.4)))
    torch.testing.assert_close(
        layout.net_uplift(other), seen.uplift - price[:, None] * seen.budget_use(pressure[:, None])
    )
    assert torch.equal(seen.budget_use(0.4), seen.cost + seen.reserve(0.4))


def test_without_pressure_only_what_is_reserved_at_the_end_costs() -> None:
    # Coupons of one, two and four weeks; a unit that is free again before the campaign ends costs nothing.
    offers = [Offer("nothing", OfferKind.NONE), Offer("push", OfferKind.PUSH, delivery_cost=0.02)]
    for weeks in (1, 2, 4):
        offers.append(
            Offer(f"{weeks}", OfferKind.PERCENT, slot=1, depth=0.2, max_discount=0.6, validity_weeks=weeks)
        )
    running = started(replace(market(), catalogue=Catalogue(tuple(offers))), weeks=0)
    for weeks_left, at_end in ((8, []), (5, []), (4, [4]), (3, [4]), (2, [4, 3]), (1, [4, 3, 2])):
        seen = look(running, weeks_left)
        expected = [0.6 if k in at_end else 0.0 for k in range(5)]
        assert seen.at_end.tolist() == seen.reserve(0.0).tolist() == pytest.approx(expected)
        # What is still reserved then never weighs more than what is spent, nor more at a higher pressure.
        liability = torch.tensor([0.0, 0.0, 0.6, 0.6, 0.6])
        for pressure in (0.0, 0.5, 1.0):
            assert (seen.reserve(pressure) <= liability + 1e-6).all()
    # In the last week both are the whole liability.
    assert torch.equal(look(running, 1).reserved, look(running, 1).at_end)


def test_net_uplift_reads_the_rows_themselves(campaign: Campaign) -> None:
    price = torch.linspace(0.5, 4.0, N)
    rows, seen = campaign.observation(price), campaign.prediction
    torch.testing.assert_close(
        campaign.spec.layout.net_uplift(rows), seen.uplift - price[:, None] * seen.budget_use(1.0)
    )


def test_a_reserve_weighs_by_the_share_of_weeks_it_lasts(campaign: Campaign) -> None:
    for weeks_left in (1, 2, 3, 8):
        expected = [
            offer.max_discount * min(offer.validity_weeks, weeks_left) / weeks_left
            for offer in campaign.spec.catalogue.offers
        ]
        assert look(campaign, weeks_left).reserve(1.0).tolist() == pytest.approx(expected)
    # 60 cents at most, for two of four weeks.
    assert float(look(campaign, 4).reserve(1.0)[2]) == pytest.approx(0.30)


def test_an_observation_after_the_last_week_is_finite() -> None:
    running = started(market(), weeks=8)
    assert running.done
    assert torch.isfinite(running.observation(torch.ones(N))).all()
