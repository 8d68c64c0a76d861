"""A table of one's own: what is read, what is taken where it says nothing, what is refused and how."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.ope.log_mapping import LogMapping
from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset
from experiments.ope.own_logs import OwnLog, from_frame, read_own_log


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def table() -> pd.DataFrame:
    """Ann gets two campaigns and bob one; the rows are shuffled."""
    return pd.DataFrame(
        {
            "user_id": ["bob", "ann", "ann", "bob", "ann"],
            "campaign": ["spring", "summer", "spring", "spring", "spring"],
            "week": [8, 20, 8, 7, 7],
            "offer": ["push", "no offer", "10%", "10%", "push"],
            "propensity": [0.5, 0.25, 0.5, 0.25, 1.0],
            "reward": [1.0, 2.0, 3.0, 4.0, 5.0],
            "cost": [0.1, 0.0, 0.2, 0.2, 0.1],
            "dual_price": [0.5, 0.5, 1.5, 1.5, 0.5],
            "allowed": ["push|no offer", "no offer|10%", "10%|push", "10%", "push"],
            "feature_spend": [10.0, 20.0, 30.0, 40.0, 50.0],
            "feature_shop": ["city", "mall", "city", "mall", "mall"],
        }
    )


def test_a_table_by_hand() -> None:
    log = from_frame(table(), rng=rng())
    data = log.dataset
    assert log.users == ("ann", "bob")
    assert log.campaigns == ("spring", "summer")
    assert log.offers == ("no offer", "10%", "push")
    assert log.no_offer == 0
    # ann's spring (weeks 7, 8), her summer, then bob's spring.
    assert log.row.tolist() == [4, 2, 1, 3, 0]
    assert data.user.tolist() == [0, 0, 0, 1, 1]
    assert data.campaign.tolist() == [0, 0, 1, 0, 0]
    assert data.week.tolist() == [7, 8, 20, 7, 8]
    assert data.action.tolist() == [2, 1, 0, 1, 2]
    assert data.propensity.tolist() == [1.0, 0.5, 0.25, 0.25, 0.5]
    assert data.reward.tolist() == [5, 3, 2, 4, 1]
    assert data.cost.tolist() == [0.1, 0.2, 0.0, 0.2, 0.1]
    assert data.dual_price.tolist() == [0.5, 1.5, 0.5, 1.5, 0.5]
    assert data.mask.tolist() == [
        [False, False, True],
        [False, True, True],
        [True, True, False],
        [False, True, False],
        [True, False, True],
    ]
    assert data.observation_names == ("feature_spend", "feature_shop=mall")
    assert data.observation.tolist() == [[50, 1], [30, 0], [20, 1], [40, 1], [10, 0]]
    assert data.next_observation.tolist() == [[30, 0], [30, 0], [20, 1], [10, 0], [10, 0]]
    assert data.terminated.tolist() == [False, True, True, False, True]
    assert not data.truncated.any()
    assert data.propensity_source == "logged"
    assert data.behaviour_probabilities is None
    assert log.propensity_report is None
    assert log.notes == ("no terminated: every episode is taken as ended with its last row",)


@settings(max_examples=25)
@given(order=st.permutations(range(5)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    log, shuffled = from_frame(table(), rng=rng()), from_frame(table().iloc[order], rng=rng())
    assert same(log.dataset, shuffled.dataset)
    assert [order[row] for row in shuffled.row.tolist()] == log.row.tolist()


def same(one: LoggedDataset, other: LoggedDataset) -> bool:
    names = ("user", "campaign", "week", "action", "mask", "propensity", "reward", "cost", "observation")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_names_of_ones_own_columns() -> None:
    renamed = table().rename(
        columns={
            "user_id": "Kunde",
            "campaign": "Aktion",
            "week": "KW",
            "offer": "Gutschein",
            "propensity": "p",
            "reward": "Marge",
            "cost": "Kosten",
            "dual_price": "Preis",
            "allowed": "erlaubt",
        }
    )
    mapping = LogMapping(
        user="Kunde",
        campaign="Aktion",
        week="KW",
        action="Gutschein",
        propensity="p",
        reward="Marge",
        cost="Kosten",
        dual_price="Preis",
        allowed="erlaubt",
        features=("feature_spend", "feature_shop"),
    )
    assert same(from_frame(renamed, mapping, rng=rng()).dataset, from_frame(table(), rng=rng()).dataset)
    with pytest.raises(LoggedDataError, match="user: the table has no column 'user_id' or 'user'"):
        from_frame(renamed, rng=rng())
    with pytest.raises(LoggedDataError, match="reward: the table has no column 'Umsatz', only Kunde"):
        from_frame(renamed, LogMapping(reward="Umsatz"), rng=rng())


def test_what_is_taken_where_the_table_says_nothing() -> None:
    lean = table()[["user_id", "week", "offer", "reward", "propensity", "feature_spend"]]
    lean = lean.assign(week=[8, 9, 7, 7, 8], comment="x")
    log = from_frame(lean, rng=rng())
    assert log.campaigns == ("all",)
    assert not log.dataset.cost.any()
    assert not log.dataset.dual_price.any()
    assert log.dataset.mask.all()
    said = " ".join(log.notes)
    for word in ("no campaign", "no cost", "no dual price", "which offers were allowed", "not used: comment"):
        assert word in said


def test_whole_distribution_gives_propensities() -> None:
    shares = pd.DataFrame(
        {
            "probability_no offer": [0.5, 0.25, 0.0, 0.0, 0.0],
            "probability_10%": [0.0, 0.75, 0.5, 1.0, 0.0],
            "probability_push": [0.5, 0.0, 0.5, 0.0, 1.0],
        }
    )
    log = from_frame(table().drop(columns="propensity").join(shares), rng=rng())
    assert log.dataset.propensity.tolist() == [1.0, 0.5, 0.25, 1.0, 0.5]
    assert log.dataset.behaviour_probabilities is not None
    assert log.dataset.behaviour_probabilities[1].tolist() == [0, 0.5, 0.5]
    assert log.dataset.propensity_source == "logged"
    wrong = shares.assign(**{"probability_push": [0.4, 0.0, 0.5, 0.0, 1.0]})
    with pytest.raises(LoggedDataError, match=r"behaviour_probabilities: row 0 is 0\.9: is the row's sum"):
        from_frame(table().drop(columns="propensity").join(wrong), rng=rng())
    with pytest.raises(LoggedDataError, match=r"row 3 is 0\.25: differs from behaviour_probabilities"):
        from_frame(table().join(shares), rng=rng())


def test_flags_of_offers_are_a_mask() -> None:
    flags = pd.DataFrame({"allowed_push": [1, 0, 1, 0, 1], "allowed_10%": ["true", "1", "true", "True", "0"]})
    log = from_frame(table().drop(columns="allowed").join(flags), rng=rng())
    # The offer without a column is allowed everywhere.
    assert log.dataset.mask[:, 0].all()
    assert log.dataset.mask[:, 1].tolist() == [False, True, True, True, True]
    assert log.dataset.mask[:, 2].tolist() == [True, True, False, False, True]


def test_listed_offers_keep_their_order_and_may_never_occur() -> None:
    mapping = LogMapping(offers=("push", "10%", "25%", "no offer"), no_offer="no offer")
    log = from_frame(table(), mapping, rng=rng())
    assert log.offers == mapping.offers
    assert log.no_offer == 3
    assert log.dataset.n_offers == 4
    assert not log.dataset.mask[:, 2].any()
    assert log.dataset.action.tolist() == [0, 1, 3, 1, 0]
    with pytest.raises(LoggedDataError, match="offer: row 1 is 'no offer': is not among the offers"):
        from_frame(table(), LogMapping(offers=("push", "10%")), rng=rng())
    with pytest.raises(LoggedDataError, match="no_offer: 'nichts' is none of the offers"):
        from_frame(table(), LogMapping(no_offer="nichts"), rng=rng())


def test_numbered_offers_stand_in_order_and_none_is_guessed_to_be_nothing() -> None:
    numbered = table().drop(columns="allowed").assign(offer=[10, 9, 10, 2, 10])
    log = from_frame(numbered, rng=rng())
    assert log.offers == ("2", "9", "10")
    assert log.no_offer is None
    assert from_frame(numbered, LogMapping(no_offer="9"), rng=rng()).offers == ("9", "2", "10")


def test_timestamps_become_weeks_from_monday() -> None:
    days = ["2024-03-11 23:59", "2024-06-05", "2024-03-12", "2024-03-10 08:00", "2024-03-05"]
    log = from_frame(table().drop(columns="week").assign(timestamp=days), rng=rng())
    # The earliest day is a Tuesday: week 1 starts on Monday, 4 March.
    assert log.dataset.week.tolist() == [1, 2, 14, 1, 2]
    stamps = pd.to_datetime(pd.Series(days), format="mixed").dt.tz_localize("America/New_York")
    assert same(
        from_frame(table().drop(columns="week").assign(timestamp=stamps), rng=rng()).dataset, log.dataset
    )


def test_a_named_timestamp_goes_before_a_week_that_is_not_named() -> None:
    days = ["2024-03-11", "2024-06-05", "2024-03-12", "2024-03-10", "2024-03-05"]
    both = table().assign(timestamp=days)
    assert from_frame(both, rng=rng()).dataset.week.tolist() == [7, 8, 20, 7, 8]
    named = from_frame(both, LogMapping(timestamp="timestamp"), rng=rng())
    assert named.dataset.week.tolist() == [1, 2, 14, 1, 2]
    assert any("not used: week" in note for note in named.notes)


def test_one_decision_each_needs_no_week() -> None:
    single = table().drop(columns=["week", "campaign"]).iloc[[0, 1]]
    assert from_frame(single, rng=rng()).dataset.week.tolist() == [1, 1]
    with pytest.raises(LoggedDataError, match="neither a week nor a timestamp, and row 2 is not the first"):
        from_frame(table().drop(columns=["week", "campaign"]), rng=rng())


def test_gaps_are_refused_or_closed() -> None:
    gap = table().assign(week=[12, 20, 8, 7, 7])
    with pytest.raises(LoggedDataError, match=r"week: row 0 is 12: does not follow .* \(1 such\)"):
        from_frame(gap, rng=rng())
    log = from_frame(gap, LogMapping(close_gaps=True), rng=rng())
    assert log.dataset.week.tolist() == [7, 8, 20, 7, 8]
    assert any("1 gaps between weeks were closed" in note for note in log.notes)


def test_episodes_that_went_on_are_truncated() -> None:
    log = from_frame(table().assign(terminated=[0, 1, 1, 0, 0]), rng=rng())
    assert log.dataset.terminated.tolist() == [False, True, True, False, False]
    assert log.dataset.truncated.tolist() == [False, False, False, False, True]
    with pytest.raises(LoggedDataError, match="terminated: row 3 is True: stands before"):
        from_frame(table().assign(terminated=[0, 1, 1, 1, 0]), rng=rng())


BAD: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "no rows": (lambda t: t.iloc[:0], "the table has no rows"),
    "two columns of a name": (lambda t: pd.concat([t, t[["cost"]]], axis=1), "'cost' more than once"),
    "zero propensity": (lambda t: put(t, "propensity", 2, 0.0), r"propensity: row 2 is 0\.0: must lie in"),
    "large propensity": (lambda t: put(t, "propensity", 1, 1.2), r"propensity: row 1 is 1\.2: must lie in"),
    "missing propensity": (lambda t: put(t, "propensity", 1, np.nan), "propensity: row 1 is nan: is missing"),
    "missing reward": (lambda t: put(t, "reward", 3, None), r"reward: row 3 is nan: is missing \(1 such\)"),
    "infinite reward": (lambda t: put(t, "reward", 3, np.inf), "reward: row 3 is inf: must be finite"),
    "text reward": (
        lambda t: put(t.astype({"reward": object}), "reward", 3, "4"),
        "reward: row 3 is '4': is text among numbers",
    ),
    "words for numbers": (
        lambda t: t.assign(reward=["1", "2", "three", "4", "5"]),
        "reward: row 2 is 'three': is not a number",
    ),
    "mixed offers": (
        lambda t: put(t.astype({"offer": object}), "offer", 2, 10),
        "offer: row 2 is 10: is a number, the first is text",
    ),
    "missing offer": (lambda t: put(t, "offer", 2, None), "offer: row 2 is .*: is missing"),
    "broken offer": (
        lambda t: t.drop(columns="allowed").assign(offer=[1.0, 2.0, 2.5, 1.0, 1.0]),
        r"offer: row 2 is 2\.5: is no id",
    ),
    "one offer": (
        lambda t: t.drop(columns="allowed").assign(offer="push"),
        "offer: every row is 'push': nothing can be compared",
    ),
    "masked offer": (lambda t: put(t, "allowed", 2, "push"), "action: row 2 is 1: was masked out"),
    "strange mask": (
        lambda t: put(t.astype({"allowed": object}), "allowed", 2, 7),
        "allowed: row 2 is 7: is neither a list",
    ),
    "strange flag": (
        lambda t: t.drop(columns="allowed").assign(allowed_push=["yes", "1", "1", "1", "1"]),
        "allowed_push: row 0 is 'yes': is neither true/false nor 1/0",
    ),
    "negative price": (lambda t: put(t, "dual_price", 4, -1.0), r"dual_price: row 4 is -1\.0: must not"),
    "broken week": (lambda t: t.assign(week=[8, 20, 8.5, 7, 7]), r"week: row 2 is 8\.5: is not a whole week"),
    "two decisions": (lambda t: t.assign(week=[8, 20, 7, 7, 7]), "week: row 4 is 7: has an earlier row"),
    "no date": (
        lambda t: t.drop(columns="week").assign(timestamp=["2024-03-04", "soon", *["2024-03-04"] * 3]),
        "timestamp: row 1 is 'soon': is not a date",
    ),
    "day or month first": (
        lambda t: t.drop(columns="week").assign(timestamp="03/04/2024"),
        "timestamp: row 0 is '03/04/2024': is not a date or time such as 2024-05-31",
    ),
    "no day at all": (
        lambda t: t.drop(columns="week").assign(timestamp="now"),
        "timestamp: row 0 is 'now': is not a date",
    ),
    "endless week": (
        lambda t: t.assign(week=[8, 20, 1e300, 7, 7]),
        r"week: row 2 is 1e\+300: is not a whole",
    ),
    "date for a number": (
        lambda t: t.assign(reward=datetime.datetime(1980, 1, 1)),
        r"reward: row 0 is Timestamp\(.*: is not a number",
    ),
    "complex number": (lambda t: t.assign(reward=1 + 2j), r"reward: row 0 is \(1\+2j\): is not a number"),
    "number for a date": (
        lambda t: t.drop(columns="week").assign(timestamp=[1, 2, 3, 4, 5]),
        "timestamp: row 0 is 1: is not a date",
    ),
    "missing feature": (
        lambda t: put(t, "feature_spend", 0, np.nan),
        "feature_spend: row 0 is nan: is missing",
    ),
    "date as a feature": (
        lambda t: t.assign(feature_born=datetime.datetime(1980, 1, 1)),
        "feature_born: a date is no feature",
    ),
}


def put(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    changed = frame.copy()
    changed.loc[row, column] = value  # type: ignore[call-overload]
    return changed


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_with_column_row_and_example(case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(LoggedDataError, match=message):
        from_frame(change(table()), rng=rng())


def test_ids_of_users_are_never_shown() -> None:
    missing = put(table(), "user_id", 2, None)
    with pytest.raises(LoggedDataError, match=r"^user_id: row 2: is missing \(1 such\)$"):
        from_frame(missing, rng=rng())
    mixed = put(table().astype({"user_id": object}), "user_id", 2, 4711)
    with pytest.raises(LoggedDataError, match="user_id: row 2: is a number, the first is text") as caught:
        from_frame(mixed, rng=rng())
    assert "4711" not in str(caught.value)


def test_large_ids_stay_apart() -> None:
    big = 2**60
    ids = table().assign(user_id=[big + 1, big, big, big + 1, big])
    assert from_frame(ids, rng=rng()).users == (str(big), str(big + 1))


def test_a_text_feature_of_many_values_is_no_feature() -> None:
    n = 60
    wide = pd.DataFrame(
        {
            "user": range(n),
            "action": ["a", "b"] * 30,
            "reward": 1.0,
            "propensity": 0.5,
            "feature_note": [f"note {i}" for i in range(n)],
        }
    )
    with pytest.raises(LoggedDataError, match="feature_note: 60 different texts, for example 'note 0'"):
        from_frame(wide, rng=rng())


def test_files_say_what_frames_say(tmp_path: Path) -> None:
    expected = from_frame(table(), rng=rng())
    table().to_parquet(tmp_path / "log.parquet", index=False)
    table().to_csv(tmp_path / "log.csv", index=False)
    for name in ("log.parquet", "log.csv"):
        found = read_own_log(tmp_path / name, rng=rng())
        assert same(found.dataset, expected.dataset)
        assert found.offers == expected.offers
    table().assign(offer=["none", "NA", "none", "NA", "NA"]).drop(columns="allowed").to_csv(
        tmp_path / "none.csv", index=False
    )
    assert read_own_log(tmp_path / "none.csv", rng=rng()).offers == ("none", "NA")


def test_a_log_of_this_package_is_taken_as_it_is(tmp_path: Path) -> None:
    log = from_frame(table(), rng=rng()).dataset
    log.save(tmp_path / "log.parquet")
    found: OwnLog = read_own_log(tmp_path / "log.parquet", rng=rng())
    assert same(found.dataset, log)
    assert found.no_offer == 0
    assert found.offers == ("no offer", "offer 1", "offer 2")
    with pytest.raises(LoggedDataError, match="its columns are known"):
        read_own_log(tmp_path / "log.parquet", LogMapping(user="Kunde"), rng=rng())


def test_ids_of_a_log_of_this_package_may_be_any_numbers(tmp_path: Path) -> None:
    log = from_frame(table(), rng=rng()).dataset
    replace(log, user=log.user * 10**15 - 3, campaign=log.campaign - 7).save(tmp_path / "log.parquet")
    found = read_own_log(tmp_path / "log.parquet", rng=rng())
    assert same(found.dataset, log)
    assert found.users == ("-3", "999999999999997")
    assert found.campaigns == ("-7", "-6")


def test_a_column_is_one_thing_and_no_outcome_is_a_feature() -> None:
    with pytest.raises(LoggedDataError, match="cost: the column 'reward' is the reward already"):
        from_frame(table(), LogMapping(cost="reward"), rng=rng())
    for name, field in (("reward", "reward"), ("offer", "action"), ("cost", "cost")):
        with pytest.raises(LoggedDataError, match=f"features: '{name}' is the {field}, which was not known"):
            from_frame(table(), LogMapping(features=("feature_spend", name)), rng=rng())


def test_nothing_in_a_csv_file_is_quietly_mended(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,offer,reward,reward\nann,a,1,2\nbob,b,1,2\n", "utf-8")
    with pytest.raises(LoggedDataError, match="the column 'reward' more than once"):
        read_own_log(path, rng=rng())
    # pandas would take the first cell of each row for its name, and shift the others.
    path.write_text("user,offer,reward,propensity\nann,a,1,0.5,\nbob,b,1,0.5,\n", "utf-8")
    with pytest.raises(LoggedDataError, match="Expected 4 fields in line 2, saw 5"):
        read_own_log(path, rng=rng())
    path.write_text("user,offer,reward,propensity\nann,a,1,0.5\nbob,b,1,0.5\n", "utf-8-sig")
    assert read_own_log(path, rng=rng()).users == ("ann", "bob")


def test_mappings_as_a_command_line_gives_them() -> None:
    found = LogMapping.from_pairs(
        ["user=Kunde", "reward=a=b"], features=["age"], no_offer="nichts", close_gaps=True
    )
    assert found == LogMapping(
        user="Kunde", reward="a=b", features=("age",), no_offer="nichts", close_gaps=True
    )
    assert LogMapping.from_pairs([]) == LogMapping()
    for pair, message in (
        ("user", "given as FIELD=NAME"),
        ("user=", "given as FIELD=NAME"),
        ("usr=Kunde", "no field 'usr', only user, campaign, week"),
    ):
        with pytest.raises(LoggedDataError, match=message):
            LogMapping.from_pairs([pair])
    with pytest.raises(LoggedDataError, match="given twice"):
        LogMapping.from_pairs(["user=a", "user=b"])


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoggedDataError, match="no such file"):
        read_own_log(tmp_path / "absent.csv", rng=rng())
    (tmp_path / "log.xlsx").write_bytes(b"")
    with pytest.raises(LoggedDataError, match=r"a log is a \.parquet or a \.csv file"):
        read_own_log(tmp_path / "log.xlsx", rng=rng())
    (tmp_path / "log.parquet").write_bytes(b"no Parquet")
    with pytest.raises(LoggedDataError, match="not a readable Parquet file"):
        read_own_log(tmp_path / "log.parquet", rng=rng())
    (tmp_path / "log.csv").write_bytes(b"")
    with pytest.raises(LoggedDataError, match="not a readable CSV file"):
        read_own_log(tmp_path / "log.csv", rng=rng())


def test_missing_propensities_are_estimated_and_marked() -> None:
    n = 400
    draw = np.random.default_rng(3)
    features = draw.normal(size=n)
    sent = draw.random(n) < 1 / (1 + np.exp(-features))
    frame = pd.DataFrame(
        {
            "user": np.arange(n),
            "action": np.where(sent, "coupon", "no offer"),
            "reward": draw.random(n),
            "feature_taste": features,
        }
    )
    log = from_frame(frame, rng=rng())
    data = log.dataset
    assert data.propensity_source == "estimated"
    assert log.propensity_report is not None
    assert any("estimated" in note for note in log.notes)
    assert data.behaviour_probabilities is not None
    assert data.propensity.tolist() == data.behaviour_probabilities[np.arange(n), data.action].tolist()
    true = 1 / (1 + np.exp(-features[log.row]))
    assert np.abs(data.behaviour_probabilities[:, 1] - true).mean() < 0.05
