"""What the policies spend week by week, and what they send."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.report.canvas import BLUE, INK, LINE_COLOURS, MARKERS, ORANGE, trimmed
from experiments.report.page import Block, Column, Plot, Section, Table
from experiments.report.plots import (
    Line,
    LinePanel,
    line_panels,
    share_bars,
    share_tick,
    short_tick,
)
from experiments.report.standing import Results, Standing, multiple_of, standing_of
from experiments.report.wording import (
    Currency,
    Row,
    number_in,
    percent,
    plain,
    readable,
    rows_in,
    several,
    short,
    text_in,
)

NOTHING = {"no offer", "none", "nothing"}
MOST_PACED, MOST_BUDGETS = 3, 5
"""Policies and budgets with panels of their own."""


def pacing_section(results: Results) -> Section | None:
    """Spend and commitment against plan, and the price of budget, week by week."""
    found = [row for row in rows_in(results, "pacing") if _numbers(row, "spend")]
    if not found:
        return None
    standing = standing_of(results)
    money = Currency.of_results(results)
    wanted = standing.multiple if standing else 1.0
    multiple = min({multiple_of(row) for row in found}, key=lambda m: (abs(m - wanted), m))
    order = [*(standing.order if standing else []), *(_name(row) for row in found)]
    found.sort(key=lambda row: (multiple_of(row), order.index(_name(row))))
    here = [row for row in found if multiple_of(row) == multiple]
    focus = standing.focus.name if standing else _name(here[0])
    here.sort(key=lambda row: _name(row) != focus)
    paced = {_name(row) for row in found if any(_numbers(row, "spend"))}
    featured = [name for name in (standing.featured if standing else order) if name in paced]
    featured = list(dict.fromkeys(featured))[:MOST_PACED] or [_name(here[0])]
    budgets = (
        {(row.name, row.multiple): number_in(row.row, "budget") for row in standing.rows} if standing else {}
    )
    finding = _pacing_finding(here[0], budgets.get((_name(here[0]), multiple)))
    if len({multiple_of(row) for row in found}) > 1:
        finding = f"At budget × {multiple:g} {finding}"
    panels, left_out = _plan_panels(found, featured, multiple, budgets, money)
    note = (
        "Added up since the first week; mean over campaigns. What lies between the upper and the lower curve "
        "is reserved for coupons that may still be redeemed."
    )
    if left_out:
        note += f" The table has {several(left_out, 'budget')} more."
    columns = len(panels) // len(featured) if len(panels) > len(featured) else len(panels)
    plan = Plot(finding, line_panels("pacing", finding, panels, columns=columns, height=2.35), note)
    lead = (
        "A price λ is put on each unit of budget: the higher it is, the fewer offers go out. Each week it is "
        "set anew, so that the budget lasts to the end of the campaign."
    )
    prices = _price_plot([row for row in here if _name(row) in featured], standing, multiple)
    totals = _pacing_totals(here, multiple, money)
    return Section(
        "pacing",
        "Spend and commitment against plan",
        lead,
        [[plan], [prices, totals] if prices else [totals], [_pacing_table(found, money)]],
    )


def _name(row: Row) -> str:
    return readable(text_in(row, "policy"))


def _plan_panels(
    found: Sequence[Row],
    featured: Sequence[str],
    multiple: float,
    budgets: Mapping[tuple[str, float], float | None],
    money: Currency,
) -> tuple[list[LinePanel], int]:
    """One panel for each of some policies (rows) and budgets (columns), and how many budgets are left out."""
    rows = {(_name(row), multiple_of(row)): row for row in found}
    multiples = sorted({m for name, m in rows if name in featured})
    chosen = sorted(sorted(multiples, key=lambda m: (abs(_octaves(m, multiple)), m))[:MOST_BUDGETS])
    cells = [(name, m) for name in featured for m in chosen]
    share = all(budgets.get(cell) for cell in cells if cell in rows)
    panels = []
    for name, m in cells:
        row = rows.get((name, m), {})
        scale = (budgets.get((name, m)) or 1.0) if share else 1.0
        curves = (
            ("plan", _running(_numbers(row, "planned")), INK, "", True),
            ("spent", _running(_numbers(row, "spend")), BLUE, "o", False),
            ("spent or reserved", _numbers(row, "committed"), ORANGE, "^", False),
        )
        lines = [
            Line(label, _weeks(values), [_scaled(v, scale) for v in values], colour, marker, dashed=dashed)
            for label, values, colour, marker, dashed in curves
            if values
        ]
        panels.append(
            LinePanel(
                f"{trimmed(name, 28 if len(chosen) <= 3 else 14)}, × {m:g}",
                "week of the campaign",
                "share of the budget" if share else f"{money.unit}, all users",
                lines,
                plain,
                share_tick if share else money.amount,
                whole_x=True,
                from_zero=True,
                references=((1.0, "budget"),) if share else (),
            )
        )
    return panels, len(multiples) - len(chosen)


def _octaves(multiple: float, main: float) -> float:
    """How far a budget is from the main one, in doublings."""
    return math.log2(multiple / main) if multiple > 0 and main > 0 else math.inf


def _running(values: Sequence[float | None]) -> list[float | None]:
    """Running total; unknown from the first unknown week on."""
    total: float | None = 0.0
    found: list[float | None] = []
    for value in values:
        total = None if total is None or value is None else total + value
        found.append(total)
    return found


def _price_plot(rows: Sequence[Row], standing: Standing | None, multiple: float) -> Plot | None:
    """λ week by week at the main budget, on a logarithmic axis where it can be."""
    look = standing.look if standing else {}
    lines = []
    for place, row in enumerate(rows):
        path = _numbers(row, "dual_price")
        if any(value is not None for value in path):
            colour, shape = look.get(_name(row), (LINE_COLOURS[place], MARKERS[place]))
            lines.append(Line(_name(row), _weeks(path), path, colour, shape))
    if not lines:
        return None
    values = [value for line in lines for value in line.y if value is not None]
    positive = min(values) > 0
    mine = [value for value in lines[0].y if value is not None]
    if mine[0] > 0:
        finding = f"{lines[0].label}'s λ goes from {short(mine[0])} to {short(mine[-1])} in {len(mine)} weeks"
    else:
        finding = f"{lines[0].label}'s λ, week by week"
    axis = f"λ, margin per unit of budget{' (logarithmic)' if positive else ''}"
    panel = LinePanel(
        "Price of budget λ",
        "week of the campaign",
        axis,
        lines,
        plain,
        short_tick if positive else plain,
        whole_x=True,
        log_y=positive,
    )
    return Plot(finding, line_panels("prices", finding, [panel], height=2.9), f"Budget × {multiple:g}.")


def _numbers(row: Row, key: str) -> list[float | None]:
    values = row.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [number_in({"": value}, "") for value in values]


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _weeks(values: Sequence[object]) -> list[float | None]:
    return [float(week) for week in range(1, len(values) + 1)]


def _drift(row: Row) -> tuple[float | None, float | None, float | None]:
    """Total planned, total spent, and the largest gap between the running totals as a share of the plan."""
    planned, spent = _numbers(row, "planned"), _numbers(row, "spend")
    if not planned or len(planned) != len(spent) or None in planned or None in spent:
        known = [value for value in spent if value is not None]
        return None, sum(known), None
    plan, real, worst = 0.0, 0.0, 0.0
    for p, s in zip(planned, spent, strict=True):
        plan, real = plan + (p or 0), real + (s or 0)
        worst = max(worst, abs(real - plan))
    return plan, real, worst / plan if plan > 0 else None


def _peak(row: Row) -> float | None:
    """The most that was spent or reserved at any time."""
    return max((value for value in _numbers(row, "committed") if value is not None), default=None)


def _pacing_finding(row: Row, budget: float | None) -> str:
    name = _name(row)
    plan, real, worst = _drift(row)
    if not plan or real is None:
        return f"{name}'s spend week by week"
    text = f"{name} spends {percent(real / plan, 0)} of its plan"
    if worst is not None:
        text += f", never more than {percent(worst, 0)} of it ahead or behind"
    peak = _peak(row)
    if peak is not None and budget:
        text += f"; spent and reserved, {percent(peak / budget, 0)} of the budget at the peak"
    return text


def _pacing_totals(found: Sequence[Row], multiple: float, money: Currency) -> Table:
    rows = []
    for row in found:
        plan, real, worst = _drift(row)
        rows.append(
            [
                _name(row),
                money.amount(plan),
                money.amount(real),
                percent(worst),
                money.amount(_peak(row)),
            ]
        )
    columns = [
        Column("policy", words=True),
        *(Column(t) for t in ("planned", "spent", "farthest off plan", "peak committed")),
    ]
    caption = f"Budget × {multiple:g}; all users. Farthest off plan: the running total's largest gap"
    return Table("pacing-totals", caption, columns, rows)


def _pacing_table(found: Sequence[Row], money: Currency) -> Table:
    rows = []
    for row in found:
        planned, spent, committed, price, pressure = (
            _numbers(row, key) for key in ("planned", "spend", "committed", "dual_price", "pressure")
        )
        for week, value in enumerate(spent):
            rows.append(
                [
                    _name(row),
                    f"× {multiple_of(row):g}",
                    plain(week + 1),
                    money.amount(planned[week] if week < len(planned) else None),
                    money.amount(value),
                    money.amount(committed[week] if week < len(committed) else None),
                    short(price[week] if week < len(price) else None),
                    plain(pressure[week] if week < len(pressure) else None, 2),
                ]
            )
    columns = [
        Column("policy", words=True),
        *(Column(title) for title in ("budget", "week", "planned", "spent", "committed", "λ", "pressure")),
    ]
    caption = (
        f"Spend and price week by week, all users, {money.unit}. Committed: spent or reserved once "
        "the week's offers were sent. Pressure: how far reserves count as cost, 0 to 1"
    )
    return Table("pacing", caption, columns, rows, folded=True)


def offers_section(results: Results) -> Section | None:
    """How each policy's decisions divide among offers."""
    found = [row for row in rows_in(results, "offers") if number_in(row, "share") is not None]
    if not found:
        return None
    standing = standing_of(results)
    offers = list(dict.fromkeys(text_in(row, "offer") for row in found))
    nothing = {offer for offer in offers if offer.lower() in NOTHING}
    offers.sort(key=lambda offer: offer not in nothing)
    shares: dict[tuple[float, str], dict[str, float]] = {}
    for row in found:
        group = shares.setdefault((multiple_of(row), _name(row)), {})
        group[text_in(row, "offer")] = number_in(row, "share") or 0.0
    order = [*(standing.order if standing else []), *(name for _, name in shares)]
    shares = dict(sorted(shares.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))
    multiple = min({m for m, _ in shares}, key=lambda m: (abs(m - 1), m))
    here = {name: group for (m, name), group in shares.items() if m == multiple}
    focus = standing.focus.name if standing and standing.focus.name in here else next(iter(here))
    finding = _offers_finding(focus, here[focus], nothing)
    plot = Plot(
        finding,
        share_bars("offers", finding, here, offers, nothing),
        f"Budget × {multiple:g}. Grey: nothing was sent.",
    )
    columns = [Column("policy", words=True), Column("budget"), *(Column(offer) for offer in offers)]
    rows = [
        [name, f"× {m:g}", *(percent(group.get(offer)) for offer in offers)]
        for (m, name), group in shares.items()
    ]
    table = Table("offers", "Share of user-weeks in which each offer was sent", columns, rows, len(rows) > 16)
    return Section("offers", "What was sent", "", [[plot], [table], *_truth_blocks(results)])


