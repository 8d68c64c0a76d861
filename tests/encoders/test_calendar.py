from __future__ import annotations

import datetime
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from encoders.calendar import PromotionCalendar, month_start
from encoders.panel import Panel


@pytest.mark.parametrize("week", [5, 9, 17])
def test_a_trend_never_looks_ahead(panel: Panel, week: int) -> None:
    before = PromotionCalendar.of_panel(panel)
    visited, bought = panel.visited.copy(), panel.bought.copy()
    visited[:, week:] = True
    bought[:, week:] = True
    after = PromotionCalendar.of_panel(replace(panel, visited=visited, bought=bought))
    for name in ("category_trend", "visit_trend"):
        old, new = getattr(before, name), getattr(after, name)
        torch.testing.assert_close(old[: week + 1], new[: week + 1], rtol=0, atol=0)
        assert not torch.equal(old[week + 1], new[week + 1])


def test_visit_trend_by_hand(panel: Panel) -> None:
    # Half of four users visit until week 8, all of them in weeks 9 and 10.
    visited = np.zeros((4, panel.n_weeks), dtype=np.bool_)
    visited[:2] = True
    visited[:, 8:10] = True
    four = replace(
        panel,
        user_ids=panel.user_ids[:4],
        profiles=panel.profiles[:4],
        bought=panel.bought[:4],
        visited=visited,
        trips=visited.astype(np.uint8),
        coupon_used=panel.coupon_used[:4],
        basket_spend=panel.basket_spend[:4],
        category_spend=panel.category_spend[:4],
    )
    trend = PromotionCalendar.of_panel(four).visit_trend
    # Before week 11 (row 10): two of four recent weeks are at 1; so are two of the reference weeks 2..10.
    assert float(trend[10]) == pytest.approx(np.log(0.75 / ((7 * 0.5 + 2) / 9)), abs=1e-6)
    assert trend[:9].abs().max() == 0


def test_a_category_that_stops_selling_stays_finite_and_clipped(panel: Panel) -> None:
    bought = panel.bought.copy()
    bought[:, 8:, 0] = False
    bought[:, :, 1] = False
    trend = PromotionCalendar.of_panel(replace(panel, bought=bought)).category_trend
    assert torch.isfinite(trend).all()
    assert float(trend[12, 0]) == -1.5
    assert trend[:, 1].abs().max() == 0


def test_weeks_selects_rows(panel: Panel) -> None:
    calendar = PromotionCalendar.of_panel(panel)
    index = torch.tensor([5, 2, 5])
    for f in fields(PromotionCalendar):
        torch.testing.assert_close(getattr(calendar.weeks(index), f.name), getattr(calendar, f.name)[index])
    assert calendar.n_weeks == panel.n_weeks
    np.testing.assert_array_equal(calendar.depth.numpy(), panel.promotion_depth)


def test_month_start_by_hand() -> None:
    """Complete Journey's first weeks: from Monday 26 December 2016."""
    found = month_start(datetime.date(2016, 12, 26), 11)
    # Week 1 holds 1 January, week 2 the 2nd to the 7th; weeks 6 and 7 hold 1 to 5 and 6 to 7 February.
    assert [round(7 * share) for share in found.tolist()] == [1, 6, 0, 0, 0, 5, 2, 0, 0, 5, 2]
    # A month has seven such days, wherever its weeks begin.
    assert float(7 * month_start(datetime.date(2017, 1, 1), 52).sum()) == pytest.approx(84, abs=1e-4)
    assert month_start(datetime.date(2018, 10, 1), 1).tolist() == [1.0]


def test_the_panels_first_day_dates_the_weeks(panel: Panel) -> None:
    later = replace(panel, first_day=panel.first_day + datetime.timedelta(weeks=3))
    found = [PromotionCalendar.of_panel(each).month_start for each in (panel, later)]
    torch.testing.assert_close(found[0][3:], found[1][:-3])


def test_held_trends_are_those_known_at_the_start(panel: Panel) -> None:
    calendar = PromotionCalendar.of_panel(panel)
    held = calendar.with_trends_held(12)
    for f in fields(PromotionCalendar):
        before, after = getattr(calendar, f.name), getattr(held, f.name)
        torch.testing.assert_close(after[:13], before[:13])
        expected = before[12].expand_as(before[13:]) if f.name.endswith("trend") else before[13:]
        torch.testing.assert_close(after[13:], expected)
