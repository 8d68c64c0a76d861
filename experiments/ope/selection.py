"""How good is an offline estimate for choosing among policies?

An estimate may be off by the same amount for all policies and still pick the right one, or be close on
average and pick a bad one. These measures compare m estimated values [m] with the true ones [m] of the same
policies; a higher value is better. They need the truth, so they judge estimators on a simulator, not policies
on a log.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from experiments.ope.logged_dataset import FloatArray


@dataclass(frozen=True)
class SafetyErrors:
    """Errors of the decision "this policy earns at least the threshold"; NaN where none can be made.

    The null hypothesis is that a policy is not safe, as before a roll-out.

    Attributes:
        type_i: share of the unsafe policies that are let through.
        type_ii: share of the safe policies that are held back.
    """

    type_i: float
    type_ii: float


def kendall_tau(estimate: FloatArray, truth: FloatArray) -> float:
    """Return Kendall's τ-b of the two orders, in [-1, 1]; NaN if one of them is constant.

    Kendall (1945), Biometrika 33(3); ties are taken into account.
    """
    _check(estimate, truth)
    return float(stats.kendalltau(estimate, truth).statistic)


def spearman_rho(estimate: FloatArray, truth: FloatArray) -> float:
    """Return Spearman's rank correlation in [-1, 1], ties at mean rank; NaN if one order is constant.

    Spearman (1904), American Journal of Psychology 15(1).
    """
    _check(estimate, truth)
    if np.ptp(estimate) == 0 or np.ptp(truth) == 0:
        return float("nan")
    ranks = np.stack([stats.rankdata(estimate), stats.rankdata(truth)])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def pair_accuracy(estimate: FloatArray, truth: FloatArray, gap: float) -> float:
    """Return the share of pairs put in the right order, of those whose true values differ by more than a gap.

    Rank correlation counts a pair that hardly differs like one that matters; this does not. Equal estimates
    of an unequal pair count half. NaN where no pair differs by so much.

    Args:
        estimate: [m] estimated values.
        truth: [m] true values.
        gap: difference of true values, >= 0, in their unit.
    """
    _check(estimate, truth)
    first, second = np.triu_indices(truth.size, k=1)
    difference = truth[first] - truth[second]
    apart = np.abs(difference) > gap
    agreement = np.sign(difference) * np.sign(estimate[first] - estimate[second])
    return float((1 + agreement[apart]).mean() / 2) if apart.any() else float("nan")


def regret_at_k(estimate: FloatArray, truth: FloatArray, k: int) -> float:
    """Return what is lost if the k best by estimate are tried and the truly best of them is kept, >= 0.

    max_i truth_i − max over the top k of truth, in the unit of the values; equal estimates go by their order.
    Paine et al. (2020), arXiv:2007.09055, regret@k.
    """
    return float(truth.max() - truth[top_k(estimate, truth, k)].max())


def sharpe_ratio_at_k(estimate: FloatArray, truth: FloatArray, k: int, baseline: float) -> float:
    """Return SharpeRatio@k: what trying the k best by estimate gains over the baseline, per unit of risk.

        (max over the top k of truth − baseline) / standard deviation of truth over the top k

    The standard deviation is what trying them puts at stake; one policy alone has none. Kiyohara et al.
    (2024), ICLR, "Towards assessing and benchmarking risk-return tradeoff of off-policy evaluation".

    Args:
        estimate: [m] estimated values.
        truth: [m] true values.
        k: policies tried, 2 <= k <= m.
        baseline: value of the policy in place; in the paper that of the behaviour policy.

    Returns:
        The ratio; ±inf, or NaN if the gain is 0 too, where the top k are truly equal.

    Raises:
        ValueError: k is below 2 or above m, or the shapes differ.
    """
    if k < 2:
        raise ValueError(f"SharpeRatio@k needs k >= 2, not {k}: one policy alone has no spread")
    tried = truth[top_k(estimate, truth, k)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((tried.max() - baseline) / tried.std())


def safety_errors(claimed: FloatArray, truth: FloatArray, threshold: float) -> SafetyErrors:
    """Return the errors of rolling out all policies whose claimed value reaches the threshold.

    Args:
        claimed: [m] what the decision looks at: the estimates, or lower ends of their intervals.
        truth: [m] true values.
        threshold: least acceptable value, such as that of the policy in place.
    """
    _check(claimed, truth)
    safe, passed = truth >= threshold, claimed >= threshold
    return SafetyErrors(type_i=_share(passed[~safe]), type_ii=_share(~passed[safe]))


def top_k(estimate: FloatArray, truth: FloatArray, k: int) -> npt.NDArray[np.intp]:
    """Return the indices of the k largest estimates, best first; equal ones in their order.

    Raises:
        ValueError: k is not in 1..m, the shapes differ, or a value is not finite.
    """
    _check(estimate, truth)
    if not 1 <= k <= estimate.size:
        raise ValueError(f"k must lie in 1..{estimate.size}, the number of policies, not {k}")
    return np.argsort(-estimate, kind="stable")[:k]


def _check(estimate: FloatArray, truth: FloatArray) -> None:
    if estimate.ndim != 1 or estimate.shape != truth.shape or estimate.size == 0:
        raise ValueError(
            f"estimates and truths need one equal shape (m,), not {estimate.shape} and {truth.shape}"
        )
    for name, values in (("estimate", estimate), ("truth", truth)):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{name} {row} is {values[row]}; drop policies without a value first")


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if flags.size else float("nan")
