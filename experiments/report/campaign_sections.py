"""What the policies spend week by week, and what they send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.report.canvas import INK, LINE_COLOURS, MARKERS
from experiments.report.page import Block, Column, Plot, Section, Table
from experiments.report.plots import (
    Line,
    LinePanel,
    line_panels,
    share_bars,
)
from experiments.report.standing import Results, multiple_of, standing_of
from experiments.report.wording import (
    ABSENT,
    Currency,
    Row,
    number_in,
    percent,
    plain,
    readable,
    rows_in,
    short,
    text_in,
)

NOTHING = {"no offer", "none", "nothing"}
MOST_CURVES = 6


def pacing_section(results: Results) -> Section | None:
    """Spend against plan, and the price of budget, week by week."""
    found = [row for row in rows_in(results, "pacing") if _numbers(row, "spend")]
    if not found:
        return None
    standing = standing_of(results)
    money = Currency.of_results(results)
    multiple = min({multiple_of(row) for row in found}, key=lambda m: (abs(m - 1), m))
    order = standing.order if standing else []
    names = [*order, *(readable(text_in(row, "policy")) for row in found)]
    found.sort(key=lambda row: (multiple_of(row), names.index(readable(text_in(row, "policy")))))
    users = (
        {(row.name, row.multiple): number_in(row.row, "n_users") for row in standing.rows} if standing else {}
    )
    here = [row for row in found if multiple_of(row) == multiple]
    focus = standing.focus.name if standing else readable(text_in(here[0], "policy"))
    here.sort(key=lambda row: readable(text_in(row, "policy")) != focus)
    look = standing.look if standing else {}
    drawn = [row for row in here if any(_numbers(row, "spend"))][:MOST_CURVES] or here[:1]
    divisors = [users.get((readable(text_in(row, "policy")), multiple)) for row in drawn]
    each = all(divisors)
    unit = f"{money.unit}{' per user' if each else ', all users'}"
    spend, prices = [], []
    plans = {tuple(_numbers(row, "planned")) for row in drawn} - {()}
    for place, (row, n) in enumerate(zip(drawn, divisors, strict=True)):
        name = readable(text_in(row, "policy"))
        colour, shape = look.get(
            name, (LINE_COLOURS[place % len(LINE_COLOURS)], MARKERS[place % len(MARKERS)])
        )
        scale = n if each and n else 1.0
        values = [_scaled(v, scale) for v in _numbers(row, "spend")]
        plan = [_scaled(v, scale) for v in _numbers(row, "planned")]
        path = _numbers(row, "dual_price")
        spend.append(Line(name, _weeks(values), values, colour, shape))
        if plan and (len(plans) > 1 or place == 0):
            label = f"plan of {name}" if len(plans) > 1 else "plan"
            spend.append(Line(label, _weeks(plan), plan, colour if len(plans) > 1 else INK, "", dashed=True))
        if path:
            prices.append(Line(name, _weeks(path), path, colour, shape))
    finding = _pacing_finding(here[0], focus)
    panels = [
        LinePanel("Spend in each week", "week of the campaign", unit, spend, plain, money.amount, True, True)
    ]
    if prices:
        axis = "margin per unit of budget"
        panels.append(
            LinePanel("Price of budget λ", "week of the campaign", axis, prices, plain, plain, True)
        )
    note = f"Budget × {multiple:g}; mean over campaigns."
    if len(here) > len(drawn):
        note += f" The table has {len(here) - len(drawn)} more."
    plot = Plot(finding, line_panels("pacing", finding, panels, height=2.9), note)
    lead = (
        "A price λ is put on each unit of budget: the higher it is, the fewer offers go out. Each week it is "
        "set anew, so that the budget lasts to the end of the campaign."
    )
    return Section(
        "pacing",
        "Spend against plan",
        lead,
        [[plot, _pacing_totals(here, money)], [_pacing_table(found, money)]],
    )


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


def _pacing_finding(row: Row, name: str) -> str:
    plan, real, worst = _drift(row)
    if not plan or real is None:
        return f"{name}'s spend week by week"
    text = f"{name} spends {percent(real / plan, 0)} of its plan"
    if worst is not None:
        text += f" and is never more than {percent(worst, 0)} of it ahead or behind"
    return text


def _pacing_totals(found: Sequence[Row], money: Currency) -> Table:
    rows = []
    for row in found:
        plan, real, worst = _drift(row)
        path = [value for value in _numbers(row, "dual_price") if value is not None]
        rows.append(
            [
                readable(text_in(row, "policy")),
                f"× {multiple_of(row):g}",
                money.amount(plan),
                money.amount(real),
                percent(worst),
                f"{short(min(path))} to {short(max(path))}" if path else ABSENT,
            ]
        )
    columns = [
        Column("policy", words=True),
        *(Column(t) for t in ("budget", "planned", "spent", "farthest off plan", "λ")),
    ]
    caption = "A campaign's spend, all users; farthest off plan: the running total's largest gap"
    return Table("pacing-totals", caption, columns, rows)


def _pacing_table(found: Sequence[Row], money: Currency) -> Table:
    rows = []
    for row in found:
        planned, spent, price = (_numbers(row, key) for key in ("planned", "spend", "dual_price"))
        for week, value in enumerate(spent):
            rows.append(
                [
                    readable(text_in(row, "policy")),
                    f"× {multiple_of(row):g}",
                    plain(week + 1),
                    money.amount(planned[week] if week < len(planned) else None),
                    money.amount(value),
                    short(price[week] if week < len(price) else None),
                ]
            )
    columns = [
        Column("policy", words=True),
        *(Column(title) for title in ("budget", "week", "planned", "spent", "λ")),
    ]
    caption = f"Spend and price week by week, all users, {money.unit}"
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
        group = shares.setdefault((multiple_of(row), readable(text_in(row, "policy"))), {})
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
    table = Table("offers", "Share of user-weeks in which each offer was sent", columns, rows)
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
