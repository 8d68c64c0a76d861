"""Who gets what: by what users are like to the shop, and by who they are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from experiments.report.canvas import LINE_COLOURS, MARKERS
from experiments.report.page import Column, Plot, Section, Table
from experiments.report.plots import DotSeries, GroupPanel, group_dots
from experiments.report.standing import Results, Standing, multiple_of, standing_of
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
    text_in,
)

FOUR_FIFTHS = 0.8
FEW_USERS = 50
"""Fewer in a group say little about it; its mark is hollow."""
_UNKNOWN = {"unknown", "not known", "none", "missing", ABSENT}


def who_section(results: Results) -> Section | None:
    """Offers, cost and margin per user, by fifths of what the shop knows of its users."""
    found = _named(rows_in(results, "who"), ("by", "group"))
    found = [row for row in found if number_in(row, "offers_per_user") is not None]
    if not found:
        return None
    standing, money = standing_of(results), Currency.of_results(results)
    multiple = _main(found, standing)
    policies = _featured(found, standing)
    here = [row for row in found if multiple_of(row) == multiple and _policy(row) in policies]
    kinds = list(dict.fromkeys(text_in(row, "by") for row in here))
    look = _look(policies, standing)
    panels = []
    for kind in kinds:
        groups = list(dict.fromkeys(text_in(row, "group") for row in here if text_in(row, "by") == kind))
        for key, axis, tick in (
            ("offers_per_user", "offers per user and campaign", plain),
            ("margin_per_user", f"incremental margin per user ({money.unit})", money.amount),
        ):
            values = {policy: _values(here, key, policy, ("by", kind), groups) for policy in policies}
            series = [
                DotSeries(policy, values[policy], *look[policy])
                for policy in policies
                if any(value is not None for value in values[policy])
            ]
            panels.append(GroupPanel(readable(kind), axis, groups, series, tick=tick))
    finding = _who_finding(here, kinds, policies)
    plot = Plot(
        finding,
        group_dots("who", finding, panels, columns=2),
        f"Budget × {multiple:g}; means, without intervals. Left: offers. Right: the margin that they bring.",
    )
    return Section(
        "who",
        "Who gets what",
        "A policy that sends most to those who would have come anyway gives money away. Users are divided by "
        "what the shop knows of them before the campaign.",
        [[plot], [_who_table(found, policies, multiple, money)]],
    )


def _named(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Rows that say which group of which division they are about."""
    return [row for row in rows if all(text_in(row, key) != ABSENT for key in keys)]


def _policy(row: Row) -> str:
    return readable(text_in(row, "policy"))


def _main(rows: Sequence[Row], standing: Standing | None) -> float:
    """The budget that titles speak of, or the nearest one that the rows have."""
    wanted = standing.multiple if standing else 1.0
    return min({multiple_of(row) for row in rows}, key=lambda m: (abs(m - wanted), m))


def _featured(rows: Sequence[Row], standing: Standing | None) -> list[str]:
    """The policies with room in a plot, the one that titles speak of first."""
    names = list(dict.fromkeys(_policy(row) for row in rows))
    chosen = [name for name in (standing.featured[:2] if standing else []) if name in names]
    return chosen or names[:2]


def _look(policies: Sequence[str], standing: Standing | None) -> dict[str, tuple[str, str]]:
    known = standing.look if standing else {}
    return {
        name: known.get(name, (LINE_COLOURS[place], MARKERS[place])) for place, name in enumerate(policies)
    }


def _values(
    rows: Sequence[Row], key: str, policy: str, of: tuple[str, str], groups: Sequence[str]
) -> list[float | None]:
    """A policy's values of one division, in the order of its groups."""
    found = {
        text_in(row, "group"): number_in(row, key)
        for row in rows
        if _policy(row) == policy and text_in(row, of[0]) == of[1]
    }
    return [found.get(group) for group in groups]


