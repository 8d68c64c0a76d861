"""The command that all others belong to."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="couponlab",
    help="Shopping logs in; a budgeted, evaluated, deployable coupon policy out.",
    epilog="Start with: couponlab run --preset smoke --data synthetic",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
