"""The command line. Heavy libraries are imported inside commands, so that ``--help`` stays quick."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from experiments.config import ConfigError, RunConfig, build_config, load_config, override_config
from experiments.stages import STAGE_HELP
from experiments.summary import show_results

if TYPE_CHECKING:
    from experiments.pipeline import RunRequest
    from experiments.stage import Stage

app = typer.Typer(
    name="couponlab",
    help="Shopping logs in; a budgeted, evaluated, deployable coupon policy out.",
    epilog="Start with: couponlab run --preset smoke --data synthetic",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_LAYERS = "Configuration"
_MACHINE = "Machine"

PresetOption = Annotated[
    Literal["smoke", "default", "full"] | None,
    typer.Option(
        help="Settings to start from. Without it, an existing run folder goes on with the settings, data "
        "and seed it recorded, and a new one takes 'default'.",
        rich_help_panel=_LAYERS,
        show_default=False,
    ),
]
ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config", metavar="FILE.toml", help="TOML over the preset; repeatable.", rich_help_panel=_LAYERS
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one setting; repeatable. 'couponlab config' lists them.",
        rich_help_panel=_LAYERS,
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
    typer.Option(help="Where to compute; auto takes a GPU if there is one.", rich_help_panel=_MACHINE),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="OMP_NUM_THREADS",
        help="CPU threads. Default: the cores available.",
        rich_help_panel=_MACHINE,
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
class _Choices:
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


@contextmanager
def _clear_errors(resume: str | None = None) -> Iterator[None]:
    """Turn expected errors into one message and an exit status; anything else keeps its traceback."""
    console = Console(stderr=True)

    def say(message: str) -> None:
        console.print(message, markup=False, highlight=False, soft_wrap=True)

    try:
        yield
    except KeyboardInterrupt:
        say("\nInterrupted." + (f" Finished work is kept. Resume with:\n  {resume}" if resume else ""))
        raise typer.Exit(130) from None
    except Exception as error:
        if (status := _exit_status(error)) is None:
            raise
        say(f"Error: {error}")
        raise typer.Exit(status) from None


def _exit_status(error: Exception) -> int | None:
    """2 for bad input, 1 for work that cannot be done, None for what nobody expected."""
    from agents.serving import BundleError, DecisionInputError
    from envs.log_schema import LogError
    from envs.offers import CatalogueError
    from experiments.stage import StageError

    if isinstance(error, ConfigError | LogError | CatalogueError | BundleError | DecisionInputError):
        return 2
    return 1 if isinstance(error, StageError | FloatingPointError) else None


def _make_request(choices: _Choices, until: str | None) -> RunRequest:
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
    _limit_threads(threads)
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


def _recorded_config(choices: _Choices, recorded: Mapping[str, Any]) -> RunConfig:
    source = choices.folder / "manifest.json"
    try:
        base = build_config([(str(source), recorded["config"])])
    except ConfigError as error:
        raise ConfigError(f"{error}; give --preset to start from a preset instead") from None
    return override_config(base, choices.config, choices.overrides)


def _limit_threads(threads: int) -> None:
    # Numerical libraries read these once, when they are first imported.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    # Threads that wait by spinning bring two processes on one machine to a tenth of their speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _choose_device(wanted: str, threads: int) -> str:
    import torch

    torch.set_num_threads(threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; give --device cpu or auto")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _console() -> Console:
    console = Console()
    # Tables in a log file need not fit the 80 columns that are assumed where there is no terminal.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def _stages() -> Sequence[Stage]:
    stages: Sequence[Stage] = import_module("experiments.stages.registry").STAGES
    return stages


def _execute(choices: _Choices, until: str | None) -> None:
    """Run the pipeline up to a stage and show what came of it."""
    console = _console()
    with _clear_errors(choices.resume_command()):
        request = _make_request(choices, until)
        from dataclasses import replace

        from experiments.pipeline import run_pipeline
        from experiments.threads import keep_freed_memory

        keep_freed_memory()
        request = replace(request, device=_choose_device(choices.device, request.threads))
        console.print(
            f"couponlab {choices.command}: {request.out}, preset {request.preset}, data {request.data}, "
            f"seed {request.seed}, {request.device} with {request.threads} threads",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        results = run_pipeline(_stages(), request, console)
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
        choices = _Choices(
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


@app.command(rich_help_panel="Look")
def stages() -> None:
    """List the stages: what each reads and where it writes."""
    with _clear_errors():
        table = Table("stage", "folder", "reads stages", "reads settings", "does")
        for stage in _stages():
            table.add_row(
                stage.name,
                stage.folder,
                ", ".join(stage.inputs) or "–",
                ", ".join(stage.sections) or "–",
                stage.help,
            )
        _console().print(table)


@app.command(rich_help_panel="Look")
def status(out: OutOption = None, preset: PresetOption = None) -> None:
    """Show how far a run folder is, and what a run would do next and why."""
    choices = _Choices("status", preset, out=out)
    with _clear_errors():
        from experiments.manifest import read_manifest

        if read_manifest(choices.folder) is None:
            raise ConfigError(f"{choices.folder} is not a run folder; give --out or --preset")
        # The folder's own record decides, also when a preset was named to find the folder.
        request = _make_request(_Choices("status", out=choices.folder), None)
        from experiments.pipeline import assess_run

        table = Table("stage", "state", "why", "seconds", "attempts", title=str(choices.folder))
        for name, found in assess_run(_stages(), request).items():
            seconds = f"{found.record.seconds:.1f}" if found.record else "–"
            attempts = str(found.record.attempts) if found.record else "–"
            table.add_row(name, found.state, found.reason, seconds, attempts)
        _console().print(table)


@app.command("config", rich_help_panel="Look")
def show_config(
    preset: PresetOption = None, config: ConfigOption = None, overrides: SetOption = None
) -> None:
    """Print the settings as TOML, each with its help; edit a copy and give it to --config."""
    with _clear_errors():
        typer.echo(load_config(preset or "default", config or (), overrides or ()).to_toml(), nl=False)


@app.command(rich_help_panel="Look")
def profile(
    user: Annotated[str, typer.Argument(metavar="USER", help="Pseudonym, or the beginning of one.")],
    out: OutOption = None,
    week: Annotated[
        int | None,
        typer.Option(
            help="At the start of which week. Default: the last with new embeddings.", show_default=False
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show one user: habits, price sensitivity, best channel, change over time, and who is like him."""
    with _clear_errors():
        _check_folder_of(json_file)
        from experiments.fitted_run import FittedRun
        from experiments.manifest import to_json, write_json
        from experiments.profile.build import choose_week, find_user, profile_user
        from experiments.profile.tables import show_profile

        run = FittedRun.load(_Choices("profile", out=out).folder)
        found = profile_user(run, find_user(run.panel, user), choose_week(run, week))
        show_profile(_console(), found)
        if json_file is not None:
            write_json(json_file, to_json(found.to_dict()))


