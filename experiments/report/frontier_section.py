"""What more budget buys, and where money stops being spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.report.canvas import GREY
from experiments.report.page import Block, Column, Plot, Section, Table
from experiments.report.plots import Line, LinePanel, Tick, line_panels, short_tick
from experiments.report.standing import (
    Results,
    Standing,
    multiple_of,
    standing_of,
)
from experiments.report.wording import (
    ABSENT,
    Currency,
    Row,
    number_in,
    part_of,
    percent,
    plain,
    readable,
    rows_in,
    several,
    short,
    text_in,
)

SPENT = 0.9
"""Share of a budget from which it counts as spent."""
NEAR_FLOOR = 2.0
"""λ counts as being at the floor below this multiple of it: the range spans three powers of ten."""
RESERVED = 0.95
"""Share of a budget, spent or reserved at the peak, from which nothing more could have been promised."""
APART = 1.025
"""Factor by which policies are moved apart sideways, so that their intervals do not cover each other."""


@dataclass(frozen=True)
class Point:
    """A policy at one budget; money per user and campaign.

    Attributes:
        name: of the policy.
        multiple: of the configured budget.
        budget: cap.
        spend: of it.
        utilisation: spend / budget.
        margin: incremental, with its interval ``low`` to ``high``.
        last_price: λ of the last week.
        peak: largest share of the budget spent or reserved at any time.
        row: as in the results.
    """

    name: str
    multiple: float
    budget: float | None
    spend: float | None
    utilisation: float | None
    margin: float | None
    low: float | None
    high: float | None
    last_price: float | None
    peak: float | None
    row: Row


def frontier_section(results: Results) -> Section | None:
    """Margin and utilisation against the budget, and why money is left; None for a single budget."""
    points = _points(results)
    names = list(dict.fromkeys(point.name for point in points))
    if len({point.multiple for point in points if point.budget}) < 2:
        return None
    standing = standing_of(results)
    featured = [name for name in (standing.featured if standing else names) if name in names]
    shown = [point for point in points if point.name in (featured or names[:1])]
    focus = shown[0].name if not standing or standing.focus.name not in names else standing.focus.name
    shown.sort(key=lambda point: (point.name != focus, names.index(point.name), point.multiple))
    money = Currency.of_results(results)
    floor = _floor(results)
    look = standing.look if standing else {}
    mine = [point for point in shown if point.name == focus]
    plots: list[Plot] = [
        _margin_plot(shown, mine, standing, look, money),
        _rest_plot(shown, mine, floor, look, money),
    ]
    lead = (
        "A shop chooses its budget on this curve. A budget is a cap: where more of it brings no more margin, "
        "the rest is better left unspent. A coupon reserves its worst case until it is redeemed or expires, "
        "so that money can be promised without ever being spent."
    )
    blocks: list[Block] = [plots, [_table(shown, mine, floor, money)]]
    return Section("frontier", "What more budget buys", lead, blocks)


def _points(results: Results) -> list[Point]:
    """Read the frontier, or else the policies; what the one lacks is taken from the other."""
    found = rows_in(results, "frontier") or [
        row for row in rows_in(results, "policies") if number_in(row, "spend") != 0
    ]
    judged = {_key(row, "name"): row for row in rows_in(results, "policies")}
    paced = {_key(row, "policy"): row for row in rows_in(results, "pacing")}
    points = []
    for row in found:
        name = readable(text_in(row, "policy" if "policy" in row else "name"))
        key = (name, multiple_of(row))
        users = number_in(row, "n_users")
        each = [
            None if total is None or not users else total / users
            for total in (
                number_in(row, k) for k in ("budget", "spend", "incremental_margin", "ci_low", "ci_high")
            )
        ]
        budget, spend, margin, low, high = each
        prices = paced.get(key, {}).get("dual_price")
        peaks = [number_in(r, "peak_commitment_share") for r in (row, judged.get(key, {}))]
        last = number_in(row, "last_price")
        if last is None and isinstance(prices, Sequence) and not isinstance(prices, str) and prices:
            last = number_in({"": prices[-1]}, "")
        points.append(
            Point(
                *key,
                budget=budget,
                spend=spend,
                utilisation=number_in(row, "utilisation"),
                margin=margin,
                low=low,
                high=high,
                last_price=last,
                peak=next((p for p in peaks if p is not None), None),
                row=row,
            )
        )
    return points


def _key(row: Row, name: str) -> tuple[str, float]:
    return readable(text_in(row, name)), multiple_of(row)


def _floor(results: Results) -> float | None:
    """The lowest λ that a plan may choose, if the run says so."""
    span = part_of(results, "training").get("price_range")
    if not isinstance(span, Sequence) or isinstance(span, str) or not span:
        return None
    return number_in({"": span[0]}, "")


def _lines(points: Sequence[Point], key: str, look: Mapping[str, tuple[str, str]], *bars: str) -> list[Line]:
    """One curve for each policy over the budget; a budget of nothing has no place on a logarithmic axis."""
    lines = []
    for place, name in enumerate(dict.fromkeys(point.name for point in points)):
        here = [point for point in points if point.name == name and (point.budget or 0) > 0]
        y, *ends = ([getattr(point, k) for point in here] for k in (key, *bars))
        x = [(point.budget or 0) * APART**place for point in here]
        colour, shape = look.get(name, (GREY, "o"))
        low, high = ends or ((), ())
        lines.append(Line(name, x, y, colour, shape, low=low, high=high))
    return lines


def _budgets(points: Sequence[Point]) -> list[float]:
    return sorted({point.budget for point in points if point.budget})


def _margin_plot(
    points: Sequence[Point],
    mine: Sequence[Point],
    standing: Standing | None,
    look: Mapping[str, tuple[str, str]],
    money: Currency,
) -> Plot:
    finding = _margin_finding(mine, standing, money)
    ticks, cents = _budgets(points), _cents(money)
    axis = f"budget per user and campaign ({money.unit}, logarithmic)"
    panels = [
        LinePanel(
            "Margin",
            axis,
            f"incremental margin per user ({money.unit})",
            _lines(points, "margin", look, "low", "high"),
            x_tick=_budget_tick(money),
            y_tick=cents,
            log_x=ticks,
        ),
        LinePanel(
            "Utilisation",
            axis,
            "share of the budget spent",
            _lines(points, "utilisation", look),
            x_tick=_budget_tick(money),
            y_tick=_percent_tick,
            log_x=ticks,
            from_zero=True,
            references=((1.0, "all of it"),),
        ),
    ]
    note = "One mark a budget; upright bars are intervals. Policies stand a little apart sideways."
    campaigns = {n for point in points if (n := number_in(point.row, "campaigns")) is not None}
    if len(campaigns) > 1:
        least, most = plain(min(campaigns)), plain(max(campaigns))
        note += f" Some budgets rest on {least} campaigns only, others on {most}."
    return Plot(finding, line_panels("frontier", finding, panels, height=2.9), note)


def _cents(money: Currency) -> Tick:
    """Ticks of an amount with two decimals or more, as amounts are written."""
    return lambda value, digits: money.amount(value, max(digits, 2) if digits else 0)


def _budget_tick(money: Currency) -> Tick:
    """Ticks at the budgets themselves, each with the decimals that it needs: two or three."""
    return lambda value, _: money.amount(value, 2 if abs(value - round(value, 2)) < 1e-6 else 3)


def _percent_tick(value: float, _: int) -> str:
    return percent(value, 0)


def _margin_finding(mine: Sequence[Point], standing: Standing | None, money: Currency) -> str:
    """Say what the largest budget buys above the smallest, and at how many budgets the policy is ahead."""
    known = [p for p in mine if p.margin is not None and p.budget]
    first = f"What more budget buys {mine[0].name}" if mine else "What more budget buys"
    if len(known) > 1:
        small, large = known[0], known[-1]
        first = (
            f"{(large.budget or 0) / (small.budget or 1):.3g} times the budget takes {small.name} from "
            f"{money.headline(small.margin)} to {money.headline(large.margin)} per user"
        )
    if standing is None or len(standing.multiples) < 2:
        return first
    return f"{first}; {_wins(standing)}"


def _wins(standing: Standing) -> str:
    """Say at how many budgets the policy is above the best other one, and at how many clearly so."""
    ahead = clear = behind = judged = 0
    for multiple in standing.multiples:
        mine, rival = standing.row_of(standing.focus.name, multiple), standing.rival_at(multiple)
        if mine is None or mine.margin is None or rival is None or rival.margin is None:
            continue
        judged += 1
        paired = standing.against_rival(multiple)
        sure = paired is not None and paired.includes_zero is False
        ahead += mine.margin > rival.margin
        clear += sure and mine.margin > rival.margin
        behind += sure and mine.margin < rival.margin
    words = f"it earns most at {ahead} of the {several(judged, 'budget')} at which all play"
    if ahead:
        words += f", clearly (interval excludes 0) at {clear} of them" if clear else ", nowhere clearly"
    return f"{words}, and clearly less than the best other at {behind}" if behind else words


def _rest_plot(
    points: Sequence[Point],
    mine: Sequence[Point],
    floor: float | None,
    look: Mapping[str, tuple[str, str]],
    money: Currency,
) -> Plot:
    finding = _rest_finding(mine, floor, money)
    ticks = _budgets(points)
    axis = f"budget per user and campaign ({money.unit}, logarithmic)"
    panels = []
    if any(point.last_price for point in points):
        panels.append(
            LinePanel(
                "Price of budget in the last week",
                axis,
                "λ, margin per unit (logarithmic)",
                _lines([point for point in points if point.last_price], "last_price", look),
                x_tick=_budget_tick(money),
                y_tick=short_tick,
                log_x=ticks,
                log_y=True,
                references=((floor, "floor of λ"),) if floor else (),
            )
        )
    if any(point.peak is not None for point in points):
        panels.append(
            LinePanel(
                "Spent or reserved, at the peak",
                axis,
                "share of the budget",
                _lines([point for point in points if point.peak is not None], "peak", look),
                x_tick=_budget_tick(money),
                y_tick=_percent_tick,
                log_x=ticks,
                from_zero=True,
                references=((1.0, "all of it"),),
            )
        )
    if not panels:
        rest = [
            Line(line.label, line.x, [None if y is None else 1 - y for y in line.y], line.colour, line.marker)
            for line in _lines(points, "utilisation", look)
        ]
        panels.append(
            LinePanel(
                "Left over",
                axis,
                "share of the budget",
                rest,
                _budget_tick(money),
                _percent_tick,
                from_zero=True,
                log_x=ticks,
            )
        )
    note = (
        "At a high λ money is scarce. At its floor all that helps at all is sent, and more money would not "
        "be used. Reserved: the worst case of coupons that may still be redeemed."
    )
    return Plot(finding, line_panels("frontier-rest", finding, panels, height=2.9), note)


def _why_left(point: Point, floor: float | None) -> str:
    """Say why a budget is not spent, as far as λ and the reserves tell."""
    if point.utilisation is None or point.utilisation >= SPENT:
        return ABSENT
    low = None not in (floor, point.last_price) and (point.last_price or 0) <= NEAR_FLOOR * (floor or 0)
    full = point.peak is not None and point.peak >= RESERVED
    if low and full:
        return "λ near floor; reserved"
    if low:
        return "λ near floor"
    if full:
        return "reserved"
    return ABSENT if None in (floor, point.last_price, point.peak) else "neither"


def _rest_finding(mine: Sequence[Point], floor: float | None, money: Currency) -> str:
    known = [point for point in mine if point.utilisation is not None and point.budget]
    if not known:
        return "How much of each budget is spent is not known"
    name = known[0].name
    left = [point for point in known if (point.utilisation or 0) < SPENT]
    if not left:
        least = min(point.utilisation or 0 for point in known)
        return f"{name} spends {percent(least, 0)} or more of every budget: money is what limits it"
    spent = [point for point in known if (point.utilisation or 0) >= SPENT]
    last = left[-1]
    amount = f"{percent(last.utilisation, 0)} of {money.headline(last.budget)} per user"
    if not spent:
        first = f"{name} spends less than {percent(SPENT, 0)} of every budget, {amount}"
    elif max(point.budget or 0 for point in spent) < min(point.budget or 0 for point in left):
        first = (
            f"{name} spends {percent(SPENT, 0)} or more of a budget up to "
            f"{money.headline(spent[-1].budget)} per user, but {amount}"
        )
    else:
        first = (
            f"{name} spends less than {percent(SPENT, 0)} of {len(left)} of {len(known)} budgets, {amount}"
        )
    reasons = []
    if floor and last.last_price is not None:
        near = last.last_price <= NEAR_FLOOR * floor
        verb = "ends near its floor" if near else "does not end near its floor"
        reasons.append(f"λ {verb} ({last.last_price:.2g} against {floor:.2g})")
    if last.peak is not None:
        reasons.append(f"spent and reserved money peaks at {percent(last.peak, 0)} of it")
    return f"{first}; there {' and '.join(reasons)}" if reasons else first


def _table(points: Sequence[Point], mine: Sequence[Point], floor: float | None, money: Currency) -> Table:
    before: dict[str, Point] = {}
    over = [number_in(point.row, "overspent") for point in points]
    told = any(over)
    rows: list[list[str]] = []
    strong: list[int] = []
    for point in points:
        last, further = before.get(point.name), ABSENT
        if last and None not in (point.margin, point.spend, last.margin, last.spend):
            more = (point.spend or 0) - (last.spend or 0)
            gain = (point.margin or 0) - (last.margin or 0)
            further = money.amount(gain / more, 2, sign=True) if more > 0 else ABSENT
        before[point.name] = point
        ratio = point.margin / point.spend if point.margin is not None and point.spend else None
        if point in mine:
            strong.append(len(rows))
        rows.append(
            [
                point.name,
                f"× {point.multiple:g}: {money.amount(point.budget, 3)}",
                money.amount(point.spend, 3),
                percent(point.utilisation),
                money.amount(point.margin, 3, sign=True),
                money.interval(point.low, point.high),
                money.amount(ratio, 2),
                further,
                short(point.last_price),
                percent(point.peak),
                _why_left(point, floor),
                *([_over(point.row)] if told else []),
            ]
        )
    titles = (
        *("budget", "spend", "of it spent", "margin", "95% interval", "margin per unit spent"),
        *("per further unit", "last λ", "peak committed"),
    )
    columns = [
        Column("policy", words=True),
        *(Column(title) for title in titles),
        Column("why not all", words=True),
        *([Column("overspent")] if told else []),
    ]
    caption = (
        f"Per user and campaign, {money.unit}. Per further unit: margin for each unit spent beyond the line "
        "above. Peak committed: spent or reserved, the largest share at any time. Why not all, where less "
        f"than {percent(SPENT, 0)} is spent: λ at most {NEAR_FLOOR:g} times its floor, or at least "
        f"{percent(RESERVED, 0)} reserved at the peak. {_overspending(over)}"
    )
    return Table(
        "frontier", caption, columns, rows, strong=frozenset(strong) if len(before) > 1 else frozenset()
    )


def _overspending(over: Sequence[float | None]) -> str:
    """Say of all budgets together whether they held."""
    if any(over):
        return "Overspent: campaigns that went over the budget."
    return "No campaign went over its budget." if over and None not in over else ""


def _over(row: Row) -> str:
    value: Any = row.get("overspent")
    if isinstance(value, bool):
        return "yes" if value else "no"
    number, campaigns = number_in(row, "overspent"), number_in(row, "campaigns")
    if number is None:
        return ABSENT
    if number == round(number) and campaigns is not None and number <= campaigns:
        return f"{plain(number)} of {plain(campaigns)}"
    return short(number)
