"""What the policies earn, spend and send, and what a log alone says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.ope.evaluate import FIXED_PRICE_NOTE
from experiments.report.canvas import BLUE, GREEN, GREY, INK, LINE_COLOURS, VERMILION
from experiments.report.page import (
    Block,
    Column,
    Difference,
    Plot,
    PolicyRow,
    Section,
    Standing,
    Table,
    Words,
    choose_standing,
)
from experiments.report.plots import (
    DotPanel,
    Line,
    LinePanel,
    Mark,
    dot_panels,
    line_panels,
    marker,
    share_bars,
    whole,
)
from experiments.report.wording import (
    ABSENT,
    Currency,
    Row,
    listed,
    number_in,
    percent,
    plain,
    readable,
    rows_in,
    several,
    short,
    text_in,
)

Results = Mapping[str, Any]
NOTHING = {"no offer", "none", "nothing"}
MOST_CURVES = 6


def standing_of(results: Results) -> Standing | None:
    """Read policies and their paired differences; None where no policy was judged."""
    rows = [_policy(row) for row in rows_in(results, "policies")]
    users = {(row.name, row.multiple): number_in(row.row, "n_users") for row in rows}
    differences = []
    for row in rows_in(results, "comparison"):
        name, multiple = readable(text_in(row, "name")), _multiple(row)
        value, low, high = (
            _each(number_in(row, key), users.get((name, multiple)))
            for key in ("difference", "ci_low", "ci_high")
        )
        baseline = readable(text_in(row, "baseline"))
        differences.append(Difference(name, baseline, multiple, value, low, high, row))
    return choose_standing(rows, differences, Currency.of_results(results))


def _policy(row: Row) -> PolicyRow:
    users = number_in(row, "n_users")
    margin, low, high, spend, budget = (
        _each(number_in(row, key), users)
        for key in ("incremental_margin", "ci_low", "ci_high", "spend", "budget")
    )
    return PolicyRow(readable(text_in(row, "name")), _multiple(row), margin, low, high, spend, budget, row)


def _multiple(row: Row) -> float:
    multiple = number_in(row, "budget_multiple")
    return 1.0 if multiple is None else multiple


def _each(total: float | None, users: float | None) -> float | None:
    return None if total is None or not users else total / users


# What they earn -----------------------------------------------------------------------------------


def headline(standing: Standing) -> str:
    """Say what the policy earns, and whether it beats the best other one."""
    focus, rival, money = standing.focus, standing.rival, standing.currency
    if focus.margin is None:
        return f"What {focus.name} earns could not be computed"
    first = f"{focus.name} earns {money.headline(focus.margin, sign=True)} per user"
    if rival is None or rival.margin is None:
        return first
    paired = standing.against_rival
    gap = paired.value if paired and paired.value is not None else focus.margin - rival.margin
    if rival.margin > 0 and abs(gap / rival.margin) < 10:
        size = f"{percent(abs(gap) / rival.margin, 1 if abs(gap) / rival.margin < 0.0095 else 0)}"
    else:
        size = money.headline(abs(gap))
    direction = "above" if gap >= 0 else "below"
    if paired is None or paired.includes_zero is None:
        doubt = "no paired interval"
    else:
        doubt = "interval includes 0" if paired.includes_zero else "interval excludes 0"
    return f"{first}, {size} {direction} {rival.name} ({doubt})"


def policies_section(results: Results) -> Section | None:
    """What each policy earns at each budget, and the paired differences."""
    standing = standing_of(results)
    if standing is None:
        return None
    plots: list[Plot] = [_margin_plot(standing)]
    if standing.differences:
        plots.append(_difference_plot(standing))
    blocks: list[Block] = [plots] if len(standing.multiples) == 1 else [[plot] for plot in plots]
    if len(standing.multiples) > 1:
        blocks.append([_frontier_plot(standing), _frontier_words(standing)])
    blocks.append([_policy_table(standing)])
    if standing.differences:
        blocks.append([_difference_table(standing)])
    lead = (
        "Incremental margin is what a campaign earns above sending nothing, before the subsidy is paid; “less "
        "spend” takes the spend off. Policies face the same users, weeks and luck. These are simulated "
        "campaigns, not a field test."
    )
    return Section("policies", "What the policies earn", lead, blocks)


def _look(standing: Standing) -> dict[str, tuple[str, str]]:
    """Colour and marker of each policy, the same in every plot."""
    rival = standing.rival.name if standing.rival else None
    others = [name for name in standing.order if name not in (standing.focus.name, rival)]
    look = {standing.focus.name: (BLUE, "o")}
    if rival:
        look[rival] = (VERMILION, "s")
    for place, name in enumerate(others, start=2):
        look[name] = (LINE_COLOURS[place] if place < len(LINE_COLOURS) else GREY, marker(place))
    return look


def _budget_title(standing: Standing, multiple: float) -> str:
    budgets = [row.budget for row in standing.at(multiple) if row.budget is not None]
    each = f": {standing.currency.amount(budgets[0])} per user" if budgets else ""
    return f"Budget × {multiple:g}{each}"


def _margin_plot(standing: Standing) -> Plot:
    money, look = standing.currency, _look(standing)
    panels = []
    for multiple in standing.multiples:
        found = {row.name: row for row in standing.at(multiple)}
        marks = []
        for name in standing.order:
            row = found.get(name)
            values = (row.margin, row.low, row.high) if row else (None, None, None)
            colour, shape = look[name]
            words = money.amount(values[0], 3, sign=True) if row else "not run"
            marks.append(Mark(name, *values, words=words, colour=colour, marker=shape))
        axis = f"incremental margin per user and campaign ({money.unit})"
        title = _budget_title(standing, multiple)
        panels.append(DotPanel(title, axis, marks, reference=0.0, tick=_tick(money)))
    finding = headline(standing)
    campaigns = number_in(standing.focus.row, "campaigns")
    note = "Bar: confidence interval. Dashed line: sending nothing."
    if campaigns is not None:
        note += f" Mean of {several(int(campaigns), 'simulated campaign')}."
    return Plot(finding, dot_panels("policies", finding, panels, columns=_across(panels)), note)


def _across(panels: Sequence[object]) -> int:
    return 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3


def _tick(money: Currency) -> Any:
    return lambda value: f"{'−' if value < 0 else ''}{money.symbol}{abs(value):.6g}"


def _difference_plot(standing: Standing) -> Plot:
    money = standing.currency
    panels = []
    for multiple in standing.multiples:
        here = [d for d in standing.differences if d.multiple == multiple]
        marks = [
            Mark(
                f"{d.name} − {d.baseline}",
                d.value,
                d.low,
                d.high,
                words=money.amount(d.value, 3, sign=True),
                filled=d.includes_zero is False,
                colour=BLUE if d.name == standing.focus.name else INK,
            )
            for d in here
        ]
        if marks:
            axis = f"difference per user and campaign ({money.unit})"
            title = _budget_title(standing, multiple)
            panels.append(DotPanel(title, axis, marks, reference=0.0, tick=_tick(money)))
    here = [d for d in standing.differences if d.multiple == standing.multiple] or list(standing.differences)
    mine = [d for d in here if d.name == standing.focus.name] or here
    ahead = sum(d.includes_zero is False and (d.value or 0) > 0 for d in mine)
    behind = sum(d.includes_zero is False and (d.value or 0) < 0 for d in mine)
    finding = f"{mine[0].name} is clearly ahead of {ahead} of {several(len(mine), 'baseline')}"
    finding += f" and clearly behind {behind}" if behind else ""
    note = "Paired, campaign by campaign. Filled: the interval excludes 0. Hollow: it includes 0."
    return Plot(finding, dot_panels("comparison", finding, panels, columns=_across(panels)), note)


def _frontier_plot(standing: Standing) -> Plot:
    money, look = standing.currency, _look(standing)
    lines = []
    for name in standing.order:
        found = sorted((r for r in standing.rows if r.name == name), key=lambda r: r.multiple)
        if all(row.spend in (0, None) for row in found):
            continue  # sending nothing has no frontier
        colour, shape = look[name]
        columns = [[getattr(row, key) for row in found] for key in ("spend", "margin", "low", "high")]
        lines.append(Line(name, columns[0], columns[1], colour, shape, low=columns[2], high=columns[3]))
    leaders = [
        max(
            (row for row in standing.at(m) if row.margin is not None),
            key=lambda r: r.margin or 0,
            default=None,
        )
        for m in standing.multiples
    ]
    wins = sum(row is not None and row.name == standing.focus.name for row in leaders)
    finding = f"{standing.focus.name} earns most at {wins} of {len(leaders)} budgets"
    panel = LinePanel(
        "",
        f"spend per user and campaign ({money.unit})",
        f"incremental margin per user ({money.unit})",
        lines,
        x_tick=_tick(money),
        y_tick=_tick(money),
    )
    svg = line_panels("frontier", finding, [panel], height=4.2)
    return Plot(finding, svg, "One mark a budget, at the spend realised; upright bars are intervals.")


def _frontier_words(standing: Standing) -> Table:
    money, focus = standing.currency, standing.focus.name
    found = sorted((row for row in standing.rows if row.name == focus), key=lambda row: row.multiple)
    rows, before = [], None
    for row in found:
        extra = ABSENT
        if before and None not in (row.margin, row.spend, before.margin, before.spend):
            more = (row.spend or 0) - (before.spend or 0)
            extra = money.amount(((row.margin or 0) - (before.margin or 0)) / more, 2) if more > 0 else ABSENT
        ratio = row.margin / row.spend if row.margin is not None and row.spend else None
        rows.append(
            [
                f"× {row.multiple:g}",
                money.amount(row.spend, 3),
                money.amount(row.margin, 3, sign=True),
                money.amount(ratio, 2),
                extra,
            ]
        )
        before = row
    columns = [
        Column(title)
        for title in ("budget", "spend", "margin", "margin per unit spent", "per further unit spent")
    ]
    caption = f"What more budget buys: {focus}, per user and campaign"
    return Table("frontier", caption, columns, rows)


def _policy_table(standing: Standing) -> Table:
    money = standing.currency
    titles = (
        *("budget", "λ", "budget per user", "spend per user", "of budget", "margin per user", "interval"),
        *("less spend", "margin, all users", "spend, all users", "campaigns", "users", "refused"),
        "peak committed",
    )
    rows, strong = [], set()
    for multiple in standing.multiples:
        here = sorted(standing.at(multiple), key=lambda row: standing.order.index(row.name))
        for item in here:
            row = item.row
            net = None if item.margin is None or item.spend is None else item.margin - item.spend
            if item.name == standing.focus.name:
                strong.add(len(rows))
            rows.append(
                [
                    item.name,
                    f"× {multiple:g}",
                    short(number_in(row, "lambda")),
                    money.amount(item.budget, 3),
                    money.amount(item.spend, 3),
                    percent(number_in(row, "utilisation")),
                    money.amount(item.margin, 3, sign=True),
                    money.interval(item.low, item.high),
                    money.amount(net, 3, sign=True),
                    money.amount(number_in(row, "incremental_margin"), 2),
                    money.amount(number_in(row, "spend"), 2),
                    plain(number_in(row, "campaigns")),
                    plain(number_in(row, "n_users")),
                    plain(number_in(row, "refused"), _digits(number_in(row, "refused"))),
                    percent(number_in(row, "peak_commitment_share")),
                ]
            )
    caption = (
        f"Policies, per campaign on average; money in {money.unit}. Refused: offers that the budget could not "
        "cover. Peak committed: largest share of the budget spent or reserved at any time."
    )
    columns = [Column("policy", words=True), *(Column(title) for title in titles)]
    return Table("policies", caption, columns, rows, strong=frozenset(strong))


def _digits(value: float | None) -> int:
    return 0 if value is None or value == round(value) else 1


def _difference_table(standing: Standing) -> Table:
    money = standing.currency
    reading = {None: ABSENT, True: "includes 0: not told apart", False: "excludes 0"}
    rows = [
        [
            d.name,
            d.baseline,
            f"× {d.multiple:g}",
            money.amount(d.value, 3, sign=True),
            money.interval(d.low, d.high),
            money.amount(number_in(d.row, "difference"), 2, sign=True),
            reading[d.includes_zero],
        ]
        for d in standing.differences
    ]
    columns = [
        Column("policy", words=True),
        Column("against", words=True),
        *(Column(title) for title in ("budget", "per user", "interval", "all users")),
        Column("the interval", words=True),
    ]
    return Table("comparison", "Paired differences in incremental margin, per campaign", columns, rows)


# What they spend ----------------------------------------------------------------------------------


def pacing_section(results: Results) -> Section | None:
    """Spend against plan, and the price of budget, week by week."""
    found = [row for row in rows_in(results, "pacing") if _numbers(row, "spend")]
    if not found:
        return None
    standing = standing_of(results)
    money = Currency.of_results(results)
    multiple = min({_multiple(row) for row in found}, key=lambda m: (abs(m - 1), m))
    order = standing.order if standing else []
    names = [*order, *(readable(text_in(row, "policy")) for row in found)]
    found.sort(key=lambda row: (_multiple(row), names.index(readable(text_in(row, "policy")))))
    users = (
        {(row.name, row.multiple): number_in(row.row, "n_users") for row in standing.rows} if standing else {}
    )
    here = [row for row in found if _multiple(row) == multiple]
    focus = standing.focus.name if standing else readable(text_in(here[0], "policy"))
    here.sort(key=lambda row: readable(text_in(row, "policy")) != focus)
    look = _look(standing) if standing else {}
    drawn = [row for row in here if any(_numbers(row, "spend"))][:MOST_CURVES] or here[:1]
    divisors = [users.get((readable(text_in(row, "policy")), multiple)) for row in drawn]
    each = all(divisors)
    unit = f"{money.unit}{' per user' if each else ', all users'}"
    spend, prices = [], []
    plans = {tuple(_numbers(row, "planned")) for row in drawn} - {()}
    for place, (row, n) in enumerate(zip(drawn, divisors, strict=True)):
        name = readable(text_in(row, "policy"))
        colour, shape = look.get(name, (LINE_COLOURS[place % len(LINE_COLOURS)], marker(place)))
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
        LinePanel("Spend in each week", "week of the campaign", unit, spend, whole, _tick(money), True, True)
    ]
    if prices:
        axis = "margin per unit of budget"
        panels.append(
            LinePanel("Price of budget λ", "week of the campaign", axis, prices, whole, short, True)
        )
    note = f"Budget × {multiple:g}; mean over campaigns."
    if len(here) > len(drawn):
        note += f" {several(len(here) - len(drawn), 'further policy').replace('policys', 'policies')} in the table."
    plot = Plot(finding, line_panels("pacing", finding, panels, height=2.9), note)
    lead = (
        "A price λ is put on each unit of budget: an offer goes out only where it earns more than λ times its "
        "cost. Each week λ is solved again so that the budget lasts to the end of the campaign."
    )
    return Section(
        "pacing",
        "Spend against plan",
        lead,
        [[plot, _pacing_totals(found, money)], [_pacing_table(found, money)]],
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
                f"× {_multiple(row):g}",
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
                    f"× {_multiple(row):g}",
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


# What they send -----------------------------------------------------------------------------------


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
        group = shares.setdefault((_multiple(row), readable(text_in(row, "policy"))), {})
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
    return Section("offers", "What was sent", "", [[plot], [table]])


def _offers_finding(name: str, shares: Mapping[str, float], nothing: set[str]) -> str:
    sent = {offer: share for offer, share in shares.items() if offer not in nothing and share > 0}
    if not sent:
        return f"{name} sends nothing"
    first = max(sent, key=lambda offer: sent[offer])
    return (
        f"{name} sends something in {percent(sum(sent.values()), 0)} of user-weeks, most often “{first}” "
        f"({percent(sent[first], 0)})"
    )


# What the log says --------------------------------------------------------------------------------

VERDICT_LOOK = {
    "trust": ("o", True, GREEN),
    "caution": ("^", False, INK),
    "do not use": ("X", True, VERMILION),
}
OUTCOMES = {"reward": "margin", "cost": "cost"}


def ope_section(results: Results) -> Section | None:
    """Values estimated from a log, beside the simulated truth where it is known."""
    found = rows_in(results, "ope")
    if not found:
        return None
    money = Currency.of_results(results)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((readable(text_in(row, "policy")), text_in(row, "outcome")), []).append(row)
    groups = dict(
        sorted(groups.items(), key=lambda item: list(dict.fromkeys(p for p, _ in groups)).index(item[0][0]))
    )
    panels = []
    for (policy, outcome), rows in groups.items():
        truth = next((t for t in (number_in(row, "truth") for row in rows) if t is not None), None)
        marks = [_ope_mark(row, money) for row in rows]
        panels.append(
            DotPanel(
                f"{policy}: {OUTCOMES.get(outcome, outcome)}",
                f"per user and campaign ({money.unit})",
                marks,
                reference=truth,
                reference_label="" if truth is None else f"truth {money.amount(truth, 3)}",
                limits=_limits(rows, truth),
                tick=_tick(money),
            )
        )
    finding = ope_finding(found)
    note = (
        "Dot: trust. Hollow triangle: caution. Cross: do not use. Dashed: the simulated truth, which a real log "
        "does not have. Arrows: the interval goes on."
    )
    columns = 2 if len(panels) > 1 else 1
    plot = Plot(finding, dot_panels("ope", finding, panels, columns=columns), note)
    warnings = [FIXED_PRICE_NOTE]
    if any(text_in(row, "estimator") == "DM" for row in found):
        warnings.append(
            "DM rests on a fitted value model alone. Its interval leaves out the model's error, so it is too "
            "narrow; a short bar is not a good one."
        )
    logged = results.get("logged") or {}
    if isinstance(logged, Mapping) and logged:
        warnings.append(
            f"The log: {plain(number_in(logged, 'steps'))} decisions for {plain(number_in(logged, 'users'))} "
            f"users, taken by {readable(text_in(logged, 'behaviour'))}."
        )
    lead = "What could be said about each policy from logged decisions alone, before any test. " + " ".join(
        warnings
    )
    return Section("ope", "Offline evaluation", lead, [[plot], [_ope_table(found, money)]])


def _ope_mark(row: Row, money: Currency) -> Mark:
    verdict = text_in(row, "verdict")
    shape, filled, colour = VERDICT_LOOK.get(verdict, ("D", False, GREY))
    value, low, high = (number_in(row, key) for key in ("value", "ci_low", "ci_high"))
    words = f"{money.amount(value, 3)}  {verdict}"
    return Mark(text_in(row, "estimator"), value, low, high, words, colour, shape, filled)


def _limits(rows: Sequence[Row], truth: float | None) -> tuple[float, float] | None:
    """Room for what may be used; what may not is often many times wider, and would flatten the rest."""
    usable = [row for row in rows if row.get("verdict") != "do not use"] or list(rows)
    ends = [number_in(row, key) for row in usable for key in ("value", "ci_low", "ci_high")]
    known = [v for v in (*ends, truth) if v is not None]
    if not known:
        return None
    room = 0.12 * (max(known) - min(known)) or 0.1 * abs(known[0]) or 1.0
    return min(known) - room, max(known) + room


def ope_finding(found: Sequence[Row]) -> str:
    """Say how often the diagnostics allow a number, and whether those allowed were right."""
    counts = {verdict: [r for r in found if text_in(r, "verdict") == verdict] for verdict in VERDICT_LOOK}
    trusted = counts["trust"]
    checked = [
        row for row in trusted if all(number_in(row, k) is not None for k in ("truth", "ci_low", "ci_high"))
    ]
    inside = sum(
        (number_in(r, "ci_low") or 0) <= (number_in(r, "truth") or 0) <= (number_in(r, "ci_high") or 0)
        for r in checked
    )
    if not trusted:
        first = f"None of {several(len(found), 'estimate')} is marked trust"
    elif checked:
        first = f"{inside} of {several(len(checked), 'trusted interval')} contain the truth"
    else:
        first = (
            f"{len(trusted)} of {several(len(found), 'estimate')} are marked trust; the truth is not known"
        )
    rest = [
        f"{len(counts[verdict])} of {len(found)} {words}"
        for verdict, words in (("caution", "call for caution"), ("do not use", "must not be used"))
        if counts[verdict]
    ]
    return f"{first}; {listed(rest)}" if rest else first


def _ope_table(found: Sequence[Row], money: Currency) -> Table:
    rows = [
        [
            readable(text_in(row, "policy")),
            OUTCOMES.get(text_in(row, "outcome"), text_in(row, "outcome")),
            text_in(row, "estimator"),
            money.amount(number_in(row, "value"), 3),
            money.interval(number_in(row, "ci_low"), number_in(row, "ci_high")),
            money.amount(number_in(row, "truth"), 3),
            plain(number_in(row, "ess"), 1),
            text_in(row, "verdict"),
            text_in(row, "reason"),
        ]
        for row in found
    ]
    columns = [
        *(Column(title, words=True) for title in ("policy", "outcome", "estimator")),
        *(Column(title) for title in ("value", "interval", "truth", "ESS")),
        *(Column(title, words=True) for title in ("verdict", "why")),
    ]
    caption = f"Estimates per user and campaign, in {money.unit}. ESS: effective sample size, in episodes."
    return Table("ope", caption, columns, rows)