explain_app = typer.Typer(
    help="Explain what was fitted and learned, in numbers and words.", no_args_is_help=True
)
app.add_typer(explain_app, name="explain", rich_help_panel="Look")


@explain_app.command("response")
def explain_response(out: OutOption = None, json_file: JsonOption = None) -> None:
    """Explain the response model: every parameter with its source, and what of a history matters most."""
    with _clear_errors():
        _check_folder_of(json_file)
        from experiments import explain
        from experiments.fitted_run import FittedRun
        from experiments.manifest import to_json, write_json

        found = explain.explain_response(FittedRun.load(_Choices("explain response", out=out).folder))
        explain.show_response(_console(), found)
        if json_file is not None:
            write_json(json_file, to_json(found.to_dict()))


@explain_app.command("policy")
def explain_policy(out: OutOption = None, json_file: JsonOption = None) -> None:
    """Explain the exported policy: which inputs drive whom it sends something, in numbers and words."""
    with _clear_errors():
        _check_folder_of(json_file)
        from experiments import explain_policy as explaining
        from experiments.manifest import to_json, write_json

        found = explaining.explain_policy(_Choices("explain policy", out=out).folder)
        explaining.show_policy(_console(), found)
        if json_file is not None:
            write_json(json_file, to_json(found.to_dict()))


def _check_folder_of(json_file: Path | None) -> None:
    """Refuse a place that cannot be written to before any work is done."""
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: no such folder")


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
            rich_help_panel=_MACHINE,
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
    choices = _Choices("compare", out=out)
    again = [f"--campaigns {campaigns}", *([f"--workers {workers}"] if workers else [])]
    with _clear_errors(" ".join([choices.resume_command(), *again])):
        _check_folder_of(json_file)
        from experiments.manifest import count_cores, to_json, write_json

        threads = workers or count_cores()
        _limit_threads(threads)
        comparing = import_module("experiments.comparison.compare")
        found = comparing.compare_run(
            choices.folder,
            campaigns=campaigns,
            workers=workers,
            device=_choose_device(device, threads),
            console=_console(),
        )
        show_results(_console(), {"compare": found}, choices.folder)
        if json_file is not None:
            write_json(json_file, to_json(found))


@app.command(rich_help_panel="Use")
def decide(
    users: Annotated[
        Path, typer.Argument(metavar="USERS.parquet", help="user_id and the columns that policy.json names.")
    ],
    policy: Annotated[Path, typer.Option(metavar="DIR", help="An exported policy.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write: .parquet or .jsonl.")],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the draws, to repeat them; by default each call draws anew.")
    ] = None,
    dual_price: Annotated[
        float | None,
        typer.Option(
            help="Margin that a unit of budget must bring; by default the file's or the policy's own."
        ),
    ] = None,
) -> None:
    """Decide who gets which offer, with an exported policy.

    Writes one row per user: offer, offer_name and the propensity with which it was drawn. Keep the
    propensities: they are what a later evaluation needs.
    """
    with _clear_errors():
        if not policy.is_dir():
            raise ConfigError(f"--policy {policy}: no such folder")
        if not users.is_file():
            raise ConfigError(f"{users}: no such file")
        count = import_module("agents.decide").decide_file(
            policy=policy, users=users, out=out, seed=seed, dual_price=dual_price
        )
        typer.echo(f"Decided for {count} users: {out}")


@app.command(rich_help_panel="Use")
def bench(
    name: Annotated[
        str,
        typer.Argument(help="Which benchmark: encoder, labels, market, ppo, realism, robustness or tabular."),
    ],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write JSON, and figures beside it."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder that ppo and realism look at.")] = Path(
        "runs/default"
    ),
) -> None:
    """Measure against a bar to reach: speed on this machine, or how real a run's market looks."""
    with _clear_errors():
        from experiments.benchmarks import BENCHMARKS, Request, make_table
        from experiments.manifest import to_json, write_json

        if name not in BENCHMARKS:
            nearest = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)
            raise ConfigError(
                f"no benchmark {name!r}; did you mean {nearest[0]!r}? (all: {', '.join(sorted(BENCHMARKS))})"
            )
        _check_folder_of(json_file)
        figures = None if json_file is None else json_file.with_name(f"{json_file.stem}-figures")
        rows = BENCHMARKS[name](Request(out, figures))
        _console().print(make_table(name, rows))
        if json_file is not None:
            write_json(json_file, to_json([row.to_dict() for row in rows]))


def main() -> None:
    """Entry point of the ``couponlab`` command."""
    app()


if __name__ == "__main__":
    main()
