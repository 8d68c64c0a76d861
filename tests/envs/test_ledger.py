from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.ledger import Ledger

Requests = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 5000), st.integers(-(2**31), 2**31)),
    min_size=1,
    max_size=40,
)


def columns(rows: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    charge, liability, priority = (torch.tensor(column) for column in zip(*rows, strict=True))
    return charge, liability, priority


@given(st.integers(0, 60_000), Requests)
def test_grants_against_a_queue_served_one_by_one(budget: int, rows: list[tuple[int, int, int]]) -> None:
    charge, liability, priority = columns(rows)
    granted = Ledger.open(budget).grant(charge, liability, priority)
    left, closed = budget, False
    for index in sorted(range(len(rows)), key=lambda k: (rows[k][2], k)):
        request = rows[index][0] + rows[index][1]
        closed = closed or request > left
        expected = request == 0 or not closed
        assert bool(granted[index]) == expected
        left -= request if expected else 0
    assert left >= 0


@given(st.integers(0, 60_000), Requests)
def test_a_grant_does_not_depend_on_the_order_of_users(budget: int, rows: list[tuple[int, int, int]]) -> None:
    rows = [(c, v, 1000 * p + k) for k, (c, v, p) in enumerate(rows)]  # no ties
    charge, liability, priority = columns(rows)
    permutation = torch.randperm(len(rows), generator=torch.Generator().manual_seed(budget))
    granted = Ledger.open(budget).grant(charge, liability, priority)
    permuted = Ledger.open(budget).grant(charge[permutation], liability[permutation], priority[permutation])
    torch.testing.assert_close(permuted, granted[permutation])


@given(st.integers(0, 60_000), st.lists(Requests, min_size=1, max_size=6), st.data())
def test_the_cap_holds_and_every_tick_is_accounted_for(
    budget: int, weeks: list[list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    ledger = Ledger.open(budget)
    outstanding: list[int] = []
    spent = 0
    for rows in weeks:
        charge, liability, priority = columns(rows)
        granted = ledger.grant(charge, liability, priority)
        ledger = ledger.commit(charge * granted, liability * granted)
        spent += int((charge * granted).sum())
        outstanding += [int(amount) for amount in liability[granted]]
        assert int(ledger.spent + ledger.reserved) <= budget
        ended = [k for k in range(len(outstanding)) if data.draw(st.booleans())]
        cost = [data.draw(st.integers(0, outstanding[k])) for k in ended]
        ledger = ledger.settle(
            torch.tensor(cost, dtype=torch.int64),
            torch.tensor([outstanding[k] for k in ended], dtype=torch.int64),
        )
        spent += sum(cost)
        outstanding = [amount for k, amount in enumerate(outstanding) if k not in ended]
        assert int(ledger.spent) == spent
        assert int(ledger.reserved) == sum(outstanding)
        assert int(ledger.available) == budget - spent - sum(outstanding) >= 0


def test_who_is_refused_is_not_a_matter_of_index() -> None:
    # Room for one in four; over many draws each user gets his quarter.
    n, draws = 8, 4000
    generator = torch.Generator().manual_seed(0)
    one = torch.ones(n, dtype=torch.int64)
    ledger = Ledger.open(2)
    won = sum(ledger.grant(one, 0 * one, torch.rand(n, generator=generator)).long() for _ in range(draws))
    share = torch.as_tensor(won).double() / draws
    assert float((share - 0.25).abs().max()) < 4.5 * (0.25 * 0.75 / draws) ** 0.5


def test_an_empty_ledger_grants_what_costs_nothing() -> None:
    zero = torch.zeros(3, dtype=torch.int64)
    assert Ledger.open(0).grant(zero, zero, torch.rand(3)).all()
    assert Ledger.open(0).grant(zero + 1, zero, torch.rand(3)).tolist() == [False] * 3


def test_a_large_unlimited_ledger_does_not_overflow() -> None:
    n = 100_000
    amount = torch.full((n,), 12_200)
    granted = Ledger.open(10**13).grant(amount, amount, torch.rand(n))
    assert granted.all()


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative: -1 ticks"):
        Ledger.open(-1)
