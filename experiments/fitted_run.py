"""What a run's fitted response model and its users can be looked at through, loaded from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from encoders.panel import Panel
from encoders.response import ResponseHeads
from envs.targeting import TargetingRows
from experiments.artifacts import (
    EMBEDDINGS_FILE,
    HEADS_FILE,
    PANEL_FILE,
    TARGETING_FILE,
    TOKENIZER_FILE,
    load_heads,
)
from experiments.backtest.predictions import EmbeddingTable
from experiments.config import ConfigError, RunConfig, build_config
from experiments.manifest import read_json, read_manifest, read_record
from experiments.stage import RESULTS_FILE
from experiments.stages import finetune, prepare, pretrain


@dataclass(frozen=True)
class FittedRun:
    """A run whose response model is fitted. Its panel ends before the locked weeks, and so does all else.

    Attributes:
        config: the settings that the run recorded.
        panel: the logs by week.
        heads: the deployed response model, without gradient.
        embeddings: of all users at the start weeks.
        targeting: who was sent which campaign; possibly no rows.
        tokenizer: of the encoder.
        response: the part of ``results.json`` on the response model.
    """

    config: RunConfig
    panel: Panel
    heads: ResponseHeads
    embeddings: EmbeddingTable
    targeting: TargetingRows
    tokenizer: Tokenizer
    response: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run folder.

        Raises:
            ConfigError: it is no run folder, its response model is not fitted yet, or another version of
                the package made it.
        """
        recorded = read_manifest(folder)
        if recorded is None:
            raise ConfigError(f"{folder} is not a run folder; give --out, for example --out runs/default")
        again = f"couponlab finetune --out {folder}"
        for stage in (prepare.STAGE, pretrain.STAGE, finetune.STAGE):
            record = read_record(folder, stage.name)
            if record is None or record.status != "complete":
                raise ConfigError(f"{folder}: stage {stage.name} is not complete; run: {again}")
        prepared, response = folder / prepare.STAGE.folder, folder / finetune.STAGE.folder
        try:
            return cls(
                config=build_config([("manifest.json", recorded["config"])]),
                panel=Panel.load(prepared / PANEL_FILE),
                heads=load_heads(response / HEADS_FILE).eval().requires_grad_(False),
                embeddings=EmbeddingTable.load(response / EMBEDDINGS_FILE),
                targeting=TargetingRows.load(prepared / TARGETING_FILE),
                tokenizer=Tokenizer.from_file(str(folder / pretrain.STAGE.folder / TOKENIZER_FILE)),
                response=read_json(folder / RESULTS_FILE)["response"],
            )
        except (ConfigError, KeyError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{folder}: cannot be read ({error}); files are missing or of another version; run: {again}"
            ) from error

    def fitted_source(self, name: str) -> str:
        """Return where a fitted parameter comes from, in words; ``name`` as in the parameter table."""
        for row in self.response["fitted"]:
            if row["name"] == name:
                return str(row["source"])
        raise ConfigError(f"results.json lists no fitted parameter {name!r}; run the stage finetune again")
