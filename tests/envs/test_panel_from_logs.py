"""The panel of a log small enough to compute by hand, and the lock on its last weeks."""

from __future__ import annotations

import datetime
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from encoders.panel import Panel
from encoders.weeks import LOCKED_WEEKS
from envs.log_schema import UNLISTED
from envs.logs import open_logs
from envs.panel_from_logs import build_panel, pseudonyms
from envs.redemption_rows import RedemptionRows, redemption_rows
from envs.synthetic import SyntheticConfig, generate

KEY = b"0123456789abcdef"
MONDAY = datetime.date(2024, 1, 1)
Line = tuple[int, str, str, float, float]


def write_tiny(directory: Path) -> None:
    """26 weeks (train 1-13, tune to 17, report to 21); ann buys y1 each week, so that there is no gap."""
    lines: list[Line] = [(week, "ann", "y1", 1.0, 0.0) for week in range(1, 27)]
    lines += [
        (1, "bob", "x1", 8.0, 2.0),  # rate .2
        (2, "bob", "x2", 5.0, 5.0),  # rate .5
        (3, "bob", "x1", 10.0, 0.0),  # rate 0
        (15, "bob", "x2", 9.0, 1.0),  # rate .1, in a tuning week: no part of the shares
        (16, "cid", "x2", 9.0, 1.0),  # cid never bought in a train week
        (20, "ann", "z1", 3.0, 0.0),  # unlisted: in the basket, no category
    ]
    rows = ["user_id,basket_id,timestamp,item_id,quantity,spend,discount,coupon_discount"]
    for number, (week, user, item, spend, discount) in enumerate(lines):
        day = MONDAY + datetime.timedelta(days=7 * (week - 1) + number % 7)
        rows.append(f"{user},b{number},{day} 10:00:00,{item},1,{spend},{discount},0")
    files = {
        "transactions": rows,
        "items": ["item_id,category,department", "x1,X,D", "x2,X,D", "y1,Y,E", "z1,UNLISTED,"],
        "users": ["user_id,age,home_ownership", "bob,45-54,Owner", "ann,,Renter", "eve,19,Owner"],
        "promotions": [
            "item_id,week,store_id,display,mailer",
            "x1,2,s1,1,0",
            "x2,2,s2,false,TRUE",
            "y1,2,s3,0,0",
            "x1,5,s1,true,true",
        ],
    }
    for name, text in files.items():
        (directory / f"{name}.csv").write_text("\n".join(text) + "\n")


@pytest.fixture
def tiny(tmp_path: Path) -> Panel:
    write_tiny(tmp_path)
    with open_logs(tmp_path) as logs:
        return build_panel(logs, n_categories=5, pseudonym_key=KEY)


def test_users_categories_and_profiles(tiny: Panel) -> None:
    assert tiny.user_ids.tolist() == pseudonyms(["ann", "bob"], KEY)
    assert tiny.categories.tolist() == ["X", "Y"]
    assert tiny.departments.tolist() == ["D", "E"]
    assert tiny.profiles.tolist() == ["home ownership Renter", "age 45-54, home ownership Owner"]


def test_purchases(tiny: Panel) -> None:
    assert tiny.bought.shape == (2, 21, 2)
    assert tiny.bought[0, :, 1].all()
    assert np.flatnonzero(tiny.bought[1, :, 0]).tolist() == [0, 1, 2, 14]
    assert tiny.category_spend[1, :, 0].sum() == 32
    assert tiny.basket_spend[0, 19] == 4, "unlisted items count in the basket"
    assert tiny.visited.sum() == 21 + 4
    assert np.array_equal(tiny.trips > 0, tiny.visited)
    assert tiny.trips[0, 19] == 2, "ann's unlisted item has a basket of its own"
    assert tiny.trips.sum() == 21 + 4 + 1
    assert not tiny.coupon_used.any()


def test_trips_are_distinct_baskets_and_any_coupon_counts(tmp_path: Path) -> None:
    """Bob's week 2 gets a second line in its basket and two baskets more, one with a coupon."""
    write_tiny(tmp_path)
    file = tmp_path / "transactions.csv"
    text = file.read_text()
    (known,) = (
        line.split(",")[1] for line in text.splitlines() if line.startswith("bob") and ",x2,1,5.0," in line
    )
    text += f"bob,{known},2024-01-08 11:00:00,y1,1,1,0,0\n"
    text += "bob,new1,2024-01-09 11:00:00,y1,1,1,0,0.5\n"
    text += "bob,new2,2024-01-14 23:59:00,z1,1,1,0,0\n"  # Sunday's last minute, and nothing modelled
    text += "bob,new3,2024-01-29 11:00:00,y1,1,1,0,0\n"
    file.write_text(text)
    with open_logs(tmp_path) as logs:
        panel = build_panel(logs, n_categories=5, pseudonym_key=KEY)
    assert panel.trips.dtype == np.uint8
    assert panel.trips[1].tolist() == [1, 3, 1, 0, 1, *[0] * 9, 1, *[0] * 6]
    assert np.flatnonzero(panel.coupon_used[1]).tolist() == [1]
    assert not panel.coupon_used[0].any()


