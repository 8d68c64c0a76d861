from __future__ import annotations

import copy
import pickle

import torch

from encoders.scratch import Scratch


def test_an_array_is_used_again() -> None:
    scratch = Scratch()
    first = scratch("logit", 4, 3)
    assert first.shape == (4, 3)
    assert first.dtype == torch.float32
    first.fill_(1.0)
    # A smaller one lies in the same memory, in one piece.
    smaller = scratch("logit", 2, 5)
    assert smaller.shape == (2, 5)
    assert smaller.is_contiguous()
    assert smaller.data_ptr() == first.data_ptr()
    larger = scratch("logit", 5, 5)
    assert larger.shape == (5, 5)
    assert larger.data_ptr() != first.data_ptr()
    assert scratch("logit", 4, 3).data_ptr() == larger.data_ptr()
    # What was handed out before stays what it was.
    assert (first == 1.0).all()


def test_names_and_types_do_not_share_memory() -> None:
    scratch = Scratch()
    arrays = [
        scratch("a", 2, 2),
        scratch("b", 2, 2),
        scratch("a", 2, 2, torch.uint8),
        scratch("a", 2, 2, torch.int32),
    ]
    for k, array in enumerate(arrays):
        array.fill_(k)
    assert [int(array.sum()) for array in arrays] == [0, 4, 8, 12]
    assert [array.dtype for array in arrays] == [torch.float32, torch.float32, torch.uint8, torch.int32]


def test_an_array_of_nothing() -> None:
    assert Scratch()("a", 0, 3).shape == (0, 3)
    assert Scratch()("a", 3, 0).shape == (3, 0)


def test_an_array_first_asked_for_in_inference_mode_can_be_written_after() -> None:
    scratch = Scratch()
    with torch.inference_mode():
        scratch("a", 2, 2).fill_(1.0)
    assert int(scratch("a", 2, 2).add_(1.0).sum()) == 8


def test_copies_and_pickles_start_empty() -> None:
    scratch = Scratch()
    ours = scratch("a", 2, 2).fill_(7.0)
    for other in (copy.deepcopy(scratch), pickle.loads(pickle.dumps(scratch))):
        theirs = other("a", 2, 2).fill_(0.0)
        assert theirs.data_ptr() != ours.data_ptr()
    assert (ours == 7.0).all()
    # Nothing of the arrays is written.
    scratch("a", 1000, 1000)
    assert len(pickle.dumps(scratch)) < 1000
    # Two holders of one scratch still share one after being copied together.
    one, two = copy.deepcopy([scratch, scratch])
    assert one is two
