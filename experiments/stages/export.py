"""Stage 7: the policy as files that a shop can deploy without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import torch

from agents.bundle_writer import KEY_BYTES, PolicyFacts, write_manifest, write_settings, write_tables
from agents.export import (
    export_encoder_graph,
    export_network_graph,
    export_policy_graph,
    quantise_encoder_graph,
)
from agents.message_book import MessageBook
from agents.message_templates import TemplateCatalogue
from agents.offer_network import LearnedPolicy, OfferNetwork
from agents.parity import Parity, encoder_parity, network_parity, policy_parity
from agents.parity_states import edge_states, market_states
from agents.serving.bundle import (
    ENCODER_FILE,
    INT8_ENCODER_FILE,
    MODEL_CARD_FILE,
    NETWORK_FILE,
    POLICY_FILE,
    TOKENIZER_FILE,
)
from agents.serving.pacing import BudgetPlan, PlannedWeek
from agents.state_rows import StateRows
from encoders.bert import pad, special_token_id, tokenize
from encoders.embedding import embed_tokens
from encoders.user_encoder import UserEncoder
from encoders.user_text import category_texts, category_words
from envs.item_categories import item_categories
from envs.logs import open_logs
from envs.observation import Shop
from experiments.artifacts import MarketParts, load_market, load_user_encoder
from experiments.manifest import write_text
from experiments.model_card import model_card
from experiments.monitor.monitor import REFERENCE_FILE
from experiments.ope.logged_dataset import LoggedDataset
from experiments.own_files import message_texts
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP
from experiments.stages.evaluate import LOG_FILE
from experiments.trained import Trained

PARITY_BAR = 1e-5
PARITY_STATES = 10_000
EXAMPLE_USERS = 100
EXAMPLE_FILE = "example_users.parquet"
KEY_VARIABLE = "COUPONLAB_SIGNING_KEY"
"""Environment variable with the path of an Ed25519 private key: 32 raw bytes, or 64 hexadecimal digits."""


def run(ctx: StageContext) -> dict[str, Any]:
    """Export, compare with the trained policy on states of the market and at the edges, and seal."""
    trained = Trained.load(ctx.input("train"), "cpu")
    network = trained.policy.network
    parts = load_market(ctx.input("prepare"), ctx.input("finetune"), ctx.config.market, "cpu")
    market, panel = parts.market, parts.panel
    user_encoder = load_user_encoder(ctx.input("finetune"), panel, "cpu")
    dataset = LoggedDataset.load(ctx.input("evaluate") / LOG_FILE)
    results = ctx.results()
    states = market_states(market, PARITY_STATES // 2, ctx.rng("parity"))
    with ctx.progress("exporting to ONNX", 7) as bar:
        rng = ctx.rng("edges")
        states += [edge_states(rows, market.horizon_weeks, rng) for rows in states]
        parity = _export_policy(ctx.folder, market.shop, network, states)
        bar.advance()
        export_network_graph(network, ctx.folder / NETWORK_FILE)
        bar.advance()
        export_encoder_graph(user_encoder.encoder, ctx.folder / ENCODER_FILE)
        quantise_encoder_graph(ctx.folder / ENCODER_FILE, ctx.folder / INT8_ENCODER_FILE)
        bar.advance()
        user_encoder.tokenizer.no_truncation()
        user_encoder.tokenizer.no_padding()
        write_text(ctx.folder / TOKENIZER_FILE, user_encoder.tokenizer.to_str())
        _tables(ctx, parts, results)
        bar.advance()
        _messages(ctx.folder, message_texts(ctx.config.export), parts, user_encoder)
        bar.advance()
        _example_users(ctx.folder / EXAMPLE_FILE, dataset)
        dataset.save(ctx.folder / REFERENCE_FILE)
        write_settings(ctx.folder, _facts(ctx, parts, trained, user_encoder, results))
        write_text(ctx.folder / MODEL_CARD_FILE, model_card(results, market, seed=ctx.seed))
        write_manifest(ctx.folder, signing_key())
        bar.advance()
        inner = network_parity(network, ctx.folder, _parity_observations(dataset, ctx.rng("parity")))
        bar.advance()
    _check(NETWORK_FILE, inner)
    encoders = _encoder_parity(ctx.folder, user_encoder, category_texts(panel))
    return {
        "export": {
            "path": ctx.folder.name,
            "parity_max_abs_diff": parity.largest,
            "parity_same_best": parity.same_best,
            "parity_states": parity.rows,
            "network_max_abs_diff": inner.largest,
            "parity_observations": inner.rows,
            **encoders,
            "bytes": sum(path.stat().st_size for path in ctx.folder.iterdir() if path.is_file()),
        }
    }


def signing_key() -> bytes | None:
    """Return the private key that bundles are to be signed with, if the environment names one.

    Raises:
        StageError: the file cannot be read or is no key.
    """
    path = os.environ.get(KEY_VARIABLE)
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise StageError(f"{KEY_VARIABLE}: {error}") from error
    if len(content) == KEY_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise StageError(
            f"{KEY_VARIABLE}: {path} holds neither {KEY_BYTES} raw bytes nor their hexadecimal digits"
        )
    return key


def budget_plans(results: Mapping[str, Any]) -> list[BudgetPlan]:
    """Return how PPO was paced at each budget: money a user, and prices week by week."""
    money = {
        row["budget_multiple"]: (row["budget"] / row["n_users"], row["n_users"])
        for row in results["policies"]
        if row["name"] == LearnedPolicy.name
    }
    plans = []
    for row in results["pacing"]:
        if row["policy"] != LearnedPolicy.name:
            continue
        budget, n_users = money[row["budget_multiple"]]
        weeks = zip(row["planned"], row["dual_price"], row["pressure"], strict=True)
        plans.append(
            BudgetPlan(
                budget,
                tuple(PlannedWeek(planned / n_users, price, pressure) for planned, price, pressure in weeks),
            )
        )
    return plans


def _facts(
    ctx: StageContext,
    parts: MarketParts,
    trained: Trained,
    user_encoder: UserEncoder,
    results: Mapping[str, Any],
) -> PolicyFacts:
    return PolicyFacts(
        market=parts.market,
        panel=parts.panel,
        columns=parts.market.layout.names(),
        style=user_encoder.writer.style,
        max_tokens=user_encoder.max_tokens,
        plans=budget_plans(results),
        default_budget_per_user=ctx.config.market.budget_per_user,
        provenance={
            "trained_by": "couponlab",
            "seed": ctx.seed,
            "log": results["data"]["content_hash"],
            "price_range": [trained.prices.low, trained.prices.high],
            "margin_rate": ctx.config.market.margin_rate,
            "ope": [
                {
                    name: row[name]
                    for name in ("estimator", "outcome", "value", "ci_low", "ci_high", "verdict")
                }
                for row in results["ope"]
                if row["policy"] == LearnedPolicy.name
            ],
        },
    )


def _tables(ctx: StageContext, parts: MarketParts, results: Mapping[str, Any]) -> None:
    panel = parts.panel
    with open_logs(ctx.data, seed=ctx.seed, threads=ctx.threads) as logs:
        if logs.content_hash != results["data"]["content_hash"]:
            raise StageError(
                f"{ctx.data} is not the log any more that was prepared; run the stage prepare again"
            )
        item_id, item_category = item_categories(logs, [str(name) for name in panel.categories])
    write_tables(ctx.folder, panel, parts.market.population.calendar, item_id, item_category)


def _messages(
    folder: Path, templates: TemplateCatalogue, parts: MarketParts, user_encoder: UserEncoder
) -> None:
    def embed(texts: Sequence[str]) -> npt.NDArray[np.floating]:
        tokens = tokenize(user_encoder.tokenizer, texts, user_encoder.max_tokens)
        padding = special_token_id(user_encoder.tokenizer, "[PAD]")
        members = [embed_tokens(one, tokens, padding_id=padding) for one in user_encoder.encoder]
        return np.concatenate([one.numpy() for one in members], axis=1)

    users = parts.market.population.embeddings[-1].numpy()
    book = MessageBook.build(templates, category_words(parts.panel), users=users, embed=embed)
    book.save(folder)


def _export_policy(folder: Path, shop: Shop, network: OfferNetwork, states: list[StateRows]) -> Parity:
    """Export the policy; in float32 per category, and where a sharp policy asks for more, all in float64."""
    for wide in (torch.float32, torch.float64):
        export_policy_graph(shop, network, states[0], folder / POLICY_FILE, wide)
        parity = policy_parity(shop, network, folder, states)
        if parity.largest <= PARITY_BAR and parity.same_best:
            break
    _check(POLICY_FILE, parity)
    return parity


def _check(file: str, parity: Parity) -> None:
    if parity.largest > PARITY_BAR or not parity.same_best:
        raise StageError(
            f"{file} differs from the trained policy by {parity.largest:.2e} (bar {PARITY_BAR:.0e}, same "
            f"best offer everywhere: {parity.same_best}); it must not be deployed"
        )


def _encoder_parity(folder: Path, user_encoder: UserEncoder, texts: list[str]) -> dict[str, float]:
    """How far the two exported encoders are from torch on the category texts."""
    tokens = tokenize(user_encoder.tokenizer, texts, user_encoder.max_tokens)
    batch = pad(tokens, special_token_id(user_encoder.tokenizer, "[PAD]"))
    ids, attention = batch.ids.numpy(), batch.attention.numpy()
    exact, _ = encoder_parity(user_encoder.encoder, folder, ids, attention)
    moved, cosine = encoder_parity(user_encoder.encoder, folder, ids, attention, INT8_ENCODER_FILE)
    return {"encoder_max_abs_diff": exact, "int8_max_abs_diff": moved, "int8_lowest_cosine": cosine}


def _parity_observations(dataset: LoggedDataset, rng: np.random.Generator) -> np.ndarray:
    """Return logged rows and as many with every column shuffled and stretched: beyond what was seen."""
    logged = dataset.observation[rng.permutation(dataset.n_steps)[: PARITY_STATES // 2]]
    wild = rng.permuted(logged, axis=0) * rng.choice([0.0, 0.5, 1.0, 3.0], size=logged.shape)
    names = dataset.observation_names
    for place, name in enumerate(names):
        if name.startswith("allowed_"):
            wild[:, place] = rng.random(len(wild)) < 0.5
    wild[:, names.index("allowed_0")] = 1.0
    return np.concatenate([logged, wild]).astype(np.float32)


def _example_users(path: Path, dataset: LoggedDataset) -> None:
    """Write the first logged weeks of some users in the form that ``couponlab decide`` reads."""
    first = np.flatnonzero(dataset.position == 0)[:EXAMPLE_USERS]
    columns: dict[str, Any] = {"user_id": [f"example-{k}" for k in range(len(first))]}
    columns |= {
        name: dataset.observation[first, place] for place, name in enumerate(dataset.observation_names)
    }
    temporary = path.with_name(path.name + ".tmp")
    pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    os.replace(temporary, path)


STAGE = Stage(
    name="export",
    folder="export",
    sections=("text", "encoder", "market", "export"),
    inputs=("prepare", "pretrain", "finetune", "backtest", "train", "evaluate"),
    run=run,
    help=STAGE_HELP["export"],
)
