from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agents.service.database import Database
from experiments.benchmarks.ledger_hammer import (
    Examined,
    HammerFindings,
    HammerPlan,
    examine,
    hammer,
    make_ask,
)
from experiments.benchmarks.scratch_postgres import find_postgres, scratch_postgres

SMALL = HammerPlan(workers=2, reserves=80, kills=2, budget=700)
FULL = HammerPlan(workers=8, reserves=10_000, kills=40, budget=120_000)


def check(found: HammerFindings, plan: HammerPlan) -> None:
    end = found.end
    assert (found.overspent, end.lost, end.doubled, end.changed, end.unbalanced) == (0, 0, 0, 0, 0)
    assert 0 < end.granted < plan.workers * plan.reserves
    assert found.kills > 0
    assert found.looks > 0


def test_killed_workers_leave_an_exact_ledger_on_sqlite(tmp_path: Path) -> None:
    check(hammer(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path, SMALL), SMALL)


def test_faults_of_a_ledger_are_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    plan = HammerPlan(workers=1, reserves=30, kills=0, budget=10**6)
    clean = hammer(url, tmp_path, plan).end
    assert clean == Examined(granted=30, lost=0, doubled=0, changed=0, unbalanced=0)
    database = Database.open(url)

    def spoil(statement: str) -> Examined:
        with database.write() as connection:
            connection.exec_driver_sql(statement)
        return examine(database, tmp_path, plan)

    row = "commitment_id = 'w0-7'"
    amounts = make_ask(plan, 0, 7)
    double = spoil(
        "INSERT INTO commitments SELECT 'twice', campaign, request_id, user_key, charge, liability, cost,"
        f" state, granted_at, expires_at, closed_at FROM commitments WHERE {row}"
    )
    assert double == replace(clean, doubled=1, unbalanced=amounts.charge + amounts.liability)
    spoil("DELETE FROM commitments WHERE commitment_id = 'twice'")
    lost = spoil(f"DELETE FROM commitments WHERE {row}")
    assert lost == replace(clean, lost=1, unbalanced=amounts.charge + amounts.liability)
    changed = spoil("UPDATE requests SET answer = '[false]' WHERE request_id = 'w0-3'")
    assert changed == replace(lost, changed=1)
    spent = spoil("UPDATE budgets SET spent = spent + 5")
    assert spent.unbalanced == changed.unbalanced + 5
    database.close()


@pytest.mark.skipif(find_postgres() is None, reason="PostgreSQL is not installed")
def test_killed_workers_leave_an_exact_ledger_on_postgresql(tmp_path: Path) -> None:
    with scratch_postgres() as url:
        check(hammer(url, tmp_path, SMALL), SMALL)


@pytest.mark.slow
def test_eighty_thousand_reserves_leave_an_exact_ledger(tmp_path: Path) -> None:
    check(hammer(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path, FULL), FULL)
