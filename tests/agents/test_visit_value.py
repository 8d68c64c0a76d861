from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.visit_value import (
    VisitValue,
    VisitValueConfig,
    fit_visit_value,
    incremental_margin,
    visit_features,
)
from encoders.history import USER_FEATURES, user_features
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.coupons import HeldCoupons
from envs.demo_market import demo_market
from envs.simulator import Expectation, Simulator

Fitted = tuple[MarketSpec, VisitValue]
N, COPIES, WEEKS = 48, 60, 5
SMALL = VisitValueConfig(rows=900, n_users=100, batch_size=200, learning_rate=1e-2)


def world(market: MarketSpec, message_lift: float) -> Simulator:
    """The market's predictor with everyone reachable and equally moved by a message."""
    assumed = replace(
        market.predictor.assumed, message_lift=message_lift, message_spread=0.0, opt_in_share=1.0
    )
    return replace(market.predictor, assumed=assumed)


def started(market: MarketSpec, message_lift: float, seed: int, users: torch.Tensor) -> Campaign:
    return Campaign(
        market, world(market, message_lift), start=0, users=users, budget=UNLIMITED_BUDGET, seed=seed
    )


# Against what happens -------------------------------------------------------------------------------


def margin_after(market: MarketSpec, week: int, visit: bool, seed: int) -> torch.Tensor:
    """Margin of the weeks after one in which everybody, or nobody, comes; [COPIES, N], nothing sent later."""
    users = torch.arange(N).repeat(COPIES)
    running = started(market, 80.0 if visit else -80.0, seed, users)
    for _ in range(week):
        running.step()
    outcome = running.step(torch.ones(len(users), dtype=torch.int64))
    assert outcome.visited.all() if visit else not outcome.visited.any()
    total = torch.zeros(len(users), dtype=torch.float64)
    while not running.done:
        total += running.step_with_expectation()[1].margin
    return total.view(COPIES, N)


@pytest.mark.parametrize("week", [0, 2])
def test_the_fit_is_what_a_forced_visit_brings(fitted: Fitted, week: int) -> None:
    market, value = fitted
    seeds = range(4)
    users = torch.arange(N).repeat(COPIES)
    # The same luck up to the week and after it, with the visit and without.
    found = torch.stack(
        [
            torch.stack([margin_after(market, week, visit, seed).mean(dim=0) for seed in seeds]).mean(dim=0)
            for visit in (False, True)
        ],
        dim=1,
    )
    told = []
    for seed in seeds:
        running = started(market, 0.0, seed, users)
        for _ in range(week):
            running.step()
        told.append(value.after(running).view(COPIES, N, 2).mean(dim=0))
    after = torch.stack(told).mean(dim=0).double()
    # Each user's own, to within the fit and the noise of 240 campaigns; and on average more closely.
    assert float(((after - found).abs() / found.mean(dim=0)).mean()) < 0.04
    torch.testing.assert_close(after.mean(dim=0), found.mean(dim=0), rtol=0.03, atol=0.0)
    effect, expected = after[:, 1] - after[:, 0], found[:, 1] - found[:, 0]
    assert float(expected.mean()) > 0.1 * float(found[:, 0].mean())
    torch.testing.assert_close(effect.mean(), expected.mean(), rtol=0.12, atol=0.0)
    assert np.corrcoef(effect.numpy(), expected.numpy())[0, 1] > 0.8
    # Users differ by far more than the error.
    assert float(found[:, 0].std()) > 0.2 * float(found[:, 0].mean())


def test_added_up_it_is_what_a_policy_brings_over_sending_nothing(fitted: Fitted) -> None:
    market, value = fitted
    users = torch.arange(N).repeat(COPIES)
    told, happened = [], []
    for seed in range(5):
        treated, control = (started(market, 0.3, seed, users) for _ in range(2))
        generator = torch.Generator().manual_seed(seed)
        sum_told, sum_happened = (torch.zeros(len(users), dtype=torch.float64) for _ in range(2))
        while not treated.done:
            after = value.after(treated)
            send = treated.mask[:, 1] & (torch.rand(len(users), generator=generator) < 0.5)
            _, expected = treated.step_with_expectation(send.long())
            sum_told += incremental_margin(expected, after)
            sum_happened += expected.margin - control.step_with_expectation()[1].margin
        told.append(sum_told)
        happened.append(sum_happened)
    gain, truth = torch.cat(told), torch.cat(happened)
    assert float(truth.mean()) > 0.2
    # Same mean, to the fit and the noise of what happens; and of most of that noise it is free.
    error = float(truth.std()) / len(truth) ** 0.5
    assert abs(float(gain.mean() - truth.mean())) < 4 * error + 0.03 * float(truth.mean())
    assert float(gain.var()) < 0.5 * float(truth.var())


# The network's own form ------------------------------------------------------------------------------


def untrained(seed: int = 1, horizon: int = WEEKS) -> VisitValue:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = VisitValue(4, horizon, 0.28, hidden=8)
        with torch.no_grad():
            for parameter in value.parameters():
                parameter.normal_(std=2.0)
    return value.eval().requires_grad_(False)


@pytest.mark.parametrize("trained", [True, False])
def test_it_lies_between_nothing_and_a_basket_in_every_week_left(fitted: Fitted, trained: bool) -> None:
    market, value = fitted[0], fitted[1] if trained else untrained()
    running = started(market, 0.5, 3, torch.arange(N))
    basket_column = USER_FEATURES.index("log_basket_spend")
    while not running.done:
        after, features = value.after(running), visit_features(running)
        assert after.shape == (N, 2)
        assert torch.isfinite(after).all()
        basket = 0.28 * torch.expm1(user_features(running.state.history)[:, basket_column])
        if not trained:
            # The learnt multiple of the basket is the third output.
            normal = ((features - value.mean) / value.std).clamp(-8.0, 8.0)
            basket = basket * torch.exp(value.head(value.body(normal))[:, 2])
        else:
            basket = 1.5 * basket
        later = running.weeks_left - 1
        assert (after >= 0).all()
        assert (after <= later * basket[:, None] * (1 + 1e-5)).all()
        assert (after > 0).any() == (later > 0)
        running.step(running.mask[:, 1].long())
    # Nothing comes after the last week, nor after the end.
    assert (value.after(running) == 0).all()


