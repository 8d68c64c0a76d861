"""Files of the user's own that settings name: the offer catalogue and the message texts."""

from __future__ import annotations

from pathlib import Path

from agents.message_files import built_in_templates, read_templates
from agents.message_templates import TemplateCatalogue
from experiments.config import ExportConfig, RunConfig
from experiments.offer_file import offer_catalogue


def message_texts(config: ExportConfig) -> TemplateCatalogue:
    """Return the message texts that a run deploys.

    Raises:
        TemplateError: naming the file, the text and what is wrong with it.
    """
    return read_templates(Path(config.messages)) if config.messages else built_in_templates()


def check_own_files(config: RunConfig) -> None:
    """Read them all, so that a mistake in one is told before the stages run and not when they get to it.

    Raises:
        CatalogueError: see :func:`experiments.offer_file.offer_catalogue`.
        TemplateError: see :func:`message_texts`.
    """
    offer_catalogue(config.market)
    message_texts(config.export)
