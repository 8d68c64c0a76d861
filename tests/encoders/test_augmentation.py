from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from encoders.augmentation import drop_items

CLS, SEP, COMMA, STOP = 2, 3, 4, 5
MARKS = np.array([COMMA, STOP], dtype=np.int32)
TEXT = np.array([CLS, 10, STOP, 11, 12, COMMA, 13, STOP, 14, SEP], dtype=np.int32)
"""Items: [CLS] 10 . | 11 12 , | 13 . | 14 [SEP]"""


def test_without_dropping_nothing_changes() -> None:
    np.testing.assert_array_equal(drop_items(TEXT, MARKS, 0.0, np.random.default_rng(0)), TEXT)


def test_certain_dropping_leaves_the_ends() -> None:
    left = drop_items(TEXT, MARKS, 1.0, np.random.default_rng(0))
    assert left.tolist() == [CLS, 10, STOP, 14, SEP]
    assert left.dtype == np.int32


@pytest.mark.parametrize("text", [[CLS, SEP], [CLS, 10, SEP], [CLS, 10, COMMA, 11, SEP]])
def test_a_text_of_one_or_two_items_stays(text: list[int]) -> None:
    tokens = np.array(text, dtype=np.int32)
    np.testing.assert_array_equal(drop_items(tokens, MARKS, 1.0, np.random.default_rng(0)), tokens)


def test_without_separators_all_is_one_item() -> None:
    none = np.zeros(0, dtype=np.int32)
    np.testing.assert_array_equal(drop_items(TEXT, none, 1.0, np.random.default_rng(0)), TEXT)


def items(tokens: np.ndarray) -> list[tuple[int, ...]]:
    """An independent split: each item ends with its mark, the last one with what is left."""
    out: list[tuple[int, ...]] = [()]
    for token in tokens.tolist():
        out[-1] += (token,)
        if token in (COMMA, STOP):
            out.append(())
    return [item for item in out if item]


@given(
    arrays.arrays(np.int32, st.integers(0, 30), elements=st.integers(COMMA, 12)),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_whole_items_in_their_order(middle: np.ndarray, probability: float, seed: int) -> None:
    tokens = np.concatenate([[CLS], middle, [SEP]]).astype(np.int32)
    left = items(drop_items(tokens, MARKS, probability, np.random.default_rng(seed)))
    whole = items(tokens)
    assert (left[0], left[-1]) == (whole[0], whole[-1])
    remaining = iter(whole)
    assert all(item in remaining for item in left), "a subsequence of the items"


def test_each_item_is_dropped_as_often_as_told() -> None:
    tokens = np.array([CLS, *[9, COMMA] * 1000, 9, SEP], dtype=np.int32)
    left = drop_items(tokens, MARKS, 0.3, np.random.default_rng(1))
    # 999 items inside, standard deviation 14.5.
    assert (len(left) - 5) / 2 == pytest.approx(0.7 * 999, abs=60)
