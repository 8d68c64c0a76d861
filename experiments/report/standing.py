"""Policies side by side: read from the results, money per user, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.report.canvas import BLUE, GREY, LINE_COLOURS, MARKERS, VERMILION
from experiments.report.wording import Currency, Row, number_in, readable, rows_in, text_in

Results = Mapping[str, Any]
NO_OFFER = "no offer"
MYOPIC = "myopic uplift"
EVEN = "myopic uplift, even pacing"
"""What industry runs: predicted uplift, and the money left divided by the weeks left."""
EQUAL_SPEND = (0.95, 1.05)
"""Shares of the policy's spend between which a baseline counts as spending alike."""


@dataclass(frozen=True)
class PolicyRow:
    """A policy at a budget; money per user and campaign.

    Attributes:
        name: as readers know it.
        multiple: of the configured budget.
        margin: incremental margin, with its interval ``low`` to ``high``.
        spend: charged to the budget.
        budget: cap.
        world_low: lowest mean margin over the judge's simulators.
        world_high: highest.
        row: as in the results.
    """

    name: str
    multiple: float
    margin: float | None
    low: float | None
    high: float | None
    spend: float | None
    budget: float | None
    world_low: float | None
    world_high: float | None
    row: Row

    @property
    def utilisation(self) -> float | None:
        """Share of the budget that was spent."""
        return number_in(self.row, "utilisation")

    @property
    def pacing(self) -> str:
        """How the price of budget was set: by forecast, or evenly."""
        return text_in(self.row, "pacing")

    @property
    def net(self) -> float | None:
        """Incremental margin less spend."""
        return None if self.margin is None or self.spend is None else self.margin - self.spend


@dataclass(frozen=True)
class Difference:
    """A paired difference in incremental margin, per user and campaign."""

    name: str
    baseline: str
    multiple: float
    value: float | None
    low: float | None
    high: float | None
    row: Row

    @property
    def includes_zero(self) -> bool | None:
        """Whether no difference at all is compatible with the interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high

    @property
    def spend_share(self) -> float | None:
        """The baseline's spend divided by the policy's; None where it is not known."""
        return number_in(self.row, "spend_share")

    @property
    def relative(self) -> float | None:
        """The difference as a share of the baseline's margin; None where it is not known."""
        return number_in(self.row, "relative")

    @property
    def at_equal_spend(self) -> bool | None:
        """Whether the two spend alike; no offer is the zero and always comparable; None if not known."""
        if self.baseline.lower() == NO_OFFER:
            return True
        share = self.spend_share
        return None if share is None else EQUAL_SPEND[0] <= share <= EQUAL_SPEND[1]


@dataclass(frozen=True)
class Standing:
    """Who is compared with whom.

    Attributes:
        rows: policies at all budgets.
        differences: paired differences.
        multiple: the budget that titles speak of: the one nearest to the configured one.
        focus: the trained policy, or the best one where none is called PPO.
        currency: of all amounts.
    """

    rows: Sequence[PolicyRow]
    differences: Sequence[Difference]
    multiple: float
    focus: PolicyRow
    currency: Currency

    @property
    def rival(self) -> PolicyRow | None:
        """The best other policy at the budget that titles speak of."""
        return self.rival_at(self.multiple)

    @property
    def multiples(self) -> list[float]:
        """Budgets compared at, as multiples, ascending."""
        return sorted({row.multiple for row in self.rows})

    @property
    def order(self) -> list[str]:
        """Policies from best to worst at the budget that titles speak of, others after."""
        names = [row.name for row in sorted(self.at(self.multiple), key=_worst_last)]
        return list(dict.fromkeys([*names, *(row.name for row in self.rows)]))

    def at(self, multiple: float) -> list[PolicyRow]:
        """Policies at one budget."""
        return [row for row in self.rows if row.multiple == multiple]

    @property
    def look(self) -> dict[str, tuple[str, str]]:
        """Colour and marker of each policy, the same in every plot."""
        best = self.rival
        rival = best.name if best else None
        others = [name for name in self.order if name not in (self.focus.name, rival)]
        # Those that have plots of their own keep a colour even where many others do better.
        others.sort(key=lambda name: name not in (MYOPIC, EVEN))
        look = {self.focus.name: (BLUE, MARKERS[0])}
        if rival:
            look[rival] = (VERMILION, MARKERS[1])
        for place, name in enumerate(others, start=2):
            colour = LINE_COLOURS[place] if place < len(LINE_COLOURS) else GREY
            look[name] = (colour, MARKERS[place % len(MARKERS)])
        return look

    def rival_at(self, multiple: float) -> PolicyRow | None:
        """The best policy at a budget that is not trained like the focus, if any."""
        others = [row for row in self.at(multiple) if not _kin(row, self.focus)]
        return min(others, key=_worst_last, default=None)

    def row_of(self, name: str, multiple: float) -> PolicyRow | None:
        """A policy at a budget, if it was judged there."""
        return next((row for row in self.at(multiple) if row.name == name), None)

    def against(self, baseline: str, multiple: float, name: str | None = None) -> Difference | None:
        """The paired difference of a policy, or else of the focus, to a baseline, if it was measured."""
        wanted = (name or self.focus.name, baseline, multiple)
        return next((d for d in self.differences if (d.name, d.baseline, d.multiple) == wanted), None)

    def against_rival(self, multiple: float) -> Difference | None:
        """The paired difference between the focus and its rival at a budget, if it was measured."""
        rival = self.rival_at(multiple)
        return self.against(rival.name, multiple) if rival else None

    @property
    def featured(self) -> list[str]:
        """The policies of plots that have no room for all: the focus, and what industry runs or the rival."""
        names = {row.name for row in self.rows}
        beside = [name for name in (MYOPIC, EVEN) if name in names]
        if not beside and self.rival and self.rival.name != NO_OFFER:
            beside = [self.rival.name]
        return [self.focus.name, *(name for name in beside if name != self.focus.name)]


