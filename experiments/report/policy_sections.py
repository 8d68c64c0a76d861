"""What the policies earn, at each budget and against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.report.canvas import BLUE, GREY, INK
from experiments.report.gain_blocks import gain_blocks
from experiments.report.page import Block, Column, Plot, Section, Table
from experiments.report.plots import (
    DotPanel,
    Mark,
    dot_panels,
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
    listed,
    number_in,
    percent,
    plain,
    several,
    short,
)

EQUAL_SPEND_WORDS = f"to within {percent(EQUAL_SPEND[1] - 1, 0)}"
READING = {None: ABSENT, True: "includes 0: not told apart", False: "excludes 0"}
MOST_ROOM = 5.0
"""How much further than the nearest contenders an axis of differences goes."""
MOST_ROWS, MOST_BESIDE = 16, 8
"""Rows of a table that is not divided, and of a plot that leaves room for another beside it."""


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
    across = len(standing.multiples) == 1 and len(standing.rows) <= MOST_BESIDE
    blocks: list[Block] = [*([table] for table in _policy_tables(standing))]
    gains = gain_blocks(standing, _across(standing.multiples))
    blocks += [plots, *gains] if across else [plots[:1], *gains, *([plot] for plot in plots[1:])]
    blocks += [[_totals_table(standing)], [_ledger_table(standing)]]
    if standing.differences:
        blocks.append([_difference_table(standing)])
    lead = (
        "Incremental margin is what a campaign earns above sending nothing, before the subsidy is paid; "
        "“less spend”, among the totals, takes the spend off. Policies face the same users, weeks and luck. "
        "These are simulated campaigns, not a field test."
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
    # The margins are differences to sending nothing already, and would flatten all others here.
    shown = [d for d in standing.differences if d.baseline.lower() != NO_OFFER] or list(standing.differences)
    mine = all(d.name == standing.focus.name for d in shown)
    panels = []
    for multiple in standing.multiples:
        here = [d for d in shown if d.multiple == multiple]
        marks = [
            Mark(
                d.baseline if mine else f"{d.name} − {d.baseline}",
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
            lead = f"lead of {standing.focus.name}" if mine else "difference"
            axis = f"{lead} per user and campaign ({money.unit})"
            title = _budget_title(standing, multiple)
            limits = _room(here, standing)
            panels.append(DotPanel(title, axis, marks, reference=0.0, limits=limits, tick=money.amount))
    here = [d for d in shown if d.multiple == standing.multiple] or shown
    counted = [d for d in here if d.name == standing.focus.name] or here
    finding = _difference_finding(counted) + _at_budget(standing)
    note = "Paired, campaign by campaign. Filled: the interval excludes 0. Hollow: it includes 0."
    if len(here) > 1:
        note += " Each interval is for one difference alone: about one in twenty misses the truth by chance."
    if any(panel.limits for panel in panels):
        note += " Arrows: further out than the axis goes, so that near ones can be told apart."
    if any(d.at_equal_spend is False for d in standing.differences):
        note += f" Grey with †: not at equal spend {EQUAL_SPEND_WORDS}; the table has the shares."
    return Plot(finding, dot_panels("comparison", finding, panels, columns=_across(panels)), note)


def _room(differences: Sequence[Difference], standing: Standing) -> tuple[float, float] | None:
    """Limits that leave room for the nearest contenders; None where all others are as near."""

    def ends(found: Sequence[Difference]) -> list[float]:
        return [end for d in found for end in (d.value, d.low, d.high) if end is not None]

    near = [d for d in differences if d.baseline in standing.featured]
    widest = MOST_ROOM * max((abs(end) for end in ends(near)), default=0.0)
    known = ends(differences)
    if not widest or max(abs(end) for end in known) <= widest:
        return None
    room = 0.05 * widest
    return max(min([*known, 0.0]) - room, -widest), min(max([*known, 0.0]) + room, widest)


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


def _policy_tables(standing: Standing) -> list[Table]:
    """What is compared, in one table, or in one for each budget where there are many rows."""
    if len(standing.rows) <= MOST_ROWS or len(standing.multiples) == 1:
        return [_policy_table(standing, standing.multiples, "policies", folded=False)]
    tables = [_policy_table(standing, [standing.multiple], "policies", folded=False)]
    others = [multiple for multiple in standing.multiples if multiple != standing.multiple]
    return tables + [_policy_table(standing, [m], f"policies-{m:g}", folded=True) for m in others]


def _policy_table(standing: Standing, multiples: Sequence[float], key: str, *, folded: bool) -> Table:
    """The policies of some budgets, and the paired difference of each to the focus."""
    money, focus = standing.currency, standing.focus.name
    paced = any(item.pacing != ABSENT for item in standing.rows)
    paired = any(d.name == focus for d in standing.differences)
    relative = any(d.relative is not None for d in standing.differences)

    def cells(item: PolicyRow) -> list[str]:
        found = [
            *([item.pacing] if paced else []),
            money.amount(item.margin, 3, sign=True),
            money.interval(item.low, item.high),
            percent(item.utilisation),
        ]
        if paired:
            lead = standing.against(item.name, item.multiple)
            found += [
                money.amount(lead.value if lead else None, 3, sign=True),
                money.interval(lead.low if lead else None, lead.high if lead else None),
                *([percent(lead.relative if lead else None, sign=True)] if relative else []),
                READING[lead.includes_zero if lead else None],
                ("†" if lead.at_equal_spend is False else "") if lead else "",
            ]
        return found

    rows, strong = _rows(standing, cells, multiples)
    columns = [
        *(Column("policy", words=True), Column("budget")),
        *([Column("pacing", words=True)] if paced else []),
        *(Column(title) for title in ("margin", "95% interval", "of it spent")),
    ]
    if paired:
        columns += [
            *(Column(title) for title in (f"{focus}'s lead", "95% interval")),
            *([Column("relative")] if relative else []),
            *(Column("the interval", words=True), Column("", words=True)),
        ]
    budgets = listed([_budget_title(standing, multiple) for multiple in multiples])
    caption = f"{budgets}. Incremental margin per user and campaign, {money.unit}"
    if paired:
        caption += f"; {focus}'s lead: paired, {focus} less the policy of the row"
        if any(row[-1] for row in rows):
            caption += f". †: not at equal spend {EQUAL_SPEND_WORDS}"
    return Table(key, caption, columns, rows, folded=folded, strong=strong)


def _totals_table(standing: Standing) -> Table:
    money = standing.currency
    worlds = _has_worlds(standing)
    rows, strong = _rows(
        standing,
        lambda item: [
            *([money.interval(item.world_low, item.world_high)] if worlds else []),
            money.amount(item.spend, 3),
            money.amount(item.net, 3, sign=True),
            money.amount(item.budget, 3),
            money.amount(number_in(item.row, "incremental_margin")),
            money.amount(number_in(item.row, "spend")),
            money.amount(number_in(item.row, "budget")),
        ],
    )
    disagree = ("simulators disagree",) if worlds else ()
    titles = ("budget", *disagree, "spend", "less spend", "budget per user")
    totals = ("margin, all users", "spend, all users", "budget, all users")
    columns = [Column("policy", words=True), *(Column(title) for title in (*titles, *totals))]
    caption = f"Spend and totals: per user and campaign, and for all users together; {money.unit}"
    if worlds:
        caption += ". Simulators disagree: lowest to highest mean margin over the judge's simulators"
    return Table("totals", caption, columns, rows, folded=True, strong=strong)


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
    return Table("ledger", caption, columns, rows, folded=True, strong=strong)


def _rows(
    standing: Standing, cells: Callable[[PolicyRow], list[str]], multiples: Sequence[float] | None = None
) -> tuple[list[list[str]], frozenset[int]]:
    """Return a table's rows, budget by budget, and which of them are the focus."""
    order = standing.order
    items = [
        item
        for multiple in multiples or standing.multiples
        for item in sorted(standing.at(multiple), key=lambda row: order.index(row.name))
    ]
    strong = frozenset(place for place, item in enumerate(items) if item.name == standing.focus.name)
    return [[item.name, f"× {item.multiple:g}", *cells(item)] for item in items], strong


def _digits(value: float | None) -> int:
    return 0 if value is None or value == round(value) else 1


def _difference_table(standing: Standing) -> Table:
    money = standing.currency
    known = any(d.spend_share is not None for d in standing.differences)
    rows = [
        [
            d.name,
            d.baseline,
            f"× {d.multiple:g}",
            money.amount(d.value, 3, sign=True),
            money.interval(d.low, d.high),
            money.amount(number_in(d.row, "difference"), 2, sign=True),
            READING[d.includes_zero],
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
    return Table("comparison", caption, columns, rows, folded=True)
