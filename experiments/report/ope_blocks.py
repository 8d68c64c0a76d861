"""What a log says of policies under one shared budget, and of how their returns are spread over users."""

from __future__ import annotations

from experiments.ope.shared_budget import SHARED_BUDGET_NOTE
from experiments.report.page import Block, Column, Table
from experiments.report.standing import Results
from experiments.report.wording import Currency, number_in, percent, plain, readable, rows_in, text_in


def budget_blocks(results: Results, money: Currency) -> list[Block]:
    """Values at the price that exhausts each budget; nothing where they were not estimated."""
    found = rows_in(results, "ope_budget")
    if not found:
        return []
    rows = [
        [
            readable(text_in(row, "policy")),
            money.amount(number_in(row, "budget"), 3),
            text_in(row, "binding"),
            money.amount(number_in(row, "value"), 3),
            money.interval(number_in(row, "ci_low"), number_in(row, "ci_high")),
            money.amount(number_in(row, "truth"), 3),
            plain(number_in(row, "dual_price"), 2),
            money.amount(number_in(row, "cost"), 3),
            plain(number_in(row, "ess"), 1),
            text_in(row, "verdict"),
            text_in(row, "reason"),
        ]
        for row in found
    ]
    columns = [
        Column("policy", words=True),
        Column("budget"),
        Column("the budget", words=True),
        *(Column(title) for title in ("margin", "interval", "played under the cap", "λ*", "cost", "ESS")),
        *(Column(title, words=True) for title in ("verdict", "why")),
    ]
    caption = (
        f"Under one budget that all users share; per user and campaign, {money.unit}. {SHARED_BUDGET_NOTE}"
    )
    return [[Table("ope-budget", caption, columns, rows)]]


def returns_blocks(results: Results, money: Currency) -> list[Block]:
    """Quantiles and tails of what users bring; nothing where they were not estimated."""
    found = rows_in(results, "returns")
    if not found:
        return []
    rows = [
        [
            readable(text_in(row, "policy")),
            _measure(text_in(row, "measure"), number_in(row, "level")),
            money.amount(number_in(row, "value"), 3),
            money.interval(number_in(row, "ci_low"), number_in(row, "ci_high")),
            plain(number_in(row, "ess"), 1),
            text_in(row, "verdict"),
        ]
        for row in found
    ]
    columns = [
        *(Column(title, words=True) for title in ("policy", "of the margin of users")),
        *(Column(title) for title in ("value", "interval", "ESS")),
        Column("verdict", words=True),
    ]
    caption = f"How the margin of a campaign is spread over users, from the log; {money.unit}"
    return [[Table("returns", caption, columns, rows, folded=True)]]


def _measure(measure: str, level: float | None) -> str:
    if level is None:
        return measure
    return f"mean of the lowest {percent(level)}" if measure == "CVaR" else f"{percent(level)} {measure}"
