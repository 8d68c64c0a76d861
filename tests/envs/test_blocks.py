from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import envs.blocks
from envs.blocks import ALIGNMENT, BLOCK_USERS, blocks, padded, taken

CPU = torch.device("cpu")


def numbers(rows: torch.Tensor | slice) -> list[int]:
    return list(range(rows.start, rows.stop)) if isinstance(rows, slice) else rows.tolist()


@given(st.integers(1, 700), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31))
def test_each_user_is_in_one_block_of_the_member_that_answers_for_him(
    n: int, size: int, n_members: int, seed: int
) -> None:
    member = torch.randint(0, n_members, (n,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.blocks, "BLOCK_USERS", size * ALIGNMENT)
        alone, shared = list(blocks(n, None, CPU)), list(blocks(n, member, CPU))
    # In their order where one member answers for all.
    assert [user for _, rows in alone for user in numbers(rows)] == list(range(n))
    assert sorted(user for _, rows in shared for user in numbers(rows)) == list(range(n))
    for _, rows in alone + shared:
        assert 0 < len(numbers(rows)) <= size * ALIGNMENT
        # What is not copied needs no filling up.
        assert not isinstance(rows, slice) or len(numbers(rows)) % ALIGNMENT == 0
    assert all(k == 0 for k, _ in alone)
    assert all((member[rows] == k).all() for k, rows in shared)


def test_full_blocks_are_a_multiple_of_the_alignment() -> None:
    assert BLOCK_USERS % ALIGNMENT == 0


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=3 * ALIGNMENT))
def test_a_block_is_filled_up_with_its_last_user(rows: list[int]) -> None:
    filled = padded(torch.tensor(rows)).tolist()
    assert filled[: len(rows)] == rows
    assert set(filled[len(rows) :]) <= {rows[-1]}
    assert len(filled) % ALIGNMENT == 0
    assert len(filled) - len(rows) < ALIGNMENT


def test_what_is_taken_is_a_view_of_a_slice_and_a_copy_of_numbered_rows() -> None:
    values = torch.arange(12.0).view(6, 2)
    assert torch.equal(taken(values, torch.tensor([4, 0, 4])), values[[4, 0, 4]])
    assert taken(values, slice(2, 5)).data_ptr() == values[2].data_ptr()
    assert taken(values, torch.tensor([0])).data_ptr() != values.data_ptr()
