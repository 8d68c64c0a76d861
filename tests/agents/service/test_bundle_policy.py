from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from agents.service import ledger
from agents.service.bundle_policy import BundlePolicy
from agents.service.database import Database
from agents.service.decision_file import DecisionLog
from agents.service.decision_log import export_decisions
from agents.service.desk import CouponDesk
from agents.service.keys import ServiceKeys
from agents.service.outcomes import Outcome
from agents.serving import CouponPolicy, DecisionInputError
from envs.money import to_ticks
from envs.offers import Catalogue
from experiments.ope.served_log import served_dataset


class Market(Protocol):
    catalogue: Catalogue


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    market: Market


@pytest.fixture
def policy(exported: Exported) -> BundlePolicy:
    return BundlePolicy.load(exported.folder)


CONTEXT = {"week": 20, "weeks_left": 3, "dual_price": 0.05}


def users(n: int) -> list[dict[str, Any]]:
    """Users of whom each bought something else."""
    found: list[dict[str, Any]] = []
    for k in range(n):
        line = {
            "timestamp": f"2017-02-0{1 + k % 9}T10:00:00",
            "basket_id": f"b{k}",
            "item_id": f"i{k % 4:02}0",
            "spend": 1.0 + k,
        }
        found.append({"user_id": f"u{k}", "transactions": [line] if k % 5 else []})
    return found


def test_offers_commit_what_the_markets_do(policy: BundlePolicy, exported: Exported) -> None:
    tensors = exported.market.catalogue.tensors()
    assert [offer.charge for offer in policy.offers] == tensors.delivery_cost.tolist()
    assert [offer.liability for offer in policy.offers] == tensors.liability.tolist()
    assert [offer.validity_weeks for offer in policy.offers] == tensors.validity_weeks.tolist()
    assert [offer.name for offer in policy.offers] == [
        offer.name for offer in exported.market.catalogue.offers
    ]


def test_draws_invert_the_numbers_given(policy: BundlePolicy) -> None:
    n = 40
    uniform = (np.arange(n) + 0.5) / n
    drawn = policy.draw(users(n), CONTEXT, uniform, 1e6)
    assert (
        drawn.offer.tolist() == (drawn.probabilities.cumsum(axis=1) <= uniform[:, None]).sum(axis=1).tolist()
    )
    assert drawn.probabilities.sum(axis=1) == pytest.approx(1.0)
    assert (drawn.probabilities[~drawn.mask] == 0).all()
    assert drawn.observation.shape == (n, len(policy.columns))
    assert (drawn.weeks_left, drawn.dual_price) == (3, 0.05)
    names = [offer.name for offer in policy.offers]
    assert [answer["offer"] for answer in drawn.answers] == [names[k] for k in drawn.offer]
    assert {answer["channel"] for answer in drawn.answers if answer["offer"] == names[0]} <= {None}


def test_what_the_budget_cannot_cover_is_not_even_drawn(policy: BundlePolicy) -> None:
    drawn = policy.draw(users(30), CONTEXT, np.full(30, 0.999), 0.0)
    assert drawn.offer.tolist() == [0] * 30 or all(
        policy.offers[k].charge + policy.offers[k].liability == 0 for k in drawn.offer
    )


def test_dates_and_weeks_are_the_logs(policy: BundlePolicy) -> None:
    monday: date = policy.policy.settings.first_day
    assert policy.week_of({"date": monday.isoformat()}) == 1
    assert policy.week_of({"date": (monday + timedelta(days=13)).isoformat()}) == 2
    assert policy.week_of({"week": 7}) == 7


@pytest.mark.parametrize(
    ("wrong", "context", "message"),
    [
        ({"user_id": "x", "transactions": [{"timestamp": "yesterday"}]}, CONTEXT, r"users\[2\]"),
        ({"user_id": "x", "offers": [{"timestamp": "2017-01-09", "offer": "a car"}]}, CONTEXT, "a car"),
        ({"user_id": "x"}, {}, "date or a week"),
        ({"user_id": "x"}, CONTEXT | {"dual_price": 0.0}, "dual price"),
        ({"user_id": "x"}, CONTEXT | {"promotion": {"visit_trend": 1e308}}, "visit_trend"),
    ],
)
def test_what_cannot_be_read_is_named(
    policy: BundlePolicy, wrong: dict[str, Any], context: dict[str, Any], message: str
) -> None:
    with pytest.raises(DecisionInputError, match=message):
        policy.draw([*users(2), wrong], context, np.zeros(3), 10.0)


def test_served_decisions_are_the_policys_own_and_a_dataset(
    policy: BundlePolicy, sqlite_database: Database, tmp_path: Path
) -> None:
    n = 25
    desk = CouponDesk(sqlite_database, policy, ServiceKeys(b"0123456789abcdef"))
    desk.register_policy()
    with sqlite_database.write() as connection:
        ledger.open_budget(connection, "autumn", to_ticks(1e5))
    decided = desk.decide("r1", "autumn", users(n), CONTEXT | {"weeks_left": 1}).content["decisions"]
    desk.take_feedback("f1", [Outcome(one["decision_id"], 1.0) for one in decided])
    for one in decided:
        if one["expires_at"] is not None:
            desk.release(f"end {one['decision_id']}", one["decision_id"])
    with sqlite_database.read() as connection:
        export_decisions(connection, tmp_path / "log.parquet", now=0)
    data = served_dataset(DecisionLog.load(tmp_path / "log.parquet")).dataset
    assert (data.n_steps, data.observation_names) == (n, policy.columns)
    assert data.terminated.all()
    # What was logged is what the policy says of the observations that it logged.
    again = CouponPolicy.probabilities(policy.policy, data.observation)
    assert data.behaviour_probabilities is not None
    np.testing.assert_allclose(again, data.behaviour_probabilities, atol=1e-5)
    np.testing.assert_allclose(
        data.propensity, data.behaviour_probabilities[np.arange(n), data.action], rtol=0, atol=0
    )
    assert len(np.unique(data.action)) > 1
