"""Commands for a policy in use: decide, monitor, doctor."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import setup
from experiments.cli.errors import clear_errors
from experiments.cli.options import JsonOption, check_folder_of
from experiments.cli.root import app
from experiments.config import ConfigError


@app.command(rich_help_panel="Use")
def decide(
    users: Annotated[
        Path,
        typer.Argument(
            metavar="USERS",
            help="With --date: Parquet or JSON lines, a row a user with his events. Without: Parquet of the "
            "columns that policy.json names.",
        ),
    ],
    policy: Annotated[Path, typer.Option(metavar="DIR", help="An exported policy.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write: .parquet or .jsonl.")],
    date: Annotated[
        str | None,
        typer.Option(metavar="YYYY-MM-DD", help="Any day of the week to decide for.", show_default=False),
    ] = None,
    weeks_left: Annotated[
        int | None,
        typer.Option(min=1, help="Weeks left of the campaign, this one included.", show_default=False),
    ] = None,
    budget_per_user: Annotated[
        float | None,
        typer.Option(help="For the campaign; sets the price by the policy's plan.", show_default=False),
    ] = None,
    left_per_user: Annotated[
        float | None, typer.Option(help="Instead: what is left of it.", show_default=False)
    ] = None,
    available: Annotated[
        float | None,
        typer.Option(help="Budget of all users that can still be committed.", show_default=False),
    ] = None,
    dual_price: Annotated[
        float | None,
        typer.Option(
            help="Margin that a unit of budget must bring; by default the file's or the policy's own."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the draws, to repeat them; by default each call draws anew.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Decide who gets which offer, with an exported policy.

    Writes one row per user with the propensity with which its offer was drawn. Keep the propensities: they
    are what a later evaluation needs.
    """
    with clear_errors():
        if not policy.is_dir():
            raise ConfigError(f"--policy {policy}: no such folder")
        if not users.is_file():
            raise ConfigError(f"{users}: no such file")
        given = {
            "weeks_left": weeks_left,
            "budget_per_user": budget_per_user,
            "left_per_user": left_per_user,
            "available": available,
        }
        console = setup.make_console()
        with console.status("deciding") as status:
            done = 0

            def show(count: int) -> None:
                nonlocal done
                done += count
                status.update(f"decided for {done:,} users")

            if date is None:
                if any(value is not None for value in given.values()):
                    raise ConfigError("--weeks-left, budgets and --available go with --date")
                count = import_module("agents.decide").decide_file(
                    policy=policy, users=users, out=out, seed=seed, dual_price=dual_price, on_users=show
                )
            else:
                from agents.serving import context_from_json

                context = context_from_json({"date": date, "dual_price": dual_price, **given})
                count = import_module("agents.decide_events").decide_events(
                    policy, users, out, context, seed=seed, threads=threads, on_users=show
                )
        typer.echo(f"Decided for {count} users: {out}")


@app.command(rich_help_panel="Use")
def monitor(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG.parquet", help="Decisions and what came of them, as LoggedDataset keeps them."
        ),
    ],
    reference: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="What the policy was evaluated on: a run folder, or policy.json beside reference.parquet.",
        ),
    ] = Path("runs/default"),
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="PLAN.json",
            help='Planned spend: {"budget": 1000, "spend": {"45": 120, "46": 130}}, by week of the log.',
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Instead of a plan: a budget for the campaign, planned as the policy was exported with.",
            show_default=False,
        ),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="DECISIONS.parquet",
            help="Of 'couponlab served': all that was charged, also where what followed is still open, and "
            "which offers the budget did not cover. "
            "Default: the file of that name beside the log.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of permutations and draws.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json_file: JsonOption = None,
) -> None:
    """Watch a deployed policy: spend against plan, drift, calibration of costs and propensities.

    Exit status: 0 if all is well, 3 on a warning, 4 on an alarm.
    """
    with clear_errors():
        check_folder_of(json_file)
        if plan is not None and budget is not None:
            raise ConfigError("give --plan or --budget, not both")
        from experiments.manifest import to_json, write_json

        monitoring = import_module("experiments.monitor.monitor")
        spending = import_module("experiments.monitor.spend")
        logged, compared = monitoring.load_log(log), monitoring.Reference.load(reference)
        planned = spending.SpendPlan.load(plan) if plan is not None else None
        if budget is not None:
            planned = spending.SpendPlan.of_budget(budget, logged, compared.paced)
        beside = log.with_name("decisions.parquet")
        source = decisions or (beside if beside.is_file() and beside != log else None)
        charges, refused = None, None
        if source is not None:
            charges = spending.Charges.load(source)
            refused = import_module("experiments.ope.served_log").refused_steps(source, logged)
        report = monitoring.monitor_log(
            compared,
            logged,
            plan=planned,
            charges=charges,
            refused=refused,
            seed=seed,
            threads=threads,
        )
        import_module("experiments.monitor.tables").show_report(setup.make_console(), report)
        if json_file is not None:
            write_json(json_file, to_json(report.to_dict()))
    raise typer.Exit(report.exit_code)


@app.command(rich_help_panel="Use")
def doctor(
    logs: Annotated[
        Path,
        typer.Argument(
            metavar="LOGS", help="One decision a row: .parquet or .csv, or a log that this package wrote."
        ),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=NAME",
            help="Which column is what where it has no standard name, such as user=customer_no; repeatable.",
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A column known before the decision; repeatable. Default: those named feature_….",
        ),
    ] = None,
    no_offer: Annotated[
        str | None, typer.Option(metavar="OFFER", help="The offer that means that nothing was sent.")
    ] = None,
    close_gaps: Annotated[
        bool, typer.Option("--close-gaps", help="Number a user's decisions where the log skips weeks.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds where propensities are estimated.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Check a log of decisions up before anything is estimated from it: propensities, overlap, verdicts.

    Ends with status 3 if the log can support no estimate at all.
    """
    with clear_errors():
        check_folder_of(json_file)
        import numpy as np

        from experiments.manifest import to_json, write_json
        from experiments.ope.doctor import examine
        from experiments.ope.doctor_tables import show_examination
        from experiments.ope.log_mapping import LogMapping
        from experiments.ope.own_logs import read_own_log

        mapping = LogMapping.from_pairs(
            column or (), features=feature or (), no_offer=no_offer, close_gaps=close_gaps
        )
        log = read_own_log(logs, mapping, rng=np.random.default_rng(seed))
        found = examine(log.dataset, offers=log.offers, no_offer=log.no_offer, notes=log.notes, row=log.row)
        report = log.propensity_report
        show_examination(setup.make_console(), found, report)
        if json_file is not None:
            fit = {"propensity_fit": None if report is None else report.to_dict()}
            write_json(json_file, to_json(found.to_dict() | fit))
    if not found.usable:
        raise typer.Exit(3)
