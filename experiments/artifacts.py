"""What one stage leaves for the next: response models, simulators and the market built from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from encoders.bert import (
    EnsembleEncoder,
    TextEncoder,
    bert_shape,
    load_pretraining_model,
    unfilled_encoder,
)
from encoders.calendar import PromotionCalendar
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.response import ResponseHeads
from encoders.user_encoder import UserEncoder
from encoders.user_text import UserTextStyle, UserTextWriter
from envs.assumptions import AssumedResponse
from envs.campaign import MarketSpec
from envs.observation import Recommender
from envs.population import Population
from envs.simulator import Simulator
from experiments.config import ConfigError, MarketConfig
from experiments.manifest import read_json, write_json, write_text
from experiments.offer_file import offer_catalogue

PANEL_FILE = "panel.npz"
REDEMPTIONS_FILE = "redemptions.npz"
TARGETING_FILE = "targeting.npz"
TOKENIZER_FILE = "tokenizer.json"
BERT_FOLDER = "bert"
PRETRAINED_FILE = "pretrained.safetensors"
HABITS_FILE = "habits.safetensors"
ENCODER_FILE = "encoder.safetensors"
USER_ENCODER_FILE = "user_encoder.json"
HEADS_FILE = "heads.safetensors"
NO_TEXT_FILE = "no_text.safetensors"
EMBEDDINGS_FILE = "embeddings.npz"
SIMULATORS_FILE = "simulators.json"
POLICY_FILE = "policy.safetensors"
POLICY_SHAPE_FILE = "policy.json"
VISIT_VALUE_FILE = "visit_value.safetensors"


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers as safetensors, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, temporary)
    os.replace(temporary, path)


def load_module(module: nn.Module, path: Path) -> None:
    """Fill a module from :func:`save_module`; shapes must agree."""
    module.load_state_dict(load_file(path))


def load_heads(path: Path) -> ResponseHeads:
    """Load response heads; their sizes are those of the stored tensors."""
    tensors = load_file(path)
    heads = ResponseHeads(tensors["base_rate"], tensors["category_match"].shape[1])
    heads.load_state_dict(tensors)
    return heads


def load_encoder(pretrained: Path, response: Path, embedding: int) -> EnsembleEncoder:
    """Load the fine-tuned encoder, as many members as were stored.

    Args:
        pretrained: output folder of ``pretrain``.
        response: output folder of ``finetune``.
        embedding: width of a member's embedding.
    """
    return _filled_encoder(
        response / ENCODER_FILE,
        lambda: TextEncoder(load_pretraining_model(pretrained / BERT_FOLDER).bert, embedding),
    )


def _filled_encoder(path: Path, new_member: Callable[[], TextEncoder]) -> EnsembleEncoder:
    tensors = load_file(path)
    count = 1 + max(int(name.split(".")[1]) for name in tensors)
    encoder = EnsembleEncoder([new_member() for _ in range(count)])
    encoder.load_state_dict(tensors)
    return encoder.eval()


def save_user_encoder(folder: Path, encoder: UserEncoder) -> None:
    """Write all that encodes users as the response model knows them, but for the logs' own part."""
    save_module(encoder.encoder, folder / ENCODER_FILE)
    # A tokenizer remembers the last truncation; stored without it, it serves any length.
    encoder.tokenizer.no_truncation()
    write_text(folder / TOKENIZER_FILE, encoder.tokenizer.to_str())
    member = next(iter(encoder.encoder))
    write_json(
        folder / USER_ENCODER_FILE,
        {
            "style": asdict(encoder.writer.style),
            "max_tokens": encoder.max_tokens,
            "precision": encoder.precision,
            "embedding": member.project.out_features,
            "bert": bert_shape(member),
        },
    )


def load_user_encoder(folder: Path, panel: Panel, device: str) -> UserEncoder:
    """Load what :func:`save_user_encoder` wrote, for the users of a panel.

    Args:
        folder: output folder of ``finetune``.
        panel: gives profiles, category names and dates.
        device: where BERT is to run.

    Raises:
        ConfigError: the folder was made by a version that did not store it.
    """
    if not (folder / USER_ENCODER_FILE).is_file():
        raise ConfigError(
            f"{folder} holds no {USER_ENCODER_FILE}, which market.re_encode_weeks needs; "
            "run the stage finetune again"
        )
    content = read_json(folder / USER_ENCODER_FILE)
    encoder = _filled_encoder(
        folder / ENCODER_FILE, lambda: unfilled_encoder(content["bert"], content["embedding"])
    )
    return UserEncoder(
        writer=UserTextWriter.of_panel(panel, UserTextStyle(**content["style"])),
        tokenizer=Tokenizer.from_file(str(folder / TOKENIZER_FILE)),
        encoder=encoder,
        max_tokens=content["max_tokens"],
        precision=content["precision"],
    ).to(device)


