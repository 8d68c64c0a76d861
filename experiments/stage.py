"""What a stage is, and what it may use while it runs: the contract between stages and the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import manifest
from experiments.config import SECTIONS, RunConfig, section_to_dict
from experiments.manifest import CHECKPOINT_FOLDER
from experiments.progress import Bar, Reporter
from experiments.seeding import seed_generator, seed_integer

RESULTS_FILE = "results.json"


class StageError(RuntimeError):
    """A stage cannot do its work; the message is for the user, without a traceback."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: as in commands and in ``manifest.json``.
        folder: its output folder, within the run folder.
        sections: the sections of the configuration that it reads; others are closed to it.
        inputs: names of earlier stages whose folders it reads.
        run: does the work and returns the stage's part of ``results.json``. It may keep checkpoints
            in ``folder / "checkpoint"``; these survive interruptions and go when it completes.
        help: one line for the user.
    """

    name: str
    folder: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Callable[[StageContext], dict[str, Any]]
    help: str


@dataclass(frozen=True)
class StageContext:
    """What a stage may use. Reading what it has not declared is an error, not a stale result.

    Attributes:
        stage: the stage's name.
        config: the configuration; only the stage's sections can be read.
        seed: the run's seed; prefer `rng` and `seed_for`.
        folder: the stage's output folder, which exists.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads to use, for libraries that must be told.
        data: ``complete-journey``, ``synthetic`` or a folder of log tables.
        resuming: an earlier attempt may have left checkpoints.
    """

    stage: str
    config: RunConfig
    seed: int
    folder: Path
    device: str
    threads: int
    data: str
    resuming: bool
    _inputs: Mapping[str, Path]
    _reporter: Reporter

    def rng(self, name: str) -> np.random.Generator:
        """A NumPy generator on this stage's stream ``name``; each call starts the stream anew."""
        return seed_generator(self.seed, f"{self.stage}/{name}")

    def seed_for(self, name: str) -> int:
        """A seed in [0, 2^31) from this stage's stream ``name``, for torch, LightGBM and the like."""
        return seed_integer(self.seed, f"{self.stage}/{name}")

    def input(self, name: str) -> Path:
        """The output folder of a declared input."""
        if name not in self._inputs:
            raise StageError(f"stage {self.stage} reads stage {name!r} without declaring it as an input")
        return self._inputs[name]

    def results(self) -> dict[str, Any]:
        """The merged results of the declared inputs, without timing."""
        return merge_results(
            {name: manifest.read_json(path / RESULTS_FILE) for name, path in self._inputs.items()}
        )

    @property
    def checkpoint(self) -> Path:
        """The checkpoint folder, created if absent. Write into it atomically (see `manifest.write_text`)."""
        path = self.folder / CHECKPOINT_FOLDER
        path.mkdir(exist_ok=True)
        return path

    def progress(
        self, description: str, total: int | None = None, *, completed: int = 0
    ) -> AbstractContextManager[Bar]:
        """Open a progress bar: ``with ctx.progress("pretraining", total=100) as bar: bar.advance(loss=…)``.

        Args:
            description: what is going on.
            total: steps in all, if known.
            completed: steps that an earlier attempt has done.
        """
        return self._reporter.progress(description, total, stage=self.stage, completed=completed)

    def log(self, message: str) -> None:
        """Show one line and record it in ``events.jsonl``."""
        self._reporter.log(message, stage=self.stage)


class DeclaredConfig(RunConfig):
    """A view of a configuration that refuses sections which a stage has not declared."""

    def __init__(self, config: RunConfig, stage: Stage) -> None:
        object.__setattr__(self, "_stage", stage)
        for name in stage.sections:
            object.__setattr__(self, name, getattr(config, name))

    def __getattribute__(self, name: str) -> Any:
        if name in SECTIONS:
            stage = object.__getattribute__(self, "_stage")
            if name not in stage.sections:
                raise StageError(f"stage {stage.name} reads the settings [{name}] without declaring them")
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        return f"RunConfig({', '.join(repr(getattr(self, name)) for name in self._stage.sections)})"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The declared sections as plain tables."""
        return {name: section_to_dict(getattr(self, name)) for name in self._stage.sections}


def merge_results(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge stages' results: tables are merged key by key, and no two stages may give the same value.

    Raises:
        StageError: naming the key that is given twice.
    """
    merged: dict[str, Any] = {}

    def add(into: dict[str, Any], part: Mapping[str, Any], stage: str, path: str) -> None:
        for key, value in part.items():
            if key not in into:
                into[key] = dict(value) if isinstance(value, dict) else value
            elif isinstance(value, dict) and isinstance(into[key], dict):
                add(into[key], value, stage, f"{path}{key}.")
            else:
                raise StageError(f"stage {stage} gives the result {path}{key}, which an earlier stage gave")

    for stage, part in parts.items():
        add(merged, part, stage, "")
    return merged
