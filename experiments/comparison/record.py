"""The comparison that a run folder keeps: where it is, and whether it is still of the run's policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import manifest
from experiments.stage import RESULTS_FILE

FOLDER = "comparison"
KEY = "compare"
"""Of the comparison in the run's ``results.json``."""
JUDGED_STAGES = ("prepare", "finetune", "train")
"""Stages whose outputs a comparison is of."""


def comparison_fingerprint(market: Mapping[str, Any], seed: int, digests: Mapping[str, str]) -> str:
    """Return a hash of all that a comparison is of.

    Args:
        market: the settings [market] as a plain table.
        seed: the run's.
        digests: hash of the outputs of JUDGED_STAGES, by stage.
    """
    judged = {name: digests[name] for name in JUDGED_STAGES}
    return manifest.hash_value({"market": market, "seed": seed, "outputs": judged})


def load_comparison(
    run: Path, market: Mapping[str, Any], seed: int, digests: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return a run's comparison; None if there is none, or it is of another policy or market.

    Args:
        run: the run folder.
        market: the settings [market] as they are now.
        seed: the run's.
        digests: hash of the outputs of the complete stages, by stage.
    """
    if not set(JUDGED_STAGES) <= set(digests):
        return None
    try:
        found = manifest.read_json(run / FOLDER / RESULTS_FILE)
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("fingerprint") == comparison_fingerprint(
        market, seed, digests
    )
    return found if same else None


def complete_digests(run: Path) -> dict[str, str]:
    """Return the hash of the outputs of each stage of JUDGED_STAGES that is on record as complete."""
    records = {name: manifest.read_record(run, name) for name in JUDGED_STAGES}
    return {name: record.digest for name, record in records.items() if record and record.status == "complete"}
