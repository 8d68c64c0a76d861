from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy.exc import IntegrityError

from agents.service import ledger
from agents.service.database import Database
from agents.service.errors import ClosedError, LedgerError, UnknownError
from agents.service.granting import Ask, grant, grant_priority
from agents.service.idempotency import claim
from agents.service.ledger import CommitmentState
from agents.service.reconciliation import reconcile
from agents.service.tables import budgets, commitments
from envs.ledger import Ledger

SEED = b"seed"


def ask(name: str, charge: int = 2, liability: int = 20, expires_at: int = 100) -> Ask:
    return Ask(name, f"user of {name}", charge, liability, expires_at)


def reserve(database: Database, request_id: str, asks: Sequence[Ask], *, now: int = 1) -> list[bool]:
    with database.write() as connection:
        assert claim(connection, request_id, "reserve", "", now=now) is None
        return ledger.reserve(connection, "autumn", request_id, asks, seed=SEED, now=now)


def counters(database: Database, *, campaign: str = "autumn") -> tuple[int, int]:
    """Spent and reserved, after checking that they are the sums of the rows."""
    with database.read() as connection:
        found = reconcile(connection, campaign)
    assert found.exact
    return found.balance.spent, found.balance.reserved


@pytest.fixture
def opened(database: Database) -> Database:
    with database.write() as connection:
        ledger.open_budget(connection, "autumn", 100)
    return database


def test_a_coupon_is_charged_reserved_and_settled(opened: Database) -> None:
    assert reserve(opened, "r1", [ask("a"), ask("b", charge=3, liability=0)]) == [True, True]
    assert counters(opened) == (5, 20)
    with opened.write() as connection:
        ledger.settle(connection, {"a": 15}, now=2)
        assert ledger.read_balance(connection, "autumn").available == 80
    assert counters(opened) == (20, 0)


def test_what_is_due_is_released_before_the_next_is_served(opened: Database) -> None:
    assert reserve(opened, "r1", [ask("a", liability=90, expires_at=50)]) == [True]
    assert reserve(opened, "r2", [ask("b")], now=49) == [False]
    assert reserve(opened, "r3", [ask("c")], now=50) == [True]
    assert counters(opened) == (4, 20)
    with opened.read() as connection:
        found = reconcile(connection, "autumn")
    assert found.commitments == {CommitmentState.EXPIRED: 1, CommitmentState.RESERVED: 1}


def test_a_released_coupon_keeps_its_charge(opened: Database) -> None:
    reserve(opened, "r1", [ask("a")])
    with opened.write() as connection:
        ledger.release(connection, "a", now=2)
    assert counters(opened) == (2, 0)


@pytest.mark.parametrize("end", ["settle", "release", "expiry"])
def test_a_coupon_ends_once(opened: Database, end: str) -> None:
    reserve(opened, "r1", [ask("a", expires_at=10)])
    with opened.write() as connection:
        if end == "settle":
            ledger.settle(connection, {"a": 4}, now=2)
        elif end == "release":
            ledger.release(connection, "a", now=2)
        else:
            assert ledger.expire(connection, "autumn", now=10) == 1
    before = counters(opened)
    with pytest.raises(ClosedError, match="already"), opened.write() as connection:
        ledger.settle(connection, {"a": 4}, now=3)
    with pytest.raises(ClosedError, match="already"), opened.write() as connection:
        ledger.release(connection, "a", now=3)
    with opened.write() as connection:
        assert ledger.expire(connection, "autumn", now=99) == 0
    assert counters(opened) == before


def test_a_coupon_that_is_due_cannot_be_redeemed_even_before_it_is_released(opened: Database) -> None:
    reserve(opened, "r1", [ask("a", expires_at=10)])
    with pytest.raises(ClosedError, match="expired"), opened.write() as connection:
        ledger.settle(connection, {"a": 4}, now=10)
    assert counters(opened) == (2, 20)


@pytest.mark.parametrize("cost", [-1, 21])
def test_a_redemption_costs_at_most_what_was_reserved(opened: Database, cost: int) -> None:
    reserve(opened, "r1", [ask("a")])
    with pytest.raises(LedgerError, match="not within"), opened.write() as connection:
        ledger.settle(connection, {"a": cost}, now=2)
    assert counters(opened) == (2, 20)


def test_a_batch_of_redemptions_is_settled_whole_or_not_at_all(opened: Database) -> None:
    with opened.write() as connection:
        ledger.open_budget(connection, "spring", 50)
        claim(connection, "s", "reserve", "", now=1)
        ledger.reserve(connection, "spring", "s", [ask("s")], seed=SEED, now=1)
    reserve(opened, "r1", [ask("a"), ask("b"), ask("c")])
    with pytest.raises(LedgerError, match="'b' reserved"), opened.write() as connection:
        ledger.settle(connection, {"a": 5, "b": 21, "s": 1}, now=2)
    assert counters(opened) == (6, 60)
    with opened.write() as connection:
        ledger.settle(connection, {"a": 5, "s": 1, "b": 20}, now=2)
    assert counters(opened) == (31, 20)
    assert counters(opened, campaign="spring") == (3, 0)


def test_unknown_campaigns_and_commitments_are_named(opened: Database) -> None:
    with pytest.raises(UnknownError, match="'spring'"), opened.read() as connection:
        ledger.read_balance(connection, "spring")
    with pytest.raises(UnknownError, match="'x'"), opened.write() as connection:
        ledger.settle(connection, {"x": 1}, now=1)


