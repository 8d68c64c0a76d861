from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from encoders.checkpoint import load_checkpoint, save_checkpoint


class Payload:
    """Something that only unpickling code could rebuild."""


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"model": {"w": torch.arange(3.0)}, "reports": [{"epoch": 1, "loss": 0.5}]})
    stored = load_checkpoint(path)
    assert stored is not None
    torch.testing.assert_close(stored["model"]["w"], torch.arange(3.0))
    assert stored["reports"] == [{"epoch": 1, "loss": 0.5}]


def test_an_interrupted_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"epoch": 1})

    def half_written(state: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Payload()}, tmp_path / "c.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path / "c.pt")