def test_more_trips_than_a_byte_holds_are_the_most_that_it_holds(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    with (tmp_path / "transactions.csv").open("a") as file:
        file.writelines(f"bob,many{k},2024-01-09 11:00:00,y1,1,1,0,0\n" for k in range(300))
    with open_logs(tmp_path) as logs:
        panel = build_panel(logs, n_categories=5, pseudonym_key=KEY)
    assert panel.trips[1, 1] == 255


def test_depth_index_equals_the_hand_computed_one(tiny: Panel) -> None:
    """Train sales at shelf price: x1 20, x2 10, so shares 2/3 and 1/3."""
    expected = np.full(21, 1 / 3 * 0.5)  # x1 at 0 and x2's last rate carried, from week 3 on
    expected[0] = 0.2  # x2 not yet seen: x1 stands for the category
    expected[1] = 2 / 3 * 0.2 + 1 / 3 * 0.5
    expected[14:] = 1 / 3 * 0.1
    assert tiny.promotion_depth[:, 0] == pytest.approx(expected, abs=1e-7)
    assert not tiny.promotion_depth[:, 1].any()


def test_promotions_are_averaged_over_covered_stores(tiny: Panel) -> None:
    """Week 2 has three covered stores, week 5 one; the other weeks are unknown and take the mean."""
    week_2, week_5 = 2 / 3 / 3, 2 / 3
    expected = np.full(21, (week_2 + week_5) / 2)
    expected[1], expected[4] = week_2, week_5
    assert tiny.display[:, 0] == pytest.approx(expected, abs=1e-7)
    assert tiny.mailer[[1, 4], 0] == pytest.approx([1 / 3 / 3, 2 / 3], abs=1e-7)
    assert not tiny.display[:, 1].any()


def test_a_log_of_two_tables_is_enough(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    for name in ("users", "promotions"):
        (tmp_path / f"{name}.csv").unlink()
    with open_logs(tmp_path) as logs:
        panel = build_panel(logs, n_categories=1, pseudonym_key=KEY)
        rows = redemption_rows(logs, panel)
    assert panel.n_categories == 1
    assert not panel.display.any()
    assert not panel.mailer.any()
    assert panel.profiles.tolist() == ["", ""]
    assert len(rows) == 0


def test_redemption_rows_by_hand(tmp_path: Path) -> None:
    """Bob bought x1 on Sat 6 January, x2 on Sun 14 and x1 on Mon 15, and redeemed k1 on Fri 12.

    The redemption is within two days of week 2's purchase only. k2 is of type A, k3 covers what bob did
    not buy, cid is not in the panel, and ann bought nothing that k1 covers.
    """
    write_tiny(tmp_path)
    window = "2024-01-01,2024-01-15"  # the last day counts whole: the purchase on it is at ten
    files = {
        "campaigns": [
            "user_id,campaign_id,start,end,campaign_type",
            *(f"{user},k1,{window},Type B" for user in ("ann", "bob", "cid")),
            f"bob,k2,{window},Type A",
            f"bob,k3,{window},",
        ],
        "offers": ["campaign_id,offer_id,item_id", "k1,o1,x1", "k1,o2,x2", "k2,o3,x1", "k3,o4,y1"],
        "redemptions": ["user_id,campaign_id,offer_id,timestamp", "bob,k1,o2,2024-01-12"],
    }
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(text) + "\n")
    with open_logs(tmp_path) as logs:
        panel = build_panel(logs, n_categories=5, pseudonym_key=KEY)
        rows = redemption_rows(logs, panel)
        with pytest.raises(ValueError, match="not the same log"):
            redemption_rows(logs, _without_last_user(panel))
    assert rows.campaign_ids.tolist() == ["k1"]
    assert rows.user.tolist() == [1, 1, 1]
    assert rows.week.tolist() == [1, 2, 3]
    assert rows.category.tolist() == [0, 0, 0]
    assert rows.campaign.tolist() == [0, 0, 0]
    assert rows.redeemed.tolist() == [False, True, False]


def _without_last_user(panel: Panel) -> Panel:
    shared = (
        "categories",
        "departments",
        "promotion_depth",
        "display",
        "mailer",
        "split",
        "first_day",
    )
    by_user = (field.name for field in fields(Panel) if field.name not in shared)
    return replace(panel, **{name: getattr(panel, name)[:-1] for name in by_user})


def test_the_order_of_users_does_not_depend_on_the_key(tmp_path: Path, tiny: Panel) -> None:
    with open_logs(tmp_path) as logs:
        other = build_panel(logs, n_categories=5, pseudonym_key=b"another key, 16+")
    assert not set(other.user_ids.tolist()) & set(tiny.user_ids.tolist())
    assert np.array_equal(other.bought, tiny.bought)
    assert np.array_equal(other.profiles, tiny.profiles)


def test_raw_ids_are_in_no_output(tmp_path: Path, tiny: Panel) -> None:
    tiny.save(tmp_path / "panel.npz")
    with np.load(tmp_path / "panel.npz", allow_pickle=False) as stored:
        texts = [
            str(value)
            for name in stored.files
            for value in np.ravel(stored[name])
            if stored[name].dtype.kind == "U"
        ]
    assert texts
    assert not any(name in text for text in texts for name in ("ann", "bob", "cid", "eve"))


@pytest.mark.parametrize("key", [b"", b"short"])
def test_a_guessable_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="at least 16"):
        pseudonyms(["ann"], key)


