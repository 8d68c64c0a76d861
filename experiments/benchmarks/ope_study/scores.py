"""What the estimates of a study are worth: coverage, errors, flags and choices, each with its uncertainty.

Estimates of one log share its luck, so logs are what varies independently: intervals are over logs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.benchmarks.ope_study.estimates import VERDICTS, StudyEstimates
from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.intervals import delta_interval
from experiments.ope.logged_dataset import BoolArray, FloatArray
from experiments.ope.selection import (
    kendall_tau,
    pair_accuracy,
    regret_at_k,
    safety_errors,
    sharpe_ratio_at_k,
)

OFF = 0.30
"""Relative error from which on an estimate misleads."""
CLOSE = 0.05
"""Relative error up to which an estimate is good."""
APART = 0.02
"""Difference of two policies, as a share of the best one's value, from which on their order matters."""
IN_PLACE = "in place"
"""Name of the policy that a choice is held against."""


@dataclass(frozen=True)
class Score:
    """A mean over a study and its 95% interval; NaN where nothing was to be averaged.

    Attributes:
        value: the mean.
        low: lower end.
        high: upper end.
        n: how many were averaged.
    """

    value: float
    low: float
    high: float
    n: int


def covers(found: StudyEstimates) -> BoolArray:
    """Return whether each interval contains the truth, [L, P, M]."""
    truth = found.truth[:, :, None]
    return np.asarray((found.low <= truth) & (truth <= found.high))


def overstates(found: StudyEstimates) -> BoolArray:
    """Return whether the truth lies below each interval, [L, P, M]: what loses money."""
    return np.asarray(found.truth[:, :, None] < found.low)


def relative_error(found: StudyEstimates) -> FloatArray:
    """Return |value - truth| / |truth|, [L, P, M]; inf where there is no value."""
    truth = found.truth[:, :, None]
    error = np.abs(found.value - truth) / np.abs(truth)
    return np.asarray(np.where(np.isfinite(error), error, np.inf))


def error_of_spread(found: StudyEstimates) -> FloatArray:
    """Return |value - truth| over the distance of the best policy from the worst, [L, P, M].

    Most of a policy's value is there without any offer, so an error that is small beside it may be large
    beside what policies differ by.
    """
    spread = np.ptp(found.truth, axis=1)[:, None, None]
    error = np.abs(found.value - found.truth[:, :, None]) / spread
    return np.asarray(np.where(np.isfinite(error), error, np.inf))


def has_verdict(found: StudyEstimates, *verdicts: str) -> BoolArray:
    """Return whether each estimate got one of some verdicts, [L, P, M]."""
    return np.isin(found.verdict, [VERDICTS.index(verdict) for verdict in verdicts])


def mean_where(values: npt.NDArray[np.generic], where: BoolArray) -> Score:
    """Return the mean of ``values`` [L, …] over the entries of ``where``, with its interval over logs."""
    if not where.any():
        return Score(np.nan, np.nan, np.nan, 0)
    chosen = np.where(where, values.astype(np.float64), 0.0)
    within = tuple(range(1, chosen.ndim))
    terms = EpisodeTerms(chosen.sum(axis=within)[:, None], where.sum(axis=within)[:, None].astype(np.float64))
    interval = delta_interval(terms, np.arange(values.shape[0]))
    return Score(terms.estimate(), interval.low, interval.high, int(where.sum()))


def caught(found: StudyEstimates) -> Score:
    """Return the share of the estimates off by more than OFF that are flagged ``do not use``."""
    return mean_where(has_verdict(found, "do not use"), relative_error(found) > OFF)


def flagged_in_vain(found: StudyEstimates) -> Score:
    """Return the share of the estimates off by at most CLOSE that are flagged ``do not use``."""
    return mean_where(has_verdict(found, "do not use"), relative_error(found) <= CLOSE)


def by_log(
    found: StudyEstimates, estimator: int, measure: Callable[[FloatArray, FloatArray], float]
) -> Score:
    """Return the mean over logs of a measure of one estimator's values [P] and the truth [P].

    Logs for which the measure is not defined are left out; a policy without a value counts as the worst.
    """
    values = found.value[:, :, estimator]
    filled = np.where(np.isfinite(values), values, np.nanmin(values, axis=1, keepdims=True))
    measured = np.array([measure(*pair) for pair in zip(filled, found.truth, strict=True)])
    return mean_where(measured, np.isfinite(measured))


def rank_correlation(found: StudyEstimates, estimator: int) -> Score:
    """Return the mean Kendall τ of one estimator."""
    return by_log(found, estimator, kendall_tau)


def order_of_unequal(found: StudyEstimates, estimator: int) -> Score:
    """Return the mean share of pairs in the right order, of those that differ by over APART of the best."""
    return by_log(
        found, estimator, lambda value, truth: pair_accuracy(value, truth, APART * float(np.abs(truth).max()))
    )


def relative_regret(found: StudyEstimates, estimator: int, k: int = 1) -> Score:
    """Return the mean regret@k as a share of the best policy's value."""
    return by_log(found, estimator, lambda value, truth: regret_at_k(value, truth, k) / truth.max())


def lost_gain(found: StudyEstimates, estimator: int, k: int = 1) -> Score:
    """Return the mean regret@k as a share of what the best policy gains over the one in place."""
    place = found.policies.index(IN_PLACE)
    return by_log(
        found,
        estimator,
        lambda value, truth: regret_at_k(value, truth, k) / (truth.max() - truth[place]),
    )


def sharpe_ratio(found: StudyEstimates, estimator: int, k: int = 3) -> Score:
    """Return the mean SharpeRatio@k over the policy in place."""
    place = found.policies.index(IN_PLACE)
    return by_log(
        found, estimator, lambda value, truth: sharpe_ratio_at_k(value, truth, k, baseline=truth[place])
    )


def safety(found: StudyEstimates, estimator: int) -> tuple[Score, Score]:
    """Return mean type I and type II errors of letting policies through by their interval's lower end.

    The threshold is the true value of the policy in place, which a shop knows well.
    """
    place = found.policies.index(IN_PLACE)
    lower = np.nan_to_num(found.low[:, :, estimator], nan=np.finfo(np.float64).min)
    errors = [
        safety_errors(np.delete(low, place), np.delete(truth, place), truth[place])
        for low, truth in zip(lower, found.truth, strict=True)
    ]
    pair = np.array([[error.type_i, error.type_ii] for error in errors])
    first, second = (mean_where(column, np.isfinite(column)) for column in pair.T)
    return first, second
