from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments import manifest
from experiments.comparison.record import (
    FOLDER,
    JUDGED_STAGES,
    comparison_fingerprint,
    complete_digests,
    load_comparison,
)
from experiments.manifest import STATE_FOLDER, StageRecord
from experiments.stage import RESULTS_FILE

MARKET = {"horizon_weeks": 8, "budget_per_user": 0.05}
DIGESTS = {"prepare": "a", "finetune": "b", "train": "c"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir()
    content = {"policies": [], "fingerprint": comparison_fingerprint(MARKET, 1, DIGESTS)}
    manifest.write_json(tmp_path / FOLDER / RESULTS_FILE, content)
    return tmp_path


def test_a_comparison_is_found_again_whatever_other_stages_there_are(run: Path) -> None:
    found = load_comparison(run, MARKET, 1, {**DIGESTS, "evaluate": "x"})
    assert found is not None
    assert found["policies"] == []


@pytest.mark.parametrize(
    ("market", "seed", "digests"),
    [
        ({**MARKET, "budget_per_user": 0.1}, 1, DIGESTS),
        (MARKET, 2, DIGESTS),
        *((MARKET, 1, {**DIGESTS, name: "other"}) for name in JUDGED_STAGES),
        *((MARKET, 1, {k: v for k, v in DIGESTS.items() if k != name}) for name in JUDGED_STAGES),
    ],
)
def test_a_comparison_of_something_else_is_not_taken(
    run: Path, market: dict[str, Any], seed: int, digests: dict[str, str]
) -> None:
    assert load_comparison(run, market, seed, digests) is None


@pytest.mark.parametrize("content", ["", "[]", '{"policies": []}'])
def test_what_cannot_be_read_is_no_comparison(run: Path, content: str) -> None:
    (run / FOLDER / RESULTS_FILE).write_text(content)
    assert load_comparison(run, MARKET, 1, DIGESTS) is None


def test_a_run_without_one_has_none(tmp_path: Path) -> None:
    assert load_comparison(tmp_path, MARKET, 1, DIGESTS) is None


def test_only_complete_stages_count(tmp_path: Path) -> None:
    (tmp_path / STATE_FOLDER).mkdir()
    for name, status in (("prepare", "complete"), ("finetune", "complete"), ("train", "running")):
        record = StageRecord(name, {}, status=status, outputs={"file": name})  # type: ignore[arg-type]
        manifest.write_record(tmp_path, name, record)
    assert set(complete_digests(tmp_path)) == {"prepare", "finetune"}
