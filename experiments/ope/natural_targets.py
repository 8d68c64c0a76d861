"""Policies that anyone might ask a log about; they stand in for those that are not thought of yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.ope.log_checks import BoolArray, FloatArray
from experiments.ope.logged_dataset import LoggedDataset


@dataclass(frozen=True, eq=False)
class NaturalTarget:
    """A target policy at the rows of a log.

    Attributes:
        name: in words.
        probabilities: [N, K], 0 outside the mask.
        not_allowed: share of rows where the one offer that it is about was masked out, so that it sends
            another; 0 where it is not about one offer.
    """

    name: str
    probabilities: FloatArray
    not_allowed: float


def natural_targets(
    dataset: LoggedDataset, names: Sequence[str], no_offer: int | None
) -> Iterator[NaturalTarget]:
    """Yield: send nothing, send at random, send what the log prefers, and send each offer to all.

    One after the other: all at once they would need the memory of a large log many times over.

    Where the offer of a target is masked out it sends nothing, or if that is not known or not allowed, any
    allowed offer with equal probability. What the logged policy prefers is known only where its whole
    distribution is.

    Args:
        dataset: N logged steps over K offers.
        names: [K] of the offers.
        no_offer: the offer that means that nothing was sent, None if there is none.
    """
    uniform = dataset.mask / dataset.mask.sum(axis=1, keepdims=True)
    fallback = uniform if no_offer is None else _always(dataset.mask, no_offer, uniform)
    if no_offer is not None:
        yield NaturalTarget("no offer", fallback, _not_allowed(dataset.mask, no_offer))
    yield NaturalTarget("at random", uniform, 0.0)
    if dataset.behaviour_probabilities is not None:
        best = dataset.behaviour_probabilities.argmax(axis=1)
        yield NaturalTarget("what the log prefers", np.eye(dataset.n_offers)[best], 0.0)
    for offer, name in enumerate(names):
        if offer != no_offer:
            probabilities = _always(dataset.mask, offer, fallback)
            yield NaturalTarget(f"always {name}", probabilities, _not_allowed(dataset.mask, offer))


def _always(mask: BoolArray, offer: int, fallback: FloatArray) -> FloatArray:
    probabilities = fallback.copy()
    probabilities[mask[:, offer]] = np.eye(mask.shape[1])[offer]
    return probabilities


def _not_allowed(mask: BoolArray, offer: int) -> float:
    return float((~mask[:, offer]).mean())
