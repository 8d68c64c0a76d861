"""The command line. Heavy libraries are imported inside commands, so that ``--help`` stays quick."""

from experiments.cli.root import app

# Each import registers its commands; help lists them in this order.
from experiments.cli import pipeline, look, measure, deploy, service  # isort: skip

__all__ = ["app", "deploy", "look", "main", "measure", "pipeline", "service"]


def main() -> None:
    """Entry point of the ``couponlab`` command."""
    app()