def test_what_it_is_told_from(fitted: Fitted) -> None:
    market, _ = fitted
    running = started(market, 0.5, 3, torch.arange(N))
    running.step()
    features = visit_features(running)
    n = len(USER_FEATURES)
    assert features.shape == (N, n + 4 + 2)
    torch.testing.assert_close(features[:, :n], user_features(running.state.history))
    assert torch.equal(features[:, n:-2], running.state.embedding)
    torch.testing.assert_close(features[:, -2], torch.log1p(running.state.history.weeks_slow))
    assert (features[:, -1] == 0.8).all()


def test_a_copy_of_its_shape_holds_the_same_state(fitted: Fitted) -> None:
    market, value = fitted
    again = VisitValue(**value.shape())
    again.load_state_dict(value.state_dict())
    running = started(market, 0.5, 3, torch.arange(N))
    assert torch.equal(again.eval().after(running), value.after(running))
    assert value.shape() == {"embedding": 4, "horizon_weeks": 5, "margin_rate": 0.28, "hidden": 64}


def test_asking_changes_nothing(fitted: Fitted) -> None:
    market, value = fitted
    asked, other = (started(market, 0.5, 3, torch.arange(N)) for _ in range(2))
    while not asked.done:
        state = asked.state
        first = value.after(asked)
        assert asked.state is state
        assert torch.equal(first, value.after(asked))
        one, two = (campaign.step_with_expectation(campaign.mask[:, 3] * 3) for campaign in (asked, other))
        assert torch.equal(one[0].spend, two[0].spend)
        assert torch.equal(one[1].margin, two[1].margin)


# Fitting ---------------------------------------------------------------------------------------------


def fit(seed: int, market: MarketSpec | None = None, shares: list[float] | None = None) -> VisitValue:
    market = market or demo_market(n_users=20, horizon_weeks=3)
    heard = shares if shares is not None else []
    return fit_visit_value(
        market,
        [market.predictor, replace(market.predictor, name="other")],
        [0],
        users=torch.arange(10, 20),
        seed=seed,
        config=SMALL,
        on_round=heard.append,
    )


def test_the_seed_decides_the_fit_and_nothing_else_does() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = fit(2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    two, other = fit(2), fit(3)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, two.state_dict()[name]), name
    assert any(not torch.equal(w, other.state_dict()[name]) for name, w in one.state_dict().items())
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_fitting_reports_its_progress_and_leaves_the_market_alone() -> None:
    market = demo_market(n_users=20, horizon_weeks=3)
    untouched, heads = copy.deepcopy(market.population), copy.deepcopy(market.predictor.heads.state_dict())
    shares: list[float] = []
    fit(0, market, shares)
    assert shares == pytest.approx([(k + 1) / 6 for k in range(6)])
    assert torch.equal(market.population.embeddings, untouched.embeddings)
    assert torch.equal(market.population.histories[0].recent, untouched.histories[0].recent)
    for name, weights in market.predictor.heads.state_dict().items():
        assert torch.equal(weights, heads[name]), name


def test_a_campaign_of_one_week_has_no_later_visits() -> None:
    market = demo_market(n_users=20, horizon_weeks=1)
    value = fit(0, market)
    running = started(market, 0.5, 0, torch.arange(20))
    assert (value.after(running) == 0).all()


# What a week brings ----------------------------------------------------------------------------------


def test_the_incremental_margin_by_hand() -> None:
    column = torch.tensor
    expected = Expectation(
        visit=column([0.6, 0.5, 0.2]),
        margin=column([3.0, 2.0, 1.0]),
        discount=column([0.4, 0.0, 0.0]),
        idle_visit=column([0.5, 0.5, 0.3]),
        idle_margin=column([2.5, 2.0, 1.5]),
    )
    after = column([[4.0, 6.0], [1.0, 9.0], [5.0, 10.0]])
    # 0.5 now and a tenth of a visit worth 2; nothing; half a unit less now and a tenth of a visit of 5 less.
    torch.testing.assert_close(incremental_margin(expected, after), column([0.7, 0.0, -1.0]))


def test_doing_nothing_brings_exactly_nothing(fitted: Fitted) -> None:
    market, value = fitted
    running = started(market, 0.5, 3, torch.arange(N))
    generator = torch.Generator().manual_seed(0)
    idle_users = 0
    while not running.done:
        after = value.after(running)
        offer = torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0]
        offer = torch.where(torch.rand(N, generator=generator) < 0.5, offer, 0)
        idle = ~running.state.coupons.held & (offer == 0)
        _, expected = running.step_with_expectation(offer)
        found = incremental_margin(expected, after)
        assert (found[idle] == 0).all()
        assert (found[~idle] != 0).all()
        idle_users += int(idle.sum())
    assert idle_users > 20
    # A coupon held from before is not nothing.
    held = started(market, 0.5, 3, torch.arange(N))
    held.step(held.mask[:, 3] * 3)
    state = held.state
    assert state.coupons.held.any()
    after = value.after(held)
    assert (incremental_margin(held.step_with_expectation()[1], after)[state.coupons.held] > 0).all()
    held.restore(replace(state, coupons=HeldCoupons.none(N)))
    assert (incremental_margin(held.step_with_expectation()[1], after) == 0).all()
