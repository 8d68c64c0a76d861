"""Stage 2: user texts, tokenizer, BERT pretraining on them, and the habits that they tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import BertForPreTraining

from encoders.bert import (
    SPECIAL_TOKENS,
    TextEncoder,
    load_pretraining_model,
    new_pretraining_model,
    packaged_model,
    special_token_id,
    tokenize,
    train_wordpiece,
)
from encoders.habits import HabitConfig, HabitRates, HabitReader, HabitReport, learn_habits
from encoders.panel import Panel
from encoders.pretraining import PretrainingConfig, PretrainingPairs, pretrain
from encoders.response_data import AnchorTexts, ResponseData, anchor_texts, training_anchors
from encoders.text_batches import TextBatches
from encoders.user_text import (
    SEASON_WEEKS,
    UserTextStyle,
    basket_text,
    category_texts,
    category_words,
    user_texts,
)
from experiments.artifacts import (
    BERT_FOLDER,
    HABITS_FILE,
    PANEL_FILE,
    PRETRAINED_FILE,
    TOKENIZER_FILE,
    save_module,
)
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP

BASKET_ITEMS = 12


def next_basket_pairs(
    panel: Panel, anchors: list[int], style: UserTextStyle, max_pairs: int, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Return user texts and the text of each user's next basket within the training weeks."""
    words = category_words(panel)
    end = panel.split.train_end
    histories: list[str] = []
    baskets: list[str] = []
    for anchor in anchors:
        texts = user_texts(panel, anchor, style)
        for user in range(panel.n_users):
            coming = np.flatnonzero(panel.bought[user, anchor - 1 : end].any(axis=1))
            if coming.size:
                histories.append(texts[user])
                baskets.append(basket_text(panel.bought[user, anchor - 1 + coming[0]], words, BASKET_ITEMS))
    chosen = np.sort(rng.permutation(len(histories))[:max_pairs])
    return [histories[k] for k in chosen], [baskets[k] for k in chosen]


def run(ctx: StageContext) -> dict[str, Any]:
    """Write texts, train or load the tokenizer, and pretrain."""
    text, shape, settings = ctx.config.text, ctx.config.encoder, ctx.config.pretrain
    panel = Panel.load(ctx.input("prepare") / PANEL_FILE)
    style = UserTextStyle(max_items=text.max_items, season=panel.split.train_end >= SEASON_WEEKS)
    anchors = training_anchors(panel.split.train_end, text.re_encode_weeks)
    histories, baskets = next_basket_pairs(panel, anchors, style, settings.max_texts, ctx.rng("texts"))
    if len(histories) < 2:
        raise StageError("the training weeks hold too few baskets to pretrain on")
    try:
        source = packaged_model(shape.preset)
    except FileNotFoundError as error:
        raise StageError(str(error)) from error
    torch.manual_seed(ctx.seed_for("initial weights"))
    if source is None:
        tokenizer = train_wordpiece([*histories, *baskets, *category_texts(panel)], shape.vocabulary)
        model = new_pretraining_model(
            tokenizer.get_vocab_size(), shape.layers, shape.width, shape.heads, shape.dropout, text.max_tokens
        )
        n_special = len(SPECIAL_TOKENS)
    else:
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        model = load_pretraining_model(source)
        # Pretrained vocabularies keep their special and unused entries below the first ordinary one.
        n_special = special_token_id(tokenizer, "[MASK]") + 1
    ctx.log(
        f"{len(histories)} user texts, vocabulary {tokenizer.get_vocab_size()}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters"
    )
    pairs = PretrainingPairs(
        tokenize(tokenizer, histories, text.max_tokens), tokenize(tokenizer, baskets, text.max_tokens)
    )
    config = PretrainingConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        mask_probability=settings.mask_probability,
    )
    steps = settings.epochs * -(-len(histories) // settings.batch_size)
    with ctx.progress("pretraining BERT", steps) as bar:
        reports = pretrain(
            model,
            pairs,
            config,
            mask_id=special_token_id(tokenizer, "[MASK]"),
            padding_id=special_token_id(tokenizer, "[PAD]"),
            n_special=n_special,
            seed=ctx.seed_for("training"),
            device=ctx.device,
            checkpoint=ctx.checkpoint / "pretraining.pt",
            on_step=lambda loss: bar.advance(loss=loss),
        )
    encoder, habits = _learn_habits(ctx, panel, tokenizer, model, style)
    # A tokenizer remembers the last truncation; stored without it, it serves any length.
    tokenizer.no_truncation()
    tokenizer.save(str(ctx.folder / TOKENIZER_FILE))
    transformers.utils.logging.disable_progress_bar()
    model.cpu().save_pretrained(ctx.folder / BERT_FOLDER)
    save_module(encoder, ctx.folder / PRETRAINED_FILE)
    return {
        "pretraining": {
            "preset": shape.preset,
            "texts": len(histories),
            "vocabulary": tokenizer.get_vocab_size(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "epochs": [vars(report) for report in reports],
            "habits": [vars(report) for report in habits],
        }
    }


def _learn_habits(
    ctx: StageContext, panel: Panel, tokenizer: Tokenizer, model: BertForPreTraining, style: UserTextStyle
) -> tuple[TextEncoder, list[HabitReport]]:
    """Pool and project what BERT reads, and train all of it to keep the users' habits; store the reader."""
    text, settings, split = ctx.config.text, ctx.config.pretrain, panel.split
    data = ResponseData.of_panel(panel)

    def written(anchors: list[int], last_week: int) -> AnchorTexts:
        return anchor_texts(
            panel,
            tokenizer,
            anchors,
            last_week,
            every=text.re_encode_weeks,
            style=style,
            max_tokens=text.max_tokens,
        )

    train = written(training_anchors(split.train_end, text.re_encode_weeks), split.train_end)
    tune = written([split.train_end + 1], split.tune_end)
    categories = tokenize(tokenizer, category_texts(panel), text.max_tokens)
    torch.manual_seed(ctx.seed_for("projection"))
    encoder = TextEncoder(model.bert, ctx.config.encoder.embedding)
    reader = HabitReader(ctx.config.encoder.embedding, panel.n_categories)
    config = HabitConfig(
        epochs=settings.habit_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.habit_learning_rate,
        weight_decay=settings.weight_decay,
    )
    n_steps = settings.habit_epochs * -(-len(train) // settings.batch_size)
    with ctx.progress("learning habits", n_steps) as bar:
        reports = learn_habits(
            encoder,
            reader,
            HabitRates.of(data),
            TextBatches.of(tokenizer, train, tune, categories),
            config,
            device=ctx.device,
            seed=ctx.seed_for("habits"),
            checkpoint=ctx.checkpoint / "habits.pt",
            on_step=lambda loss: bar.advance(loss=loss),
        )
    save_module(reader, ctx.folder / HABITS_FILE)
    return encoder, reports


STAGE = Stage(
    name="pretrain",
    folder="encoder",
    sections=("text", "encoder", "pretrain"),
    inputs=("prepare",),
    run=run,
    help=STAGE_HELP["pretrain"],
)