def _kin(row: PolicyRow, focus: PolicyRow) -> bool:
    """Whether two policies are one, or variants of PPO."""
    return row.name == focus.name or ("ppo" in row.name.lower() and "ppo" in focus.name.lower())


def _worst_last(row: PolicyRow) -> float:
    return float("inf") if row.margin is None else -row.margin


def choose_standing(
    rows: Sequence[PolicyRow], differences: Sequence[Difference], currency: Currency
) -> Standing | None:
    """Choose what titles speak of; None where there are no policies."""
    if not rows:
        return None
    multiple = min({row.multiple for row in rows}, key=lambda m: (abs(m - 1), m))
    best_first = sorted((row for row in rows if row.multiple == multiple), key=_worst_last)
    trained = [row for row in best_first if "ppo" in row.name.lower()]
    names = [row.name for row in best_first]
    by_rank = sorted(
        differences,
        key=lambda d: (
            d.multiple,
            d.baseline not in names,
            names.index(d.baseline) if d.baseline in names else 0,
        ),
    )
    return Standing(rows, by_rank, multiple, (trained or best_first)[0], currency)


def standing_of(results: Results) -> Standing | None:
    """Read policies and their paired differences; None where no policy was judged."""
    rows = [_policy(row) for row in rows_in(results, "policies")]
    users = {(row.name, row.multiple): number_in(row.row, "n_users") for row in rows}
    differences = []
    for row in rows_in(results, "comparison"):
        name, multiple = readable(text_in(row, "name")), multiple_of(row)
        value, low, high = (
            _each(number_in(row, key), users.get((name, multiple)))
            for key in ("difference", "ci_low", "ci_high")
        )
        baseline = readable(text_in(row, "baseline"))
        differences.append(Difference(name, baseline, multiple, value, low, high, row))
    return choose_standing(rows, differences, Currency.of_results(results))


def _policy(row: Row) -> PolicyRow:
    users = number_in(row, "n_users")
    margin, low, high, spend, budget, world_low, world_high = (
        _each(number_in(row, key), users)
        for key in (
            "incremental_margin",
            "ci_low",
            "ci_high",
            "spend",
            "budget",
            "world_low",
            "world_high",
        )
    )
    name = readable(text_in(row, "name"))
    return PolicyRow(name, multiple_of(row), margin, low, high, spend, budget, world_low, world_high, row)


def multiple_of(row: Row) -> float:
    """Return a row's budget as a multiple of the configured one, which is the default."""
    multiple = number_in(row, "budget_multiple")
    return 1.0 if multiple is None else multiple


def _each(total: float | None, users: float | None) -> float | None:
    return None if total is None or not users else total / users