def _who_finding(rows: Sequence[Row], kinds: Sequence[str], policies: Sequence[str]) -> str:
    """Say where the policy's offers go, for the division that sets its users furthest apart."""
    name = policies[0]
    # Who opted out is sent nothing by anyone: what only has two groups is told where there is nothing else.
    divided = [
        kind
        for kind in kinds
        if len({text_in(row, "group") for row in rows if text_in(row, "by") == kind}) > 2
    ]
    best: tuple[float, str, Row, Row] | None = None
    for kind in divided or kinds:
        mine = [row for row in rows if _policy(row) == name and text_in(row, "by") == kind]
        if len(mine) < 2:
            continue
        low, high = (
            choose(mine, key=lambda row: number_in(row, "offers_per_user") or 0.0) for choose in (min, max)
        )
        few, many = (number_in(row, "offers_per_user") or 0.0 for row in (low, high))
        ratio = many / few if few > 0 else math.inf if many > 0 else 1.0
        if best is None or ratio > best[0]:
            best = ratio, kind, low, high
    if best is None:
        return f"What {name} sends to whom"
    ratio, kind, low, high = best
    if ratio < 1.1:
        return f"{name} sends about as many offers to every group of users"
    text = (
        f"By {readable(kind)}, {name} sends {_sent(high)} offers per user to {_group(high)} and "
        f"{_sent(low)} to {_group(low)}"
    )
    others = [
        next(
            (
                row
                for row in rows
                if _policy(row) == other
                and text_in(row, "by") == kind
                and text_in(row, "group") == text_in(end, "group")
            ),
            None,
        )
        for other in policies[1:2]
        for end in (high, low)
    ]
    if len(others) == 2 and others[0] is not None and others[1] is not None:
        text += f"; {policies[1]} {_sent(others[0])} and {_sent(others[1])}"
    return text


def _sent(row: Row) -> str:
    return plain(number_in(row, "offers_per_user"), 2)


def _group(row: Row) -> str:
    return f"“{text_in(row, 'group')}”"


def _who_table(rows: Sequence[Row], policies: Sequence[str], multiple: float, money: Currency) -> Table:
    cells = []
    for row in _in_order(rows, policies, multiple):
        cost, margin = number_in(row, "cost_per_user"), number_in(row, "margin_per_user")
        ratio = margin / cost if margin is not None and cost else None
        cells.append(
            [
                _policy(row),
                f"× {multiple_of(row):g}",
                readable(text_in(row, "by")),
                text_in(row, "group"),
                plain(number_in(row, "users")),
                plain(number_in(row, "offers_per_user"), 3),
                money.amount(cost, 3),
                money.amount(margin, 3, sign=True),
                money.amount(ratio, 2),
            ]
        )
    columns = [
        *(Column("policy", words=True), Column("budget"), Column("by", words=True)),
        Column("group", words=True),
        *(Column(t) for t in ("users", "offers", "cost", "margin", "margin per unit of cost")),
    ]
    caption = f"Offers, cost and margin per user and campaign, {money.unit}; {_rest(rows, policies)}"
    return Table("who", caption, columns, cells, folded=len(cells) > 12)


def _in_order(rows: Sequence[Row], policies: Sequence[str], multiple: float) -> list[Row]:
    """The rows of some policies: the main budget first, then the others."""
    chosen = [row for row in rows if _policy(row) in policies]
    chosen.sort(
        key=lambda row: (multiple_of(row) != multiple, multiple_of(row), policies.index(_policy(row)))
    )
    return chosen


def _rest(rows: Sequence[Row], policies: Sequence[str]) -> str:
    """Say which policies a table has, where it has not all."""
    more = len({_policy(row) for row in rows} - set(policies))
    return f"results.json has {more} more policies" if more else "all policies judged"


# Exposure -----------------------------------------------------------------------------------------


