from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.campaign import Campaign, MarketSpec
from envs.counterfactual import ResponseTypes, long_run_uplift, response_surface
from envs.demo_market import demo_market
from envs.simulator import Simulator

N, WEEKS = 37, 5
CHANCES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@cache
def market() -> MarketSpec:
    return demo_market(n_users=N, horizon_weeks=WEEKS)


def world(**assumed: float) -> Simulator:
    predictor = market().predictor
    return replace(predictor, assumed=replace(predictor.assumed, **assumed), name="true world")


def campaign(answers: Simulator | list[Simulator], seed: int = 1, budget: float = 1e6) -> Campaign:
    return Campaign(market(), answers, start=0, users=torch.arange(N), budget=budget, seed=seed)


def in_the_middle(running: Campaign) -> Campaign:
    """Two weeks of random offers: coupons are held, users are tired, deals remembered."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
    return running


@pytest.mark.parametrize("several", [False, True])
def test_the_surface_is_what_sending_each_offer_is_expected_to_bring(several: bool) -> None:
    answers = [world(), world(message_lift=0.4, message_spread=1.0)] if several else world(message_spread=0.8)
    running = in_the_middle(campaign(answers))
    surface = response_surface(running)
    offers = market().offers
    for k in range(len(market().catalogue)):
        tried = copy.copy(running)
        allowed = running.mask[:, k]
        _, expected = tried.step_with_expectation(torch.where(allowed, k, 0))
        cost = expected.discount + offers.delivery_cost[k] / 10_000
        for found, truth in ((surface.visit, expected.visit), (surface.margin, expected.margin)):
            torch.testing.assert_close(found[allowed, k], truth[allowed])
        torch.testing.assert_close(surface.cost[allowed, k], cost[allowed], check_dtype=False)
    assert torch.equal(surface.uplift[:, 0], torch.zeros(N))
    # Looking changes nothing.
    assert running.state.week == 2


def test_a_receptive_user_gains_what_an_averse_one_loses() -> None:
    running = campaign(world(message_spread=1.0, coupon_lift=0.0))
    visit = response_surface(running).visit
    receptive = running.state.receptivity > 0
    assert 0 < int((~receptive).sum()) < N
    assert (visit[receptive, 1] > visit[receptive, 0]).all()
    assert (visit[~receptive, 1] < visit[~receptive, 0]).all()
    types = ResponseTypes.of(visit[:, 0], visit[:, 1])
    assert (types.sleeping_dog[receptive] == 0).all()
    assert (types.persuadable[~receptive] == 0).all()
    assert types.shares()["sleeping_dog"] > 0


def test_what_the_shop_believes_is_not_the_truth_but_near_it_in_its_own_world() -> None:
    believed = campaign(replace(market().predictor, assumed=replace(world().assumed, message_spread=0.0)))
    surface = response_surface(believed)
    # One message, one week: no coupon, so that prediction and truth speak of the same thing.
    torch.testing.assert_close(surface.uplift[:, 1], believed.prediction.uplift[:, 1], rtol=1e-4, atol=1e-5)


@given(CHANCES)
def test_types_add_up_and_follow_from_common_chance(pairs: list[tuple[float, float]]) -> None:
    without, sent = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    types = ResponseTypes.of(without, sent)
    total = types.persuadable + types.sure_thing + types.lost_cause + types.sleeping_dog
    torch.testing.assert_close(total, torch.ones_like(total))
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    came, comes = grid < without[:, None], grid < sent[:, None]
    for share, event in (
        (types.persuadable, comes & ~came),
        (types.sure_thing, comes & came),
        (types.lost_cause, ~comes & ~came),
        (types.sleeping_dog, ~comes & came),
    ):
        np.testing.assert_allclose(share, event.double().mean(dim=1), atol=1.1e-3)
    assert sum(types.shares().values()) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\]"):
        ResponseTypes.of(torch.tensor([0.5]), torch.tensor([bad]))


def test_the_long_run_counts_what_a_coupon_takes_from_later_weeks() -> None:
    coupon = torch.full((N,), 3)
    forgetful = world(stock_effect=0.0, reference_effect=0.0, coupon_lift=0.0, message_lift=0.0)
    hoarding = replace(forgetful, assumed=replace(forgetful.assumed, stock_effect=3.0, stock_memory=0.95))
    noticing = copy.deepcopy(forgetful.heads)
    noticing.redemption_bias.fill_(3.0)
    values = []
    for answers in (forgetful, hoarding):
        running = campaign(replace(answers, heads=noticing))
        running.restore(replace(running.state, opted_in=torch.ones(N, dtype=torch.bool)))
        values.append(float(long_run_uplift(running, coupon).mean()))
        assert running.state.week == 0
    assert values[0] > values[1]


def test_money_does_not_limit_the_long_run() -> None:
    rich, poor = campaign(world()), campaign(world(), budget=0.0)
    offer = torch.where(rich.mask[:, 3], 3, 0)
    assert torch.equal(long_run_uplift(rich, offer), long_run_uplift(poor, offer))
    assert torch.equal(long_run_uplift(rich, torch.zeros(N, dtype=torch.int64)), torch.zeros(N).double())
