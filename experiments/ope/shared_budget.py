"""The value of a policy under a budget that all users share, from one log without a cap.

A shared budget couples users: what one is sent is not there for another. Importance weights per user then
weigh outcomes that the target's own spending would have changed, and the product over users that would be
right has no overlap. At a fixed path of the dual price λ users are independent. So the policy is estimated
at a grid of price levels (:mod:`experiments.ope.price_curves`), and the budget equation

    use(λ*) = budget,    use(λ) = highest mean commitment of any week, decreasing in λ,

is solved for the price at which it spends the budget; its value is margin(λ*). Users are resampled once for
both: the margin's interval holds the error of λ* too.

That is the value of a large market. In one of n users chance makes the commitment exceed the budget now and
then, and a hard cap refuses what does not fit: the value under the cap is lower by a part that falls with n.
Shocks that all users of a week share are those of the log; no resampling of users can vary them.

Sources: the dual of the shared budget separates users: Balseiro, Besbes & Pizarro (2023), Operations
Research; interference by a budget: Basse, Soufiani & Lambert (2016), AISTATS, and Liu, Mao & Kang (2021),
KDD; isotonic regression: Barlow et al. (1972).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression

from experiments.ope.diagnostics import Diagnostics, EstimateCheck, Verdict, judge
from experiments.ope.intervals import Interval
from experiments.ope.logged_dataset import FloatArray
from experiments.ope.price_curves import PriceCurves

SHARED_BUDGET_NOTE = (
    "Value of a large market at the price at which the estimated use meets the budget; "
    "with few users a hard cap refuses more. Shocks that all users of a week share are those of the log."
)
"""Print this wherever a value is printed."""

Binding = Literal["binding", "never binding", "beyond the grid"]


@dataclass(frozen=True)
class BudgetedValue:
    """One policy at one budget, as a row of ``results.json``; money per user and campaign, log's currency.

    Attributes:
        policy: name of the target policy.
        budget: for all users together, divided by their number.
        binding: whether a price of the grid makes the use meet the budget; "never binding" if even the lowest
            price leaves money over, so that the value is the policy's at that price; "beyond the grid" if
            even the highest price spends too much, and there is no value.
        value: margin before coupon cost at λ*.
        ci_low: lower end of its interval, the error of λ* included; -inf if that is unknown.
        ci_high: upper end.
        dual_price: λ* of the campaign's first week; those of the other weeks keep their ratio to it.
        dual_price_low: lower end of its interval.
        dual_price_high: upper end.
        level: λ* as a multiple of the logged price path.
        cost: charged to the budget by the end at λ*.
        cost_low: lower end of its interval.
        cost_high: upper end.
        use: highest commitment of any week at λ*.
        ess: effective sample size at λ*, in episodes.
        verdict: trust, caution, or do not use.
        reason: why, in words.
    """

    policy: str
    budget: float
    binding: Binding
    value: float
    ci_low: float
    ci_high: float
    dual_price: float
    dual_price_low: float
    dual_price_high: float
    level: float
    cost: float
    cost_low: float
    cost_high: float
    use: float
    ess: float
    verdict: Verdict
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON; what is not finite becomes null."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def solve_budget(use: FloatArray, budget: float, weight: FloatArray) -> FloatArray:
    """Return where on the grid the use meets the budget: a place in [0, L - 1], fractions between levels.

    The use is made decreasing first (pool adjacent violators), then interpolated between levels.

    Args:
        use: [L], or [B, L] for B curves.
        budget: what it must meet.
        weight: [L] how much each level counts where neighbours are pooled, such as its effective episodes.

    Returns:
        [] or [B]; 0 if the budget is not met even at the first level, NaN if it is exceeded at the last or
        the use is not known.
    """
    rows = np.atleast_2d(use)
    places = np.array([_solve_one(row, budget, weight) for row in rows])
    return places.reshape(use.shape[:-1])


def _solve_one(use: FloatArray, budget: float, weight: FloatArray) -> float:
    if np.isnan(use).any():
        return float("nan")
    decreasing = isotonic_regression(use, weights=weight, increasing=False).x
    if decreasing[0] <= budget:
        return 0.0
    if decreasing[-1] > budget:
        return float("nan")
    after = int((decreasing > budget).sum())
    above, below = decreasing[after - 1], decreasing[after]
    return float(after - 1 + (above - budget) / (above - below))


def at_place(curve: FloatArray, place: FloatArray) -> FloatArray:
    """Return ``curve`` [..., L] at grid places [...], linear between levels; NaN at NaN."""
    known = np.where(np.isnan(place), 0.0, place)
    before = np.minimum(known.astype(np.int64), curve.shape[-1] - 2)[..., None]
    left, right = (np.take_along_axis(curve, before + k, axis=-1)[..., 0] for k in (0, 1))
    part = known - before[..., 0]
    # At a grid point the other end does not count, known or not.
    between = np.where(part == 0, left, np.where(part == 1, right, left + part * (right - left)))
    return np.where(np.isnan(place), np.nan, between)


def value_under_budget(
    curves: PriceCurves, budget: float, *, policy: str, confidence: float = 0.95
) -> BudgetedValue:
    """Solve the budget equation and return the policy's value there, with the error of both.

    Args:
        curves: of the policy.
        budget: for all users together, divided by their number; log's currency.
        policy: name, for the result.
        confidence: of the intervals.

    Raises:
        ValueError: the budget is negative, or not finite.
    """
    if not (np.isfinite(budget) and budget >= 0):
        raise ValueError(f"a budget per user must be finite and not negative, not {budget}")
    supported = np.flatnonzero(curves.ess > 0)
    if supported.size < 2:
        return _unsupported(curves, budget, policy)
    levels, ess = curves.levels[supported], curves.ess[supported]
    log_price = np.log(levels * curves.first_price)

    def at(place: FloatArray, curve: FloatArray) -> FloatArray:
        return at_place(np.broadcast_to(curve, (*place.shape, levels.size)), place)

    point = {name: getattr(curves.point, name)[supported] for name in ("margin", "cost", "use")}
    again = {name: getattr(curves.resampled, name)[:, supported] for name in ("margin", "cost", "use")}
    place = solve_budget(point["use"], budget, ess)
    places = solve_budget(again["use"], budget, ess)
    decreasing = isotonic_regression(point["use"], weights=ess, increasing=False).x
    value, cost, use, price = (
        float(at(place, curve)) for curve in (point["margin"], point["cost"], decreasing, log_price)
    )
    intervals = {
        "value": cautious_interval(at(places, again["margin"]), confidence),
        "cost": cautious_interval(at(places, again["cost"]), confidence),
        "price": cautious_interval(at(places, log_price), confidence),
    }
    binding: Binding = "binding"
    if np.isnan(place):
        binding = "beyond the grid"
    elif place == 0:
        binding = "never binding"
    level = float(np.exp(price)) / curves.first_price
    diagnostics = curves.diagnostics(float(levels[-1]) if np.isnan(place) else level)
    judgement = judge(
        diagnostics, uses_weights=True, uses_model=True, check=_check(value, intervals["value"], diagnostics)
    )
    verdict, reason = _with_budget(
        judgement.verdict, judgement.reason, binding, np.isnan(places).mean(), intervals["value"]
    )
    return BudgetedValue(
        policy=policy,
        budget=budget,
        binding=binding,
        value=value,
        ci_low=intervals["value"].low,
        ci_high=intervals["value"].high,
        dual_price=float(np.exp(price)),
        dual_price_low=float(np.exp(intervals["price"].low)),
        dual_price_high=float(np.exp(intervals["price"].high)),
        level=level,
        cost=cost,
        cost_low=intervals["cost"].low,
        cost_high=intervals["cost"].high,
        use=use,
        ess=diagnostics.ess,
        verdict=verdict,
        reason=reason,
    )


def cautious_interval(values: FloatArray, confidence: float) -> Interval:
    """Percentile interval of resampled ``values`` [B] that counts an unknown one as outside at both ends.

    To drop the resamples without a root would condition on those that look good.

    Raises:
        ValueError: the confidence is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
    tail = (1 - confidence) / 2
    unknown = np.isnan(values)
    low = np.quantile(np.where(unknown, -np.inf, values), tail, method="lower")
    high = np.quantile(np.where(unknown, np.inf, values), 1 - tail, method="higher")
    return Interval(float(low), float(high))