def exposure_section(results: Results) -> Section | None:
    """Offers by age, income and household type, with the parity figure and the four-fifths line."""
    found = _named(rows_in(results, "exposure"), ("attribute", "group"))
    found = [row for row in found if number_in(row, "offers_per_user") is not None]
    if not found:
        return None
    standing = standing_of(results)
    multiple = _main(found, standing)
    policies = _featured(found, standing)
    here = [row for row in found if multiple_of(row) == multiple and _policy(row) in policies]
    parity = {
        (_policy(row), multiple_of(row), text_in(row, "attribute")): number_in(row, "ratio")
        for row in rows_in(results, "parity")
    }
    kinds = list(dict.fromkeys(text_in(row, "attribute") for row in here))
    look = _look(policies, standing)
    panels = []
    for kind in kinds:
        users = {
            text_in(row, "group"): number_in(row, "users")
            for row in here
            if text_in(row, "attribute") == kind
        }
        groups = sorted(users, key=natural_order)
        labels = [
            group if users[group] is None else f"{group} (n = {plain(users[group])})" for group in groups
        ]
        few = [n is not None and n < FEW_USERS for n in (users[group] for group in groups)]
        series = []
        for policy in policies:
            values = _values(here, "offers_per_user", policy, ("attribute", kind), groups)
            most = max((value for value in values if value is not None), default=0.0)
            if most > 0:
                shares = [None if value is None else value / most for value in values]
                series.append(DotSeries(policy, shares, *look[policy], hollow=few))
        figures = [
            f"{policy} {plain(ratio, 2)}"
            for policy in policies
            if (ratio := parity.get((policy, multiple, kind))) is not None
        ]
        title = readable(kind) + (f": parity {', '.join(figures)}" if figures else "")
        axis = "offers per user, share of the group with most"
        panels.append(GroupPanel(title, axis, labels, series, FOUR_FIFTHS, "four fifths", tick=_percent_tick))
    ratios = {kind: parity.get((policies[0], multiple, kind)) for kind in kinds}
    finding = _exposure_finding(policies[0], here, ratios)
    note = (
        f"Budget × {multiple:g}. Parity: the exposure of the group with least, divided by that of the group "
        "with most. Means without intervals: a small group may lie far out by chance alone. "
        f"Hollow: fewer than {FEW_USERS} users.{_without_unknown(policies[0], kinds, here)}"
    )
    plot = Plot(finding, group_dots("exposure", finding, panels, columns=2), note)
    lead = (
        "This counts what reaches whom: exposure, not harm. Groups shop differently, so unequal exposure is "
        "no proof of unfairness, and equal exposure no proof of fairness. Four fifths is a rule of thumb of "
        "US hiring practice for when to look closer (29 CFR 1607.4 D); it is not a rule about coupons. "
        "Users of whom something is not known are a group of their own."
    )
    money = Currency.of_results(results)
    tables = (
        [[_parity_table(parity, standing, policies, multiple)]]
        if any(ratio is not None for ratio in parity.values())
        else []
    )
    return Section(
        "exposure",
        "Exposure by age, income and household",
        lead,
        [[plot], *tables, [_exposure_table(found, policies, multiple, money)]],
    )


def natural_order(group: str) -> tuple[bool, float, str]:
    """Sort key of bands such as ``under 25K``, ``25-49K``, ``65+``: by size, what is not known last."""
    numbers = re.findall(r"\d+", group)
    first = float(numbers[0]) if numbers else math.inf
    if re.match(r"\s*(under|below|less|<)", group, re.IGNORECASE):
        first = -math.inf
    return group.strip().lower() in _UNKNOWN, first, group


def _percent_tick(value: float, _: int) -> str:
    return percent(value, 0)


def _exposure_finding(name: str, rows: Sequence[Row], ratios: Mapping[str, float | None]) -> str:
    known = {kind: ratio for kind, ratio in ratios.items() if ratio is not None}
    if not known:
        return f"How {name}'s offers reach different groups; the parity figure was not computed"

    least = {kind: _least(name, kind, rows) for kind in known}
    always = len(known) > 1 and len(set(least.values())) == 1

    def told(under: bool) -> list[str]:
        chosen = [(ratio, kind) for kind, ratio in known.items() if (ratio < FOUR_FIFTHS) == under]
        return [
            f"{readable(kind)} ({plain(ratio, 2)}{'' if always else least[kind]})"
            for ratio, kind in sorted(chosen)
        ]

    below, above = told(True), told(False)
    if not below:
        text = f"{name} gives no group less than four fifths of what another gets: {listed(above)}"
    else:
        text = f"{name} gives a group less than four fifths of what another gets by {listed(below)}"
        text += f", not by {listed(above)}" if above else ""
    shared = next(iter(least.values()))
    return f"{text}{shared} each time" if always and shared else text


