"""Population stability index of many columns at once, with p-values that allow for their number.

    PSI = Σ_b (a_b - e_b) · ln(a_b / e_b)

over the bins b of a column, with shares e of the reference and a of the new rows: the symmetrised
Kullback-Leibler divergence of the binned distributions (Siddiqi 2006, Credit Risk Scorecards, ch. 9). Even
without any drift it is positive, about (B - 1)(1/n + 1/m) for B bins and independent rows (Yurdakul 2018),
and more for rows that belong to few users, so that a rule of thumb on PSI alone alarms on small logs. Users
are therefore permuted between the two sides, and each column is compared with the *largest* PSI over columns
(Westfall & Young 1993, single step): with no drift at all, the chance that any column is significant at level
α is about α, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

FloatArray = npt.NDArray[np.float64]

BINS = 10
"""Bins of equal share in the reference, as is usual for PSI; a column of so few values has one for each."""

PSEUDO_COUNT = 0.5
"""Added to each bin's count, so that a bin which one side lacks does not make PSI infinite (Jeffreys)."""

_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of one side of a comparison.

    Attributes:
        values: [N, k] columns.
        user: [N] whose rows they are. Users, not rows, are independent of one another.
    """

    values: npt.NDArray[np.floating]
    user: npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.user.shape != self.values.shape[:1]:
            raise ValueError(f"values {self.values.shape} and users {self.user.shape} do not go together")
        if not len(self.user):
            raise ValueError("a sample without rows can be compared with nothing")


@dataclass(frozen=True)
class ColumnStability:
    """One column.

    Attributes:
        column: name.
        psi: population stability index.
        p_value: share of permutations in which any column's PSI is as large.
        reference_mean: mean over the reference rows.
        mean: mean over the new rows.
    """

    column: str
    psi: float
    p_value: float
    reference_mean: float
    mean: float


def bin_edges(reference: npt.NDArray[np.floating], bins: int = BINS) -> FloatArray:
    """Return the inner edges of a column's bins, ascending; a value on an edge belongs to the bin above.

    Midpoints between the values where there are at most ``bins`` different ones, else quantiles of the
    reference, those that coincide taken once.
    """
    values = np.unique(reference.astype(np.float64))
    if len(values) <= bins:
        return (values[:-1] + values[1:]) / 2.0
    inner = np.quantile(reference.astype(np.float64), np.arange(1, bins) / bins)
    # Nothing lies below the smallest value: an edge there would make an empty bin.
    return np.unique(inner[inner > values[0]])


def population_stability(reference: FloatArray, new: FloatArray) -> FloatArray:
    """Return the PSI of binned counts.

    Args:
        reference: [..., B] counts of the reference.
        new: [..., B] counts of the new rows.
    """
    shares = []
    for counts in (reference, new):
        padded = counts + PSEUDO_COUNT
        shares.append(padded / padded.sum(axis=-1, keepdims=True))
    expected, actual = shares
    return np.asarray(((actual - expected) * np.log(actual / expected)).sum(axis=-1))


def compare_columns(
    names: tuple[str, ...],
    reference: Sample,
    new: Sample,
    *,
    rng: np.random.Generator,
    n_permutations: int = 400,
) -> list[ColumnStability]:
    """Compare the columns of two samples, largest PSI first.

    Args:
        names: [k] of the columns.
        reference: gives the bins.
        new: what is compared with it.
        rng: of the permutations of users.
        n_permutations: how many; the smallest p-value is 1 / (1 + n_permutations).
    """
    edges = [bin_edges(reference.values[:, k]) for k in range(len(names))]
    starts = np.cumsum([0, *(len(inner) + 1 for inner in edges)])
    units, is_new = _units(reference.user, new.user)
    rows = np.concatenate([reference.values, new.values])
    placed = np.stack(
        [np.searchsorted(inner, rows[:, k], side="right") + starts[k] for k, inner in enumerate(edges)],
        axis=1,
    )
    n_units = len(is_new)
    # Counts by user: a permutation of users is then one product.
    counts = csr_matrix(
        (np.ones(placed.size), (np.repeat(units, len(names)), placed.ravel())), shape=(n_units, starts[-1])
    ).toarray()
    total = counts.sum(axis=0)

    def psi_of(sides: npt.NDArray[np.bool_]) -> FloatArray:
        """PSI [p, k] with the users of each row of ``sides`` [p, users] on the new side."""
        actual = sides.astype(np.float64) @ counts
        return np.stack(
            [
                population_stability((total - actual)[:, a:b], actual[:, a:b])
                for a, b in pairwise(starts.tolist())
            ],
            axis=1,
        )

    observed = psi_of(is_new[None])[0]
    largest = []
    for start in range(0, n_permutations, _BLOCK):
        size = min(_BLOCK, n_permutations - start)
        largest.append(psi_of(rng.permuted(np.tile(is_new, (size, 1)), axis=1)).max(axis=1))
    as_large = (np.concatenate(largest)[:, None] >= observed[None] - 1e-12).sum(axis=0)
    p_values = (1 + as_large) / (1 + n_permutations)
    order = np.argsort(-observed, kind="stable")
    return [
        ColumnStability(
            names[k],
            float(observed[k]),
            float(p_values[k]),
            float(reference.values[:, k].mean()),
            float(new.values[:, k].mean()),
        )
        for k in order
    ]


def _units(
    reference_user: npt.NDArray[np.integer], new_user: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Number the users of both sides apart: [N + M] the unit of each row, and [units] whether it is new.

    A user who is in both logs counts as two units.
    """
    known, reference = np.unique(reference_user, return_inverse=True)
    arrived, new = np.unique(new_user, return_inverse=True)
    units = np.concatenate([reference, new + len(known)]).astype(np.int64)
    return units, np.arange(len(known) + len(arrived)) >= len(known)
