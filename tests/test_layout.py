"""The rooms are this repository's own, and nothing in them is named like a dumping ground."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("encoders", "envs", "agents", "experiments")


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_imported_from_this_repository(room: str) -> None:
    module = importlib.import_module(room)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().parent == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()


def test_no_module_is_called_utils_helpers_or_common() -> None:
    stems = {path.stem for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert stems.isdisjoint({"utils", "util", "helpers", "common", "misc"})