CONFIG = SyntheticConfig(
    n_users=60, n_weeks=32, n_categories=6, n_campaigns=5, campaign_weeks=8, redemption_rate=0.4
)


def build(directory: Path) -> tuple[Panel, RedemptionRows]:
    with open_logs(directory) as logs:
        panel = build_panel(logs, n_categories=4, pseudonym_key=KEY)
        return panel, redemption_rows(logs, panel)


def arrays(
    built: tuple[Panel, RedemptionRows],
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    return {
        name: np.asarray(getattr(part, name))
        for part in built
        for name in part.__dataclass_fields__
        if name != "split"
    }


def alter_from(directory: Path, first_week: int) -> None:
    """Change all that can change in weeks from ``first_week`` on, keeping the log valid and as long."""
    rng = np.random.default_rng(0)
    cut = pd.Timestamp(MONDAY) + pd.Timedelta(weeks=first_week - 1)
    tables = {path.stem: pd.read_parquet(path) for path in directory.glob("*.parquet")}

    lines = tables["transactions"]
    late = lines["timestamp"] >= cut
    lines.loc[late, "spend"] = (lines.loc[late, "spend"] * 10).round(2)
    lines.loc[late, "discount"] = lines.loc[late, "spend"]
    lines.loc[late, "user_id"] = "new-" + lines.loc[late, "user_id"]
    lines.loc[late, "basket_id"] = [f"n{number}" for number in range(int(late.sum()))]
    # The category that fewest bought becomes the one that most bought.
    items = tables["items"].merge(lines[~late], on="item_id")
    bought = items[items["category"] != UNLISTED].groupby("category")["user_id"].nunique()
    rare = items.loc[items["category"] == bought.idxmin(), "item_id"].unique()
    lines.loc[late, "item_id"] = rng.choice(rare, int(late.sum()))
    tables["transactions"] = lines

    promotions = tables["promotions"]
    late = promotions["week"] >= first_week
    promotions.loc[late, ["display", "mailer"]] = ~promotions.loc[late, ["display", "mailer"]]
    tables["promotions"] = promotions

    campaigns = tables["campaigns"]
    campaigns.loc[campaigns["end"] >= cut, "end"] = cut
    tables["campaigns"] = campaigns[campaigns["start"] < cut]
    known = tables["campaigns"]["campaign_id"].unique()
    tables["offers"] = tables["offers"][tables["offers"]["campaign_id"].isin(known)]
    redemptions = tables["redemptions"]
    # Everyone redeems everything on the first day after, next to the purchases just before.
    late_redemptions = tables["campaigns"].merge(tables["offers"], on="campaign_id")
    late_redemptions = late_redemptions[["user_id", "campaign_id", "offer_id"]].drop_duplicates()
    tables["redemptions"] = pd.concat(
        [redemptions[redemptions["timestamp"] < cut], late_redemptions.assign(timestamp=cut)],
        ignore_index=True,
    )
    for name, table in tables.items():
        table.to_parquet(directory / f"{name}.parquet", index=False)


def test_locked_weeks_change_nothing(tmp_path: Path) -> None:
    generate(CONFIG, 5, tmp_path)
    before = arrays(build(tmp_path))
    alter_from(tmp_path, CONFIG.n_weeks - LOCKED_WEEKS + 1)
    after = arrays(build(tmp_path))
    assert before["redeemed"].any()
    for name, values in before.items():
        assert np.array_equal(values, after[name]), f"{name} read a locked week"


def test_the_last_unlocked_week_does_count(tmp_path: Path) -> None:
    """The test above would be empty if the alteration could not be seen."""
    generate(CONFIG, 5, tmp_path)
    before = arrays(build(tmp_path))
    alter_from(tmp_path, CONFIG.n_weeks - LOCKED_WEEKS)
    after = arrays(build(tmp_path))
    for name in (
        "bought",
        "visited",
        "basket_spend",
        "category_spend",
        "promotion_depth",
        "display",
        "mailer",
    ):
        assert np.array_equal(before[name][..., :-1, :], after[name][..., :-1, :]) or name in (
            "visited",
            "basket_spend",
        )
        assert not np.array_equal(before[name], after[name]), name
    assert len(before["week"]) > len(after["week"])
