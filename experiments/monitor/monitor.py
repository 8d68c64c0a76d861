"""All checks of a decision log against a reference, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from experiments.monitor.costs import CostCalibration, measure_costs
from experiments.monitor.drift import Drift, measure_drift
from experiments.monitor.findings import EXIT_CODES, Finding, Level, MonitorError, worst
from experiments.monitor.propensities import PropensityReport, measure_propensities
from experiments.monitor.spend import Charges, PacedBudget, SpendPlan, SpendReport, measure_spend
from experiments.ope.logged_dataset import BoolArray, LoggedDataError, LoggedDataset

SETTINGS_FILE = "policy.json"
REFERENCE_FILE = "reference.parquet"
"""In an exported policy: the log that it was evaluated on."""

RUN_SETTINGS, RUN_LOG = Path("export") / SETTINGS_FILE, Path("evaluation") / "logged.parquet"
"""The same in a run folder."""


@dataclass(frozen=True)
class OfferFacts:
    """What monitoring must know of an offer; see `envs.offers.Offer`.

    Attributes:
        name: unique.
        validity_weeks: weeks in which its coupon can be redeemed; 0 without one.
        max_discount: most that its coupon can cost, log's currency.
        delivery_cost: charged at once when it is sent, log's currency.
    """

    name: str
    validity_weeks: int
    max_discount: float
    delivery_cost: float

    @classmethod
    def of(cls, offer: Mapping[str, Any]) -> Self:
        """Take them from an offer of ``policy.json``."""
        return cls(
            str(offer["name"]),
            int(offer["validity_weeks"]),
            float(offer["max_discount"]),
            float(offer["delivery_cost"]),
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """What a decision log is compared with.

    Attributes:
        log: what the policy was evaluated on.
        offers: [K] the policy's catalogue.
        paced: what it planned to spend, by budget.
    """

    log: LoggedDataset
    offers: tuple[OfferFacts, ...]
    paced: tuple[PacedBudget, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read a run folder, or an exported policy that keeps its reference.

        Raises:
            MonitorError: it is neither, or its files cannot be read.
        """
        for settings, log in ((SETTINGS_FILE, REFERENCE_FILE), (RUN_SETTINGS, RUN_LOG)):
            if (folder / settings).is_file() and (folder / log).is_file():
                try:
                    content = json.loads((folder / settings).read_text(encoding="utf-8"))
                    offers = tuple(OfferFacts.of(offer) for offer in content["offers"])
                    paced = tuple(PacedBudget.of(row) for row in content.get("pacing", ()))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    raise MonitorError(f"{folder / settings}: no offers can be read: {error!r}") from error
                return cls(load_log(folder / log), offers, paced)
        raise MonitorError(
            f"{folder} is no reference: give a run folder, with {RUN_SETTINGS} and {RUN_LOG}, or an exported "
            f"policy with {REFERENCE_FILE}"
        )


@dataclass(frozen=True)
class MonitorReport:
    """What all checks found.

    Attributes:
        steps: rows of the log.
        users: in it.
        weeks: first and last week of it.
        spend: against the plan; None without a plan.
        drift: by group of columns.
        costs: expected and realised; None where no costs are all in yet.
        propensities: of the offers.
    """

    steps: int
    users: int
    weeks: tuple[int, int]
    spend: SpendReport | None
    drift: list[Drift]
    costs: CostCalibration | None
    propensities: PropensityReport

    def findings(self) -> list[Finding]:
        """Return the findings of all checks that could be made."""
        return [
            *(self.spend.findings() if self.spend else []),
            *(finding for part in self.drift for finding in part.findings()),
            *(self.costs.findings() if self.costs else []),
            *self.propensities.findings(),
        ]

    def unchecked(self) -> list[str]:
        """Return, in words, what could not be checked."""
        missing = []
        if self.spend is None:
            missing.append("spend: no plan was given")
        if self.costs is None:
            missing.append("cost calibration: nobody who was sent something has all costs in yet")
        return missing

    @property
    def level(self) -> Level:
        """The worst finding's."""
        return worst([finding.level for finding in self.findings()])

    @property
    def exit_code(self) -> int:
        """Of the command: 0 ok, 3 warning, 4 alarm."""
        return EXIT_CODES[self.level]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; NaN where a number is not defined."""
        return {
            "level": self.level,
            "findings": [asdict(finding) for finding in self.findings()],
            "unchecked": self.unchecked(),
            **asdict(self),
        }


def load_log(path: Path) -> LoggedDataset:
    """Read a decision log.

    Raises:
        MonitorError: there is no such file, or it is no valid log.
    """
    try:
        return LoggedDataset.load(path)
    except (OSError, LoggedDataError) as error:
        words = str(error)
        raise MonitorError(words if str(path) in words else f"{path}: {words}") from error


def monitor_log(
    reference: Reference,
    log: LoggedDataset,
    *,
    plan: SpendPlan | None = None,
    charges: Charges | None = None,
    refused: BoolArray | None = None,
    seed: int = 0,
    threads: int = 1,
) -> MonitorReport:
    """Run all checks.

    Args:
        reference: what the policy was evaluated on.
        log: decisions since, with their outcomes.
        plan: what was to be spent.
        charges: all that was charged, where the log leaves decisions out whose outcome is still open; the
            log's own if None.
        refused: [N] bool, the steps of the log whose offer the budget did not cover; None for no step.
        seed: of permutations, draws and resamples: the same logs give the same report.
        threads: CPU threads of the classifier.

    Raises:
        MonitorError: the two logs are not of one policy, or the log does not go with the plan.
    """
    old = reference.log
    if log.observation_names != old.observation_names:
        here, there = set(log.observation_names), set(old.observation_names)
        different = sorted(here ^ there)
        example = f"only one has {different[0]!r}" if different else "their order differs"
        raise MonitorError(f"log and reference are not of one policy: in the observation columns {example}")
    for name, n_offers in (("log", log.n_offers), ("reference log", old.n_offers)):
        if n_offers != len(reference.offers):
            raise MonitorError(
                f"the {name} has {n_offers} offers, the reference's catalogue {len(reference.offers)}"
            )
    return MonitorReport(
        steps=log.n_steps,
        users=len(set(log.user.tolist())),
        weeks=(int(log.week.min()), int(log.week.max())),
        spend=None if plan is None else measure_spend(charges or Charges.of_log(log), plan),
        drift=measure_drift(old, log, seed=seed, threads=threads),
        costs=measure_costs(log, reference.offers, refused),
        propensities=measure_propensities(
            old, log, tuple(offer.name for offer in reference.offers), seed=seed
        ),
    )
