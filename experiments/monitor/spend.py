"""Spend against plan, week by week, and against the budget, which is a hard cap."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.monitor.findings import Finding, Level, MonitorError, worst
from experiments.ope.logged_dataset import LoggedDataset

WARNING_SHARE, ALARM_SHARE = 0.10, 0.25
"""Of the planned spend so far. Ten per cent is what pacing corrects within a week or two; a quarter off it
does not get back without a jump of the dual price."""

BAND = 0.99
"""Coverage of the band around the plan: what users' chances alone make of a plan that is kept."""

WEEKS_LEFT = "weeks_left"

ROUNDING = 1e-6
"""Share of the budget by which sums of floating-point amounts may pass it."""


@dataclass(frozen=True)
class PacedBudget:
    """What an exported policy planned to spend of a budget.

    Attributes:
        budget_per_user: for the whole campaign, log's currency.
        planned_spend: a user, week by week from the campaign's first.
    """

    budget_per_user: float
    planned_spend: tuple[float, ...]

    @classmethod
    def of(cls, pacing: Mapping[str, Any]) -> PacedBudget:
        """Take it from a row of ``pacing`` in ``policy.json``."""
        weeks = tuple(float(week["planned_spend"]) for week in pacing["weeks"])
        return cls(float(pacing["budget_per_user"]), weeks)


@dataclass(frozen=True)
class SpendPlan:
    """What was to be spent.

    Attributes:
        budget: hard cap over all weeks, log's currency.
        by_week: planned spend of each week of the log.
    """

    budget: float
    by_week: Mapping[int, float]

    def __post_init__(self) -> None:
        if not 0 < self.budget < math.inf:
            raise MonitorError(f"plan: the budget must be positive and finite, got {self.budget}")
        if not self.by_week:
            raise MonitorError("plan: no week has a planned spend")
        for week, amount in self.by_week.items():
            if not 0 <= amount < math.inf:
                raise MonitorError(
                    f"plan: spend of week {week} must be finite and not negative, got {amount}"
                )

    @classmethod
    def of_budget(cls, budget: float, log: LoggedDataset, paced: Sequence[PacedBudget] = ()) -> SpendPlan:
        """Return the plan that a policy was exported with, for a budget; without one, the same every week.

        Of the exported plans the one of the nearest budget per user is taken, and its weeks in proportion.

        Args:
            budget: for the whole campaign, log's currency.
            log: tells its users and how many weeks its campaign has left; it may start in mid-campaign.
            paced: plans by budget, of campaigns of the same length.

        Raises:
            MonitorError: the log does not tell the weeks left, or they are more than the plans have.
        """
        if WEEKS_LEFT not in log.observation_names:
            raise MonitorError(
                f"the log has no column {WEEKS_LEFT!r}, and a budget alone makes no plan; give one by week"
            )
        if not 0 < budget < math.inf:
            raise MonitorError(f"plan: the budget must be positive and finite, got {budget}")
        first = int(log.week.min())
        left = log.observation[log.week == first, log.observation_names.index(WEEKS_LEFT)]
        weeks = max(round(float(left.max())), 1)
        if not paced:
            return cls(budget, {first + k: budget / weeks for k in range(weeks)})
        per_user = budget / len(np.unique(log.user))
        nearest = min(paced, key=lambda plan: abs(math.log(plan.budget_per_user / per_user)))
        if weeks > len(nearest.planned_spend):
            raise MonitorError(
                f"the log's campaign has {weeks} weeks left, the exported plans have "
                f"{len(nearest.planned_spend)}; give a plan by week"
            )
        shares = [amount / nearest.budget_per_user for amount in nearest.planned_spend[-weeks:]]
        return cls(budget, {first + k: budget * share for k, share in enumerate(shares)})

    @classmethod
    def load(cls, path: Path) -> SpendPlan:
        """Read ``{"budget": 1000.0, "spend": {"45": 120.0, "46": 130.0}}``.

        Raises:
            MonitorError: naming the file and what is wrong with it.
        """
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MonitorError(f"plan {path}: {error}") from error
        if not isinstance(content, dict) or set(content) != {"budget", "spend"}:
            raise MonitorError(f"plan {path}: expected an object with 'budget' and 'spend' and nothing else")
        if not isinstance(content["spend"], dict):
            raise MonitorError(f"plan {path}: 'spend' must map weeks to amounts, got {content['spend']!r}")
        by_week: dict[int, float] = {}
        for week, amount in content["spend"].items():
            if not week.isdigit():
                raise MonitorError(f'plan {path}: {week!r} is not a week of the log, such as "45"')
            by_week[int(week)] = _amount(path, f"spend of week {week}", amount)
        try:
            return cls(_amount(path, "budget", content["budget"]), by_week)
        except MonitorError as error:
            raise MonitorError(f"{path}: {error}") from error


@dataclass(frozen=True)
class WeekSpend:
    """Spend up to the end of a week, all users together, log's currency.

    Attributes:
        week: week of the log.
        spent: in this week.
        planned: in this week.
        total: so far.
        planned_total: so far.
        low: lower end of the band around ``planned_total``.
        high: upper end.
        level: how far the total is off.
    """

    week: int
    spent: float
    planned: float
    total: float
    planned_total: float
    low: float
    high: float
    level: Level


