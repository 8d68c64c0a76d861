"""Expected errors as one message and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from experiments.config import ConfigError


@contextmanager
def clear_errors(resume: str | None = None) -> Iterator[None]:
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
    from agents.message_templates import TemplateError
    from agents.service.errors import ServiceError, UnavailableError
    from agents.serving import BundleError, DecisionInputError
    from envs.log_schema import LogError
    from envs.offers import CatalogueError
    from experiments.monitor.findings import MonitorError
    from experiments.ope.logged_dataset import LoggedDataError
    from experiments.stage import StageError

    bad_input = (
        ConfigError,
        LogError,
        CatalogueError,
        BundleError,
        DecisionInputError,
        LoggedDataError,
        MonitorError,
        ServiceError,
        TemplateError,
    )
    if isinstance(error, bad_input):
        return 2
    cannot_be_done = StageError | FloatingPointError | UnavailableError
    return 1 if isinstance(error, cannot_be_done) else None
