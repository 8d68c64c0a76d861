"""Many processes that book on one ledger, are killed at random, and come back; and what then must hold.

Each worker sends its own series of requests: a reserve, and now and then the settlement or release of one it
was granted before. What was answered it appends to its own file before it goes on, so that a worker that is
killed (``kill -9``) is followed by one that knows what was promised, sends the last requests again under the
same ids, and goes on. Everything a request asks for follows from its id, so the end can be checked row by
row.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from agents.service import ledger
from agents.service.database import Database, DatabaseBusyError
from agents.service.errors import ClosedError
from agents.service.granting import Ask
from agents.service.idempotency import claim, hash_body, store_answer
from agents.service.ledger import CommitmentState
from agents.service.reconciliation import reconcile
from agents.service.tables import commitments, requests

CAMPAIGN = "hammer"
POLL_SECONDS = 0.05
SEND_AGAIN = 3
"""Answered requests that a restarted worker sends again."""
END_EVERY = 5
"""A worker ends an earlier commitment with every fifth request."""
LIFETIME = 500
"""Steps after which a coupon expires, by the clock of whoever books; the workers' clocks differ."""


@dataclass(frozen=True)
class HammerPlan:
    """How much is booked.

    Attributes:
        workers: processes at a time.
        reserves: reserves of each.
        kills: workers that are killed, spread evenly over the work.
        budget: ticks; less than all ask for together.
        seed: of the amounts and of who is killed.
    """

    workers: int
    reserves: int
    kills: int
    budget: int
    seed: int = 0


@dataclass(frozen=True)
class Examined:
    """What the rows say in the end, beside what was promised.

    Attributes:
        granted: reserves that the budget covered.
        lost: requests without an answer in the database, or promises that its rows do not keep.
        doubled: commitments that nobody was promised, or with other amounts.
        changed: requests that were answered differently when sent again.
        unbalanced: ticks between the counters and the sums of the rows.
    """

    granted: int
    lost: int
    doubled: int
    changed: int
    unbalanced: int


@dataclass(frozen=True)
class HammerFindings:
    """What came of it.

    Attributes:
        end: what was found when all was done.
        kills: workers killed.
        overspent: looks at the ledger that found more committed than the budget, or sums that differ.
        looks: how often it was looked at while workers booked.
        seconds: duration.
    """

    end: Examined
    kills: int
    overspent: int
    looks: int
    seconds: float


def hammer(url: str, folder: Path, plan: HammerPlan) -> HammerFindings:
    """Book on an empty database until every worker has done its series, and check what came of it.

    Args:
        url: of the database.
        folder: for the workers' files; empty.
        plan: how much is booked.

    Raises:
        RuntimeError: a worker failed by itself.
    """
    database = Database.open(url, timeout_seconds=60.0)
    try:
        with database.write() as connection:
            ledger.open_budget(connection, CAMPAIGN, plan.budget)
        start = time.monotonic()
        kills, looks, overspent = _drive(database, url, folder, plan)
        seconds = time.monotonic() - start
        return HammerFindings(examine(database, folder, plan), kills, overspent, looks, seconds)
    finally:
        database.close()


def _drive(database: Database, url: str, folder: Path, plan: HammerPlan) -> tuple[int, int, int]:
    """Keep the workers going and kill some; return kills, looks, and looks that found too much committed."""
    context = get_context("spawn")
    chance = random.Random(plan.seed)

    def begin(worker: int) -> BaseProcess:
        process = context.Process(target=book, args=(url, _file(folder, worker), worker, plan), daemon=True)
        process.start()
        return process

    running = {worker: begin(worker) for worker in range(plan.workers)}
    kills = looks = overspent = 0
    try:
        while running:
            looking = time.monotonic()
            with database.read() as connection:
                overspent += not reconcile(connection, CAMPAIGN).exact
            looks += 1
            # Adding up takes longer as rows come in, and must not take the machine from the workers.
            time.sleep(max(POLL_SECONDS, 10 * (time.monotonic() - looking)))
            for worker, process in list(running.items()):
                if process.exitcode == 0:
                    del running[worker]
                elif process.exitcode is not None:
                    raise RuntimeError(f"worker {worker} ended with status {process.exitcode}")
            files = [_file(folder, worker) for worker in range(plan.workers)]
            done = sum(file.read_bytes().count(b"\n") for file in files if file.is_file())
            if running and kills < plan.kills * done / (plan.workers * plan.reserves):
                victim = chance.choice(sorted(running))
                running[victim].kill()
                running[victim].join()
                running[victim] = begin(victim)
                kills += 1
    finally:
        for process in running.values():
            process.kill()
    return kills, looks, overspent