def save_arrays(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write arrays as ``.npz`` without pickled objects, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


@dataclass(frozen=True)
class SimulatorRecord:
    """One member of the ensemble, as stored.

    Attributes:
        role: "train" or "judge".
        file: its heads, relative to the response folder.
        assumed: its draw of the assumed parameters.
    """

    role: str
    file: str
    assumed: AssumedResponse


def save_simulators(
    folder: Path,
    records: list[SimulatorRecord],
    train_users: npt.NDArray[np.int64],
    judge_users: npt.NDArray[np.int64],
) -> None:
    """Write the list of simulators and the users that each side was fitted on."""
    content = {
        "simulators": [asdict(record) for record in records],
        "train_users": train_users.tolist(),
        "judge_users": judge_users.tolist(),
    }
    temporary = folder / (SIMULATORS_FILE + ".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, folder / SIMULATORS_FILE)


@dataclass(frozen=True)
class MarketParts:
    """A market with its two ensembles; what training and evaluation start from.

    Attributes:
        market: population, catalogue, predictor, horizon.
        train_worlds: simulators for training.
        judge_worlds: simulators for judging, fitted on other users.
        train_users: [m] users whose weeks the train worlds were fitted on.
        judge_users: [m] users of the judge worlds.
        panel: the logs by week.
    """

    market: MarketSpec
    train_worlds: tuple[Simulator, ...]
    judge_worlds: tuple[Simulator, ...]
    train_users: torch.Tensor
    judge_users: torch.Tensor
    panel: Panel


def load_market(prepared: Path, response: Path, config: MarketConfig, device: str) -> MarketParts:
    """Build the market from the outputs of ``prepare`` and ``finetune``."""
    panel = Panel.load(prepared / PANEL_FILE)
    with np.load(response / EMBEDDINGS_FILE, allow_pickle=False) as stored:
        weeks = [int(week) for week in stored["start_week"]]
        embeddings = torch.from_numpy(stored["embedding"])
    tape = HistoryTape.of_panel(panel)
    # A resampled calendar has no end that a campaign could run past.
    needed = config.horizon_weeks if config.resample_weeks == 0 else 0
    fitting = [k for k, week in enumerate(weeks) if week + needed <= panel.n_weeks]
    if not fitting:
        raise ConfigError(
            f"market.horizon_weeks = {config.horizon_weeks} does not fit into {panel.n_weeks} unlocked weeks"
        )
    population = Population(
        start_weeks=tuple(weeks[k] for k in fitting),
        histories=tuple(tape.week(weeks[k]) for k in fitting),
        embeddings=embeddings[fitting],
        calendar=PromotionCalendar.of_panel(panel),
    ).to(device)
    content: Mapping[str, Any] = json.loads((response / SIMULATORS_FILE).read_text(encoding="utf-8"))

    def simulator(file: str, assumed: AssumedResponse, name: str) -> Simulator:
        heads = load_heads(response / file).to(device)
        return Simulator(heads, assumed, config.margin_rate, name)

    worlds: dict[str, list[Simulator]] = {"train": [], "judge": []}
    for record in content["simulators"]:
        side = worlds[record["role"]]
        name = f"{record['role']} {len(side) + 1}"
        side.append(simulator(record["file"], AssumedResponse(**record["assumed"]), name))
    predictor = simulator(HEADS_FILE, AssumedResponse.central(), "predictor")
    return MarketParts(
        market=MarketSpec(
            population,
            offer_catalogue(config),
            predictor,
            config.horizon_weeks,
            Recommender(config.recommender),
            config.resample_weeks or None,
            load_user_encoder(response, panel, device) if config.re_encode_weeks else None,
            config.re_encode_weeks or None,
        ),
        train_worlds=tuple(worlds["train"]),
        judge_worlds=tuple(worlds["judge"]),
        train_users=torch.tensor(content["train_users"]),
        judge_users=torch.tensor(content["judge_users"]),
        panel=panel,
    )


def late_starts(parts: MarketParts) -> list[int]:
    """Return the positions of the campaign starts after the training weeks, on which policies are judged."""
    end = parts.panel.split.train_end
    return [k for k, week in enumerate(parts.market.population.start_weeks) if week >= end]
