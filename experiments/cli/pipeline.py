"""Commands that make a run, whole or up to a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from experiments.cli import setup
from experiments.cli.errors import clear_errors
from experiments.cli.options import (
    Choices,
    ConfigOption,
    DataOption,
    DeviceOption,
    ForceOption,
    OutOption,
    PresetOption,
    SeedOption,
    SetOption,
    ThreadsOption,
)
from experiments.cli.root import app
from experiments.stages import STAGE_HELP
from experiments.summary import show_results


def _execute(choices: Choices, until: str | None) -> None:
    """Run the pipeline up to a stage and show what came of it."""
    console = setup.make_console()
    with clear_errors(choices.resume_command()):
        request = setup.make_request(choices, until)
        from experiments.own_files import check_own_files
        from experiments.pipeline import run_pipeline
        from experiments.threads import flushed_denormals, keep_freed_memory

        check_own_files(request.config)
        keep_freed_memory()
        request = replace(request, device=setup.choose_device(choices.device, request.threads))
        console.print(
            f"couponlab {choices.command}: {request.out}, preset {request.preset}, data {request.data}, "
            f"seed {request.seed}, {request.device} with {request.threads} threads",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        with flushed_denormals():
            results = run_pipeline(setup.all_stages(), request, console)
        show_results(console, results, request.out)


def _pipeline_command(name: str, until: str | None) -> Callable[..., None]:
    def command(
        preset: PresetOption = None,
        data: DataOption = None,
        out: OutOption = None,
        seed: SeedOption = None,
        force: ForceOption = None,
        config: ConfigOption = None,
        overrides: SetOption = None,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
    ) -> None:
        choices = Choices(
            command=name,
            preset=preset,
            config=tuple(config or ()),
            overrides=tuple(overrides or ()),
            data=data,
            out=out,
            seed=seed,
            device=device,
            threads=threads,
            force=tuple(force or ()),
        )
        _execute(choices, until)

    return command


app.command(
    "run",
    help="Run everything: logs to exported policy and report.\n\n"
    "Stages whose inputs have not changed are skipped, and an interrupted run goes on where it was.",
    short_help="Run everything: logs to exported policy and report.",
)(_pipeline_command("run", until=None))

for _name, _help in STAGE_HELP.items():
    app.command(
        _name,
        help=f"{_help}\n\nRuns what is missing before it, and skips what is unchanged.",
        short_help=_help,
        rich_help_panel="Stages, in order",
    )(_pipeline_command(_name, until=_name))
