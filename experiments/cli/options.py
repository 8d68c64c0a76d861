"""Options that several commands share, and what was chosen of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.config import ConfigError

LAYERS = "Configuration"
MACHINE = "Machine"

PresetOption = Annotated[
    Literal["smoke", "default", "full"] | None,
    typer.Option(
        help="Settings to start from. Without it, an existing run folder goes on with the settings, data "
        "and seed it recorded, and a new one takes 'default'.",
        rich_help_panel=LAYERS,
        show_default=False,
    ),
]
ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config", metavar="FILE.toml", help="TOML over the preset; repeatable.", rich_help_panel=LAYERS
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one setting; repeatable. 'couponlab config' lists them.",
        rich_help_panel=LAYERS,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="complete-journey|synthetic|DIR",
        help="The logs: real data from a package (the default), a generated market with known truth, or a "
        "folder of your own tables.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Run folder. Default: runs/PRESET.", show_default=False),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of everything random. Default: 0.", show_default=False),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where to compute; auto takes a GPU if there is one.", rich_help_panel=MACHINE),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="OMP_NUM_THREADS",
        help="CPU threads. Default: the cores available.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the same as JSON.")
]
ForceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STAGE",
        help="Redo this stage from scratch; later ones follow if its outputs change. Repeatable.",
    ),
]


@dataclass(frozen=True)
class Choices:
    """The options that pipeline commands share, as given."""

    command: str
    preset: str | None = None
    config: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    data: str | None = None
    out: Path | None = None
    seed: int | None = None
    device: str = "auto"
    threads: int | None = None
    force: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / (self.preset or "default")

    def resume_command(self) -> str:
        """The command that goes on after an interruption: the same, but it forces nothing anew."""
        words = ["couponlab", self.command]
        single = {"preset": self.preset, "data": self.data, "out": self.out, "seed": self.seed}
        for name, value in {**single, "threads": self.threads}.items():
            words += [f"--{name}", str(value)] if value is not None else []
        for name, values in {"config": self.config, "set": self.overrides}.items():
            for one in values:
                words += [f"--{name}", str(one)]
        if self.device != "auto":
            words += ["--device", self.device]
        return shlex.join(words)


def check_folder_of(json_file: Path | None) -> None:
    """Refuse a place that cannot be written to before any work is done."""
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: no such folder")
