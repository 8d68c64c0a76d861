"""The offers of a run: those that come with the project, or a file of the user's own."""

from __future__ import annotations

from pathlib import Path

from envs.offers import Catalogue
from experiments.config import MarketConfig


def offer_catalogue(config: MarketConfig) -> Catalogue:
    """Return the offers.

    Raises:
        CatalogueError: naming the file, the offer and what is wrong with it.
    """
    return Catalogue.from_toml(Path(config.catalogue)) if config.catalogue else Catalogue.built_in()