def _least(name: str, kind: str, rows: Sequence[Row]) -> str:
    """Name the group that a policy sends least."""
    mine = [row for row in rows if _policy(row) == name and text_in(row, "attribute") == kind]
    lowest = min(mine, key=lambda row: number_in(row, "offers_per_user") or 0.0, default=None)
    return f", least for “{text_in(lowest, 'group')}”" if lowest else ""


def _without_unknown(name: str, kinds: Sequence[str], rows: Sequence[Row]) -> str:
    """Say what parity is among those of whom something is known, where others were counted too."""
    told = []
    for kind in kinds:
        mine = [row for row in rows if _policy(row) == name and text_in(row, "attribute") == kind]
        known = [
            number_in(row, "offers_per_user") or 0.0
            for row in mine
            if text_in(row, "group").strip().lower() not in _UNKNOWN
        ]
        if 1 < len(known) < len(mine) and max(known) > 0:
            told.append(f"{readable(kind)} {plain(min(known) / max(known), 2)}")
    return f" Among users of whom it is known, {name}'s parity is: {listed(told)}." if told else ""


def _parity_table(
    parity: Mapping[tuple[str, float, str], float | None],
    standing: Standing | None,
    policies: Sequence[str],
    multiple: float,
) -> Table:
    """All policies at the main budget, and those of the plot at the others."""
    kinds = list(dict.fromkeys(kind for _, _, kind in parity))
    order = [*policies, *(standing.order if standing else []), *(name for name, _, _ in parity)]
    lines = {(name, m) for name, m, _ in parity if m == multiple or name in policies}
    rows = [
        [name, f"× {m:g}", *(plain(parity.get((name, m, kind)), 2) for kind in kinds)]
        for name, m in sorted(lines, key=lambda line: (line[1] != multiple, line[1], order.index(line[0])))
    ]
    columns = [
        *(Column("policy", words=True), Column("budget")),
        *(Column(readable(kind)) for kind in kinds),
    ]
    caption = f"Parity of exposure; below {plain(FOUR_FIFTHS, 2)} is a reason to look closer, not a verdict"
    return Table("parity", caption, columns, rows, folded=len(rows) > 12)


def _exposure_table(rows: Sequence[Row], policies: Sequence[str], multiple: float, money: Currency) -> Table:
    ordered = _in_order(rows, policies, multiple)
    kinds = list(dict.fromkeys(text_in(row, "attribute") for row in rows))
    ordered.sort(
        key=lambda row: (
            multiple_of(row) != multiple,
            multiple_of(row),
            policies.index(_policy(row)),
            kinds.index(text_in(row, "attribute")),
            natural_order(text_in(row, "group")),
        )
    )
    cells = [
        [
            _policy(row),
            f"× {multiple_of(row):g}",
            readable(text_in(row, "attribute")),
            text_in(row, "group"),
            plain(number_in(row, "users")),
            plain(number_in(row, "offers_per_user"), 3),
            plain(number_in(row, "coupons_per_user"), 3),
            money.amount(number_in(row, "discount_per_user"), 3),
        ]
        for row in ordered
    ]
    columns = [
        *(Column("policy", words=True), Column("budget"), Column("attribute", words=True)),
        Column("group", words=True),
        *(Column(t) for t in ("users", "offers", "coupons", "discount")),
    ]
    caption = f"What reaches whom, per user and campaign, {money.unit}; {_rest(rows, policies)}"
    return Table("exposure", caption, columns, cells, folded=len(cells) > 12)
