from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.calendar import PromotionCalendar
from encoders.history_tape import HistoryTape
from encoders.user_text import category_words
from envs.assumptions import ASSUMED_RANGES, AssumedResponse
from envs.market import initial_state
from envs.observation import Shop, predict
from envs.offers import Catalogue, Offer, OfferKind
from envs.simulator import Simulator
from experiments.fitted_run import FittedRun
from experiments.profile.channels import ChannelEffect, ChannelQuestion, compare_channels

USER, WEEK, MARGIN = 2, 17, 0.3


def ask(run: FittedRun) -> ChannelQuestion:
    names = ("depth effect", "display effect", "mailer effect", "redemption")
    return ChannelQuestion(
        heads=run.heads,
        history=HistoryTape.of_panel(run.panel).week(WEEK - 1).rows(torch.tensor([USER])),
        embedding=run.embeddings.embedding[-1][USER : USER + 1],
        calendar=PromotionCalendar.of_panel(run.panel),
        week=WEEK,
        catalogue=Catalogue.built_in(),
        margin_rate=MARGIN,
        words=category_words(run.panel),
        sources={name: f"source of {name}" for name in names},
    )


def by_channel(question: ChannelQuestion) -> dict[str, ChannelEffect]:
    return {effect.channel: effect for effect in compare_channels(question).effects}


def sigmoid(x: float | np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=np.float64))))


def test_push_in_closed_form(fitted_run: FittedRun) -> None:
    question = ask(fitted_run)
    heads = fitted_run.heads
    found = by_channel(question)["push message"]
    utilities = heads(question.history, question.embedding, question.this_week)
    visit = float(utilities.visit)
    spend = np.exp(utilities.log_spend[0].double().numpy() + heads.spend_deviation.double().numpy() ** 2 / 2)
    basket = float((sigmoid(utilities.purchase[0].numpy()) * spend).sum())
    lift = ASSUMED_RANGES["message_lift"]

    def margin(more: float) -> float:
        return float(MARGIN * 1.25 * basket * (sigmoid(visit + more) - sigmoid(visit)))

    assert found.margin == pytest.approx(margin(lift.central), abs=1e-5)
    assert found.margin_low == pytest.approx(margin(lift.low), abs=1e-5)
    assert found.margin_high == pytest.approx(margin(lift.high), abs=1e-5)
    assert found.without_lifts == 0.0
    assert found.cost == pytest.approx(0.02)
    assert "assumed" in found.basis


def test_offers_agree_with_what_the_policies_are_shown(fitted_run: FittedRun) -> None:
    """With one week left, the predictor's uplift of an offer is its added margin of the week."""
    question = ask(fitted_run)
    found = by_channel(question)
    everyone = torch.ones(1, dtype=torch.bool)
    state = initial_state(question.history, question.embedding, everyone, torch.ones(1), 10**9)
    predictor = Simulator(fitted_run.heads, AssumedResponse.central(), MARGIN, "predictor")
    catalogue = question.catalogue
    shop = Shop(catalogue.tensors(), predictor, catalogue.n_slots)
    shown = predict(state, shop, question.this_week, 1)
    uplift, cost = shown.uplift[0].tolist(), shown.cost[0].tolist()
    coupons = [k for k, offer in enumerate(catalogue.offers) if offer.is_coupon]
    best = max(coupons, key=lambda k: uplift[k] - cost[k])
    assert found["coupon"].margin == pytest.approx(uplift[best], abs=1e-5)
    assert found["coupon"].cost == pytest.approx(cost[best], abs=1e-5)
    assert found["coupon"].what.startswith(catalogue.offers[best].name)
    assert found["push message"].margin == pytest.approx(uplift[1], abs=1e-5)


def test_without_visit_lifts_a_coupon_moves_only_its_category(fitted_run: FittedRun) -> None:
    question = ask(fitted_run)
    coupon = Offer(
        "30% slot 2",
        OfferKind.PERCENT,
        slot=2,
        depth=0.3,
        max_discount=1.0,
        validity_weeks=2,
        delivery_cost=0.01,
    )
    question = replace(question, catalogue=Catalogue((Offer("none", OfferKind.NONE), coupon)))
    found = by_channel(question)
    assert "push message" not in found
    heads = fitted_run.heads
    utilities = heads(question.history, question.embedding, question.this_week)
    second = int(utilities.purchase[0].argsort(descending=True)[1])
    logit, slope = float(utilities.purchase[0, second]), float(utilities.depth_slope[0, second])
    shelf = float(fitted_run.panel.promotion_depth[WEEK - 1, second])
    spend = float(torch.exp(utilities.log_spend[0, second] + heads.spend_deviation[second] ** 2 / 2))
    notice = sigmoid(float(heads.redemption_logit(question.history, question.embedding)))
    gain = sigmoid(logit + slope * 0.3 * (1 - shelf)) - sigmoid(logit)
    expected = MARGIN * sigmoid(float(utilities.visit)) * notice * gain * spend
    assert found["coupon"].without_lifts == pytest.approx(float(expected), abs=1e-5)
    assert found["coupon"].what == f"30% slot 2: food cat {second}"
    assert found["coupon"].margin_low <= found["coupon"].margin <= found["coupon"].margin_high


@pytest.mark.parametrize("channel", ["shelf display", "mailer"])
def test_mass_promotion_in_closed_form(fitted_run: FittedRun, channel: str) -> None:
    question, heads, panel = ask(fitted_run), fitted_run.heads, fitted_run.panel
    display = channel == "shelf display"
    column = panel.display if display else panel.mailer
    effect = heads.display_effect if display else heads.mailer_effect
    utilities = heads(question.history, question.embedding, question.this_week)
    per_unit = 1.2 * effect.double().numpy() / 0.1
    off = utilities.purchase[0].double().numpy() - per_unit * column[WEEK - 1]
    on = off + per_unit * column[:WEEK].max(axis=0)
    spend = np.exp(utilities.log_spend[0].double().numpy() + heads.spend_deviation.double().numpy() ** 2 / 2)
    gain = MARGIN * sigmoid(float(utilities.visit)) * (sigmoid(on) - sigmoid(off)) * spend
    found = by_channel(question)[channel]
    assert found.margin == pytest.approx(gain.max(), abs=1e-5)
    assert found.what.startswith(f"food cat {gain.argmax()}:")
    assert (found.margin_low, found.margin_high, found.without_lifts) == (found.margin,) * 3
    assert found.cost is None


def test_order_and_best(fitted_run: FittedRun) -> None:
    found = compare_channels(ask(fitted_run))
    margins = [effect.margin for effect in found.effects]
    assert margins == sorted(margins, reverse=True)
    assert found.best == found.effects[0].channel
    fitted = {effect.channel: effect.without_lifts for effect in found.effects}
    assert found.best_without_lifts == max(fitted, key=lambda name: fitted[name])


def test_what_neither_catalogue_nor_logs_know_is_left_out(fitted_run: FittedRun) -> None:
    question = ask(fitted_run)
    none = torch.zeros_like(question.calendar.display)
    question = replace(question, calendar=replace(question.calendar, display=none))
    assert set(by_channel(question)) == {"coupon", "push message", "mailer"}
    question = replace(
        question,
        calendar=replace(question.calendar, mailer=none),
        catalogue=Catalogue((Offer("none", OfferKind.NONE),)),
    )
    found = compare_channels(question)
    assert (found.effects, found.best, found.best_without_lifts) == ([], None, None)
