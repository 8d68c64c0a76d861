from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from agents.service import ledger
from agents.service.database import Database, DatabaseError
from agents.service.decision_file import DecisionLog, DecisionLogError
from agents.service.decision_log import export_decisions
from agents.service.desk import WEEK_SECONDS, CouponDesk
from agents.service.outcomes import Outcome
from agents.service.tables import decisions, policies
from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset
from experiments.ope.served_export import export_served
from experiments.ope.served_log import ServedDataset, refused_steps, served_dataset


class Clock(Protocol):
    now: float


class Shop(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    desk: CouponDesk
    clock: Clock


class OpenShop(Protocol):
    def __call__(self, database: Database, budget: int = ...) -> Shop: ...


@pytest.fixture
def shop(open_shop: OpenShop, sqlite_database: Database) -> Shop:
    return open_shop(sqlite_database)


def serve(
    shop: Shop,
    week: int,
    users: Mapping[str, str],
    margins: Mapping[str, float] | None = None,
    *,
    weeks_left: int = 4,
) -> dict[str, dict[str, Any]]:
    """Decide for users by what they wish, and report the margins of some."""
    bodies = [{"user_id": name, "profile": wish, "transactions": [{}] * week} for name, wish in users.items()]
    context = {"week": week, "weeks_left": weeks_left}
    answer = shop.desk.decide(f"decide {week} {sorted(users)}", "autumn", bodies, context)
    found = {decision["user_id"]: decision for decision in answer.content["decisions"]}
    outcomes = [Outcome(found[name]["decision_id"], margin) for name, margin in (margins or {}).items()]
    if outcomes:
        shop.desk.take_feedback(f"feedback {week} {sorted(users)}", outcomes)
    return found


def export(shop: Shop, folder: Path, campaigns: Sequence[str] | None = None) -> DecisionLog:
    path = folder / "served.parquet"
    with shop.desk.database.read() as connection:
        n = export_decisions(connection, path, campaigns, now=int(shop.clock.now))
    log = DecisionLog.load(path)
    assert len(log) == n
    return log


def episodes(served: ServedDataset) -> dict[int, list[tuple[int, float]]]:
    """Weeks and rewards by campaign number, of a log of one user."""
    found: dict[int, list[tuple[int, float]]] = {}
    data = served.dataset
    for number, week, reward in zip(
        data.campaign.tolist(), data.week.tolist(), data.reward.tolist(), strict=True
    ):
        found.setdefault(number, []).append((week, reward))
    return found


# The log -------------------------------------------------------------------------------------------


def test_a_decision_comes_out_as_it_was_made(shop: Shop, tmp_path: Path) -> None:
    found = serve(shop, 7, {"a": "coupon", "b": "by chance"}, {"a": 4.5, "b": 0.0})
    shop.desk.redeem("till", found["a"]["decision_id"], 0.35)
    log = export(shop, tmp_path)
    a = int(np.flatnonzero(log.user == shop.desk.keys.user_key("a"))[0])
    b = 1 - a
    assert log.campaign.tolist() == ["autumn", "autumn"]
    assert (log.week[a], log.weeks_left[a], log.offer[a], log.propensity[a]) == (7, 4, 2, 1.0)
    assert (log.margin[a], log.outcome_known[a], log.refused[a]) == (4.5, True, False)
    assert log.cost[a] == pytest.approx(0.02 + 0.35)
    assert log.observation[a].tolist() == [7.0, 100_000.0]
    assert log.mask.tolist()[a] == [False, False, True]
    assert log.mask.tolist()[b] == [True, True, True]
    assert log.probabilities[b].tolist() == [0.5, 0.2, 0.3]
    assert log.dual_price.tolist() == [1.5, 1.5]
    assert log.observation_names == ("visits", "spend")
    assert log.offer_names == ("no offer", "push only", "20% slot 1")
    assert set(log.policy.tolist()) == {"f" * 64}


def test_an_outcome_is_known_once_the_coupon_has_ended(shop: Shop, tmp_path: Path) -> None:
    found = serve(shop, 1, {"a": "coupon"}, {"a": 1.0})
    assert export(shop, tmp_path).outcome_known.tolist() == [False]
    shop.desk.release("r", found["a"]["decision_id"])
    log = export(shop, tmp_path)
    assert log.outcome_known.tolist() == [True]
    assert log.cost.tolist() == [0.02]


def test_a_coupon_whose_time_is_over_has_ended_though_nothing_released_it(shop: Shop, tmp_path: Path) -> None:
    # After a campaign's last week nobody decides any more, so that no later request releases what is due.
    serve(shop, 1, {"a": "coupon"}, {"a": 1.0})
    shop.clock.now += 2 * WEEK_SECONDS - 1
    assert export(shop, tmp_path).outcome_known.tolist() == [False]
    shop.clock.now += 1
    log = export(shop, tmp_path)
    assert log.outcome_known.tolist() == [True]
    assert log.cost.tolist() == [0.02]


def test_without_feedback_the_margin_is_missing_not_zero(shop: Shop, tmp_path: Path) -> None:
    serve(shop, 1, {"a": "push"})
    log = export(shop, tmp_path)
    assert np.isnan(log.margin).all()
    assert log.outcome_known.tolist() == [False]


def test_campaigns_can_be_chosen(shop: Shop, tmp_path: Path) -> None:
    serve(shop, 1, {"a": "push"})
    assert len(export(shop, tmp_path, ["autumn"])) == 1
    (tmp_path / "served.parquet").unlink()
    with pytest.raises(DecisionLogError, match="no decisions"):
        export(shop, tmp_path, ["spring"])
    assert not list(tmp_path.glob("served*"))


def test_policies_with_other_offers_do_not_share_a_log(shop: Shop, tmp_path: Path) -> None:
    serve(shop, 1, {"a": "push", "b": "push"})
    with shop.desk.database.write() as connection:
        connection.execute(
            policies.insert().values(fingerprint="0" * 64, observation_names="[]", offer_names="[]")
        )
        one = decisions.c.decision_id == shop.desk.keys.decision_id("autumn", 1, shop.desk.keys.user_key("a"))
        connection.execute(decisions.update().where(one).values(policy="0" * 64))
    with pytest.raises(DecisionLogError, match="000000000000 and ffffffffffff"):
        export(shop, tmp_path)


def test_a_file_that_is_no_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(DecisionLogError, match=r"other\.parquet: not a readable"):
        DecisionLog.load(path)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(DecisionLogError, match="is not a decision log"):
        DecisionLog.load(path)


# The dataset ---------------------------------------------------------------------------------------


def test_a_served_month_is_a_dataset(shop: Shop, tmp_path: Path) -> None:
    for week in range(1, 5):
        serve(
            shop,
            week,
            dict.fromkeys(("a", "b", "c"), "push"),
            {"a": 1.0 * week, "b": 2.0 * week, "c": 3.0 * week},
            weeks_left=5 - week,
        )
    served = served_dataset(export(shop, tmp_path))
    data = served.dataset
    assert (data.n_steps, data.n_episodes, served.n_left_out) == (12, 3, 0)
    assert served.campaigns == ("autumn",)
    assert data.week.tolist() == [1, 2, 3, 4] * 3
    assert sorted(data.reward.tolist()) == sorted(k * week for k in (1.0, 2.0, 3.0) for week in range(1, 5))
    assert data.terminated.tolist() == [False, False, False, True] * 3
    assert not data.truncated.any()
    assert data.observation[:, 0].tolist() == [1, 2, 3, 4] * 3
    assert data.next_observation[:, 0].tolist() == [2, 3, 4, 4] * 3
    assert data.cost.tolist() == [0.02] * 12
    assert data.propensity_source == "logged"
    assert data.behaviour_probabilities is not None
    data.save(tmp_path / "logged.parquet")
    assert np.array_equal(type(data).load(tmp_path / "logged.parquet").reward, data.reward)


def test_an_episode_is_cut_before_the_first_unknown_outcome(shop: Shop, tmp_path: Path) -> None:
    for week in (1, 2, 3, 4):
        serve(shop, week, {"a": "push"}, None if week == 3 else {"a": float(week)})
    served = served_dataset(export(shop, tmp_path))
    assert episodes(served) == {0: [(1, 1.0), (2, 2.0)]}
    assert served.n_left_out == 2
    assert served.dataset.truncated.tolist() == [False, True]
    # What was seen next is known all the same.
    assert served.dataset.next_observation[:, 0].tolist() == [2.0, 3.0]


def test_a_gap_begins_another_episode(shop: Shop, tmp_path: Path) -> None:
    for week in (1, 2, 4, 5, 9):
        serve(shop, week, {"a": "push"}, {"a": float(week)}, weeks_left=10 - week)
    serve(shop, 2, {"b": "push"}, {"b": 7.0})
    served = served_dataset(export(shop, tmp_path))
    data = served.dataset
    assert served.campaigns == ("autumn", "autumn", "autumn")
    _, user = np.unique([shop.desk.keys.user_key("a"), shop.desk.keys.user_key("b")], return_inverse=True)
    of_a = data.user == user[0]
    assert list(zip(data.campaign[of_a].tolist(), data.week[of_a].tolist(), strict=True)) == [
        (0, 1), (0, 2), (1, 4), (1, 5), (2, 9)
    ]  # fmt: skip
    assert data.campaign[~of_a].tolist() == [0]
    assert data.terminated[of_a].tolist() == [False, False, False, False, True]


def test_refused_offers_stay_as_drawn_and_are_marked(
    open_shop: OpenShop, sqlite_database: Database, tmp_path: Path
) -> None:
    shop = open_shop(sqlite_database, budget=6_200)
    found = serve(shop, 1, {"a": "coupon", "b": "coupon"}, {"a": 1.0, "b": 1.0}, weeks_left=1)
    shop.clock.now += 3 * WEEK_SECONDS
    with shop.desk.database.write() as connection:
        ledger.expire(connection, "autumn", now=int(shop.clock.now))
    served = served_dataset(export(shop, tmp_path))
    assert served.dataset.action.tolist() == [2, 2]
    assert served.dataset.propensity.tolist() == [1.0, 1.0]
    assert sorted(served.refused.tolist()) == [False, True]
    assert sorted(served.dataset.cost.tolist()) == [0.0, 0.02]
    refused = served.refused.tolist().index(True)
    name = next(name for name, decision in found.items() if decision["refused"])
    keys = sorted(shop.desk.keys.user_key(user) for user in found)
    assert keys[refused] == shop.desk.keys.user_key(name)


def test_inverse_propensities_recover_what_an_offer_is_worth(shop: Shop, tmp_path: Path) -> None:
    n = 2_000
    found = serve(shop, 1, {f"u{k}": "by chance" for k in range(n)}, weeks_left=1)
    worth = {"no offer": 1.0, "push only": 3.0, "20% slot 1": 6.0}
    outcomes = [
        Outcome(decision["decision_id"], worth[decision["offer"]], 0.5 if decision["depth"] else None)
        for decision in found.values()
    ]
    shop.desk.take_feedback("all", outcomes)
    data = served_dataset(export(shop, tmp_path)).dataset
    assert data.n_episodes == n
    for offer, value, cost in ((0, 1.0, 0.0), (1, 3.0, 0.02), (2, 6.0, 0.52)):
        weight = (data.action == offer) / data.propensity
        share = float((1.0 / data.propensity[data.action == offer])[0])
        error = 5.0 * value * np.sqrt((share - 1.0) / n)
        assert (weight * data.reward).mean() == pytest.approx(value, abs=error)
        assert (weight * data.cost).sum() / weight.sum() == pytest.approx(cost)


def test_a_folder_holds_the_log_and_the_dataset(shop: Shop, tmp_path: Path) -> None:
    serve(shop, 1, {"a": "push", "b": "push"}, {"a": 1.0})
    served = export_served(f"sqlite:///{tmp_path / 'service.db'}", tmp_path / "new" / "served")
    assert len(DecisionLog.load(tmp_path / "new" / "served" / "decisions.parquet")) == 2
    loaded = LoggedDataset.load(tmp_path / "new" / "served" / "logged.parquet")
    assert (loaded.n_steps, served.n_left_out) == (1, 1)
    assert loaded.reward.tolist() == [1.0]


def test_the_exported_folder_tells_which_steps_were_refused(
    open_shop: OpenShop, sqlite_database: Database, tmp_path: Path
) -> None:
    shop = open_shop(sqlite_database, budget=6_200)
    users = [f"u{k}" for k in range(3)]
    found = serve(shop, 1, dict.fromkeys(users, "coupon"), dict.fromkeys(users, 1.0), weeks_left=1)
    shop.clock.now += 3 * WEEK_SECONDS
    with shop.desk.database.write() as connection:
        ledger.expire(connection, "autumn", now=int(shop.clock.now))
    served_dataset(export(shop, tmp_path)).dataset.save(tmp_path / "logged.parquet")
    path, loaded = tmp_path / "served.parquet", LoggedDataset.load(tmp_path / "logged.parquet")
    refused = refused_steps(path, loaded)
    assert 0 < refused.sum() < loaded.n_steps == len(found)
    by_user = dict(zip(sorted(shop.desk.keys.user_key(user) for user in users), refused, strict=True))
    for user, decision in found.items():
        assert by_user[shop.desk.keys.user_key(user)] == decision["refused"]
    for other in (replace(loaded, week=loaded.week + 1), replace(loaded, cost=loaded.cost + 1.0)):
        with pytest.raises(LoggedDataError, match=r"served\.parquet: these decisions make another log"):
            refused_steps(path, other)


def test_a_database_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"typo\.db.*no such file"):
        export_served(f"sqlite:///{tmp_path / 'typo.db'}", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_outcomes_is_refused(shop: Shop, tmp_path: Path) -> None:
    serve(shop, 1, {"a": "push"})
    with pytest.raises(LoggedDataError, match="none of 1 decisions has a known outcome"):
        served_dataset(export(shop, tmp_path))
