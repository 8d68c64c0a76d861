"""Several simulators that answer at once, each for its own users."""

from __future__ import annotations

from dataclasses import replace

import torch

from envs.campaign import Campaign
from envs.demo_market import demo_market

N = 40


def test_each_user_tires_and_leaves_as_his_own_simulator_says() -> None:
    market = demo_market(n_users=N)
    central = market.predictor.assumed
    loyal = replace(central, opt_in_share=1.0, fatigue_gain=0.4, fatigue_memory=0.5, opt_out_rested=0.0)
    weary = replace(central, opt_in_share=1.0, fatigue_gain=0.2, fatigue_memory=0.5, opt_out_rested=1.0)
    worlds = [
        replace(market.predictor, assumed=assumed, name=name)
        for name, assumed in (("loyal", loyal), ("weary", weary))
    ]
    member = torch.arange(N) % 2
    running = Campaign(market, worlds, start=0, users=torch.arange(N), budget=1e6, seed=2, member=member)
    running.step(torch.ones(N, dtype=torch.int64))
    expected = torch.where(member == 0, 0.2, 0.1)
    torch.testing.assert_close(running.state.fatigue, expected)
    assert torch.equal(running.state.opted_in, member == 0)


def test_going_back_forgets_what_was_predicted_for_later() -> None:
    market = demo_market(n_users=N)
    running = Campaign(market, market.predictor, start=0, users=torch.arange(N), budget=1e6, seed=2)
    first, uplift, mask = running.state, running.prediction.uplift.clone(), running.mask.clone()
    running.step(torch.where(running.mask[:, 3], 3, 0))
    assert not torch.equal(running.prediction.uplift, uplift)
    assert not torch.equal(running.mask, mask)
    running.restore(first)
    assert torch.equal(running.prediction.uplift, uplift)
    assert torch.equal(running.mask, mask)
