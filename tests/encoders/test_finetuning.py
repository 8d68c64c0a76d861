from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from encoders.bert import TextEncoder
from encoders.finetuning import Embedder, FittingConfig, FittingReport, fit_response, response_loss
from encoders.panel import Panel
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData
from encoders.weeks import WeekSplit

THETA, DISPLAY, MAILER = 3.0, 0.8, 0.5
CONFIG = FittingConfig(
    epochs=3, batch_size=16, learning_rate=1e-3, head_learning_rate=0.02, weight_decay=0.01, patience=9
)


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def promoted_panel(n: int, c: int, seed: int) -> Panel:
    """Visits at 70%, purchases by a logit with known promotion effects; nothing depends on the past."""
    rng = np.random.default_rng(seed)
    split = WeekSplit.of_log(31)
    weeks = split.report_end
    depth, display, mailer = rng.uniform(0, 0.4, (weeks, c)), rng.random((weeks, c)), rng.random((weeks, c))
    logit = rng.uniform(-3, -1.5, c) + THETA * depth + DISPLAY * display + MAILER * mailer
    visited = rng.random((n, weeks)) < 0.7
    bought = (rng.random((n, weeks, c)) < 1 / (1 + np.exp(-logit))) & visited[:, :, None]
    spend = (bought * rng.lognormal(1.2, 0.6, bought.shape)).astype(np.float32)
    return Panel(
        user_ids=np.array([str(i) for i in range(n)]),
        profiles=np.array([""] * n),
        categories=np.array([str(k) for k in range(c)]),
        departments=np.array(["d"] * c),
        bought=bought,
        visited=visited,
        basket_spend=spend.sum(axis=2),
        category_spend=spend,
        promotion_depth=depth.astype(np.float32),
        display=display.astype(np.float32),
        mailer=mailer.astype(np.float32),
        split=split,
    )


