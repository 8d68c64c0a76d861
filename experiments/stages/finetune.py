"""Stage 3: fine-tuning, refitting on the embeddings, calibration, and the ensemble of simulators."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from encoders.basket import set_basket_loadings
from encoders.basket_ties import set_basket_ties
from encoders.bert import EnsembleEncoder, TextEncoder, load_pretraining_model, special_token_id, tokenize
from encoders.calibration import calibrate, calibrate_amounts, fit_redemption
from encoders.embedding import embed_tokens
from encoders.embedding_cache import EmbeddingCache
from encoders.finetuning import FineTuningConfig, FineTuningReport, fine_tune
from encoders.habits import HabitReader
from encoders.heads_fit import HeadPriors, fit_heads
from encoders.panel import Panel
from encoders.predicted_visits import PredictedVisits
from encoders.purchase_fit import SWEEPS
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData, UserWeeks, anchor_texts, training_anchors
from encoders.text_batches import TextBatches
from encoders.user_encoder import UserEncoder
from encoders.user_text import SEASON_WEEKS, UserTextStyle, UserTextWriter, category_texts
from encoders.week_shocks import set_week_deviations
from envs.assumptions import AssumedResponse
from experiments.artifacts import (
    BERT_FOLDER,
    EMBEDDINGS_FILE,
    HABITS_FILE,
    HEADS_FILE,
    NO_TEXT_FILE,
    PANEL_FILE,
    PRETRAINED_FILE,
    REDEMPTIONS_FILE,
    TOKENIZER_FILE,
    SimulatorRecord,
    load_module,
    save_arrays,
    save_module,
    save_simulators,
    save_user_encoder,
)
from experiments.parameter_table import assumed_parameters, fitted_parameters
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP

Redemptions = dict[str, npt.NDArray[Any]]


class _Texts:
    """The user texts of all anchor weeks, by period."""

    def __init__(self, ctx: StageContext, panel: Panel, tokenizer: Tokenizer) -> None:
        text, split = ctx.config.text, panel.split
        style = UserTextStyle(max_items=text.max_items, season=split.train_end >= SEASON_WEEKS)
        every = text.re_encode_weeks

        def written(anchors: list[int], last_week: int) -> AnchorTexts:
            return anchor_texts(
                panel, tokenizer, anchors, last_week, every=every, style=style, max_tokens=text.max_tokens
            )

        train = training_anchors(split.train_end, every)
        tune = list(range(split.train_end + 1, split.tune_end + 1, every))
        report = list(range(split.tune_end + 1, split.report_end + 1, every))
        with ctx.progress("writing and tokenising user texts") as bar:
            self.train = written(train, split.train_end)
            self.tune = written(tune, split.tune_end)
            self.report = written(report, split.report_end)
            bar.advance()
        self.writer = UserTextWriter.of_panel(panel, style)
        self.start_weeks = [anchor - 1 for anchor in (*train, *tune, *report)]
        """0-based weeks at which users are embedded."""


def run(ctx: StageContext) -> dict[str, Any]:
    """Fit the heads without text, fine-tune, refit on the embeddings, calibrate, and fit the simulators."""
    panel = Panel.load(ctx.input("prepare") / PANEL_FILE)
    tokenizer = Tokenizer.from_file(str(ctx.input("pretrain") / TOKENIZER_FILE))
    data = ResponseData.of_panel(panel)
    redemptions = _redemptions(ctx, panel)
    texts = _Texts(ctx, panel, tokenizer)
    starts = texts.start_weeks
    if not training_anchors(panel.split.train_end, ctx.config.text.re_encode_weeks):
        raise StageError("the training weeks are too few for a single user text")

    labelled = _labelled(ctx, panel.n_users)
    no_embeddings = torch.zeros(len(starts), panel.n_users, 0)
    without_text = _new_heads(data, 0)
    with ctx.progress("fitting the heads without text", SWEEPS) as bar:
        rows = _train_weeks(panel, starts, no_embeddings, labelled)
        fit_heads(without_text, data, rows, advance=bar.advance)

    # Most texts are read more than once: before fine-tuning and after it, by an encoder that may be the same.
    cache = EmbeddingCache(ctx.checkpoint / "embeddings")
    probe, encoder, heads, reports = _ensemble(ctx, data, texts, tokenizer, labelled, cache)
    embeddings = _embed(ctx, encoder, texts, special_token_id(tokenizer, "[PAD]"), panel.n_users, cache)
    rows = _train_weeks(panel, starts, embeddings, labelled)
    if probe.is_of(heads, rows):
        heads, priors = probe.heads, probe.priors
    else:
        with ctx.progress("fitting the heads on the embeddings", SWEEPS) as bar:
            priors = fit_heads(heads, data, rows, advance=bar.advance)
    _finish(heads, data, starts, embeddings, redemptions, labelled)
    _finish(without_text, data, starts, no_embeddings, redemptions, labelled)

    precision = ctx.config.encoder.precision
    save_user_encoder(
        ctx.folder,
        UserEncoder(texts.writer, tokenizer, encoder, ctx.config.text.max_tokens, precision),  # type: ignore[arg-type]
    )
    save_module(heads, ctx.folder / HEADS_FILE)
    save_module(without_text, ctx.folder / NO_TEXT_FILE)
    save_arrays(ctx.folder / EMBEDDINGS_FILE, start_week=np.array(starts), embedding=embeddings.numpy())
    _fit_simulators(ctx, data, starts, heads, priors, embeddings, redemptions)
    return {
        "fine_tuning": {
            "epochs": [
                {"member": member, **vars(epoch)}
                for member, report in enumerate(reports, start=1)
                for epoch in report
            ],
            "text_tokens_mean": float(np.mean([len(tokens) for tokens in texts.train.tokens])),
        },
        "response": {
            "fitted": fitted_parameters(heads, data, redemptions["redeemed"]),
            "assumed": assumed_parameters(),
        },
    }


def _labelled(ctx: StageContext, n_users: int) -> torch.Tensor:
    """Weight of each user's labels, [n]: all one, or one for a drawn share; smaller shares lie in larger."""
    count = max(2, round(ctx.config.finetune.label_share * n_users))
    weight = torch.zeros(n_users)
    weight[torch.from_numpy(ctx.rng("labelled").permutation(n_users)[:count])] = 1.0
    return weight


