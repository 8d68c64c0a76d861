from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.config import (
    PRESETS,
    SECTIONS,
    ConfigError,
    RunConfig,
    build_config,
    load_config,
    override_config,
)


def test_default_preset_is_the_dataclass_defaults() -> None:
    assert load_config("default") == RunConfig()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_toml_and_json(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    path = tmp_path / "copy.toml"
    path.write_text(config.to_toml(), "utf-8")
    assert load_config("default", [path]) == config
    assert build_config([("manifest", json.loads(json.dumps(config.to_dict())))]) == config


def test_smoke_is_smaller_and_full_larger_than_default() -> None:
    steps = [load_config(preset).ppo.total_steps for preset in PRESETS]
    assert steps == sorted(steps)


def test_every_setting_has_help() -> None:
    for section in SECTIONS.values():
        assert section.__doc__
        assert all(item.metadata["help"] for item in dataclasses.fields(section))


def test_later_layers_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[pretrain]\nepochs = 7\nbatch_size = 9\n")
    config = load_config("smoke", [path], ["pretrain.epochs=8"])
    assert (config.pretrain.epochs, config.pretrain.batch_size) == (8, 9)
    assert config.prepare.n_categories == 60


def test_settings_that_depend_on_each_other_may_come_one_by_one() -> None:
    config = load_config("default", overrides=["encoder.width=96", "encoder.heads=3"])
    assert (config.encoder.width, config.encoder.heads) == (96, 3)
    with pytest.raises(ConfigError, match=r"encoder\.width: 128 cannot be divided among encoder\.heads = 3"):
        load_config("default", overrides=["encoder.heads=3"])


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[pretrain]\nepoch = 3", ["'pretrain.epoch'", "'pretrain.epochs'"]),
        ("[pretrain]\nentropy = 3", ["'pretrain.entropy'", "is a key of ppo"]),
        ("[pretrian]\nepochs = 3", ["'pretrian'", "'pretrain'"]),
        ("pretrain = 3", ["expected a table [pretrain]"]),
        ("[pretrain]\nepochs = '3'", ["pretrain.epochs", "a whole number", "'3'"]),
        ("[pretrain]\nepochs = true", ["pretrain.epochs", "a whole number", "True"]),
        ("[pretrain]\nepochs = 1.5", ["pretrain.epochs", "a whole number"]),
        ("[pretrain]\nepochs = -1", ["pretrain.epochs", "at least 0", "-1"]),
        ("[pretrain]\nlearning_rate = 0.0", ["pretrain.learning_rate", "above 0"]),
        ("[pretrain]\nlearning_rate = nan", ["pretrain.learning_rate", "finite"]),
        ("[encoder]\ndropout = 0.95", ["encoder.dropout", "at most 0.9"]),
        ("[encoder]\npreset = 3", ["encoder.preset", "text"]),
        ("[evaluate]\nbudgets = 1.0", ["evaluate.budgets", "a list"]),
        ("[evaluate]\nbudgets = ['a']", ["evaluate.budgets", "a number", "'a'"]),
        ("[pretrain", ["not valid TOML"]),
    ],
)
def test_refusals_name_file_key_and_way_out(toml: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_config("default", [path])
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_missing_file_and_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config("default", [tmp_path / "absent.toml"])
    with pytest.raises(ConfigError, match="no preset 'smok'"):
        load_config("smok")


def test_empty_list_of_budgets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.budgets: give at least one"):
        load_config("default", overrides=["evaluate.budgets=[]"])


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("ppo.total_steps=1_000", "ppo", "total_steps", 1000),
        ("ppo.learning_rate=1", "ppo", "learning_rate", 1.0),
        ("encoder.preset=minilm", "encoder", "preset", "minilm"),
        ("encoder.preset = 'minilm'", "encoder", "preset", "minilm"),
        ("market.catalogue=2017", "market", "catalogue", "2017"),
        ("market.catalogue=", "market", "catalogue", ""),
        ("market.catalogue=a=b.toml", "market", "catalogue", "a=b.toml"),
        ("evaluate.budgets=0.5,1", "evaluate", "budgets", (0.5, 1.0)),
        ("evaluate.budgets=[0.5, 1]", "evaluate", "budgets", (0.5, 1.0)),
        ("evaluate.budgets=2", "evaluate", "budgets", (2.0,)),
    ],
)
def test_override_values(override: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(load_config("default", overrides=[override]), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("override", ["epochs=3", "pretrain.epochs", "=3", ".=3", "pretrain.=3"])
def test_malformed_override(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        load_config("default", overrides=[override])


def test_override_cannot_smuggle_a_second_key() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.epochs: expected a whole number"):
        load_config("default", overrides=["pretrain.epochs=3\nother=4"])


def test_overrides_go_over_any_configuration() -> None:
    base = load_config("smoke")
    assert override_config(base, [], []) == base
    assert override_config(base, [], ["ppo.hidden=8"]).ppo.hidden == 8


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.precision.*fp16"):
        load_config("smoke", (), ["encoder.precision=fp16"])


@pytest.mark.parametrize("key", ["recommender", "pacing"])
def test_an_unknown_rule_of_the_market_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"market\.{key}: must be one of .*, got 'best'"):
        load_config("smoke", (), [f"market.{key}=best"])
