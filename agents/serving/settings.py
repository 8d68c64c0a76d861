"""What ``policy.json`` says, checked."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from agents.serving.bundle import SCHEMA_VERSION, SETTINGS_FILE, Bundle
from agents.serving.columns import USER_COLUMNS
from agents.serving.errors import BundleError
from agents.serving.offer_terms import OfferTerms
from agents.serving.pacing import BudgetPlan, PlannedWeek, paced_prices
from agents.serving.schema import check, policy_schema
from encoders.history_words import UserTextStyle


@dataclass(frozen=True)
class PolicySettings:
    """An exported policy's settings.

    Attributes:
        columns: [o] names of the observation's columns.
        offers: [K] the catalogue.
        cap: most messages, and within how many weeks; None for no cap.
        ticks_per_unit: ticks of money in one unit of currency.
        n_slots: M recommended categories.
        categories: [C] names as the log has them.
        words: [C] names as texts have them.
        first_day: Monday of the log's week 1.
        first_week_of_year: of that Monday.
        known_weeks: T weeks of the log whose promotion calendar is in the bundle.
        style: how much of a history user texts tell.
        max_tokens: cut of a text.
        fatigue_gain: fatigue that a message adds.
        fatigue_memory: share of fatigue left after a week.
        remembered_deals: R redeemed coupons remembered.
        remembered_weeks: weeks of messages remembered.
        horizon_weeks: longest campaign.
        plans: by budget.
        default_budget_per_user: where a context gives no money and no price.
        content: all of ``policy.json``.
    """

    columns: tuple[str, ...]
    offers: tuple[OfferTerms, ...]
    cap: tuple[int, int] | None
    ticks_per_unit: int
    n_slots: int
    categories: tuple[str, ...]
    words: tuple[str, ...]
    first_day: datetime.date
    first_week_of_year: int
    known_weeks: int
    style: UserTextStyle
    max_tokens: int
    fatigue_gain: float
    fatigue_memory: float
    remembered_deals: int
    remembered_weeks: int
    horizon_weeks: int
    plans: tuple[BudgetPlan, ...]
    default_budget_per_user: float
    content: Mapping[str, Any] = field(repr=False, compare=False)

    def default_dual_price(self) -> float:
        """Return λ of a campaign's first week at the default budget."""
        return paced_prices(self.plans, self.horizon_weeks, budget_per_user=self.default_budget_per_user)[0]

    def mean_prices(self) -> list[float]:
        """Return each plan's λ, the geometric mean over its weeks; ascending, equal ones once."""
        return sorted(
            {math.exp(fmean(math.log(week.dual_price) for week in plan.weeks)) for plan in self.plans}
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> PolicySettings:
        """Read and check a bundle's settings.

        Raises:
            BundleError: they are of another version, do not follow the schema, or contradict themselves.
        """
        place = bundle.folder / SETTINGS_FILE
        content = bundle.json(SETTINGS_FILE)
        if content.get("schema_version") != SCHEMA_VERSION:
            raise BundleError(
                f"{place}: schema version {content.get('schema_version')!r}, this runtime reads "
                f"{SCHEMA_VERSION}; export again"
            )
        try:
            check(content, policy_schema(), SETTINGS_FILE)
            return cls._of(content)
        except ValueError as error:
            raise BundleError(f"{place}: {error}") from error

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> PolicySettings:
        if tuple(content["user_columns"]) != USER_COLUMNS:
            raise ValueError("user_columns are not those of this runtime; export again")
        categories, words = tuple(content["categories"]), tuple(content["category_words"])
        if len(categories) != len(words) or len(set(categories)) != len(categories):
            raise ValueError(
                f"{len(categories)} categories, not all distinct or not one for each of {len(words)} words"
            )
        horizon = content["horizon_weeks"]
        plans = tuple(
            BudgetPlan(plan["budget_per_user"], tuple(PlannedWeek(**week) for week in plan["weeks"]))
            for plan in content["pacing"]
        )
        for k, plan in enumerate(plans):
            if len(plan.weeks) != horizon:
                raise ValueError(f"pacing[{k}] has {len(plan.weeks)} weeks, the horizon {horizon}")
        text, cap = content["text"], content["frequency_cap"]
        first_day = datetime.date.fromisoformat(content["first_day"])
        if first_day.weekday() != 0:
            raise ValueError(f"first_day {first_day} is no Monday")
        return cls(
            columns=tuple(content["observation"]),
            offers=tuple(OfferTerms(**offer) for offer in content["offers"]),
            cap=None if cap is None else (cap["messages"], cap["weeks"]),
            ticks_per_unit=content["ticks_per_unit"],
            n_slots=content["n_slots"],
            categories=categories,
            words=words,
            first_day=first_day,
            first_week_of_year=content["first_week_of_year"],
            known_weeks=content["known_weeks"],
            style=UserTextStyle(text["max_items"], text["recent_items"], text["season"]),
            max_tokens=text["max_tokens"],
            fatigue_gain=content["fatigue"]["gain"],
            fatigue_memory=content["fatigue"]["memory"],
            remembered_deals=content["remembered_deals"],
            remembered_weeks=content["remembered_weeks"],
            horizon_weeks=horizon,
            plans=plans,
            default_budget_per_user=content["default_budget_per_user"],
            content=content,
        )
