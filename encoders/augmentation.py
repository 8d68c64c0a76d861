"""Text augmentation: items dropped at random, so that no single purchase decides what a user is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


def drop_items(
    tokens: IntArray, separators: IntArray, probability: float, rng: np.random.Generator
) -> IntArray:
    """Return a token sequence without some of its items.

    An item is the run of tokens up to and including the separator that ends it. The first item, which opens
    with [CLS], and the last, which ends with [SEP], stay.

    Args:
        tokens: [L] token ids.
        separators: ids of the tokens that end an item.
        probability: of each item being dropped.
        rng: chooses.
    """
    ends = np.flatnonzero(np.isin(tokens, separators))
    item = np.searchsorted(ends, np.arange(len(tokens)), side="left")
    n_items = int(item[-1]) + 1
    kept = rng.random(n_items) >= probability
    kept[[0, -1]] = True
    return tokens[kept[item]]
