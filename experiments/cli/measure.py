"""Commands that measure: policies beside each other, and this machine beside its peers."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from experiments.benchmarks import BENCHMARKS, Request, make_table
from experiments.cli import setup
from experiments.cli.errors import clear_errors
from experiments.cli.options import MACHINE, Choices, DeviceOption, JsonOption, OutOption, check_folder_of
from experiments.cli.root import app
from experiments.config import ConfigError
from experiments.summary import show_results


@app.command(rich_help_panel="Use")
def compare(
    out: OutOption = None,
    campaigns: Annotated[
        int, typer.Option(min=1, help="Campaigns that each policy plays at each budget.")
    ] = 20,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that play, each on one thread; the results do not depend on them. Default: the "
            "cores available, at most 8.",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
) -> None:
    """Compare a trained run's policy at length: more campaigns, traditional strategies, learners, bandits.

    Keeps the tables in the run folder and draws its report anew. An interrupted comparison goes on where it
    was.
    """
    choices = Choices("compare", out=out)
    again = [f"--campaigns {campaigns}", *([f"--workers {workers}"] if workers else [])]
    with clear_errors(" ".join([choices.resume_command(), *again])):
        check_folder_of(json_file)
        from experiments.manifest import count_cores, to_json, write_json

        threads = workers or count_cores()
        setup.limit_threads(threads)
        comparing = import_module("experiments.comparison.compare")
        found = comparing.compare_run(
            choices.folder,
            campaigns=campaigns,
            workers=workers,
            device=setup.choose_device(device, threads),
            console=setup.make_console(),
        )
        show_results(setup.make_console(), {"compare": found}, choices.folder)
        if json_file is not None:
            write_json(json_file, to_json(found))


@app.command(rich_help_panel="Use")
def bench(
    name: Annotated[
        str,
        typer.Argument(help=f"Which benchmark: {', '.join(BENCHMARKS)}."),
    ],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write JSON, and figures beside it."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder, for those that look at one.")] = Path(
        "runs/default"
    ),
) -> None:
    """Measure against a bar to reach: speed on this machine, or how real a run's market looks."""
    with clear_errors():
        from experiments.manifest import count_cores, to_json, write_json

        if name not in BENCHMARKS:
            nearest = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)
            raise ConfigError(
                f"no benchmark {name!r}; did you mean {nearest[0]!r}? (all: {', '.join(sorted(BENCHMARKS))})"
            )
        check_folder_of(json_file)
        # As a run has them.
        setup.limit_threads(count_cores())
        figures = None if json_file is None else json_file.with_name(f"{json_file.stem}-figures")
        rows = BENCHMARKS[name](Request(out, figures))
        setup.make_console().print(make_table(name, rows))
        if json_file is not None:
            write_json(json_file, to_json([row.to_dict() for row in rows]))
