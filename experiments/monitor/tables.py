"""A monitor's report as tables for a terminal; everything in them is in its JSON."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.monitor.costs import CostCalibration
from experiments.monitor.drift import Drift, column_level
from experiments.monitor.findings import Level
from experiments.monitor.monitor import MonitorReport
from experiments.monitor.propensities import PropensityReport
from experiments.monitor.spend import SpendReport

MOST_COLUMNS = 8
_STYLE = {Level.OK: "green", Level.WARNING: "yellow", Level.ALARM: "bold red"}


def show_report(console: Console, report: MonitorReport) -> None:
    """Print a report: the findings first, then what they rest on."""
    first, last = report.weeks
    title = f"{report.steps:,} decisions for {report.users:,} users, weeks {first}-{last}: {report.level}"
    table = _table(title, ("check", "level", "found"), text=("check", "level", "found"))
    for finding in report.findings():
        table.add_row(finding.check, _level(finding.level), escape(finding.words))
    console.print(table)
    for line in report.unchecked():
        console.print(f"Not checked: {line}", markup=False, highlight=False, soft_wrap=True)
    if report.spend is not None:
        console.print(_spend(report.spend))
    for part in report.drift:
        console.print(_drift(part))
    if report.costs is not None:
        console.print(_costs(report.costs))
    console.print(_offers(report.propensities))


def _table(title: str, columns: tuple[str, ...], text: tuple[str, ...]) -> Table:
    """An empty table; the columns named in ``text`` are words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right")
    return table


def _level(level: Level) -> str:
    return f"[{_STYLE[level]}]{level}[/]"


def _number(value: float, pattern: str) -> str:
    return "–" if math.isnan(value) else format(value, pattern)


def _spend(report: SpendReport) -> Table:
    columns = ("week", "spent", "planned", "spent so far", "planned so far", "band", "level")
    table = _table(f"Spend, of a budget of {report.plan.budget:,.2f}", columns, text=("band", "level"))
    for row in report.weeks:
        amounts = (row.spent, row.planned, row.total, row.planned_total)
        table.add_row(
            str(row.week),
            *(f"{amount:,.2f}" for amount in amounts),
            f"{row.low:,.2f} to {row.high:,.2f}",
            _level(row.level),
        )
    return table


def _drift(part: Drift) -> Table:
    columns = ("column", "PSI", "p, all columns", "reference mean", "mean", "level")
    title = f"{part.group.capitalize()} drift, the {MOST_COLUMNS} columns of the largest PSI"
    table = _table(title, columns, text=("column", "level"))
    for row in part.columns[:MOST_COLUMNS]:
        table.add_row(
            escape(row.column),
            f"{row.psi:.3f}",
            f"{row.p_value:.3f}",
            f"{row.reference_mean:.4g}",
            f"{row.mean:.4g}",
            _level(column_level(row)),
        )
    return table


def _costs(costs: CostCalibration) -> Table:
    table = _table(
        "Cost a user over the campaign, by tenths of what was expected",
        ("users", "expected", "came", "ratio", "z"),
        text=(),
    )
    for row in costs.groups:
        ratio = row.realised / row.expected if row.expected else math.nan
        table.add_row(
            str(row.users),
            f"{row.expected:.4f}",
            f"{row.realised:.4f}",
            _number(ratio, ".2f"),
            _number(row.z, "+.1f"),
        )
    return table


def _offers(report: PropensityReport) -> Table:
    columns = ("offer", "reference", "sent", "by propensities", "z")
    table = _table("Offers, as shares of all decisions", columns, text=("offer",))
    for row in report.offers:
        shares = (row.reference_sent, row.sent, row.expected)
        table.add_row(escape(row.name), *(_number(share, ".2%") for share in shares), _number(row.z, "+.1f"))
    return table
