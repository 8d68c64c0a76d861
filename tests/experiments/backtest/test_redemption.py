"""The back-test judges on later campaigns only, resamples users, and says when it cannot judge."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import roc_auc_score

from envs.targeting import FEATURES, TargetingRows
from experiments.backtest.predictions import EmbeddingTable
from experiments.backtest.redemption import (
    bootstrap_auc,
    first_test_week,
    redemption_backtest,
    row_embeddings,
)

Floats = npt.NDArray[np.float64]
N_USERS, N_CAMPAIGNS, N_WEEKS = 150, 8, 40
COVERED = list(FEATURES).index("covered_purchases")
PAST = list(FEATURES).index("redemptions")


def make_rows(seed: int = 0, hidden: float = 0.0) -> tuple[TargetingRows, Floats, Floats]:
    """Rows, true logits and embeddings: all users are sent all campaigns, in weeks 4, 9, ..., 39.

    ``hidden`` is the effect of the embedding's second column, which no feature shows.
    """
    rng = np.random.default_rng(seed)
    campaign, user = (grid.ravel() for grid in np.indices((N_CAMPAIGNS, N_USERS)))
    features = rng.standard_normal((len(user), len(FEATURES)))
    embedding = rng.standard_normal((N_USERS, 6))[user]
    logit = -1.0 + 1.2 * features[:, COVERED] + 0.8 * features[:, PAST] + hidden * embedding[:, 1]
    start = 4 + 5 * campaign
    days = np.minimum(28, 7 * (N_WEEKS - start + 1))
    rows = TargetingRows(
        user=user,
        campaign=campaign,
        start_week=start,
        days_seen=days,
        fully_seen=days == 28,
        features=features,
        redeemed=rng.random(len(user)) < 1 / (1 + np.exp(-logit)),
        campaign_ids=np.array([f"c{number}" for number in range(N_CAMPAIGNS)]),
        n_weeks=N_WEEKS,
    )
    return rows, logit, embedding


def backtest(rows: TargetingRows, embedding: Floats | None = None, n_bootstrap: int = 50) -> dict[str, Any]:
    return redemption_backtest(
        rows, embedding=embedding, n_bootstrap=n_bootstrap, rng=np.random.default_rng(1)
    )


def test_september_of_complete_journey() -> None:
    assert first_test_week(48) == 36


def test_it_nears_the_truth_on_later_campaigns() -> None:
    rows, logit, _ = make_rows()
    found = backtest(rows, n_bootstrap=200)
    assert found["test_week"] == 30
    assert found["train"] == pytest.approx(
        {"rows": 900, "campaigns": 6, "users": 150, "rate": rows.redeemed[:900].mean()}
    )
    # The campaign of week 39 has been seen for two weeks only, and that of week 34 wholly.
    assert found["test"]["rows"] == 150
    assert [entry["campaign"] for entry in found["by_campaign"]] == ["c6"]
    test = rows.campaign == 6
    best = roc_auc_score(rows.redeemed[test], logit[test])
    model = found["model"]
    assert best - 0.03 < model["auc"] < best + 0.03
    assert model["auc_low"] < model["auc"] < model["auc_high"]
    assert found["by_campaign"][0]["auc"] == pytest.approx(model["auc"])
    assert model["auc"] > found["no_coupon_history"]["auc"]
    assert found["by_campaign"][0]["redeemed"] == rows.redeemed[test].sum()
    assert found["by_campaign"][0]["expected"] == pytest.approx(rows.redeemed[test].sum(), rel=0.3)
    first, second = found["coefficients"][:2]
    assert (first["feature"], second["feature"]) == ("covered_purchases", "redemptions")
    assert first["odds_ratio"] == pytest.approx(np.exp(1.2), rel=0.15)
    assert first["meaning"] == FEATURES["covered_purchases"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_later_outcomes_teach_nothing() -> None:
    rows, _, embedding = make_rows(hidden=1.0)
    before = backtest(rows, embedding)
    flipped = np.where(rows.start_week >= 30, ~rows.redeemed, rows.redeemed)
    after = backtest(replace(rows, redeemed=flipped), embedding)
    for name in ("coefficients", "embedding_ridge", "train"):
        assert before[name] == after[name]
    assert before["model"]["cv_auc"] == after["model"]["cv_auc"]
    assert before["model"]["auc"] == pytest.approx(1 - after["model"]["auc"])


def test_an_embedding_is_used_where_left_out_campaigns_want_it() -> None:
    rows, _, embedding = make_rows(hidden=1.0)
    without, used = backtest(rows), backtest(rows, embedding)
    assert without["embedding_ridge"] is None
    assert used["embedding_ridge"] == 100.0
    assert used["model"]["cv_log_loss"] < without["model"]["cv_log_loss"]
    assert used["model"]["auc"] > without["model"]["auc"] + 0.03
    assert used["no_coupon_history"] == without["no_coupon_history"]
    rows, _, _ = make_rows(hidden=0.0)
    noise = np.random.default_rng(2).standard_normal((len(rows), 200))
    assert backtest(rows, noise)["embedding_ridge"] is None


def test_a_row_has_the_latest_embedding_of_its_user_that_is_made_before_its_start() -> None:
    rows, _, _ = make_rows()  # campaigns start in weeks 4, 9, 14, ...
    starts = np.array([4, 8, 13])  # 0-based: weeks 5, 9, 14
    table = torch.arange(3 * N_USERS * 2, dtype=torch.float32).reshape(3, N_USERS, 2)
    found = row_embeddings(rows, EmbeddingTable(starts, table))
    assert found.shape == (len(rows), 2)
    # No anchor is as early as week 4: all its users are alike.
    assert found[rows.start_week == 4] == pytest.approx(np.tile(table[0].mean(dim=0), (N_USERS, 1)))
    for week, anchor in ((9, 1), (14, 2), (39, 2)):
        assert (found[rows.start_week == week] == table[anchor].numpy()).all()


def test_bootstrap_agrees_with_weighted_auc() -> None:
    rng = np.random.default_rng(3)
    user = rng.integers(20, size=90)
    redeemed = rng.random(90) < 0.4
    probability = np.stack([rng.random(90), rng.integers(4, size=90) / 4])  # the second has ties
    found = bootstrap_auc(probability, redeemed, user, n_bootstrap=5, rng=np.random.default_rng(4))
    again = np.random.default_rng(4)
    names = np.unique(user)
    for b in range(5):
        draws = np.bincount(again.integers(len(names), size=len(names)), minlength=len(names))
        weight = draws[np.searchsorted(names, user)]
        expected = [roc_auc_score(redeemed, values, sample_weight=weight) for values in probability]
        assert found[:, b] == pytest.approx(expected)


def test_bootstrap_of_perfect_order_has_no_width() -> None:
    redeemed = np.arange(40) % 2 == 0
    found = bootstrap_auc(
        redeemed[None].astype(float), redeemed, np.arange(40), n_bootstrap=20, rng=np.random.default_rng(0)
    )
    assert (found == 1.0).all()


def test_without_rows_it_says_so() -> None:
    rows, _, _ = make_rows()
    names = ("user", "campaign", "start_week", "days_seen", "fully_seen", "features", "redeemed")
    assert backtest(replace(rows, **{name: getattr(rows, name)[:0] for name in names})) == {"rows": 0}


def test_outcomes_that_cannot_be_judged_are_named() -> None:
    rows, _, _ = make_rows()
    nobody_late = backtest(replace(rows, redeemed=rows.redeemed & (rows.start_week < 30)))
    assert "test campaigns" in nobody_late["note"]
    nobody_early = backtest(replace(rows, redeemed=rows.redeemed & (rows.start_week > 26)))
    assert "training campaigns" in nobody_early["note"]
    assert "model" not in nobody_early
