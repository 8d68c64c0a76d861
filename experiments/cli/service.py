"""Commands of the service: serve a policy over HTTP, and bring back what was served."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli import setup
from experiments.cli.errors import clear_errors
from experiments.cli.options import MACHINE
from experiments.cli.root import app
from experiments.config import ConfigError


def _import_service(name: str) -> Any:
    """Import a module of the service, which needs packages that training does not."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; install couponlab[serve]") from error


DatabaseOption = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar="COUPONLAB_DATABASE",
        help="sqlite:///FILE or postgresql://…; a URL with a password is better given by the variable.",
    ),
]


@app.command(rich_help_panel="Use")
def serve(
    policy: Annotated[Path, typer.Option(metavar="DIR", help="An exported policy.")],
    database: DatabaseOption = "sqlite:///coupons.db",
    campaign: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Open this campaign's budget; repeatable, each with a --budget."),
    ] = None,
    budget: Annotated[
        list[float] | None, typer.Option(min=0.0, help="Its cap, in the log's currency.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes.", rich_help_panel=MACHINE)] = 1,
    threads: Annotated[
        int, typer.Option(min=1, help="Requests that a worker carries out at once.", rich_help_panel=MACHINE)
    ] = 4,
    rate: Annotated[
        float, typer.Option(min=0.001, help="Requests a second of one API key at one worker.")
    ] = 100.0,
    grace_hours: Annotated[
        float, typer.Option(min=0.0, help="Redemptions are taken so long after a coupon's last day.")
    ] = 0.0,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys that are let in, one a line. Or set COUPONLAB_API_KEYS."),
    ] = None,
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Secret that hides user ids: the run's pseudonym.key. Or set COUPONLAB_PSEUDONYM_KEY.",
        ),
    ] = None,
) -> None:
    """Serve an exported policy over HTTP, under a budget that a database keeps.

    POST /decide, /redeem, /release, /feedback; GET /healthz, /metrics, /openapi.json. Put it behind a proxy
    that speaks TLS.
    """
    names, caps = campaign or [], budget or []
    with clear_errors():
        if not policy.is_dir():
            raise ConfigError(f"--policy {policy}: no such folder")
        if len(names) != len(caps) or len(set(names)) != len(names):
            raise ConfigError("give each --campaign once, and a --budget with it")
        for file, variable in ((api_keys, "COUPONLAB_API_KEYS"), (pseudonym_key, "COUPONLAB_PSEUDONYM_KEY")):
            if file is not None:
                os.environ[f"{variable}_FILE"] = str(file.resolve())
        setup.limit_threads(1)  # workers and their threads share the cores; each computation takes one
        server = _import_service("agents.service.server")
        settings = _import_service("agents.service.settings").ServiceSettings(
            policy=policy.resolve(),
            database=database,
            requests_per_second=rate,
            burst=max(1, round(2 * rate)),
            grace_hours=grace_hours,
            threads=threads,
        )
        server.serve(settings, server.Address(host, port, workers), dict(zip(names, caps, strict=True)))


@app.command(rich_help_panel="Use")
def served(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For decisions.parquet and logged.parquet.")],
    database: DatabaseOption = "sqlite:///coupons.db",
    campaign: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this campaign; repeatable.")
    ] = None,
) -> None:
    """Bring what the service decided, and what followed, into files for off-policy evaluation."""
    with clear_errors():
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; give a folder")
        found = _import_service("experiments.ope.served_export").export_served(
            database, out, campaign or None
        )
        data = found.dataset
        typer.echo(
            f"{data.n_steps} decisions of {data.n_episodes} users and campaigns: {out}\n"
            f"{int(found.refused.sum())} of them were offers that the budget did not cover; "
            f"{found.n_left_out} left out, since what followed is not known yet."
        )
