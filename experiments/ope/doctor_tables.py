"""A log's check-up as tables for a terminal; everything in them is in its JSON."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from experiments.ope.doctor import Examination
from experiments.ope.log_summary import OfferSummary
from experiments.ope.propensity import PropensityReport


def show_examination(
    console: Console, examination: Examination, report: PropensityReport | None = None
) -> None:
    """Print a check-up.

    Args:
        console: where to.
        examination: of the log.
        report: how well propensities fit, where they were estimated.
    """
    for line in _facts(examination):
        _say(console, line)
    if report is not None:
        for line in _fit(report):
            _say(console, line)
    console.print(_offers(examination))
    console.print(_targets(examination))
    for line in (*examination.findings, *(f"Note: {note}." for note in examination.notes)):
        _say(console, f"- {line}")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _facts(found: Examination) -> list[str]:
    shortest, median, longest = found.episode_length
    weeks = f"week {found.first_week}"
    if found.last_week != found.first_week:
        weeks = f"weeks {found.first_week} to {found.last_week}"
    rewards = found.rewards
    low, middle, high = found.propensity_range
    return [
        f"decisions {found.n_steps:,}, episodes {found.n_episodes:,}, users {found.n_users:,}, campaigns "
        f"{found.n_campaigns:,}, {weeks}; weeks of an episode {shortest} to {longest}, median {median:g}; "
        f"{found.truncated_share:.1%} of episodes cut off",
        f"reward: mean {rewards.mean:,.4g}, standard deviation {rewards.standard_deviation:,.4g}, "
        f"{rewards.smallest:,.4g} to {rewards.largest:,.4g}; {rewards.zero_share:.1%} are 0",
        f"propensities of what was sent ({found.propensity_source}): {low:.3g} to {high:.3g}, median "
        f"{middle:.3g}",
    ]


def _fit(report: PropensityReport) -> list[str]:
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in report.log_loss.items())
    return [
        f"estimated from {report.n_rows:,} decisions of {report.n_users:,} users, {report.model} model; "
        f"log loss on users not seen: {losses} (before calibration {report.uncalibrated_log_loss:.4f})"
    ]


def _offers(found: Examination) -> Table:
    table = Table(
        title="Offers: observed beside expected shares, where there was a choice", title_justify="left"
    )
    table.add_column("offer")
    for title in ("allowed", "sent", "smallest propensity", "observed", "expected", "z", "AUC", "ECE"):
        table.add_column(title, justify="right")
    for offer in found.offers:
        table.add_row(
            offer.name,
            f"{offer.allowed_share:.1%}",
            f"{offer.sent_share:.1%}",
            _number(offer.smallest_propensity, 2),
            *_calibration_cells(offer),
        )
    return table


def _calibration_cells(offer: OfferSummary) -> list[str]:
    fit = offer.calibration
    if fit is None:
        return ["–", "–", _number(offer.weight_z, 2), "–", "–"]
    shares = [f"{fit.observed_share:.2%}", f"{fit.expected_share:.2%}"]
    return [*shares, _number(fit.z, 2), _number(fit.auc, 3), _number(fit.calibration_error, 2)]


def _targets(found: Examination) -> Table:
    table = Table(
        title="What the log can say of natural targets (effective episodes, by decision and whole)",
        title_justify="left",
    )
    table.add_column("target")
    for title in ("ESS", "whole", "largest weight", "not allowed"):
        table.add_column(title, justify="right")
    for title in ("by weights alone", "with a value model"):
        table.add_column(title)
    table.add_column("why, by weights alone", ratio=1)
    for target in found.targets:
        table.add_row(
            target.target,
            f"{target.ess:,.1f}",
            f"{target.trajectory_ess:,.1f}",
            f"{target.largest_weight_share:.2%}",
            f"{target.not_allowed:.1%}",
            target.verdict,
            target.model_verdict,
            target.reason,
        )
    return table


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}g}"
