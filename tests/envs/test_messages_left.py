"""How many messages the frequency cap still allows, against a list of what was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from envs.campaign import Campaign
from envs.demo_market import demo_market
from envs.market import messages_left
from envs.observation import CONTEXT_FEATURES
from envs.offers import MOST_REMEMBERED_WEEKS, Catalogue, FrequencyCap

N, WEEKS = 60, 10


def started(cap: FrequencyCap | None) -> Campaign:
    market = demo_market(n_users=N, horizon_weeks=WEEKS)
    market = replace(market, catalogue=Catalogue(market.catalogue.offers, cap))
    weary = replace(market.predictor.assumed, opt_out_rested=0.03, opt_out_fatigued=0.2)
    world = replace(market.predictor, assumed=weary)
    return Campaign(market, world, start=0, users=torch.arange(N), budget=1e5, seed=4)


@pytest.mark.parametrize(("messages", "weeks"), [(1, 1), (1, 2), (2, 3), (5, 2), (3, 8), (6, 8), (2, 30)])
def test_what_is_left_against_a_list_of_what_was_sent(messages: int, weeks: int) -> None:
    running = started(FrequencyCap(messages, weeks))
    offers, generator = running.spec.offers, torch.Generator().manual_seed(messages + weeks)
    sent: list[torch.Tensor] = []
    reached = 0
    while not running.done:
        # The coming week is part of the window: it and weeks - 1 before it.
        recent = sent[max(len(sent) - (weeks - 1), 0) :]
        expected = messages - sum(recent, torch.zeros(N, dtype=torch.int64))
        state = running.state
        left = messages_left(state.messages, offers)
        assert left.dtype == torch.int64
        assert torch.equal(left, expected)
        assert int(left.min()) >= 0
        seen = running.observation(torch.ones(N))[:, CONTEXT_FEATURES.index("messages_left")]
        assert torch.equal(seen, expected.float())
        allowed = state.opted_in & (expected > 0)
        for k, offer in enumerate(running.spec.catalogue.offers):
            free = ~state.coupons.held | (not offer.is_coupon)
            assert torch.equal(running.mask[:, k], (allowed | (not offer.is_message)) & free), offer.name
        reached += int((state.opted_in & (expected == 0)).sum())
        outcome = running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
        sent.append(offers.message[outcome.offer].long())
    # A cap of as many messages as weeks never binds.
    assert (reached > 0) == (messages < weeks)


def test_without_a_cap_as_many_are_left_as_are_remembered() -> None:
    running = started(None)
    for _ in range(3):
        assert (messages_left(running.state.messages, running.spec.offers) == MOST_REMEMBERED_WEEKS).all()
        assert torch.equal(running.mask[:, 1], running.state.opted_in)
        running.step(running.mask[:, 1].long())