def test_a_budget_is_opened_once(opened: Database) -> None:
    with opened.write() as connection:
        assert ledger.open_budget(connection, "autumn", 100).available == 100
    with (
        pytest.raises(LedgerError, match=r"open with a budget of 0\.01, not 0\.0101"),
        opened.write() as connection,
    ):
        ledger.open_budget(connection, "autumn", 101)
    with pytest.raises(LedgerError, match="must be in"), opened.write() as connection:
        ledger.open_budget(connection, "spring", -1)
    with opened.read() as connection:
        assert [balance.campaign for balance in ledger.read_balances(connection)] == ["autumn"]


@pytest.mark.parametrize(("charge", "liability"), [(-1, 0), (0, -1), (2**62 + 1, 0)])
def test_an_ask_is_for_a_proper_amount(charge: int, liability: int) -> None:
    with pytest.raises(LedgerError, match="charge and liability"):
        ask("a", charge=charge, liability=liability)


def test_the_database_itself_refuses_overspending(opened: Database) -> None:
    with pytest.raises(IntegrityError), opened.write() as connection:
        connection.execute(budgets.update().values(spent=60, reserved=41))
    reserve(opened, "r1", [ask("a")])
    with pytest.raises(IntegrityError), opened.write() as connection:
        connection.execute(commitments.update().values(state="settled", cost=21))
    assert counters(opened) == (2, 20)


def test_a_commitment_is_never_doubled(opened: Database) -> None:
    reserve(opened, "r1", [ask("a")])
    with pytest.raises(IntegrityError):
        reserve(opened, "r2", [ask("a")])
    assert counters(opened) == (2, 20)


def test_nothing_of_a_transaction_that_fails_remains(opened: Database) -> None:
    def fail() -> None:
        with opened.write() as connection:
            claim(connection, "r1", "reserve", "", now=1)
            ledger.reserve(connection, "autumn", "r1", [ask("a")], seed=SEED, now=1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert counters(opened) == (0, 0)
    assert reserve(opened, "r1", [ask("a")]) == [True]


# The rule that decides who is served ---------------------------------------------------------------

amounts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=12)


@given(amounts=amounts, available=st.integers(0, 150), seed=st.binary(max_size=64))
def test_the_rule_is_the_markets(amounts: list[tuple[int, int]], available: int, seed: bytes) -> None:
    asks = [ask(str(k), charge, liability) for k, (charge, liability) in enumerate(amounts)]
    order = sorted(range(len(asks)), key=lambda k: grant_priority(str(k), seed))
    priority = torch.zeros(len(asks), dtype=torch.float64)
    priority[order] = torch.arange(len(asks), dtype=torch.float64)
    expected = Ledger.open(available).grant(
        torch.tensor([a.charge for a in asks], dtype=torch.int64),
        torch.tensor([a.liability for a in asks], dtype=torch.int64),
        priority,
    )
    assert grant(asks, available, seed) == expected.tolist()


@given(st.permutations([str(k) for k in range(9)]))
def test_the_place_in_the_batch_does_not_matter(names: list[str]) -> None:
    granted = dict(zip(names, grant([ask(name) for name in names], 70, SEED), strict=True))
    again = grant([ask(str(k)) for k in range(9)], 70, SEED)
    assert [granted[str(k)] for k in range(9)] == again
    assert sum(again) == 3


def test_everybody_is_served_equally_often() -> None:
    n, seeds = 10, 2_000
    asks = [ask(str(k), charge=1, liability=0) for k in range(n)]
    counts = [0] * n
    for seed in range(seeds):
        for place, fits in enumerate(grant(asks, 3, seed.to_bytes(4, "big"))):
            counts[place] += fits
    # Binomial(2000, 0.3): five standard deviations of 20.5.
    assert sum(counts) == 3 * seeds
    assert all(abs(count - 600) < 103 for count in counts)


# Any sequence of bookings --------------------------------------------------------------------------


class Bookkeeping(RuleBasedStateMachine):
    """The ledger beside a plain dictionary."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.path.unlink(missing_ok=True)
        self.database = Database.open(f"sqlite:///{self.path}")
        with self.database.write() as connection:
            ledger.open_budget(connection, "autumn", 200)
        self.now, self.asked, self.spent = 0, 0, 0
        self.held: dict[str, Ask] = {}

    def teardown(self) -> None:
        self.database.close()

    @rule(amounts=amounts, life=st.integers(1, 5))
    def reserve(self, amounts: list[tuple[int, int]], life: int) -> None:
        asks = []
        for charge, liability in amounts:
            self.asked += 1
            asks.append(ask(str(self.asked), charge, liability, self.now + life))
        granted = reserve(
            self.database, f"r{self.asked} {self.now} {len(amounts)} {life}", asks, now=self.now
        )
        self.held = {name: held for name, held in self.held.items() if held.expires_at > self.now}
        for one, fits in zip(asks, granted, strict=True):
            self.spent += one.charge * fits
            if fits and one.liability:
                self.held[one.commitment_id] = one
        self.now += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), paid=st.booleans())
    def end(self, data: st.DataObject, paid: bool) -> None:
        one = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        with self.database.write() as connection:
            if one.expires_at <= self.now:
                with pytest.raises(ClosedError):
                    ledger.release(connection, one.commitment_id, now=self.now)
                return
            if paid:
                cost = data.draw(st.integers(0, one.liability))
                ledger.settle(connection, {one.commitment_id: cost}, now=self.now)
                self.spent += cost
            else:
                ledger.release(connection, one.commitment_id, now=self.now)
        del self.held[one.commitment_id]

    @invariant()
    def adds_up(self) -> None:
        spent, reserved = counters(self.database)
        assert spent == self.spent
        assert reserved == sum(one.liability for one in self.held.values())
        assert spent + reserved <= 200


def test_any_sequence_of_bookings_adds_up(tmp_path: Path) -> None:
    class Here(Bookkeeping):
        path = tmp_path / "books.db"

    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=12,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
