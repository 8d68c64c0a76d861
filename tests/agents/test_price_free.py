from __future__ import annotations

import torch

from agents.policy import MyopicUpliftPolicy
from agents.price_free import LastGain, best_net_of_price, user_columns
from envs.campaign import Campaign
from envs.demo_market import demo_market
from envs.observation import LOG_DUAL_PRICE, PRESSURE

MARKET = demo_market(n_users=30)
LAYOUT = MARKET.layout


def week() -> tuple[Campaign, torch.Tensor]:
    running = Campaign(MARKET, MARKET.predictor, start=0, users=torch.arange(30), budget=1e3, seed=0)
    running.step()
    return running, running.observation(torch.linspace(0.1, 4.0, 30))


def test_with_the_predictors_own_uplift_it_is_the_myopic_rule() -> None:
    running, rows = week()
    uplift = LAYOUT.offer_block(rows, "uplift")
    expected = MyopicUpliftPolicy(LAYOUT).probabilities(rows, running.mask)
    assert expected[:, 1:].sum() > 0
    assert torch.equal(best_net_of_price(uplift, rows, running.mask, LAYOUT), expected)
    # Gains of another precision make no difference to what comes out.
    in_double = best_net_of_price(uplift.double(), rows, running.mask, LAYOUT)
    assert in_double.dtype == rows.dtype
    assert torch.equal(in_double, expected)


def test_user_columns_leave_out_the_price_and_the_offers() -> None:
    names = LAYOUT.names()
    kept = [names[k] for k in user_columns(LAYOUT)]
    assert {"log_visit_recency", "weeks_left", "embedding_0"} <= set(kept)
    assert not {"log_dual_price", "pressure", "uplift_0", "reserve_1"} & set(kept)
    assert len(kept) == LAYOUT.n_context - 2


def test_the_gain_is_worked_out_once_for_all_prices() -> None:
    _, rows = week()
    asked: list[torch.Tensor] = []

    def work_out(observation: torch.Tensor) -> torch.Tensor:
        asked.append(observation)
        return observation.sum(dim=1, keepdim=True)

    last = LastGain(LAYOUT)
    first = last.of(rows, work_out)
    for price in (0.3, 3.0):
        again = rows.clone()
        again[:, LOG_DUAL_PRICE] = price
        again[:, PRESSURE] = 0.5
        LAYOUT.offer_block(again, "reserve").mul_(price)
        assert torch.equal(last.of(again, work_out), first)
    assert len(asked) == 1
    assert (asked[0][:, [LOG_DUAL_PRICE, PRESSURE]] == 0).all()
    assert (LAYOUT.offer_block(asked[0], "reserve") == 0).all()
    # The rows given are left as they are, and any other change is seen, even of the same tensor.
    assert (rows[:, LOG_DUAL_PRICE] != 0).any()
    for column in user_columns(LAYOUT)[:3]:
        rows[4, column] += 1.0
        assert not torch.equal(last.of(rows, work_out), first)
    assert len(asked) == 4
    assert last.of(rows[:7], work_out).shape == (7, 1)
