from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from scipy.stats import chisquare, kstest
from sqlalchemy import func, select

from agents.service.database import Database
from agents.service.desk import WEEK_SECONDS, CouponDesk, RepeatedUserError
from agents.service.errors import ClosedError, LedgerError, UnknownError
from agents.service.idempotency import RequestConflictError
from agents.service.keys import ServiceKeys
from agents.service.outcomes import FeedbackConflictError, Outcome
from agents.service.reconciliation import reconcile
from agents.service.tables import commitments, decisions, feedback
from agents.serving import DecisionInputError
from envs.panel_from_logs import pseudonyms

COUPON, PUSH = 6_200, 200
"""Ticks that the scripted policy's coupon and message ask for."""


class Clock(Protocol):
    now: float


class Shop(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    desk: CouponDesk
    clock: Clock


class OpenShop(Protocol):
    def __call__(self, database: Database, budget: int = ..., *, grace_seconds: int = ...) -> Shop: ...


@pytest.fixture
def shop(open_shop: OpenShop, database: Database) -> Shop:
    return open_shop(database)


def decide(
    shop: Shop, request_id: str, wishes: Sequence[str], *, week: int = 47, prefix: str = "u"
) -> list[dict[str, Any]]:
    """Decide for users who get what they wish for as far as the budget goes."""
    users = [{"user_id": f"{prefix}{k}", "profile": wish} for k, wish in enumerate(wishes)]
    answer = shop.desk.decide(request_id, "autumn", users, {"week": week})
    decided: list[dict[str, Any]] = answer.content["decisions"]
    return decided


def balance(shop: Shop) -> tuple[int, int]:
    with shop.desk.database.read() as connection:
        found = reconcile(connection, "autumn")
    assert found.exact
    return found.balance.spent, found.balance.reserved


def test_offers_are_committed_and_logged(shop: Shop) -> None:
    nothing, push, coupon = decide(shop, "r1", ["nothing", "push", "coupon"])
    assert [d["offer"] for d in (nothing, push, coupon)] == ["no offer", "push only", "20% slot 1"]
    assert balance(shop) == (2 * PUSH, 6_000)
    assert nothing["expires_at"] is None
    assert push["expires_at"] is None
    assert coupon["expires_at"] == 1_000_000 + 2 * WEEK_SECONDS
    assert not any(d["refused"] or d["standing"] for d in (nothing, push, coupon))
    with shop.desk.database.read() as connection:
        row = connection.execute(
            select(decisions).where(decisions.c.decision_id == coupon["decision_id"])
        ).one()
    assert (row.week, row.weeks_left, row.offer, row.propensity, row.refused) == (47, 4, 2, 1.0, False)
    assert row.user_key == pseudonyms(["u2"], b"a secret of the tests")[0]
    assert np.frombuffer(row.probabilities).tolist() == [0.0, 0.0, 1.0]
    assert np.frombuffer(row.observation, np.float32).tolist() == [0.0, 100_000.0]


def test_a_retry_gets_the_same_answer_and_commits_nothing(shop: Shop) -> None:
    users = [{"user_id": "a"}, {"user_id": "b", "profile": "coupon"}]
    first = shop.desk.decide("r1", "autumn", users, {"week": 1})
    before = balance(shop)
    shop.clock.now += 3600
    again = shop.desk.decide("r1", "autumn", users, {"week": 1})
    assert (first.repeated, again.repeated) == (False, True)
    assert again.content == first.content
    assert balance(shop) == before


def test_a_request_id_stands_for_one_body(shop: Shop) -> None:
    users = [{"user_id": "a"}]
    shop.desk.decide("r1", "autumn", users, {"week": 1})
    with pytest.raises(RequestConflictError):
        shop.desk.decide("r1", "autumn", users, {"week": 2})
    with pytest.raises(RequestConflictError):
        shop.desk.redeem("r1", "x", 1.0)


def test_what_the_budget_does_not_cover_is_not_sent_but_logged(
    open_shop: OpenShop, database: Database
) -> None:
    shop = open_shop(database, budget=2 * COUPON + PUSH)
    decided = decide(shop, "r1", ["coupon"] * 5 + ["nothing"])
    refused = [d for d in decided if d["refused"]]
    assert len(refused) == 3
    assert not decided[-1]["refused"]
    for one in refused:
        assert (one["offer"], one["channel"], one["category"], one["message"]) == (
            "no offer",
            None,
            None,
            None,
        )
        assert one["depth"] == 0.0
        assert one["reasons"][0]["code"] == "BUDGET_EXHAUSTED"
        assert one["propensity"] == 1.0
    assert balance(shop) == (2 * PUSH, 12_000)
    with shop.desk.database.read() as connection:
        rows = connection.execute(select(decisions.c.offer, decisions.c.refused)).all()
        assert connection.scalar(select(func.count()).select_from(commitments)) == 2
    assert (
        sorted((row.offer, row.refused) for row in rows) == [(0, False)] + [(2, False)] * 2 + [(2, True)] * 3
    )


def test_a_user_gets_one_decision_a_week(shop: Shop) -> None:
    first = decide(shop, "r1", ["coupon", "push"])
    again = decide(shop, "r2", ["push", "push", "push"])
    for old, new in zip(first, again[:2], strict=True):
        assert new == old | {"standing": True}
    assert not again[2]["standing"]
    assert balance(shop) == (3 * PUSH, 6_000)
    assert not decide(shop, "r3", ["push"], week=48)[0]["standing"]


def test_draws_do_not_depend_on_the_request_or_the_batch(open_shop: OpenShop, tmp_path: Path) -> None:
    drawn = []
    for name, order in (("a", range(50)), ("b", range(49, -1, -1))):
        opened = Database.open(f"sqlite:///{tmp_path / name}.db")
        shop = open_shop(opened)
        users = [{"user_id": f"u{k}"} for k in order]
        decided = shop.desk.decide(f"request {name}", "autumn", users, {"week": 3}).content["decisions"]
        drawn.append({d["user_id"]: (d["decision_id"], d["offer"]) for d in decided})
        opened.close()
    assert drawn[0] == drawn[1]


def test_offers_are_drawn_as_often_as_logged(open_shop: OpenShop, sqlite_database: Database) -> None:
    shop = open_shop(sqlite_database)
    decided = decide(shop, "r1", ["by chance"] * 3_000)
    names, counts = np.unique([d["offer"] for d in decided], return_counts=True)
    assert names.tolist() == ["20% slot 1", "no offer", "push only"]
    assert chisquare(counts, [900, 1500, 600]).pvalue > 1e-3
    assert {d["offer"]: d["propensity"] for d in decided} == {
        "no offer": 0.5, "push only": 0.2, "20% slot 1": 0.3
    }  # fmt: skip


@pytest.mark.parametrize(
    ("users", "context", "error", "message"),
    [
        (
            [{"user_id": "a"}, {"user_id": "b"}, {"user_id": "a"}],
            {"week": 1},
            RepeatedUserError,
            r"users\[2\]",
        ),
        ([{"user_id": "a"}], {}, DecisionInputError, "give date or week"),
        ([{"user_id": "a", "profile": "unreadable"}], {"week": 1}, DecisionInputError, r"users\[0\]"),
    ],
)
def test_what_cannot_be_decided_leaves_nothing(
    shop: Shop, users: list[Any], context: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shop.desk.decide("r1", "autumn", users, context)
    assert balance(shop) == (0, 0)
    assert not shop.desk.decide("r1", "autumn", [{"user_id": "a"}], {"week": 1}).repeated


def test_an_unknown_campaign_is_named(shop: Shop) -> None:
    with pytest.raises(UnknownError, match="'spring'"):
        shop.desk.decide("r1", "spring", [{"user_id": "a"}], {"week": 1})


def test_many_at_once_never_overspend(open_shop: OpenShop, database: Database) -> None:
    shop = open_shop(database, budget=10 * COUPON)

    def send(k: int) -> list[dict[str, Any]]:
        # Half of the requests ask for users of which another asks at the same time.
        return decide(shop, f"r{k}", ["coupon"] * 3, prefix=f"batch {k // 2} ")

    with ThreadPoolExecutor(4) as pool:
        answers = [decision for decided in pool.map(send, range(12)) for decision in decided]
    by_id: dict[str, set[bool]] = {}
    for decision in answers:
        by_id.setdefault(decision["decision_id"], set()).add(decision["refused"])
    assert len(by_id) == 18
    assert all(len(told) == 1 for told in by_id.values())
    assert sum(not told.pop() for told in by_id.values()) == 10
    assert balance(shop) == (10 * PUSH, 60_000)


# What becomes of coupons ---------------------------------------------------------------------------


def test_a_coupon_is_redeemed_once(shop: Shop) -> None:
    (coupon,) = decide(shop, "r1", ["coupon"])
    first = shop.desk.redeem("till-1", coupon["decision_id"], 0.45)
    assert balance(shop) == (PUSH + 4_500, 0)
    again = shop.desk.redeem("till-1", coupon["decision_id"], 0.45)
    assert (again.repeated, again.content) == (True, first.content)
    with pytest.raises(ClosedError, match="settled already"):
        shop.desk.redeem("till-2", coupon["decision_id"], 0.45)
    with pytest.raises(ClosedError):
        shop.desk.release("till-3", coupon["decision_id"])
    assert balance(shop) == (PUSH + 4_500, 0)


def test_a_coupon_that_never_arrived_is_released(shop: Shop) -> None:
    (coupon,) = decide(shop, "r1", ["coupon"])
    assert shop.desk.release("r2", coupon["decision_id"]).content["state"] == "released"
    assert balance(shop) == (PUSH, 0)


def test_what_was_not_a_coupon_cannot_be_redeemed(shop: Shop) -> None:
    nothing, push = decide(shop, "r1", ["nothing", "push"])
    with pytest.raises(UnknownError):
        shop.desk.redeem("r2", nothing["decision_id"], 0.1)
    with pytest.raises(ClosedError):
        shop.desk.redeem("r3", push["decision_id"], 0.1)


def test_a_redemption_above_the_coupons_limit_is_refused(shop: Shop) -> None:
    (coupon,) = decide(shop, "r1", ["coupon"])
    with pytest.raises(LedgerError, match=r"reserved 0\.6; a cost of 0\.6001"):
        shop.desk.redeem("r2", coupon["decision_id"], 0.6001)
    assert shop.desk.redeem("r2", coupon["decision_id"], 0.6).content["state"] == "settled"


@pytest.mark.parametrize(("late", "accepted"), [(-1, True), (0, False)])
def test_redemptions_are_taken_until_the_grace_is_over(
    open_shop: OpenShop, database: Database, late: int, accepted: bool
) -> None:
    shop = open_shop(database, grace_seconds=500)
    (coupon,) = decide(shop, "r1", ["coupon"])
    shop.clock.now += 2 * WEEK_SECONDS + 500 + late
    if accepted:
        assert shop.desk.redeem("r2", coupon["decision_id"], 0.1).content["state"] == "settled"
    else:
        with pytest.raises(ClosedError, match="expired"):
            shop.desk.redeem("r2", coupon["decision_id"], 0.1)


def test_no_coupon_outlives_the_campaign(shop: Shop) -> None:
    user = [{"user_id": "a", "profile": "coupon"}]
    answer = shop.desk.decide("r1", "autumn", user, {"week": 52, "weeks_left": 1})
    assert answer.content["decisions"][0]["expires_at"] == 1_000_000 + WEEK_SECONDS


def test_money_of_expired_coupons_is_spent_again(open_shop: OpenShop, database: Database) -> None:
    shop = open_shop(database, budget=COUPON + PUSH + 6_000)
    assert [d["refused"] for d in decide(shop, "r1", ["coupon"] * 2)] == [False, False]
    assert decide(shop, "r2", ["coupon"], week=48)[0]["refused"]
    shop.clock.now += 2 * WEEK_SECONDS
    assert not decide(shop, "r3", ["coupon"], week=49)[0]["refused"]


def test_money_of_expired_coupons_counts_as_available_when_offers_are_drawn(
    open_shop: OpenShop, database: Database
) -> None:
    shop = open_shop(database, budget=COUPON)
    decide(shop, "r1", ["coupon"])
    for request_id, week, seconds in (("r2", 48, 2 * WEEK_SECONDS - 1), ("r3", 49, 1)):
        shop.clock.now += seconds
        decide(shop, request_id, ["nothing"], week=week)
    with database.read() as connection:
        seen = connection.scalars(select(decisions.c.observation).order_by(decisions.c.week)).all()
    # The scripted policy notes as "spend" what it was told to be available.
    available = [float(np.frombuffer(row, "<f4")[1]) for row in seen]
    assert available == pytest.approx([COUPON / 10_000, 0.0, 0.6])


# Feedback ------------------------------------------------------------------------------------------


def test_feedback_settles_a_coupon_that_was_not_reported(shop: Shop) -> None:
    coupon, push = decide(shop, "r1", ["coupon", "push"])
    outcomes = [Outcome(coupon["decision_id"], 4.2, 0.5), Outcome(push["decision_id"], 0.0)]
    assert shop.desk.take_feedback("f1", outcomes).content == {"recorded": 2}
    assert shop.desk.take_feedback("f1", outcomes).repeated
    assert balance(shop) == (2 * PUSH + 5_000, 0)
    with shop.desk.database.read() as connection:
        margins = connection.scalars(select(feedback.c.margin).order_by(feedback.c.margin)).all()
    assert margins == [0.0, 4.2]


def test_feedback_agrees_with_what_was_redeemed(shop: Shop) -> None:
    first, second = decide(shop, "r1", ["coupon", "coupon"])
    for k, one in enumerate((first, second)):
        shop.desk.redeem(f"till-{k}", one["decision_id"], 0.5)
    shop.desk.take_feedback("f1", [Outcome(first["decision_id"], 1.0, 0.5)])
    with pytest.raises(FeedbackConflictError, match=r"redeemed_cost is 0\.4, but what was redeemed is 0\.5"):
        shop.desk.take_feedback("f2", [Outcome(second["decision_id"], 1.0, 0.4)])


def test_feedback_is_noted_whole_or_not_at_all(shop: Shop) -> None:
    first, second = decide(shop, "r1", ["coupon", "push"])
    with pytest.raises(FeedbackConflictError, match=r"what was redeemed is 0\.0"):
        shop.desk.take_feedback(
            "f1", [Outcome(first["decision_id"], 1.0, 0.5), Outcome(second["decision_id"], 1.0, 0.5)]
        )
    assert balance(shop) == (2 * PUSH, 6_000)
    with pytest.raises(UnknownError, match="'nobody'"):
        shop.desk.take_feedback("f1", [Outcome(first["decision_id"], 1.0), Outcome("nobody", 1.0)])
    shop.desk.take_feedback("f1", [Outcome(first["decision_id"], 1.0)])
    with pytest.raises(FeedbackConflictError, match="reported before"):
        shop.desk.take_feedback("f2", [Outcome(first["decision_id"], 1.0)])


def test_no_user_id_is_in_the_database(
    open_shop: OpenShop, sqlite_database: Database, tmp_path: Path
) -> None:
    shop = open_shop(sqlite_database)
    users = [{"user_id": "erika.mustermann@example.org", "profile": "coupon"}]
    answer = shop.desk.decide("r1", "autumn", users, {"week": 1})
    assert answer.content["decisions"][0]["user_id"] == "erika.mustermann@example.org"
    shop.desk.decide("r1", "autumn", users, {"week": 1})
    sqlite_database.close()
    with sqlite3.connect(tmp_path / "service.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert b"mustermann" not in (tmp_path / "service.db").read_bytes()


# Keys ----------------------------------------------------------------------------------------------


def test_draws_are_uniform() -> None:
    keys = ServiceKeys(b"0123456789abcdef")
    numbers = keys.uniforms("autumn", 3, [str(k) for k in range(5_000)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert kstest(numbers, "uniform").pvalue > 1e-3
    assert len(np.unique(numbers)) == 5_000


def test_draws_and_ids_depend_on_everything() -> None:
    keys, other = ServiceKeys(b"0123456789abcdef"), ServiceKeys(b"0123456789abcdeg")
    calls = [
        (keys, "a", 1, "u"),
        (other, "a", 1, "u"),
        (keys, "b", 1, "u"),
        (keys, "a", 2, "u"),
        (keys, "a", 1, "v"),
    ]
    # The parts of a name cannot be mistaken for one another.
    calls += [(keys, "a1", 1, "1u"), (keys, "a", 11, "u"), (keys, "a1", 11, "u")]
    ids = {k.decision_id(campaign, week, user) for k, campaign, week, user in calls}
    draws = {k.uniforms(campaign, week, [user])[0] for k, campaign, week, user in calls}
    assert len(ids) == len(draws) == len(calls)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="has 15 bytes"):
        ServiceKeys(b"0123456789abcde")