def texts_of(panel: Panel, first: int, last: int, every: int = 2) -> AnchorTexts:
    """Texts of a few random tokens for all users at 0-based weeks ``first``..``last``."""
    rng = np.random.default_rng(0)
    starts = np.repeat(np.arange(first, last + 1, every), panel.n_users)
    return AnchorTexts(
        tokens=[rng.integers(5, 40, rng.integers(3, 9)).astype(np.int32) for _ in starts],
        user=torch.arange(panel.n_users).repeat(len(starts) // panel.n_users),
        first_week=torch.from_numpy(starts),
        last_week=torch.from_numpy(starts + every - 1).clamp(max=last),
    )


def without_text(texts: AnchorTexts) -> Embedder:
    return Embedder(texts, table=torch.zeros(len(texts), 0))


def new_heads(data: ResponseData, embedding: int) -> ResponseHeads:
    base = data.base_rate()
    heads = ResponseHeads(base, embedding)
    heads.set_scale(data.feature_scale(base))
    return heads


def test_promotion_effects_are_recovered() -> None:
    panel = promoted_panel(n=700, c=8, seed=1)
    data = ResponseData.of_panel(panel)
    heads = new_heads(data, 0)
    # By epoch 10 θ stands at 2.73, at the optimum at 2.91; with batches of 128 it is still at 2.34 by then.
    config = FittingConfig(15, 32, 1e-3, 0.02, 0.0, 15)
    end = panel.split.train_end
    reports = fit_response(
        heads,
        data,
        without_text(texts_of(panel, 4, end - 1)),
        without_text(texts_of(panel, end, panel.split.tune_end - 1)),
        config,
        seed=0,
    )
    assert reports[-1].tune_loss < reports[0].tune_loss
    theta = heads.depth_effect().detach()
    # Standard error of the mean is about 0.1; the optimum of the objective itself is at 2.91.
    assert float(theta.mean()) == pytest.approx(THETA, abs=0.3)
    # All categories have the same θ: the prior keeps them together.
    assert float((theta - THETA).abs().max()) < 0.8
    assert float(heads.depth_category.detach().std()) < 0.2
    assert float(heads.display_effect.detach()) / 0.1 == pytest.approx(DISPLAY, abs=0.15)
    assert float(heads.mailer_effect.detach()) / 0.1 == pytest.approx(MAILER, abs=0.15)
    assert float(heads.spend_level.detach().mean()) == pytest.approx(1.2, abs=0.05)
    assert float(heads.spend_deviation.detach().mean()) == pytest.approx(0.6, abs=0.03)


def test_the_loss_by_hand(make_panel: Callable[..., Panel]) -> None:
    panel = make_panel(n_users=3, n_categories=2)
    data = ResponseData.of_panel(panel)
    heads, texts = new_heads(data, 0), texts_of(panel, 6, 9)
    rows = torch.tensor([0, 4])
    total, count = 0.0, 0
    with torch.no_grad():
        heads.depth_category.copy_(torch.tensor([0.5, -1.0]))
        for text in rows:
            user = int(texts.user[text])
            for week in range(int(texts.first_week[text]), int(texts.last_week[text]) + 1):
                state = data.tape.before(torch.tensor([week]), torch.tensor([user]))
                u = heads(state, torch.zeros(1, 0), data.calendar.weeks(torch.tensor([week])))
                p = float(torch.sigmoid(u.visit[0]))
                total -= np.log(p if panel.visited[user, week] else 1 - p)
                count += 1
                if not panel.visited[user, week]:
                    continue
                for c in range(2):
                    p = float(torch.sigmoid(u.purchase[0, c]))
                    bought = bool(panel.bought[user, week, c])
                    total -= np.log(p if bought else 1 - p)
                    if bought:
                        s = float(heads.spend_deviation[c])
                        residual = np.log(panel.category_spend[user, week, c]) - float(u.log_spend[0, c])
                        total += 0.5 * (residual / s) ** 2 + np.log(s)
        penalty = float(heads.depth_penalty())
        loss = response_loss(heads, data, texts, rows, torch.zeros(2, 0), None, 50)
    assert count == 4
    assert penalty == pytest.approx(0.5 * (1.0 + 4.0))
    assert float(loss) == pytest.approx(total / count + penalty / 50, rel=1e-3)


def with_encoder(panel: Panel, bert: BertForPreTraining, texts: AnchorTexts) -> Embedder:
    torch.manual_seed(1)
    categories = [np.array([2, 6 + c, 3], dtype=np.int32) for c in range(panel.n_categories)]
    return Embedder(texts, encoder=TextEncoder(bert.bert, 3), category_tokens=categories)


@pytest.mark.parametrize("stop_at_epoch", [1, 2, 3])
def test_a_resumed_fit_ends_at_the_same_weights(
    make_panel: Callable[..., Panel],
    make_bert: Callable[..., BertForPreTraining],
    tmp_path: Path,
    stop_at_epoch: int,
) -> None:
    panel = make_panel(n_users=12, n_categories=3)
    data = ResponseData.of_panel(panel)
    end = panel.split.train_end

    def fit(
        path: Path, on_epoch: Callable[[FittingReport], None] = lambda _: None
    ) -> tuple[ResponseHeads, Embedder, list[FittingReport], int]:
        heads = new_heads(data, 3)
        train = with_encoder(panel, make_bert(), texts_of(panel, 4, end - 1))
        tune = with_encoder(panel, make_bert(), texts_of(panel, end, panel.split.tune_end - 1))
        tune.encoder = train.encoder
        steps: list[float] = []
        reports = fit_response(
            heads, data, train, tune, CONFIG, seed=3, checkpoint=path, on_step=steps.append, on_epoch=on_epoch
        )
        return heads, train, reports, len(steps)

    def interrupt(report: FittingReport) -> None:
        if report.epoch == stop_at_epoch:
            raise Interrupted

    heads, train, reports, steps = fit(tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        fit(tmp_path / "part.pt", interrupt)
    again, trained, reports_again, steps_again = fit(tmp_path / "part.pt")
    assert reports_again == reports
    assert steps_again == steps
    assert train.encoder is not None
    assert trained.encoder is not None
    for whole, resumed in ((heads, again), (train.encoder, trained.encoder)):
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    # The category embeddings that are kept are those of the encoder that is kept.
    train.encoder.eval()
    torch.testing.assert_close(heads.category_match, train.categories().detach())


def test_the_best_epoch_is_kept_and_patience_ends_the_fit(make_panel: Callable[..., Panel]) -> None:
    panel = make_panel(n_users=20, n_categories=3)
    data = ResponseData.of_panel(panel)
    end = panel.split.train_end
    tune = texts_of(panel, end, panel.split.tune_end - 1)
    heads = new_heads(data, 0)
    # A learning rate that overfits twenty users at once.
    config = FittingConfig(40, 8, 1e-3, 0.2, 0.0, patience=2)
    reports = fit_response(
        heads, data, without_text(texts_of(panel, 4, end - 1)), without_text(tune), config, seed=0
    )
    best = min(range(len(reports)), key=lambda k: reports[k].tune_loss)
    assert len(reports) == best + 1 + config.patience
    with torch.no_grad():
        rows = torch.arange(len(tune))
        n_rows = len(tune.rows(rows)[0])
        loss = response_loss(heads, data, tune, rows, torch.zeros(len(tune), 0), None, n_rows)
    assert float(loss) == pytest.approx(reports[best].tune_loss, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_fit_with_advice(
    make_panel: Callable[..., Panel], tmp_path: Path
) -> None:
    panel = make_panel(n_users=6, n_categories=3)
    data = ResponseData.of_panel(panel)
    heads = new_heads(data, 0)
    with torch.no_grad():
        heads.spend_level[1] = float("inf")
    train = without_text(texts_of(panel, 4, 9))
    with pytest.raises(FloatingPointError, match=r"in epoch 1; lower the learning rates .*0\.02 heads"):
        fit_response(heads, data, train, None, CONFIG, seed=0, checkpoint=tmp_path / "fit.pt")
    # Nothing broken is kept to resume from.
    assert not (tmp_path / "fit.pt").exists()


def test_text_rows_are_the_bootstrap_sample(make_panel: Callable[..., Panel]) -> None:
    # Training on text 0 alone must not depend on what the other users did in the served weeks.
    panel = make_panel(n_users=6, n_categories=3)
    data = ResponseData.of_panel(panel)
    fitted = []
    for flip in (False, True):
        visited = data.visited.clone()
        visited[4:6, 1:] ^= flip
        changed = ResponseData(data.panel, data.tape, data.calendar, data.bought, visited, data.log_spend)
        heads = new_heads(data, 0)
        train = without_text(texts_of(panel, 4, 5))
        rows = torch.zeros(5, dtype=torch.int64)
        fit_response(heads, changed, train, None, CONFIG, seed=0, text_rows=rows)
        fitted.append(heads.visit_bias.detach())
    assert float(fitted[0]) == float(fitted[1])


def test_an_embedder_needs_one_source() -> None:
    texts = AnchorTexts([], torch.zeros(0), torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="either an encoder or a table"):
        Embedder(texts)
    with pytest.raises(ValueError, match="needs the category texts"):
        Embedder(texts, encoder=TextEncoder.__new__(TextEncoder))
