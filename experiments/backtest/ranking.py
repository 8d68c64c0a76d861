"""AUC and average precision of many household resamples at once, exactly, ties included.

A resample weights each row by how often its household was drawn. Both measures need, at each distinct
score of a positive row, only three weights: of the positives there, of the negatives there, and of the
negatives since the next higher such score. Positives are rare, so these are few; summed by household they
are sparse, and one sparse product with the multiplicities gives them for all resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

DoubleArray = npt.NDArray[np.float64]

_BLOCK = 64
"""Resamples held at once."""


class HouseholdRanking:
    """Scores of labelled rows, sorted once.

    Args:
        score: [r] the higher, the likelier positive.
        label: [r] bool.
        household: [r] index in [0, n_households).
        n_households: number of households.
    """

    def __init__(
        self,
        score: npt.NDArray[np.floating],
        label: npt.NDArray[np.bool_],
        household: npt.NDArray[np.integer],
        n_households: int,
    ) -> None:
        positive, negative = score[label], score[~label]
        levels = np.unique(positive)  # ascending
        # Row k of each matrix is the k-th highest level; a last row takes the negatives below all levels.
        last = len(levels)
        at = last - 1 - np.searchsorted(levels, positive)
        since = last - np.searchsorted(levels, negative, side="right")
        tied = np.zeros(len(negative), dtype=bool)
        inside = since < last
        tied[inside] = levels[last - 1 - since[inside]] == negative[inside]

        def weights(row: npt.NDArray[np.intp], of: npt.NDArray[np.integer]) -> csr_matrix:
            return csr_matrix((np.ones(len(row)), (row, of)), shape=(last + 1, n_households))

        self._positive = weights(at, household[label])
        self._negative = weights(since, household[~label])
        self._tied = weights(since[tied], household[~label][tied])

    def auc(self, multiplicity: DoubleArray) -> DoubleArray:
        """Return the area under the ROC curve of each resample, [B]; NaN where only one class is drawn.

        The chance that a positive outranks a negative, ties counting half (Hanley & McNeil 1982).

        Args:
            multiplicity: [B, n_households] how often each household was drawn.
        """
        parts = []
        for positive, negative, tied in self._blocks(multiplicity):
            at_least = np.cumsum(negative, axis=0)
            total = at_least[-1]
            won = (positive * (total - at_least + 0.5 * tied)).sum(axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(won / (positive.sum(axis=0) * total))
        return np.concatenate(parts)

    def average_precision(self, multiplicity: DoubleArray) -> DoubleArray:
        """Return Σ (recall step · precision) over thresholds of each resample, [B]; NaN without positives.

        Args:
            multiplicity: [B, n_households] how often each household was drawn.
        """
        parts = []
        for positive, negative, _ in self._blocks(multiplicity):
            found = np.cumsum(positive, axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                precision = np.where(positive > 0, found / (found + np.cumsum(negative, axis=0)), 0.0)
                parts.append((positive * precision).sum(axis=0) / found[-1])
        return np.concatenate(parts)

    def _blocks(self, multiplicity: DoubleArray) -> Iterator[tuple[DoubleArray, DoubleArray, DoubleArray]]:
        for start in range(0, len(multiplicity), _BLOCK):
            drawn = np.ascontiguousarray(multiplicity[start : start + _BLOCK].T)
            yield self._positive @ drawn, self._negative @ drawn, self._tied @ drawn
