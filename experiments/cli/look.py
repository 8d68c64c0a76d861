"""Commands that look at a run and change nothing."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from experiments.cli import setup
from experiments.cli.errors import clear_errors
from experiments.cli.options import (
    Choices,
    ConfigOption,
    JsonOption,
    OutOption,
    PresetOption,
    SetOption,
    check_folder_of,
)
from experiments.cli.root import app
from experiments.config import ConfigError, load_config


@app.command(rich_help_panel="Look")
def stages() -> None:
    """List the stages: what each reads and where it writes."""
    with clear_errors():
        table = Table("stage", "folder", "reads stages", "reads settings", "does")
        for stage in setup.all_stages():
            table.add_row(
                stage.name,
                stage.folder,
                ", ".join(stage.inputs) or "–",
                ", ".join(stage.sections) or "–",
                stage.help,
            )
        setup.make_console().print(table)


@app.command(rich_help_panel="Look")
def status(out: OutOption = None, preset: PresetOption = None) -> None:
    """Show how far a run folder is, and what a run would do next and why."""
    choices = Choices("status", preset, out=out)
    with clear_errors():
        from experiments.manifest import read_manifest

        if read_manifest(choices.folder) is None:
            raise ConfigError(f"{choices.folder} is not a run folder; give --out or --preset")
        # The folder's own record decides, also when a preset was named to find the folder.
        request = setup.make_request(Choices("status", out=choices.folder), None)
        from experiments.pipeline import assess_run

        table = Table("stage", "state", "why", "seconds", "attempts", title=str(choices.folder))
        for name, found in assess_run(setup.all_stages(), request).items():
            seconds = f"{found.record.seconds:.1f}" if found.record else "–"
            attempts = str(found.record.attempts) if found.record else "–"
            table.add_row(name, found.state, found.reason, seconds, attempts)
        setup.make_console().print(table)


@app.command("config", rich_help_panel="Look")
def show_config(
    preset: PresetOption = None, config: ConfigOption = None, overrides: SetOption = None
) -> None:
    """Print the settings as TOML, each with its help; edit a copy and give it to --config."""
    with clear_errors():
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
    with clear_errors():
        check_folder_of(json_file)
        from experiments.fitted_run import FittedRun
        from experiments.manifest import to_json, write_json
        from experiments.profile.build import choose_week, find_user, profile_user
        from experiments.profile.tables import show_profile

        run = FittedRun.load(Choices("profile", out=out).folder)
        found = profile_user(run, find_user(run.panel, user), choose_week(run, week))
        show_profile(setup.make_console(), found)
        if json_file is not None:
            write_json(json_file, to_json(found.to_dict()))


explain_app = typer.Typer(
    help="Explain what was fitted and learned, in numbers and words.", no_args_is_help=True
)
app.add_typer(explain_app, name="explain", rich_help_panel="Look")


@explain_app.command("response")
def explain_response(out: OutOption = None, json_file: JsonOption = None) -> None:
    """Explain the response model: every parameter with its source, and what of a history matters most."""
    with clear_errors():
        check_folder_of(json_file)
        from experiments import explain
        from experiments.fitted_run import FittedRun
        from experiments.manifest import to_json, write_json

        found = explain.explain_response(FittedRun.load(Choices("explain response", out=out).folder))
        explain.show_response(setup.make_console(), found)
        if json_file is not None:
            write_json(json_file, to_json(found.to_dict()))


@explain_app.command("policy")
def explain_policy(out: OutOption = None, json_file: JsonOption = None) -> None:
    """Explain the exported policy: which inputs drive whom it sends something, in numbers and words."""
    with clear_errors():
        check_folder_of(json_file)
        from experiments import explain_policy as explaining
        from experiments.manifest import to_json, write_json

        found = explaining.explain_policy(Choices("explain policy", out=out).folder)
        explaining.show_policy(setup.make_console(), found)
        if json_file is not None:
            write_json(json_file, to_json(found.to_dict()))
