from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments import cli
from experiments.config import ConfigError
from experiments.monitor import monitor, spend
from experiments.monitor.monitor import OfferFacts
from experiments.ope import served_log
from experiments.ope.logged_dataset import LoggedDataset


@pytest.fixture
def folder(tmp_path: Path, reference: LoggedDataset, offers: tuple[OfferFacts, ...]) -> Path:
    (tmp_path / "policy.json").write_text(json.dumps({"offers": [asdict(offer) for offer in offers]}))
    reference.save(tmp_path / "reference.parquet")
    return tmp_path


def invoke(*words: object) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["monitor", *map(str, words)])


@pytest.mark.parametrize(("shift", "status", "level"), [(0.0, 0, "ok"), (1.5, 4, "alarm")])
def test_exit_status_and_json(
    folder: Path, world: Callable[..., Any], shift: float, status: int, level: str
) -> None:
    world(shift=shift).log(1).save(folder / "log.parquet")
    result = invoke(folder / "log.parquet", "--reference", folder, "--json", folder / "out.json")
    assert result.exit_code == status, result.output
    assert f"weeks 41-44: {level}" in result.output
    assert json.loads((folder / "out.json").read_text())["level"] == level


def test_a_budget_makes_a_plan(folder: Path) -> None:
    log = folder / "reference.parquet"
    result = invoke(log, "--reference", folder, "--budget", "1")
    assert result.exit_code == 4
    assert "spent of 1.00" in result.output


def test_what_the_budget_refused_reaches_the_monitor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, told = folder / "reference.parquet", {}
    (folder / "decisions.parquet").touch()  # beside the log, where it is looked for
    refused = np.array([True, False])

    def monitored(*_: Any, **given: Any) -> Any:
        told.update(given)
        raise ConfigError("seen")

    monkeypatch.setattr(spend.Charges, "load", lambda path: f"charges of {path.name}")
    monkeypatch.setattr(served_log, "refused_steps", lambda path, logged: refused)
    monkeypatch.setattr(monitor, "monitor_log", monitored)
    assert "seen" in invoke(log, "--reference", folder).output
    assert told["refused"] is refused
    assert told["charges"] == "charges of decisions.parquet"


def test_bad_input_is_one_message(folder: Path, tmp_path: Path) -> None:
    log = folder / "reference.parquet"
    (tmp_path / "plan.json").write_text("[]")
    for words, message in (
        ((folder / "absent.parquet", "--reference", folder), "absent.parquet"),
        ((log, "--reference", folder / "absent"), "is no reference"),
        ((log, "--reference", folder, "--plan", tmp_path / "plan.json"), "expected an object with 'budget'"),
        ((log, "--reference", folder, "--plan", "p", "--budget", "1"), "give --plan or --budget, not both"),
    ):
        result = invoke(*words)
        assert result.exit_code == 2, result.output
        assert "Error: " in result.output
        assert message in result.output
        assert "Traceback" not in result.output


def test_decisions_are_read_without_what_the_service_needs() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; import experiments.ope.served_log"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