def _check(value: float, interval: Interval, diagnostics: Diagnostics) -> EstimateCheck | None:
    """Hold the interval's width against the value; None where there is no interval."""
    if not np.isfinite(interval.width) or value == 0:
        return None
    return EstimateCheck(
        half_width_share=interval.width / 2 / abs(value), effective_clusters=float(diagnostics.n_clusters)
    )


def _with_budget(
    verdict: Verdict, reason: str, binding: Binding, lost: float, interval: Interval
) -> tuple[Verdict, str]:
    """The verdict on the weights, and what solving the budget equation adds to it."""
    if binding == "beyond the grid":
        return "do not use", "even at the highest price of the grid the policy exceeds the budget: " + (
            "extend the grid upwards; " + reason
        )
    found: list[str] = []
    if binding == "never binding":
        found.append("the budget does not bind: even at the lowest price of the grid money is left over")
    if lost > 0:
        found.append(f"{lost:.1%} of the resamples exceed the budget at every price")
    if not (np.isfinite(interval.low) and np.isfinite(interval.high)):
        verdict = "do not use"
    elif lost > 0 and verdict == "trust":
        verdict = "caution"
    return verdict, "; ".join([*found, reason])


def _unsupported(curves: PriceCurves, budget: float, policy: str) -> BudgetedValue:
    """The result where nobody in the log acted like the policy at two price levels or more."""
    nan = float("nan")
    return BudgetedValue(
        policy=policy,
        budget=budget,
        binding="beyond the grid",
        value=nan,
        ci_low=-np.inf,
        ci_high=np.inf,
        dual_price=nan,
        dual_price_low=nan,
        dual_price_high=nan,
        level=nan,
        cost=nan,
        cost_low=nan,
        cost_high=nan,
        use=nan,
        ess=float(curves.ess.max()),
        verdict="do not use",
        reason="nobody in the log acted like the policy for a whole campaign at two price levels or more",
    )
