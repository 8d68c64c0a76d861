from __future__ import annotations

from dataclasses import fields

import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.coupons import REMEMBERED_DEALS, DealMemory, HeldCoupons

PERCENT = {
    "category": 3,
    "depth": 0.2,
    "min_spend": 0.0,
    "max_discount": 0.6,
    "liability": 6000,
    "weeks_left": 2,
}
THRESHOLD = {
    "category": -1,
    "depth": 0.05,
    "min_spend": 40.0,
    "max_discount": 2.0,
    "liability": 20_000,
    "weeks_left": 1,
}


def coupons(*rows: dict[str, float]) -> HeldCoupons:
    none = HeldCoupons.none(1)
    return HeldCoupons(
        **{
            f.name: torch.tensor([row[f.name] for row in rows], dtype=getattr(none, f.name).dtype)
            for f in fields(HeldCoupons)
        }
    )


def test_what_is_held_and_on_what() -> None:
    some = coupons(PERCENT, THRESHOLD, PERCENT | {"weeks_left": 0})
    assert some.held.tolist() == [True, True, False]
    assert some.on_basket.tolist() == [False, True, False]
    none = HeldCoupons.none(2)
    assert not (none.held | none.on_basket).any()
    assert none.category.tolist() == [-1, -1]
    assert int(none.liability.sum()) == 0


def test_where_takes_coupons_user_by_user() -> None:
    mixed = coupons(PERCENT, PERCENT).where(torch.tensor([True, False]), coupons(THRESHOLD, THRESHOLD))
    for f in fields(HeldCoupons):
        assert torch.equal(getattr(mixed, f.name), getattr(coupons(PERCENT, THRESHOLD), f.name))


def test_rows_by_slice_and_by_number() -> None:
    some = coupons(PERCENT, THRESHOLD, PERCENT)
    deals = DealMemory.none(3).after_week(torch.tensor([True, True, True]), some)
    for index in (slice(1, 3), torch.tensor([2, 0, 2])):
        for whole in (some, deals):
            for f in fields(whole):
                assert torch.equal(getattr(whole.rows(index), f.name), getattr(whole, f.name)[index])


Weeks = st.lists(
    st.tuples(st.booleans(), st.integers(-1, 4), st.sampled_from([0.125, 0.25, 0.5])), min_size=1, max_size=12
)


@given(st.lists(Weeks, min_size=1, max_size=4))
def test_the_memory_of_deals_against_a_list(users: list[list[tuple[bool, int, float]]]) -> None:
    n, horizon = len(users), min(len(weeks) for weeks in users)
    memory = DealMemory.none(n)
    told: list[list[tuple[int, float, int]]] = [[] for _ in users]
    for week in range(horizon):
        rows = [user[week] for user in users]
        held = coupons(*({**PERCENT, "category": category, "depth": depth} for _, category, depth in rows))
        memory = memory.after_week(torch.tensor([redeemed for redeemed, _, _ in rows]), held)
        for story, (redeemed, category, depth) in zip(told, rows, strict=True):
            # A threshold coupon, without a category, is no deal on any.
            if redeemed and category >= 0:
                story.insert(0, (category, depth, week))
        for user, story in enumerate(told):
            known = story[:REMEMBERED_DEALS]
            empty = REMEMBERED_DEALS - len(known)
            assert memory.category[user].tolist() == [c for c, _, _ in known] + [-1] * empty
            assert memory.depth[user, : len(known)].tolist() == [d for _, d, _ in known]
            assert memory.weeks_ago[user, : len(known)].tolist() == [week + 1 - w for _, _, w in known]
            assert (memory.weeks_ago >= 1).all()