# One worker -----------------------------------------------------------------------------------------------


def book(url: str, promises: Path, worker: int, plan: HammerPlan) -> None:
    """Send a worker's series from where its file of promises ends."""
    database = Database.open(url, timeout_seconds=60.0, connections=1)
    done = _promises(promises)
    _mend(promises, done)
    with promises.open("ab", buffering=0) as file:

        def promise(line: list[Any]) -> None:
            file.write(json.dumps(line).encode() + b"\n")

        for earlier in done[-SEND_AGAIN:]:
            again = _step(database, plan, worker, earlier[0], done)
            if again != earlier:
                promise(["changed", earlier, again])
        for step in range(len(done), plan.reserves):
            line = _step(database, plan, worker, step, done)
            promise(line)
            done.append(line)
    database.close()


def _step(database: Database, plan: HammerPlan, worker: int, step: int, done: list[Any]) -> list[Any]:
    """Reserve, perhaps end an earlier commitment; return ``[step, granted, how the other ended]``."""
    asked = make_ask(plan, worker, step)

    def reserve(connection: Connection) -> Any:
        return ledger.reserve(connection, CAMPAIGN, asked.commitment_id, [asked], seed=b"hammer", now=step)

    granted = _once(database, asked.commitment_id, step, reserve)
    earlier = step - END_EVERY
    if step % END_EVERY or earlier < 0 or not done[earlier][1][0]:
        return [step, granted, None]
    other = make_ask(plan, worker, earlier)

    def end(connection: Connection) -> Any:
        try:
            if step % (2 * END_EVERY):
                ledger.settle(connection, {other.commitment_id: other.liability // 2}, now=step)
                return CommitmentState.SETTLED
            ledger.release(connection, other.commitment_id, now=step)
            return CommitmentState.RELEASED
        except ClosedError:  # another worker's clock is ahead
            return CommitmentState.EXPIRED

    return [step, granted, _once(database, f"{other.commitment_id}-end", step, end)]


def _once(database: Database, request_id: str, now: int, work: Callable[[Connection], Any]) -> Any:
    """Send a request until it is answered."""
    while True:
        try:
            with database.write() as connection:
                answer = claim(connection, request_id, "hammer", hash_body(request_id), now=now)
                if answer is None:
                    answer = work(connection)
                    store_answer(connection, request_id, answer)
                return answer
        except DatabaseBusyError:
            continue


def make_ask(plan: HammerPlan, worker: int, step: int) -> Ask:
    """Return what a worker asks for at a step."""
    chance = random.Random(f"{plan.seed} {worker} {step}")
    name = f"w{worker}-{step}"
    return Ask(name, f"user {name}", chance.randint(0, 3), chance.randint(1, 40), step + LIFETIME)


def _file(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.jsonl"


def _promises(path: Path) -> list[Any]:
    """Read what was promised; a line that the kill cut short was not."""
    content = path.read_bytes() if path.is_file() else b""
    lines = [json.loads(line) for line in content.split(b"\n")[:-1]]
    return [line for line in lines if line[0] != "changed"]


def _mend(path: Path, done: list[Any]) -> None:
    """Cut a half-written last line off."""
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


# The end --------------------------------------------------------------------------------------------------


def examine(database: Database, folder: Path, plan: HammerPlan) -> Examined:
    """Compare the rows of the database with what the workers' files say was promised."""
    with database.read() as connection:
        found = reconcile(connection, CAMPAIGN)
        rows = {row.commitment_id: row for row in connection.execute(select(commitments))}
        answers = {row.request_id: row.answer for row in connection.execute(select(requests))}
    n_granted = lost = doubled = changed = 0
    for worker in range(plan.workers):
        changed += _file(folder, worker).read_bytes().count(b'["changed"')
        promises = {line[0]: line for line in _promises(_file(folder, worker))}
        for step in range(plan.reserves):
            asked = make_ask(plan, worker, step)
            row = rows.pop(asked.commitment_id, None)
            if step not in promises or answers.get(asked.commitment_id) is None:
                lost += 1
                continue
            _, (granted,), _ = promises[step]
            changed += json.loads(answers[asked.commitment_id]) != [granted]
            n_granted += granted
            if row is None:
                lost += granted
                continue
            amounts = (row.charge, row.liability)
            doubled += not granted or amounts != (asked.charge, asked.liability)
            ended = promises.get(step + END_EVERY, [None, None, None])[2]
            lost += ended not in (None, row.state)
    unbalanced = abs(found.spent - found.balance.spent) + abs(found.reserved - found.balance.reserved)
    return Examined(n_granted, lost, doubled + len(rows), changed, unbalanced)
