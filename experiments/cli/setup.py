"""What a command needs before it works: the request, threads, device, console."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.cli.options import Choices
from experiments.config import ConfigError, RunConfig, build_config, load_config, override_config

if TYPE_CHECKING:
    from experiments.pipeline import RunRequest
    from experiments.stage import Stage


def make_request(choices: Choices, until: str | None) -> RunRequest:
    """Fill in what was not given: from the run folder's record unless a preset was named."""
    from experiments import manifest

    recorded = None if choices.preset else manifest.read_manifest(choices.folder)
    if recorded is not None:
        config, preset = _recorded_config(choices, recorded), recorded.get("preset")
        data, seed = recorded["data"]["source"], recorded["seed"]
    else:
        preset = choices.preset or "default"
        config = load_config(preset, choices.config, choices.overrides)
        data, seed = "complete-journey", 0
    data = choices.data or data
    if Path(data).is_dir():
        data = str(Path(data).resolve())
    threads = choices.threads or manifest.count_cores()
    limit_threads(threads)
    from experiments.pipeline import RunRequest

    return RunRequest(
        config=config,
        out=choices.folder,
        data=data,
        seed=seed if choices.seed is None else choices.seed,
        device="cpu",
        threads=threads,
        preset=preset,
        until=until,
        force=choices.force,
    )


def _recorded_config(choices: Choices, recorded: Mapping[str, Any]) -> RunConfig:
    source = choices.folder / "manifest.json"
    try:
        base = build_config([(str(source), recorded["config"])])
    except ConfigError as error:
        raise ConfigError(f"{error}; give --preset to start from a preset instead") from None
    return override_config(base, choices.config, choices.overrides)


SPIN_COUNT = 10_000
"""Of GNU OpenMP, a fraction of a millisecond; by default it spins thirty times as long."""


def limit_threads(threads: int) -> None:
    """Tell numerical libraries how many threads to use; before they are imported."""
    # Numerical libraries read these once, when they are first imported.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    # How long a thread spins before it sleeps: long enough for the next of many small operations (sleeping at
    # once halves the speed of a process that has its cores to itself), and not so long that two processes on
    # one machine wait for each other's spinning.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def choose_device(wanted: str, threads: int) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    import torch

    torch.set_num_threads(threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; give --device cpu or auto")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def make_console() -> Console:
    """Return the console to print to."""
    console = Console()
    # Tables in a log file need not fit the 80 columns that are assumed where there is no terminal.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def all_stages() -> Sequence[Stage]:
    """Return all stages, in order."""
    stages: Sequence[Stage] = import_module("experiments.stages.registry").STAGES
    return stages
