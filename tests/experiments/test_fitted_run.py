from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.artifacts import (
    EMBEDDINGS_FILE,
    HEADS_FILE,
    PANEL_FILE,
    TARGETING_FILE,
    TOKENIZER_FILE,
    save_arrays,
    save_module,
)
from experiments.config import ConfigError
from experiments.fitted_run import FittedRun
from experiments.manifest import STATE_FOLDER, StageRecord, write_json, write_record
from experiments.stage import Stage
from experiments.stages import finetune, prepare, pretrain

STAGES = (prepare.STAGE, pretrain.STAGE, finetune.STAGE)


@pytest.fixture
def folder(fitted_run: FittedRun, tmp_path: Path) -> Path:
    """The fitted run on disk, as its stages would have left it."""
    for stage in STAGES:
        (tmp_path / stage.folder).mkdir()
    (tmp_path / STATE_FOLDER).mkdir()
    for stage in STAGES:
        write_record(tmp_path, stage.name, StageRecord("print", {}, status="complete"))
    fitted_run.panel.save(tmp_path / "prepared" / PANEL_FILE)
    fitted_run.targeting.save(tmp_path / "prepared" / TARGETING_FILE)
    fitted_run.tokenizer.save(str(tmp_path / "encoder" / TOKENIZER_FILE))
    save_module(fitted_run.heads, tmp_path / "response" / HEADS_FILE)
    table = fitted_run.embeddings
    save_arrays(
        tmp_path / "response" / EMBEDDINGS_FILE,
        start_week=table.start_week,
        embedding=table.embedding.numpy(),
    )
    write_json(tmp_path / "manifest.json", {"config": fitted_run.config.to_dict()})
    write_json(tmp_path / "results.json", {"response": dict(fitted_run.response)})
    return tmp_path


def test_what_was_written_is_read(fitted_run: FittedRun, folder: Path) -> None:
    found = FittedRun.load(folder)
    assert found.config == fitted_run.config
    assert (found.panel.bought == fitted_run.panel.bought).all()
    torch.testing.assert_close(found.heads.state_dict(), fitted_run.heads.state_dict())
    torch.testing.assert_close(found.embeddings.embedding, fitted_run.embeddings.embedding)
    assert len(found.targeting) == len(fitted_run.targeting)
    assert found.response == fitted_run.response
    assert not any(parameter.requires_grad for parameter in found.heads.parameters())
    assert found.fitted_source("depth effect").startswith("fitted on weeks up to 13")


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder; give --out"):
        FittedRun.load(tmp_path)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_missing_or_cut_short(folder: Path, stage: Stage) -> None:
    write_record(folder, stage.name, StageRecord("print", {}, status="interrupted"))
    with pytest.raises(ConfigError, match=f"stage {stage.name} is not complete; run: couponlab finetune"):
        FittedRun.load(folder)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: write_json(folder / "manifest.json", {"config": {"text": {"gone": 1}}}),
        lambda folder: write_json(folder / "results.json", {}),
        lambda folder: (folder / "prepared" / TARGETING_FILE).unlink(),
        lambda folder: save_module(torch.nn.Linear(1, 1), folder / "response" / HEADS_FILE),
    ],
    ids=["settings", "results", "file", "parameters"],
)
def test_files_of_another_version_are_one_clear_error(folder: Path, harm: object) -> None:
    assert callable(harm)
    harm(folder)
    with pytest.raises(ConfigError, match="files are missing or of another version; run: couponlab finetune"):
        FittedRun.load(folder)


def test_a_parameter_that_is_not_listed(fitted_run: FittedRun) -> None:
    with pytest.raises(ConfigError, match="lists no fitted parameter 'price effect'"):
        fitted_run.fitted_source("price effect")
