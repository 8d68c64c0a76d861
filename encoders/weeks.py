"""How the weeks of a log are split by time, and which weeks are locked.

Weeks are numbered from 1. The last :data:`LOCKED_WEEKS` weeks of any log are locked: nothing trains,
tunes or reports on them, so that one untouched period is left for a final, single check. On the 53
weeks of Complete Journey that gives: train 1-40, tune 41-44, report 45-48, locked 49-53.
"""

from __future__ import annotations

from dataclasses import dataclass

LOCKED_WEEKS = 5
"""The one constant that locks data: how many final weeks no code may read."""

TUNE_WEEKS = 4
REPORT_WEEKS = 4
MINIMUM_WEEKS = 26
"""Below this many weeks there is too little history to train on."""


@dataclass(frozen=True)
class WeekSplit:
    """Inclusive last week of each period.

    Attributes:
        train_end: last week whose labels may be trained on.
        tune_end: last week used for early stopping and calibration.
        report_end: last week on which figures are reported; nothing after it is read.
    """

    train_end: int
    tune_end: int
    report_end: int

    def __post_init__(self) -> None:
        if not 0 < self.train_end < self.tune_end < self.report_end:
            raise ValueError(f"a week split must increase: {self}")

    @classmethod
    def of_log(cls, n_weeks: int) -> WeekSplit:
        """Return the split of a log of ``n_weeks`` weeks.

        Raises:
            ValueError: the log is shorter than :data:`MINIMUM_WEEKS`.
        """
        if n_weeks < MINIMUM_WEEKS:
            raise ValueError(f"the log covers {n_weeks} weeks; at least {MINIMUM_WEEKS} are needed")
        report_end = n_weeks - LOCKED_WEEKS
        tune_end = report_end - REPORT_WEEKS
        return cls(train_end=tune_end - TUNE_WEEKS, tune_end=tune_end, report_end=report_end)
