"""Stage 7: the policy as files that a shop can deploy without torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer

from agents.export import (
    encoder_parity,
    export_encoder_graph,
    export_policy_graph,
    policy_parity,
    write_manifest,
    write_settings,
)
from agents.offer_network import LearnedPolicy
from agents.serving import ENCODER_FILE, POLICY_FILE
from encoders.bert import EnsembleEncoder, pad, special_token_id, tokenize
from encoders.panel import Panel
from encoders.user_text import category_texts
from envs.offers import Catalogue
from experiments.artifacts import PANEL_FILE, TOKENIZER_FILE, load_encoder
from experiments.ope.logged_dataset import LoggedDataset
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP
from experiments.stages.evaluate import LOG_FILE
from experiments.trained import Trained

PARITY_BAR = 1e-5
EXAMPLE_USERS = 100
EXAMPLE_FILE = "example_users.parquet"


def run(ctx: StageContext) -> dict[str, Any]:
    """Export, check parity on logged and on random observations, and seal with hashes."""
    trained = Trained.load(ctx.input("train"), "cpu")
    learned, prices = trained.policy, trained.prices
    network = learned.network
    catalogue = (
        Catalogue.from_toml(Path(ctx.config.market.catalogue))
        if ctx.config.market.catalogue
        else Catalogue.built_in()
    )
    with ctx.progress("exporting to ONNX", 3) as bar:
        export_policy_graph(network, ctx.folder / POLICY_FILE)
        bar.advance()
        encoder, ids, attention = _encoder(ctx)
        export_encoder_graph(encoder, ctx.folder / ENCODER_FILE)
        bar.advance()
        shutil.copyfile(ctx.input("pretrain") / TOKENIZER_FILE, ctx.folder / TOKENIZER_FILE)
        dataset = LoggedDataset.load(ctx.input("evaluate") / LOG_FILE)
        _example_users(ctx.folder / EXAMPLE_FILE, dataset)
        results = ctx.results()
        table = {
            f"{row['budget'] / row['n_users']:g}": row["lambda"]
            for row in results["policies"]
            if row["name"] == LearnedPolicy.name
        }
        write_settings(
            ctx.folder,
            network,
            catalogue,
            dual_prices=table,
            default_dual_price=float(np.exp(np.mean(np.log(results["logged"]["dual_price"])))),
            provenance={
                "trained_by": "couponlab",
                "seed": ctx.seed,
                "price_range": [prices.low, prices.high],
                "margin_rate": ctx.config.market.margin_rate,
                "horizon_weeks": ctx.config.market.horizon_weeks,
            },
        )
        write_manifest(ctx.folder)
        bar.advance()
    observation = _parity_observations(dataset, ctx.rng("parity"))
    difference, agree = policy_parity(network, ctx.folder, observation)
    encoder_difference = encoder_parity(encoder, ctx.folder, ids, attention)
    if difference > PARITY_BAR or not agree:
        raise StageError(
            f"the exported policy differs from the trained one by {difference:.2e} "
            f"(bar {PARITY_BAR:.0e}, same best offer everywhere: {agree}); it must not be deployed"
        )
    return {
        "export": {
            "path": ctx.folder.name,
            "parity_max_abs_diff": difference,
            "parity_observations": len(observation),
            "encoder_max_abs_diff": encoder_difference,
            "bytes": sum(path.stat().st_size for path in ctx.folder.iterdir() if path.is_file()),
        }
    }


def _encoder(ctx: StageContext) -> tuple[EnsembleEncoder, np.ndarray, np.ndarray]:
    """Load the fine-tuned encoder and a padded batch of category texts to compare on."""
    encoder = load_encoder(ctx.input("pretrain"), ctx.input("finetune"), ctx.config.encoder.embedding)
    tokenizer = Tokenizer.from_file(str(ctx.input("pretrain") / TOKENIZER_FILE))
    panel = Panel.load(ctx.input("prepare") / PANEL_FILE)
    tokens = tokenize(tokenizer, category_texts(panel), ctx.config.text.max_tokens)
    batch = pad(tokens, special_token_id(tokenizer, "[PAD]"))
    return encoder, batch.ids.numpy(), batch.attention.numpy()


def _parity_observations(dataset: LoggedDataset, rng: np.random.Generator) -> np.ndarray:
    """Return logged rows and as many with every column shuffled and stretched: beyond what was seen."""
    logged = dataset.observation[rng.permutation(dataset.n_steps)[:5000]]
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
    sections=("text", "encoder", "market"),
    inputs=("prepare", "pretrain", "finetune", "train", "evaluate"),
    run=run,
    help=STAGE_HELP["export"],
)