def _new_heads(data: ResponseData, embedding: int) -> ResponseHeads:
    base_rate = data.base_rate()
    heads = ResponseHeads(base_rate, embedding)
    heads.set_scale(data.feature_scale(base_rate))
    return heads


def _train_weeks(
    panel: Panel, starts: list[int], embeddings: torch.Tensor, user_weight: torch.Tensor | None = None
) -> UserWeeks:
    return UserWeeks.of_weeks(range(starts[0], panel.split.train_end), starts, embeddings, user_weight)


def _ensemble(
    ctx: StageContext,
    data: ResponseData,
    texts: _Texts,
    tokenizer: Tokenizer,
    labelled: torch.Tensor,
    cache: EmbeddingCache,
) -> tuple[_Probe, EnsembleEncoder, ResponseHeads, list[list[FineTuningReport]]]:
    """Fine-tune the members one by one; the heads returned, not fitted yet, are to read them side by side."""
    settings, width = ctx.config.finetune, ctx.config.encoder.embedding
    category_tokens = tokenize(tokenizer, category_texts(data.panel), ctx.config.text.max_tokens)
    users = labelled.nonzero()[:, 0]
    train, tune = texts.train.of_users(users), texts.tune.of_users(users)
    batches = TextBatches.of(tokenizer, train, tune, category_tokens)
    config = FineTuningConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        weight_decay=settings.weight_decay,
        patience=settings.patience,
        item_dropout=settings.item_dropout,
        lora_rank=settings.lora_rank,
        habit_weight=settings.habit_weight,
        max_texts=settings.max_texts,
    )
    n_batches = settings.epochs * -(-config.texts_in_epoch(len(train)) // settings.batch_size)
    probe = _probe(ctx, data, _pretrained(ctx, data.panel.n_categories)[0], batches, labelled, cache)
    members, matches, reports = [], [], []
    for number in range(1, settings.ensemble + 1):
        member, reader = _pretrained(ctx, data.panel.n_categories)
        heads = copy.deepcopy(probe.heads)
        with ctx.progress(f"fine-tuning BERT {number} of {settings.ensemble}", n_batches) as bar:
            reports.append(
                fine_tune(
                    member,
                    heads,
                    reader,
                    data,
                    batches,
                    config,
                    device=ctx.device,
                    seed=ctx.seed_for(f"fine-tuning {number}"),
                    checkpoint=ctx.checkpoint / f"finetuning-{number}.pt",
                    cache=cache,
                    on_step=lambda loss, bar=bar: bar.advance(loss=loss),  # type: ignore[misc]
                )
            )
        members.append(member)
        matches.append(heads.category_match)
    joined = _new_heads(data, width * settings.ensemble)
    joined.category_match.copy_(torch.cat(matches, dim=1))
    return probe, EnsembleEncoder(members), joined, reports


def _pretrained(ctx: StageContext, n_categories: int) -> tuple[TextEncoder, HabitReader]:
    """The encoder as pretraining left it, and what reads habits off its embeddings."""
    folder, width = ctx.input("pretrain"), ctx.config.encoder.embedding
    encoder = TextEncoder(load_pretraining_model(folder / BERT_FOLDER).bert, width)
    load_module(encoder, folder / PRETRAINED_FILE)
    reader = HabitReader(width, n_categories)
    load_module(reader, folder / HABITS_FILE)
    return encoder, reader


@dataclass(frozen=True)
class _Probe:
    """Heads fitted on the embeddings as they are before fine-tuning.

    Attributes:
        heads: fitted, but for calibration, what goes together, and redemption.
        priors: fitted along.
        rows: the labelled user-weeks that they were fitted on.
    """

    heads: ResponseHeads
    priors: HeadPriors
    rows: UserWeeks

    def is_of(self, heads: ResponseHeads, rows: UserWeeks) -> bool:
        """Return whether fitting new heads on these rows would be the same fit over again.

        Args:
            heads: not fitted yet.
            rows: the same users and weeks, with the embeddings of now.
        """
        # Where no epoch of fine-tuning is better than none, the encoder is what it was.
        return torch.equal(self.heads.category_match, heads.category_match) and torch.equal(
            self.rows.embedding, rows.embedding
        )


def _probe(
    ctx: StageContext,
    data: ResponseData,
    encoder: TextEncoder,
    batches: TextBatches,
    labelled: torch.Tensor,
    cache: EmbeddingCache,
) -> _Probe:
    """Heads fitted on the embeddings as they are before fine-tuning."""
    heads = _new_heads(data, ctx.config.encoder.embedding)
    texts = batches.texts
    encoder.to(ctx.device)
    with ctx.progress("fitting the heads on pretrained embeddings", SWEEPS) as bar:
        embedded, match = (
            embed_tokens(
                encoder,
                tokens,
                padding_id=batches.padding_id,
                device=ctx.device,
                precision="fp32",
                cache=cache,
            )
            for tokens in (texts.tokens, batches.category_tokens)
        )
        heads.category_match.copy_(match)
        starts = sorted(set(texts.first_week.tolist()))
        table = torch.zeros(len(starts), data.panel.n_users, heads.embedding)
        table[torch.searchsorted(torch.tensor(starts), texts.first_week), texts.user] = embedded
        rows = _train_weeks(data.panel, starts, table, labelled)
        priors = fit_heads(heads, data, rows, advance=bar.advance)
    return _Probe(heads, priors, rows)


def _embed(
    ctx: StageContext,
    encoder: EnsembleEncoder,
    texts: _Texts,
    padding_id: int,
    n_users: int,
    cache: EmbeddingCache,
) -> torch.Tensor:
    """Embed all texts, [A, n, d]."""
    tokens = [*texts.train.tokens, *texts.tune.tokens, *texts.report.tokens]
    parts: list[torch.Tensor] = []
    with ctx.progress("embedding user texts", len(tokens) * encoder.n_members) as bar:
        for member in encoder:
            member.to(ctx.device)
            parts.append(
                embed_tokens(
                    member,
                    tokens,
                    padding_id=padding_id,
                    device=ctx.device,
                    precision=ctx.config.encoder.precision,  # type: ignore[arg-type]
                    cache=cache,
                    advance=bar.advance,
                )
            )
            member.cpu()
    flat = torch.cat(parts, dim=1)
    return flat.reshape(-1, n_users, flat.shape[1])


def _redemptions(ctx: StageContext, panel: Panel) -> Redemptions:
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
    starts: list[int],
    embeddings: torch.Tensor,
    redemptions: Redemptions,
    user_weight: torch.Tensor | None = None,
) -> None:
    """Calibrate on the tuning weeks, fit what goes together, and redemption; on weighted users if given."""
    split = data.panel.split
    tune = UserWeeks.of_weeks(range(split.train_end, split.tune_end), starts, embeddings, user_weight)
    calibrate(heads, data, tune)
    calibrate_amounts(heads, PredictedVisits.of_rows(heads, data, tune))
    seen = UserWeeks.of_weeks(range(starts[0], split.tune_end), starts, embeddings, user_weight)
    visits = PredictedVisits.of_rows(heads, data, seen)
    set_basket_loadings(heads, visits)
    set_basket_ties(heads, visits)
    set_week_deviations(heads, data, seen, visits)
    if user_weight is not None:
        # Each row as often as its user was drawn.
        repeats = user_weight.long().numpy()[redemptions["user"]]
        redemptions = {name: np.repeat(values, repeats) for name, values in redemptions.items()}
    latest = np.maximum(np.searchsorted(np.array(starts), redemptions["week"], side="right") - 1, 0)
    fit_redemption(
        heads,
        data,
        redemptions["user"],
        redemptions["week"],
        redemptions["redeemed"],
        embeddings[torch.from_numpy(latest), torch.from_numpy(redemptions["user"])],
    )