def _truth_blocks(results: Results) -> list[Block]:
    """What each offer does to visits, as the simulators know it and a shop cannot."""
    found = [
        row for row in rows_in(results, "counterfactual") if text_in(row, "offer").lower() not in NOTHING
    ]
    if not found:
        return []
    money = Currency.of_results(results)
    types = ("persuadable", "sure_thing", "lost_cause", "sleeping_dog")
    columns = [
        Column("offer", words=True),
        *(Column(readable(name)) for name in types),
        Column("margin it adds"),
        Column("what it costs"),
    ]
    rows = [
        [
            text_in(row, "offer"),
            *(percent(number_in(row, name), 1) for name in types),
            money.amount(number_in(row, "uplift"), 3, sign=True),
            money.amount(number_in(row, "cost"), 3),
        ]
        for row in found
    ]
    caption = (
        "The truth of the simulators: users by what an offer does to their visit of the week (persuadable: "
        "comes because of it; sure thing: comes anyway; lost cause: comes in neither case; sleeping dog: "
        "stays away because of it), and its expected margin and cost in that week, "
        f"{money.unit} per user"
    )
    return [[Table("counterfactual", caption, columns, rows)]]


def _offers_finding(name: str, shares: Mapping[str, float], nothing: set[str]) -> str:
    sent = {offer: share for offer, share in shares.items() if offer not in nothing and share > 0}
    if not sent:
        return f"{name} sends nothing"
    first = max(sent, key=lambda offer: sent[offer])
    return (
        f"{name} sends something in {percent(sum(sent.values()), 0)} of user-weeks, most often “{first}” "
        f"({percent(sent[first], 0)})"
    )
