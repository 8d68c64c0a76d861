from __future__ import annotations

from pathlib import Path

import pytest

from agents.message_files import built_in_templates
from agents.message_templates import TemplateError
from envs.offers import Catalogue, CatalogueError
from experiments.config import ExportConfig, MarketConfig, RunConfig, load_config
from experiments.offer_file import offer_catalogue
from experiments.own_files import check_own_files, message_texts

TEXTS = """
[[template]]
name = "all"
text = "{category}"
kinds = ["push"]
tone = "plain"
[[template]]
name = "percent"
text = "{percent}% off {category}, {save} at most"
kinds = ["percent"]
tone = "plain"
[[template]]
name = "threshold"
text = "{save} off {min_spend}"
kinds = ["threshold"]
tone = "plain"
"""


def test_without_files_the_built_in_ones_are_taken() -> None:
    assert message_texts(ExportConfig()) == built_in_templates()
    assert offer_catalogue(MarketConfig()) == Catalogue.built_in()
    check_own_files(RunConfig())


def test_own_texts_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    path = tmp_path / "texts.toml"
    path.write_text(TEXTS, encoding="utf-8")
    found = message_texts(load_config(overrides=[f"export.messages={path}"]).export)
    assert [template.name for template in found.templates] == ["all", "percent", "threshold"]


def test_missing_files_are_named() -> None:
    with pytest.raises(TemplateError, match=r"absent\.toml"):
        check_own_files(load_config(overrides=["export.messages=absent.toml"]))
    with pytest.raises(CatalogueError, match=r"absent\.toml"):
        check_own_files(load_config(overrides=["market.catalogue=absent.toml"]))