def _fit_simulators(
    ctx: StageContext,
    data: ResponseData,
    starts: list[int],
    heads: ResponseHeads,
    priors: HeadPriors,
    embeddings: torch.Tensor,
    redemptions: Redemptions,
) -> None:
    """Fit both ensembles on bootstrapped users of disjoint halves, and draw their assumptions."""
    settings, n_users = ctx.config.simulators, data.panel.n_users
    users = _labelled(ctx, n_users).nonzero()[:, 0].numpy()
    halves = np.array_split(ctx.rng("halves").permutation(users), 2)
    sides = {"train": np.sort(halves[0]), "judge": np.sort(halves[1])}
    counts = {"train": settings.n_train, "judge": settings.n_judge}
    records: list[SimulatorRecord] = []
    with ctx.progress("fitting simulators", sum(counts.values())) as bar:
        for role, users in sides.items():
            for number in range(1, counts[role] + 1):
                name = f"{role}-{number}"
                file = f"simulator-{name}.safetensors"
                assumed = AssumedResponse.draw(ctx.rng(f"assumptions {name}"))
                records.append(SimulatorRecord(role, file, assumed))
                if not (ctx.folder / file).is_file():  # else fitted before an interruption
                    drawn = ctx.rng(f"simulator {name}").choice(users, len(users), replace=True)
                    weight = torch.from_numpy(np.bincount(drawn, minlength=n_users)).float()
                    # From the start values of the pooled fit's shape, not from its solution: that one has
                    # seen the other half.
                    fitted = _new_heads(data, heads.embedding)
                    fitted.category_match.copy_(heads.category_match)
                    rows = _train_weeks(data.panel, starts, embeddings, weight)
                    fit_heads(fitted, data, rows, priors=priors)
                    _finish(fitted, data, starts, embeddings, redemptions, weight)
                    save_module(fitted, ctx.folder / file)
                bar.advance()
    save_simulators(ctx.folder, records, sides["train"], sides["judge"])


STAGE = Stage(
    name="finetune",
    folder="response",
    sections=("text", "encoder", "finetune", "simulators"),
    inputs=("prepare", "pretrain"),
    run=run,
    help=STAGE_HELP["finetune"],
)
