"""Stage 3: fine-tuning, calibration, fidelity, and the ensemble of simulators."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from encoders.bert import TextEncoder, load_pretraining_model, special_token_id, tokenize
from encoders.calibration import calibrate, fit_redemption, set_basket_correlation
from encoders.checkpoint import load_checkpoint, save_checkpoint
from encoders.embedding import embed_tokens
from encoders.finetuning import Embedder, FittingConfig, fit_response
from encoders.panel import Panel
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData, anchor_texts, training_anchors
from encoders.user_text import UserTextStyle, category_texts
from envs.assumptions import AssumedResponse
from experiments.artifacts import (
    BERT_FOLDER,
    EMBEDDINGS_FILE,
    ENCODER_FILE,
    HEADS_FILE,
    PANEL_FILE,
    REDEMPTIONS_FILE,
    TOKENIZER_FILE,
    SimulatorRecord,
    save_arrays,
    save_module,
    save_simulators,
)
from experiments.config import FinetuneConfig
from experiments.fidelity import (
    fidelity_report,
    frequency_baseline,
    lightgbm_peer,
    lightgbm_probability,
    weekly_purchase,
)
from experiments.parameter_table import assumed_parameters, fitted_parameters
from experiments.stage import Stage, StageContext
from experiments.stages import STAGE_HELP

HEAD_EPOCHS = 10
HEAD_BATCH = 256
HEAD_LEARNING_RATE = 2e-2
"""Fits of the heads alone: a few seconds each, run to convergence."""


class _Periods:
    """Texts of the three periods and, once the encoder is trained, their embeddings."""

    def __init__(self, ctx: StageContext, panel: Panel, tokenizer: Tokenizer) -> None:
        text, split = ctx.config.text, panel.split
        style = UserTextStyle(max_items=text.max_items)
        every = text.re_encode_weeks

        def written(anchors: list[int], last_week: int) -> AnchorTexts:
            return anchor_texts(
                panel, tokenizer, anchors, last_week, every=every, style=style, max_tokens=text.max_tokens
            )

        self.train_anchors = training_anchors(split.train_end, every)
        self.tune_anchors = list(range(split.train_end + 1, split.tune_end + 1, every))
        self.report_anchors = list(range(split.tune_end + 1, split.report_end + 1, every))
        self.train = written(self.train_anchors, split.train_end)
        self.tune = written(self.tune_anchors, split.tune_end)
        self.report = written(self.report_anchors, split.report_end)

    @property
    def anchors(self) -> list[int]:
        """All anchor weeks, 1-based, in order."""
        return [*self.train_anchors, *self.tune_anchors, *self.report_anchors]


def run(ctx: StageContext) -> dict[str, Any]:
    """Fine-tune, calibrate, score on the reported weeks, and fit the simulators."""
    settings = ctx.config.finetune
    panel = Panel.load(ctx.input("prepare") / PANEL_FILE)
    tokenizer = Tokenizer.from_file(str(ctx.input("pretrain") / TOKENIZER_FILE))
    data = ResponseData.of_panel(panel)
    with ctx.progress("writing and tokenising user texts") as bar:
        periods = _Periods(ctx, panel, tokenizer)
        bar.advance()

    without_text = _fit_heads(
        ctx,
        data,
        periods.train,
        periods.tune,
        torch.zeros(len(periods.train), 0),
        torch.zeros(len(periods.tune), 0),
    )
    encoder, heads, reports = _fine_tune(ctx, data, periods, tokenizer, without_text, settings)
    tables = _embed(ctx, encoder, periods, special_token_id(tokenizer, "[PAD]"))
    # The heads converge more slowly than the encoder may be trained; on fixed embeddings they can.
    _refine(ctx, heads, data, periods, tables)
    redemptions = _redemptions(ctx, panel)
    embeddings = torch.stack(
        torch.cat([tables["train"], tables["tune"], tables["report"]]).split(panel.n_users)
    )
    _finish(heads, data, periods.tune, tables["tune"], redemptions, periods.anchors, embeddings)
    _finish(
        without_text,
        data,
        periods.tune,
        torch.zeros(len(periods.tune), 0),
        redemptions,
        periods.anchors,
        torch.zeros(len(periods.anchors), panel.n_users, 0),
    )
    fidelity = _fidelity(ctx, data, periods, heads, tables["report"], without_text, settings)

    save_module(encoder, ctx.folder / ENCODER_FILE)
    save_module(heads, ctx.folder / HEADS_FILE)
    save_arrays(
        ctx.folder / EMBEDDINGS_FILE,
        start_week=np.array([anchor - 1 for anchor in periods.anchors]),
        embedding=embeddings.numpy(),
    )
    _fit_simulators(ctx, data, periods, heads, tables, embeddings, redemptions)
    return {
        "fine_tuning": {"epochs": [vars(report) for report in reports]},
        "fidelity": fidelity,
        "response": {
            "fitted": fitted_parameters(heads, data, redemptions["redeemed"]),
            "assumed": assumed_parameters(),
        },
    }


def _fit_heads(
    ctx: StageContext,
    data: ResponseData,
    train: AnchorTexts,
    tune: AnchorTexts,
    train_table: torch.Tensor,
    tune_table: torch.Tensor,
) -> ResponseHeads:
    """Fit fresh heads on fixed embeddings, zero-width ones for a model without text."""
    base_rate = data.base_rate()
    heads = ResponseHeads(base_rate, train_table.shape[1])
    heads.set_scale(data.feature_scale(base_rate))
    config = FittingConfig(HEAD_EPOCHS, HEAD_BATCH, 0.0, HEAD_LEARNING_RATE, 0.0, 3)
    with ctx.progress("fitting the heads without text", _steps(len(train), config)) as bar:
        fit_response(
            heads,
            data,
            Embedder(train, table=train_table),
            Embedder(tune, table=tune_table),
            config,
            seed=ctx.seed_for("heads without text"),
            on_step=lambda loss: bar.advance(loss=loss),
        )
    return heads


def _fine_tune(
    ctx: StageContext,
    data: ResponseData,
    periods: _Periods,
    tokenizer: Tokenizer,
    start: ResponseHeads,
    settings: FinetuneConfig,
) -> tuple[TextEncoder, ResponseHeads, list[Any]]:
    """Fine-tune the encoder with heads that start where the fit without text ended."""
    torch.manual_seed(ctx.seed_for("projection"))
    bert = load_pretraining_model(ctx.input("pretrain") / BERT_FOLDER).bert
    encoder = TextEncoder(bert, ctx.config.encoder.embedding)
    heads = ResponseHeads(data.base_rate(), ctx.config.encoder.embedding)
    own = heads.state_dict()
    shared = {k: v for k, v in start.state_dict().items() if v.shape == own[k].shape}
    heads.load_state_dict(own | shared)
    padding_id = special_token_id(tokenizer, "[PAD]")
    category_tokens = tokenize(tokenizer, category_texts(data.panel), ctx.config.text.max_tokens)
    config = FittingConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        weight_decay=settings.weight_decay,
        patience=settings.patience,
    )

    def embedder(texts: AnchorTexts) -> Embedder:
        return Embedder(
            texts,
            encoder=encoder,
            category_tokens=category_tokens,
            padding_id=padding_id,
            device=ctx.device,
        )

    with ctx.progress("fine-tuning BERT", _steps(len(periods.train), config)) as bar:
        reports = fit_response(
            heads,
            data,
            embedder(periods.train),
            embedder(periods.tune),
            config,
            seed=ctx.seed_for("fine-tuning"),
            checkpoint=ctx.checkpoint / "finetuning.pt",
            on_step=lambda loss: bar.advance(loss=loss),
        )
    return encoder, heads.cpu(), reports


def _embed(
    ctx: StageContext, encoder: TextEncoder, periods: _Periods, padding_id: int
) -> dict[str, torch.Tensor]:
    """Embed all texts of all periods; kept as a checkpoint, since it takes longer than the fits after it."""
    kept = load_checkpoint(ctx.checkpoint / "embeddings.pt")
    if kept is not None:
        return kept
    parts = {"train": periods.train, "tune": periods.tune, "report": periods.report}
    tables: dict[str, torch.Tensor] = {}
    with ctx.progress("embedding user texts", sum(len(part) for part in parts.values())) as bar:
        for name, part in parts.items():
            tables[name] = embed_tokens(
                encoder.to(ctx.device),
                part.tokens,
                padding_id=padding_id,
                device=ctx.device,
                advance=bar.advance,
            )
    encoder.cpu()
    save_checkpoint(ctx.checkpoint / "embeddings.pt", tables)
    return tables


def _refine(
    ctx: StageContext,
    heads: ResponseHeads,
    data: ResponseData,
    periods: _Periods,
    tables: dict[str, torch.Tensor],
) -> None:
    config = FittingConfig(HEAD_EPOCHS, HEAD_BATCH, 0.0, HEAD_LEARNING_RATE / 4, 0.0, 3)
    with ctx.progress("refining the heads", _steps(len(periods.train), config)) as bar:
        fit_response(
            heads,
            data,
            Embedder(periods.train, table=tables["train"]),
            Embedder(periods.tune, table=tables["tune"]),
            config,
            seed=ctx.seed_for("refining"),
            on_step=lambda loss: bar.advance(loss=loss),
        )


def _redemptions(ctx: StageContext, panel: Panel) -> dict[str, npt.NDArray[Any]]:
    """Redemption rows of the training and tuning weeks, week as 0-based index."""
    with np.load(ctx.input("prepare") / REDEMPTIONS_FILE, allow_pickle=False) as stored:
        usable = stored["week"] <= panel.split.tune_end
        return {
            "user": stored["user"][usable].astype(np.int64),
            "week": stored["week"][usable].astype(np.int64) - 1,
            "redeemed": stored["redeemed"][usable],
        }


def _finish(
    heads: ResponseHeads,
    data: ResponseData,
    tune: AnchorTexts,
    tune_table: torch.Tensor,
    redemptions: dict[str, npt.NDArray[Any]],
    anchors: list[int],
    embeddings: torch.Tensor,
    users: npt.NDArray[np.int64] | None = None,
) -> None:
    """Calibrate on the tuning weeks, set the basket effect, fit redemption; only on ``users`` if given."""
    if users is not None:
        keep = torch.isin(tune.user, torch.from_numpy(users))
        rows = keep.nonzero()[:, 0]
        tune = AnchorTexts(
            [tune.tokens[int(k)] for k in rows], tune.user[rows], tune.first_week[rows], tune.last_week[rows]
        )
        tune_table = tune_table[rows]
        chosen = np.isin(redemptions["user"], users)
        redemptions = {name: values[chosen] for name, values in redemptions.items()}
    calibrate(heads, data, tune, tune_table)
    set_basket_correlation(heads, data, tune, tune_table)
    starts = np.array([anchor - 1 for anchor in anchors])
    latest = np.maximum(np.searchsorted(starts, redemptions["week"], side="right") - 1, 0)
    fit_redemption(
        heads,
        data,
        redemptions["user"],
        redemptions["week"],
        redemptions["redeemed"],
        embeddings[torch.from_numpy(latest), torch.from_numpy(redemptions["user"])],
    )


def _fidelity(
    ctx: StageContext,
    data: ResponseData,
    periods: _Periods,
    heads: ResponseHeads,
    report_table: torch.Tensor,
    without_text: ResponseHeads,
    settings: FinetuneConfig,
) -> dict[str, Any]:
    """Score the model and its peers on the reported weeks."""
    visit, model, user, week = weekly_purchase(heads, data, periods.report, report_table)
    _, plain, _, _ = weekly_purchase(without_text, data, periods.report, torch.zeros(len(periods.report), 0))
    with ctx.progress("training LightGBM as a peer", 400) as bar:
        booster = lightgbm_peer(
            data,
            periods.train,
            periods.tune,
            n_rows=settings.lightgbm_rows,
            seed=ctx.seed_for("lightgbm"),
            threads=ctx.threads,
            on_round=lambda _: bar.advance(),
        )
    return fidelity_report(
        {
            "model": model,
            "lightgbm": lightgbm_probability(booster, data, user, week),
            "frequency": frequency_baseline(data, user, week),
            "no_text": plain,
        },
        visit,
        data,
        user,
        week,
    )


def _fit_simulators(
    ctx: StageContext,
    data: ResponseData,
    periods: _Periods,
    heads: ResponseHeads,
    tables: dict[str, torch.Tensor],
    embeddings: torch.Tensor,
    redemptions: dict[str, npt.NDArray[Any]],
) -> None:
    """Fit both ensembles on bootstrapped users of disjoint halves, and draw their assumptions."""
    settings = ctx.config.simulators
    halves = np.array_split(ctx.rng("halves").permutation(data.panel.n_users), 2)
    sides = {"train": np.sort(halves[0]), "judge": np.sort(halves[1])}
    counts = {"train": settings.n_train, "judge": settings.n_judge}
    config = FittingConfig(settings.refit_epochs, HEAD_BATCH, 0.0, HEAD_LEARNING_RATE, 0.0, 1)
    records: list[SimulatorRecord] = []
    texts_of = _rows_by_user(periods.train, data.panel.n_users)
    with ctx.progress("fitting simulators", sum(counts.values())) as bar:
        for role, users in sides.items():
            for number in range(1, counts[role] + 1):
                name = f"{role}-{number}"
                file = f"simulator-{name}.safetensors"
                assumed = AssumedResponse.draw(ctx.rng(f"assumptions {name}"))
                records.append(SimulatorRecord(role, file, assumed))
                if (ctx.folder / file).is_file():  # fitted before an interruption
                    bar.advance()
                    continue
                rng = ctx.rng(f"simulator {name}")
                drawn = rng.choice(users, len(users), replace=True)
                fitted = ResponseHeads(heads.base_rate, heads.embedding)
                fitted.set_scale(data.feature_scale(data.base_rate()))
                fitted.category_match.copy_(heads.category_match)
                fit_response(
                    fitted,
                    data,
                    Embedder(periods.train, table=tables["train"]),
                    None,
                    config,
                    seed=int(rng.integers(2**31)),
                    text_rows=torch.from_numpy(texts_of[drawn].ravel()),
                )
                _finish(
                    fitted,
                    data,
                    periods.tune,
                    tables["tune"],
                    redemptions,
                    periods.anchors,
                    embeddings,
                    users,
                )
                save_module(fitted, ctx.folder / file)
                bar.advance()
    save_simulators(ctx.folder, records, sides["train"], sides["judge"])


def _rows_by_user(texts: AnchorTexts, n_users: int) -> npt.NDArray[np.int64]:
    """Return the text indices of each user, [n, anchors]."""
    order = np.argsort(texts.user.numpy(), kind="stable")
    return order.reshape(n_users, -1)


def _steps(n_texts: int, config: FittingConfig) -> int:
    return config.epochs * -(-n_texts // config.batch_size)


STAGE = Stage(
    name="finetune",
    folder="response",
    sections=("text", "encoder", "finetune", "simulators"),
    inputs=("prepare", "pretrain"),
    run=run,
    help=STAGE_HELP["finetune"],
)
