"""Log loss, AUC, average precision and calibration error, with paired bootstraps over households.

The rows of a household are not independent, so households are drawn, never rows. All models are scored on
the same rows and the same draws; an interval of a difference is the percentile interval of the differences
(Efron & Tibshirani 1993, §13.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.backtest.ranking import HouseholdRanking

N_BINS = 15
DoubleArray = npt.NDArray[np.float64]
MEASURES = ("log_loss", "auc", "average_precision", "ece")


def household_draws(n_households: int, n_bootstrap: int, rng: np.random.Generator) -> DoubleArray:
    """Return multiplicities, [1 + n_bootstrap, n_households]; the first row is the data as they are."""
    drawn = rng.multinomial(n_households, np.full(n_households, 1.0 / n_households), size=n_bootstrap)
    return np.concatenate([np.ones((1, n_households)), drawn.astype(np.float64)])


@dataclass(frozen=True)
class Scores:
    """One model's measures: on the data, then on each resample.

    Attributes:
        values: measure -> [1 + B].
    """

    values: dict[str, DoubleArray]

    def point(self) -> dict[str, float]:
        """The measures on the data."""
        return {measure: float(values[0]) for measure, values in self.values.items()}

    def interval(self, measure: str) -> tuple[float, float]:
        """95% percentile interval of one measure."""
        return percentile_interval(self.values[measure][1:])


def percentile_interval(resampled: DoubleArray) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantiles of resampled values; NaN if any of them is undefined."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def score_households(probability: DoubleArray, label: npt.NDArray[np.bool_], draws: DoubleArray) -> Scores:
    """Score predicted probabilities on all draws of households.

    Args:
        probability: [W, n] or [W, n, C], weeks by households, strictly between 0 and 1.
        label: the same shape.
        draws: [1 + B, n] of :func:`household_draws`.
    """
    n = draws.shape[1]
    per_household = probability.size // n
    household = np.broadcast_to(
        np.arange(n).reshape(1, n, *[1] * (probability.ndim - 2)), probability.shape
    ).ravel()
    p, y = probability.ravel(), label.ravel()
    rows = draws.sum(axis=1) * per_household
    loss = np.bincount(household, -np.log(np.where(y, p, 1.0 - p)), minlength=n)
    ranking = HouseholdRanking(p, y, household, n)
    # Bins stay those of the data, so that a resample's bins are sums over its households.
    gap = np.zeros((n, N_BINS))
    for k, bin_rows in enumerate(equal_mass_bins(p)):
        gap[:, k] = np.bincount(household[bin_rows], (p - y)[bin_rows], minlength=n)
    return Scores(
        {
            "log_loss": draws @ loss / rows,
            "auc": ranking.auc(draws),
            "average_precision": ranking.average_precision(draws),
            "ece": np.abs(draws @ gap).sum(axis=1) / rows,
        }
    )


def score(probability: DoubleArray, label: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the MEASURES of predicted probabilities [r], without intervals."""
    return score_households(probability[None], label[None], np.ones((1, len(label)))).point()


def equal_mass_bins(probability: DoubleArray, n_bins: int = N_BINS) -> list[npt.NDArray[np.intp]]:
    """Split rows [r] into at most ``n_bins`` bins of equal mass by prediction; each bin's row indices."""
    order = np.argsort(probability, kind="stable")
    return [rows for rows in np.array_split(order, n_bins) if len(rows)]


def reliability_bins(
    probability: DoubleArray, label: npt.NDArray[np.bool_], n_bins: int = N_BINS
) -> list[dict[str, float]]:
    """Return mean prediction, observed rate and rows of each bin of equal mass."""
    return [
        {
            "predicted": float(probability[rows].mean()),
            "observed": float(label[rows].mean()),
            "rows": float(len(rows)),
        }
        for rows in equal_mass_bins(probability, n_bins)
    ]


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean absolute gap between prediction and observation over bins, weighted by rows."""
    rows = sum(b["rows"] for b in bins)
    return float(sum(b["rows"] * abs(b["predicted"] - b["observed"]) for b in bins) / rows)
