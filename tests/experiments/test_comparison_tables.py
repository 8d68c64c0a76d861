from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents.policy import NoOfferPolicy, RandomPolicy
from envs.offers import Catalogue, Offer, OfferKind
from experiments.comparison.lineup import Entrant, Pacing
from experiments.comparison.play import Block, Idle, Played, Season
from experiments.comparison.segments import SEGMENTS
from experiments.comparison.tables import FRONTIER, Comparison, Programme

W, T, N = 4, 3, 80
CATALOGUE = Catalogue(
    (
        Offer("nothing", OfferKind.NONE),
        Offer("push", OfferKind.PUSH, delivery_cost=0.01),
        Offer("coupon", OfferKind.PERCENT, slot=1, depth=0.2, max_discount=2.0, validity_weeks=1),
    )
)
LINEUP = [
    Entrant("no offer", NoOfferPolicy(), Pacing.EVEN),
    Entrant("myopic uplift", RandomPolicy()),
    Entrant("myopic uplift, even pacing", RandomPolicy(), Pacing.EVEN),
    Entrant("PPO", RandomPolicy()),
]
PROGRAMME = Programme(LINEUP, budgets=(0.5, 1.0), campaigns=W, frontier_campaigns=2)
GAIN = {"no offer": 0.0, "myopic uplift": 0.5, "myopic uplift, even pacing": 0.4, "PPO": 0.6}
BUDGET = 8.0


def idle() -> Idle:
    rng = np.random.default_rng(0)
    segments = rng.standard_normal((W, N, len(SEGMENTS)))
    segments[:, :, -1] = np.arange(N) % 4 > 0
    return Idle(rng.uniform(10, 20, size=(W, N)), segments)