@dataclass(frozen=True)
class SpendReport:
    """Spend of a campaign.

    Attributes:
        plan: what was to be spent.
        weeks: what was.
    """

    plan: SpendPlan
    weeks: list[WeekSpend]

    @property
    def total(self) -> float:
        """Spent so far."""
        return self.weeks[-1].total

    def findings(self) -> list[Finding]:
        """Return one finding on the budget and one on the last week's standing against the plan."""
        last = self.weeks[-1]
        over = self.total > self.plan.budget * (1.0 + ROUNDING)
        relative = self.total / last.planned_total - 1.0 if last.planned_total else math.nan
        return [
            Finding(
                "budget",
                Level.ALARM if over else Level.OK,
                f"{self.total:,.2f} spent of {self.plan.budget:,.2f}",
            ),
            Finding(
                "spend",
                last.level,
                f"{self.total:,.2f} spent by week {last.week}, {last.planned_total:,.2f} planned "
                f"({relative:+.0%}; band {last.low:,.2f} to {last.high:,.2f})",
            ),
        ]

    @property
    def level(self) -> Level:
        """The worst finding's."""
        return worst([finding.level for finding in self.findings()])


@dataclass(frozen=True, eq=False)
class Charges:
    """What was charged to the budget, decision by decision; N of them.

    Attributes:
        user: [N] whose, numbers or pseudonyms.
        week: [N] int64, of the log.
        cost: [N] float64, log's currency.
    """

    user: npt.NDArray[Any]
    week: npt.NDArray[np.int64]
    cost: npt.NDArray[np.float64]

    @classmethod
    def of_log(cls, log: LoggedDataset) -> Charges:
        """Take them from a log: of decisions whose outcome is known."""
        return cls(log.user, log.week, log.cost)

    @classmethod
    def load(cls, path: Path) -> Charges:
        """Read the service's ``decisions.parquet``: all decisions, also those whose outcome is still open.

        Raises:
            MonitorError: naming the file and what is wrong with it.
        """
        try:
            table = pq.read_table(path, columns=["user", "week", "cost"])
        except (OSError, pa.ArrowException) as error:
            raise MonitorError(f"decisions {path}: {error}") from error
        columns = [table[name].to_numpy() for name in ("user", "week", "cost")]
        missing = set(table.schema.names) ^ {"user", "week", "cost"}
        if missing or not len(columns[0]):
            raise MonitorError(f"decisions {path}: no decisions, or no column {', '.join(sorted(missing))}")
        cost = columns[2].astype(np.float64)
        if not np.isfinite(cost).all():
            row = int((~np.isfinite(cost)).argmax())
            raise MonitorError(f"decisions {path}: cost in row {row} is {cost[row]}")
        return cls(columns[0], columns[1].astype(np.int64), cost)


def measure_spend(charges: Charges, plan: SpendPlan) -> SpendReport:
    """Compare what was charged with a plan.

    At a given path of dual prices users spend independently of one another, so that the variance of the total
    is the sum over users of what they spent so far, around the mean user. A week is off where the total is
    outside of the band *and* off by more than :data:`WARNING_SHARE` (:data:`ALARM_SHARE`) of the plan.

    Raises:
        MonitorError: the plan misses a week of the log.
    """
    weeks = np.unique(charges.week)
    unplanned = [int(week) for week in weeks if int(week) not in plan.by_week]
    if unplanned:
        raise MonitorError(
            f"the plan has no spend for week {unplanned[0]} of the log; it has weeks "
            f"{min(plan.by_week)}-{max(plan.by_week)}"
        )
    users, user = np.unique(charges.user, return_inverse=True)
    by_user = np.zeros(len(users))
    total = planned_total = 0.0
    previous = int(weeks[0]) - 1
    half_width = NormalDist().inv_cdf(0.5 + BAND / 2.0)
    rows = []
    for week in weeks.tolist():
        here = charges.week == week
        by_user += np.bincount(user[here], weights=charges.cost[here], minlength=len(users))
        spent = float(charges.cost[here].sum())
        # Weeks that the log lacks were planned all the same: nothing was sent in them.
        planned_total += sum(plan.by_week.get(k, 0.0) for k in range(previous + 1, week + 1))
        total, previous = total + spent, week
        half = half_width * math.sqrt(len(users)) * float(by_user.std(ddof=1)) if len(users) > 1 else math.inf
        off = abs(total - planned_total)
        level = Level.OK
        if off > half:
            share = off / planned_total if planned_total else math.inf
            level = (
                Level.ALARM if share >= ALARM_SHARE else Level.WARNING if share >= WARNING_SHARE else Level.OK
            )
        rows.append(
            WeekSpend(
                week=week,
                spent=spent,
                planned=plan.by_week[week],
                total=total,
                planned_total=planned_total,
                low=max(planned_total - half, 0.0),
                high=planned_total + half,
                level=level,
            )
        )
    return SpendReport(plan, rows)


def _amount(path: Path, what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MonitorError(f"plan {path}: {what} must be a number, got {value!r}")
    return float(value)
