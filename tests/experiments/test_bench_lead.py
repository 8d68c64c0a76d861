from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import lead
from experiments.comparison.campaigns import Arena
from experiments.comparison.lineup import Entrant
from experiments.comparison.play import Block, Idle, Played, Season
from experiments.config import RunConfig
from experiments.fitted_run import FittedRun

W, N = 8, 50
RULE, LEARNED = 1.0, {0.5: 1.1, 1.0: 1.0, 2.0: 0.9}


def played(block: Block, idle: Idle) -> Played:
    gain = RULE if block.entrant.name == lead.RULE else LEARNED[block.multiple]
    nothing = np.zeros((W, 0))
    return Played(
        budget=np.array(1.0),
        planned=np.zeros(1),
        margin=idle.margin + gain,
        margin_without_lifts=nothing,
        cost=np.full((W, N), 0.5 if block.entrant.name == lead.RULE else 0.6),
        discount=nothing,
        offers=np.zeros((W, N), dtype=np.int64),
        coupons=np.zeros((W, N), dtype=np.int64),
        sent=np.zeros(1, dtype=np.int64),
        spend=nothing,
        committed=nothing,
        dual_price=nothing,
        pressure=nothing,
        refused=np.zeros(W, dtype=np.int64),
    )


def test_the_lead_is_paired_and_met_only_where_the_interval_is_above_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    idle = Idle(np.random.default_rng(0).normal(20.0, 5.0, (W, N)), np.zeros((W, N, 1)))
    config = RunConfig()
    config = replace(config, evaluate=replace(config.evaluate, n_bootstrap=50))
    asked: list[Block] = []

    def season(arena: Any, blocks: Sequence[Block], **_: Any) -> Season:
        asked.extend(blocks)
        return Season(idle, {block: played(block, idle) for block in blocks})

    monkeypatch.setattr(FittedRun, "load", lambda folder: SimpleNamespace(config=config))
    monkeypatch.setattr(lead, "read_manifest", lambda folder: {"seed": 3})
    opened = SimpleNamespace(parts=SimpleNamespace(market=None), trained=None)
    monkeypatch.setattr(Arena, "open", lambda arena: opened)
    entrants = [Entrant(name, None) for name in (lead.RULE, lead.LEARNED)]  # type: ignore[arg-type]
    monkeypatch.setattr(lead, "core_lineup", lambda market, trained: entrants)
    monkeypatch.setattr(lead, "play_season", season)
    rows = lead.lead(tmp_path, W, 4)
    assert {(block.campaigns, block.plans) for block in asked} == {(W, 4)}
    assert len(asked) == 2 * 3
    leads, nets, spends = rows[::3], rows[1::3], rows[2::3]
    assert [row.value for row in leads] == pytest.approx([0.1, 0.0, -0.1])
    # Of a gain of 1 the rule spends 0.5, PPO 0.6 whatever it gains.
    assert [row.value for row in nets] == pytest.approx([0.0, -0.2, -0.4], abs=1e-9)
    assert [row.value for row in spends] == pytest.approx([0.6 * N] * 3)
    assert [row.peer_value for row in spends] == [0.5 * N] * 3
    rows = leads
    # The same difference for every user and campaign leaves nothing to chance.
    assert [row.ci_low for row in rows] == pytest.approx([0.1, 0.0, -0.1], abs=1e-9)
    assert [row.ci_high for row in rows] == pytest.approx([0.1, 0.0, -0.1], abs=1e-9)
    assert [rows[0].met, rows[2].met] == [True, False]


def test_campaigns_follow_plans_in_turn() -> None:
    margin = np.arange(6.0)[:, None] + np.array([[0.0, 100.0]])
    # Campaigns 0, 2, 4 follow the first plan, 1, 3, 5 the second.
    np.testing.assert_allclose(lead.by_plan(margin, 2), [[2.0, 102.0], [3.0, 103.0]])
    with pytest.raises(ValueError, match="8 campaigns are not equally many for each of 3 plans"):
        lead.lead(Path("nowhere"), 8, 3)
    with pytest.raises(ValueError, match="2 campaigns cannot follow 3 plans"):
        Block(Entrant("PPO", None), 1.0, 2, plans=3)  # type: ignore[arg-type]