def played(block: Block) -> Played:
    """The first half of the users are sent a coupon each week, at all that the budget holds."""
    name, w = block.entrant.name, block.campaigns
    budget = BUDGET * block.multiple
    active = name != "no offer"
    chosen = np.zeros((w, N))
    chosen[:, : N // 2] = active
    cost = chosen * budget / (N // 2)
    return Played(
        budget=np.array(budget),
        planned=np.full(T, budget / T),
        margin=idle().margin[:w] + GAIN[name] * block.multiple * 2 * chosen,
        margin_without_lifts=np.zeros((0, N)),
        cost=cost,
        discount=cost,
        offers=(chosen * T).astype(np.int64),
        coupons=(chosen * T).astype(np.int64),
        sent=np.array([w * N * T - int(chosen.sum()) * T, 0, int(chosen.sum()) * T]),
        spend=np.full((w, T), active * budget / T),
        committed=np.full((w, T), active * budget),
        dual_price=np.tile([1.0, 2.0, 4.0], (w, 1)),
        pressure=np.full((w, T), 0.5),
        refused=np.zeros(w, dtype=np.int64),
    )


def comparison(programme: Programme = PROGRAMME, changed: dict[Block, Played] | None = None) -> Comparison:
    blocks = {block: played(block) for block in programme.blocks()} | (changed or {})
    profiles = [f"age {'old' if k % 2 else 'young'}, town {k}" if k < 76 else "" for k in range(N)]
    return Comparison(programme, Season(idle(), blocks), CATALOGUE, profiles, n_resamples=200, seed=3)


def row(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    return found


def test_each_block_is_played_once_and_the_frontier_shares_what_is_compared() -> None:
    blocks = PROGRAMME.blocks()
    assert len({block.file for block in blocks}) == len(blocks) == len(set(blocks))
    assert len(blocks) == 4 * 2 + 2 * (len(FRONTIER) - 2)
    assert PROGRAMME.block("PPO", 1.0).campaigns == W
    assert PROGRAMME.block("PPO", 4.0).campaigns == 2
    again = replace(PROGRAMME, without_lifts=True)
    assert [block.plays for block in again.blocks() if block.without_lifts] == [2 * W]


def test_policies_say_what_was_gained_and_spent() -> None:
    rows = comparison().policies()
    assert [r["name"] for r in rows] == [one.name for one in LINEUP] * 2
    ppo = row(rows, name="PPO", budget_multiple=1.0)
    assert ppo["incremental_margin"] == pytest.approx(0.6 * N)
    assert ppo["ci_low"] < 0.6 * N < ppo["ci_high"]
    assert ppo["world_low"] == pytest.approx(ppo["world_high"])
    assert (ppo["spend"], ppo["utilisation"], ppo["peak_commitment_share"]) == pytest.approx((8.0, 1.0, 1.0))
    assert ppo["lambda"] == pytest.approx(2.0)
    assert (ppo["pacing"], ppo["n_users"], ppo["campaigns"]) == ("forecast", N, W)
    nothing = row(rows, name="no offer", budget_multiple=1.0)
    assert (nothing["incremental_margin"], nothing["ci_low"], nothing["ci_high"]) == (0.0, 0.0, 0.0)
    assert (nothing["spend"], nothing["pacing"]) == (0.0, "even")


def test_differences_are_paired_and_relative_to_the_baseline() -> None:
    rows = comparison().comparison()
    assert len(rows) == 2 * len(LINEUP)
    myopic = row(rows, baseline="myopic uplift", budget_multiple=1.0)
    assert myopic["name"] == "PPO"
    assert myopic["difference"] == pytest.approx(0.1 * N)
    assert myopic["relative"] == pytest.approx(0.2)
    assert myopic["spend_share"] == pytest.approx(1.0)
    nothing = row(rows, baseline="no offer", budget_multiple=0.5)
    assert nothing["relative"] is None
    assert nothing["spend_share"] == 0.0
    pacing = row(rows, name="myopic uplift", budget_multiple=1.0)
    assert pacing["baseline"] == "myopic uplift, even pacing"
    assert pacing["difference"] == pytest.approx(0.1 * N)
    assert pacing["relative"] == pytest.approx(0.25)


def test_pacing_and_offers_add_up() -> None:
    found = comparison()
    pacing = row(found.pacing(), policy="PPO", budget_multiple=0.5)
    assert sum(pacing["planned"]) == pytest.approx(4.0)
    assert sum(pacing["spend"]) == pytest.approx(4.0)
    assert pacing["committed"] == pytest.approx([4.0] * T)
    assert pacing["dual_price"] == pytest.approx([1.0, 2.0, 4.0])
    assert pacing["pressure"] == [0.5] * T
    shares = [r for r in found.offers() if r["policy"] == "PPO" and r["budget_multiple"] == 1.0]
    assert {r["offer"]: r["share"] for r in shares} == {"nothing": 0.5, "push": 0.0, "coupon": 0.5}


def test_the_frontier_has_every_budget_and_counts_overspending() -> None:
    rows = comparison().frontier()
    assert [r["budget_multiple"] for r in rows if r["policy"] == "PPO"] == list(FRONTIER)
    assert {r["policy"] for r in rows} == {"PPO", "myopic uplift"}
    assert {r["overspent"] for r in rows} == {0}
    ppo = row(rows, policy="PPO", budget_multiple=4.0)
    assert (ppo["campaigns"], ppo["budget"], ppo["last_price"]) == (2, 32.0, 4.0)
    assert ppo["incremental_margin"] == pytest.approx(4 * 0.6 * N)
    block = PROGRAMME.block("PPO", 1.0)
    committed = played(block).committed.copy()
    committed[1, 2] += 0.01
    over = comparison(changed={block: replace(played(block), committed=committed)}).frontier()
    assert row(over, policy="PPO", budget_multiple=1.0)["overspent"] == 1


def test_groups_of_users_add_up_to_all() -> None:
    found = comparison()
    rows = [r for r in found.who() if r["policy"] == "PPO"]
    assert {r["by"] for r in rows} == set(SEGMENTS)
    assert {r["budget_multiple"] for r in rows} == {1.0}
    assert "no offer" not in {r["policy"] for r in found.who()}
    for by in SEGMENTS:
        groups = [r for r in rows if r["by"] == by]
        assert sum(r["users"] for r in groups) == N
        for key, total in (("offers_per_user", 1.5), ("cost_per_user", 0.1), ("margin_per_user", 0.6)):
            assert sum(r["users"] * r[key] for r in groups) / N == pytest.approx(total, abs=0.02)
    opted_out = row(rows, by="opt-in", group="opted out")
    assert opted_out["users"] == N // 4


def test_exposure_leaves_small_groups_out_and_gives_the_ratio_of_the_four_fifths_rule() -> None:
    found = comparison().exposure()
    rows = [r for r in found["exposure"] if r["policy"] == "PPO"]
    # The four users without a profile are too few to be shown, and so is everyone's town.
    assert [(r["attribute"], r["group"], r["users"]) for r in rows] == [
        ("age", "old", 38),
        ("age", "young", 38),
    ]
    # Of 38, twenty are among the first half.
    assert rows[0]["offers_per_user"] == rows[0]["coupons_per_user"] == pytest.approx(3 * 20 / 38)
    assert rows[0]["discount_per_user"] == pytest.approx(0.2 * 20 / 38)
    assert row(found["parity"], policy="PPO", attribute="age")["ratio"] == pytest.approx(1.0)


def test_what_is_left_without_lifts() -> None:
    programme = replace(PROGRAMME, without_lifts=True)
    block = programme.block("PPO", 1.0)
    as_played = replace(played(block), margin_without_lifts=idle().margin + 0.25)
    (found,) = comparison(programme, {block: as_played}).sensitivity()
    assert found["incremental_margin"] == pytest.approx(0.25 * N)
    assert found["baseline_margin"] == pytest.approx(0.6 * N)


def test_the_price_path_is_that_of_the_configured_budget() -> None:
    path = comparison().price_path()
    assert [week.spend for week in path] == pytest.approx([1.0, 2.0, 4.0])
    assert [week.pressure for week in path] == [0.5] * T
