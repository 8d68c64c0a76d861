"""What the policies earn, at each budget and against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.report.canvas import BLUE, GREY, INK
from experiments.report.page import Block, Column, Plot, Section, Table
from experiments.report.plots import (
    DotPanel,
    Line,
    LinePanel,
    Mark,
    dot_panels,
    line_panels,
)
from experiments.report.standing import (
    EQUAL_SPEND,
    NO_OFFER,
    Difference,
    PolicyRow,
    Results,
    Standing,
    standing_of,
)
from experiments.report.wording import (
    ABSENT,
    number_in,
    percent,
    plain,
    several,
    short,
)

EQUAL_SPEND_WORDS = f"to within {percent(EQUAL_SPEND[1] - 1, 0)}"


def headline(standing: Standing) -> str:
    """Say what the policy earns, and whether it beats the best other one."""
    focus, rival, money = standing.focus, standing.rival, standing.currency
    if focus.margin is None:
        return f"What {focus.name} earns could not be computed"
    first = f"{focus.name} earns {money.headline(focus.margin, sign=True)} per user{_at_budget(standing)}"
    if rival is None or rival.margin is None:
        return first
    paired = standing.against_rival(standing.multiple)
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


def _at_budget(standing: Standing) -> str:
    """Name the budget that a title speaks of, where there are several."""
    return f" at budget × {standing.multiple:g}" if len(standing.multiples) > 1 else ""


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
        blocks.append([_frontier_plot(standing), _frontier_table(standing)])
    blocks += [[_policy_table(standing)], [_ledger_table(standing)]]
    if standing.differences:
        blocks.append([_difference_table(standing)])
    lead = (
        "Incremental margin is what a campaign earns above sending nothing, before the subsidy is paid; "
        "“less spend” takes the spend off. Policies face the same users, weeks and luck. These are simulated "
        "campaigns, not a field test."
    )
    return Section("policies", "What the policies earn", lead, blocks)


def _budget_title(standing: Standing, multiple: float) -> str:
    budgets = [row.budget for row in standing.at(multiple) if row.budget is not None]
    each = f": {standing.currency.headline(budgets[0])} per user" if budgets else ""
    return f"Budget × {multiple:g}{each}"


def _margin_plot(standing: Standing) -> Plot:
    money, look = standing.currency, standing.look
    panels = []
    for multiple in standing.multiples:
        found = {row.name: row for row in standing.at(multiple)}
        marks = []
        for name in standing.order:
            row = found.get(name)
            values = (row.margin, row.low, row.high) if row else (None, None, None)
            colour, shape = look[name]
            words = money.amount(values[0], 3, sign=True) if row else "not run"
            outer = None
            if row and row.world_low is not None and row.world_high is not None:
                outer = (row.world_low, row.world_high)
            marks.append(Mark(name, *values, words=words, colour=colour, marker=shape, outer=outer))
        axis = f"incremental margin per user and campaign ({money.unit})"
        title = _budget_title(standing, multiple)
        panels.append(DotPanel(title, axis, marks, reference=0.0, tick=money.amount))
    finding = headline(standing)
    campaigns = number_in(standing.focus.row, "campaigns")
    note = "Bar: confidence interval. Dashed line: sending nothing."
    if campaigns is not None:
        note += f" Mean of {several(int(campaigns), 'simulated campaign')}."
    if _has_worlds(standing):
        note += " Thin grey line: from the lowest to the highest mean over the judge's simulators"
        focus = standing.focus
        if focus.world_low is not None and focus.world_high is not None:
            note += (
                f"; for {focus.name} they disagree: {money.interval(focus.world_low, focus.world_high, 2)}"
            )
        note += "."
    return Plot(finding, dot_panels("policies", finding, panels, columns=_across(panels)), note)


def _has_worlds(standing: Standing) -> bool:
    return any(row.world_low is not None and row.world_high is not None for row in standing.rows)


def _across(panels: Sequence[object]) -> int:
    return 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3


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
                words=money.amount(d.value, 3, sign=True) + (" †" if d.at_equal_spend is False else ""),
                filled=d.includes_zero is False,
                colour=_difference_colour(d, standing),
            )
            for d in here
        ]
        if marks:
            axis = f"difference per user and campaign ({money.unit})"
            title = _budget_title(standing, multiple)
            panels.append(DotPanel(title, axis, marks, reference=0.0, tick=money.amount))
    here = [d for d in standing.differences if d.multiple == standing.multiple] or list(standing.differences)
    mine = [d for d in here if d.name == standing.focus.name] or here
    finding = _difference_finding(mine) + _at_budget(standing)
    note = "Paired, campaign by campaign. Filled: the interval excludes 0. Hollow: it includes 0."
    if any(d.at_equal_spend is False for d in standing.differences):
        note += f" Grey with †: not at equal spend {EQUAL_SPEND_WORDS}; the table has the shares."
    return Plot(finding, dot_panels("comparison", finding, panels, columns=_across(panels)), note)


def _difference_colour(difference: Difference, standing: Standing) -> str:
    if difference.at_equal_spend is False:
        return GREY
    return BLUE if difference.name == standing.focus.name else INK


def _difference_finding(differences: Sequence[Difference]) -> str:
    """Count the baselines that are clearly beaten, among those that spend alike."""
    name = differences[0].name
    counted = [d for d in differences if d.at_equal_spend is not False]
    unequal = len(differences) - len(counted)
    if not counted:
        return f"{name} has no baseline at equal spend: none of {unequal} can be counted"
    ahead = sum(d.includes_zero is False and (d.value or 0) > 0 for d in counted)
    behind = sum(d.includes_zero is False and (d.value or 0) < 0 for d in counted)
    comparable = "comparable " if unequal else ""
    finding = f"{name} is clearly ahead of {ahead} of {several(len(counted), f'{comparable}baseline')}"
    finding += f" and clearly behind {behind}" if behind else ""
    return f"{finding} ({unequal} not at equal spend, not counted)" if unequal else finding


def _spend_words(difference: Difference) -> str:
    """Say what the baseline spends beside the policy, and whether that is alike."""
    share = difference.spend_share
    if share is None:
        return ABSENT
    if difference.at_equal_spend is not False:
        return "sends nothing: the zero" if difference.baseline.lower() == NO_OFFER else percent(share)
    digits = 1 if EQUAL_SPEND[0] <= round(share, 2) <= EQUAL_SPEND[1] else 0
    return f"spends {percent(share, digits)} of {difference.name}'s: not at equal spend"


def _frontier_plot(standing: Standing) -> Plot:
    money, look = standing.currency, standing.look
    lines = []
    for name in standing.order:
        found = sorted((r for r in standing.rows if r.name == name), key=lambda r: r.multiple)
        if all(row.spend in (0, None) for row in found):
            continue  # sending nothing has no frontier
        colour, shape = look[name]
        columns = [[getattr(row, key) for row in found] for key in ("spend", "margin", "low", "high")]
        lines.append(Line(name, columns[0], columns[1], colour, shape, low=columns[2], high=columns[3]))
    finding = _frontier_finding(standing)
    panel = LinePanel(
        "",
        f"spend per user and campaign ({money.unit})",
        f"incremental margin per user ({money.unit})",
        lines,
        x_tick=money.amount,
        y_tick=money.amount,
    )
    svg = line_panels("frontier", finding, [panel], height=4.2)
    return Plot(finding, svg, "One mark a budget, at the spend realised; upright bars are intervals.")


def _frontier_finding(standing: Standing) -> str:
    wins = clear = 0
    for multiple in standing.multiples:
        mine = next((row.margin for row in standing.at(multiple) if row.name == standing.focus.name), None)
        rival, paired = standing.rival_at(multiple), standing.against_rival(multiple)
        if mine is not None and (rival is None or rival.margin is None or mine > rival.margin):
            wins += 1
            clear += paired is not None and paired.includes_zero is False
    first = f"{standing.focus.name} earns most at {wins} of {several(len(standing.multiples), 'budget')}"
    return f"{first}, clearly (interval excludes 0) at {clear} of them" if wins else first


def _frontier_table(standing: Standing) -> Table:
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
    worlds = _has_worlds(standing)
    rows, strong = _rows(
        standing,
        lambda item: [
            money.amount(item.margin, 3, sign=True),
            money.interval(item.low, item.high),
            *([money.interval(item.world_low, item.world_high)] if worlds else []),
            money.amount(item.spend, 3),
            money.amount(item.net, 3, sign=True),
            money.amount(item.budget, 3),
            percent(number_in(item.row, "utilisation")),
            money.amount(number_in(item.row, "incremental_margin")),
            money.amount(number_in(item.row, "spend")),
            money.amount(number_in(item.row, "budget")),
        ],
    )
    disagree = ("simulators disagree",) if worlds else ()
    spends = ("spend", "less spend", "budget per user", "of it spent")
    titles = ("budget", "margin", "interval", *disagree, *spends)
    totals = ("margin, all users", "spend, all users", "budget, all users")
    columns = [Column("policy", words=True), *(Column(title) for title in (*titles, *totals))]
    caption = f"Per user and campaign on average, and for all users together; money in {money.unit}"
    if worlds:
        caption += ". Simulators disagree: lowest to highest mean margin over the judge's simulators"
    return Table("policies", caption, columns, rows, strong=strong)


def _ledger_table(standing: Standing) -> Table:
    rows, strong = _rows(
        standing,
        lambda item: [
            short(number_in(item.row, "lambda")),
            plain(number_in(item.row, "refused"), _digits(number_in(item.row, "refused"))),
            percent(number_in(item.row, "peak_commitment_share")),
            plain(number_in(item.row, "campaigns")),
            plain(number_in(item.row, "n_users")),
        ],
    )
    titles = ("budget", "λ", "offers refused", "peak committed", "campaigns", "users")
    columns = [Column("policy", words=True), *(Column(title) for title in titles)]
    caption = (
        "The ledger. λ: price of budget. Refused: offers that the budget could not cover. "
        "Peak committed: largest share of the budget spent or reserved at any time."
    )
    return Table("ledger", caption, columns, rows, folded=len(rows) > 12, strong=strong)


def _rows(
    standing: Standing, cells: Callable[[PolicyRow], list[str]]
) -> tuple[list[list[str]], frozenset[int]]:
    """Return a table's rows, budget by budget, and which of them are the focus."""
    order = standing.order
    items = [
        item
        for multiple in standing.multiples
        for item in sorted(standing.at(multiple), key=lambda row: order.index(row.name))
    ]
    strong = frozenset(place for place, item in enumerate(items) if item.name == standing.focus.name)
    return [[item.name, f"× {item.multiple:g}", *cells(item)] for item in items], strong


def _digits(value: float | None) -> int:
    return 0 if value is None or value == round(value) else 1


def _difference_table(standing: Standing) -> Table:
    money = standing.currency
    reading = {None: ABSENT, True: "includes 0: not told apart", False: "excludes 0"}
    known = any(d.spend_share is not None for d in standing.differences)
    rows = [
        [
            d.name,
            d.baseline,
            f"× {d.multiple:g}",
            money.amount(d.value, 3, sign=True),
            money.interval(d.low, d.high),
            money.amount(number_in(d.row, "difference"), 2, sign=True),
            reading[d.includes_zero],
            *([_spend_words(d)] if known else []),
        ]
        for d in standing.differences
    ]
    columns = [
        Column("policy", words=True),
        Column("against", words=True),
        *(Column(title) for title in ("budget", "per user", "interval", "all users")),
        Column("the interval", words=True),
        *([Column("spend of the baseline", words=True)] if known else []),
    ]
    caption = "Paired differences in incremental margin, per campaign"
    if known:
        caption += f". Comparable where the spend is equal {EQUAL_SPEND_WORDS}"
    return Table("comparison", caption, columns, rows, folded=len(rows) > 12)
