"""What every estimator returns: sums of per-episode terms, so that intervals can resample episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.ope.logged_dataset import FloatArray


@dataclass(frozen=True, eq=False)
class EpisodeTerms:
    """Per-episode terms of an estimate Σ_j (Σ_e numerator[e, j] / Σ_e denominator[e, j]).

    Both sums are kept apart so that an interval can resample them together: a denominator held fixed
    makes self-normalised intervals wrong.

    Attributes:
        numerator: [E, J] float64; J is 1, or about T for per-position normalisation.
        denominator: [E, J] float64; all ones where the estimator is a plain mean over episodes.
    """

    numerator: FloatArray
    denominator: FloatArray

    def __post_init__(self) -> None:
        if self.numerator.ndim != 2 or self.numerator.shape != self.denominator.shape:
            raise ValueError(
                f"terms need equal [E, J] shapes, not {self.numerator.shape} and {self.denominator.shape}"
            )

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return int(self.numerator.shape[0])

    @property
    def n_columns(self) -> int:
        """Number of ratios J."""
        return int(self.numerator.shape[1])

    def estimate(self) -> float:
        """Return the value per episode; NaN where every weight of a denominator is zero."""
        return float(ratios(self.numerator.sum(axis=0), self.denominator.sum(axis=0)).sum())


def ratios(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return numerator / denominator, element by element; NaN where a denominator is zero."""
    undefined = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator != 0))


def plain_mean(values: FloatArray) -> EpisodeTerms:
    """Return the terms of the mean of ``values`` [E]."""
    return EpisodeTerms(numerator=values[:, None], denominator=np.ones((values.size, 1)))
