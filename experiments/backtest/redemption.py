"""How well redemption by targeted users is foreseen: fitted on earlier campaigns, judged on later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss, roc_auc_score

from encoders.redemption import RedemptionModel
from envs.targeting import COUPON_HISTORY, FEATURES, TargetingRows
from experiments.backtest.predictions import EmbeddingTable
from experiments.backtest.scores import score
from experiments.ope.intervals import percentile_interval

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MINIMUM_DAYS_SEEN: Final = 28
"""A campaign counts if its whole window is unlocked, or this many days: most coupons are used by then."""

EMBEDDING_RIDGES: Final = (100.0, 300.0, 1000.0, 3000.0)
"""Penalties on the embedding's weights that cross-validation chooses from, besides leaving it out."""

_MODELS: Final[Mapping[str, frozenset[str]]] = {
    "model": frozenset(FEATURES),
    "no_coupon_history": frozenset(FEATURES) - COUPON_HISTORY,
    "frequency": frozenset({"trips", "covered_purchases"}),
}


def first_test_week(n_weeks: int) -> int:
    """Return the first week of the last quarter of ``n_weeks`` unlocked weeks.

    Campaigns that start in it or later are for testing. On the 48 weeks of Complete Journey it is week 36,
    which holds the first of September; a quarter leaves room to see the windows of its campaigns.
    """
    return 3 * n_weeks // 4


def row_embeddings(rows: TargetingRows, embeddings: EmbeddingTable) -> npt.NDArray[np.float32]:
    """Return the embedding of each row's user that held when the campaign started, [N, d].

    It is that of the latest anchor week not after the start, so it was made from weeks before the start.
    Campaigns that start before the first anchor have none. They are kept, for their features, with the mean
    over users at the first anchor: it is the same for all, so it tells no user from another, and to take a
    user's own instead would tell of weeks after the start.

    The encoder itself learned from all training weeks, which may reach into the test campaigns' windows: from
    purchases, and from texts that say how often coupons were used, but from no campaign's redemptions.

    Args:
        rows: who was targeted, and when.
        embeddings: of all users at the anchor weeks.
    """
    latest = np.searchsorted(embeddings.start_week, rows.start_week - 1, side="right") - 1
    table = embeddings.embedding.numpy()
    out: npt.NDArray[np.float32] = table[np.maximum(latest, 0), rows.user]
    out[latest < 0] = table[0].mean(axis=0)
    return out


def redemption_backtest(
    rows: TargetingRows,
    *,
    embedding: npt.NDArray[np.floating] | None = None,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Fit on the campaigns before :func:`first_test_week`, and judge on those from it on.

    Whether and at which penalty the embedding is used is chosen by the log loss of left-out training
    campaigns; the test campaigns choose nothing. Intervals resample users, and hold the model fixed. Where a
    test campaign's window ends in locked weeks its late redemptions are not seen: that leaves the order of
    its users fair, but the model then expects too many, which log loss and ECE count against it.

    Args:
        rows: who was targeted and what became of it.
        embedding: [N, d] of each row's user, made from days before the row's start; None to do without.
        n_bootstrap: resamples for the intervals, at least 1.
        rng: draws them.

    Returns:
        ``{"rows": 0}`` without rows. Otherwise ``rows``, ``test_week``, ``train`` and ``test`` (rows,
        campaigns, users, rate); and, unless ``note`` says why nothing can be fitted or judged: ``model``,
        ``no_coupon_history`` and ``frequency`` (of shopping and of covered purchases, alone), each with AUC
        and its 95% interval (``auc_low``, ``auc_high``), average precision, log loss in nats, ECE, and AUC
        and log loss over left-out training campaigns (``cv_auc``, ``cv_log_loss``); ``embedding_ridge``,
        None where no embedding is used; ``by_campaign``; and ``coefficients``, as odds ratios per standard
        deviation.
    """
    if len(rows) == 0:
        return {"rows": 0}
    test_week = first_test_week(rows.n_weeks)
    usable = rows.fully_seen | (rows.days_seen >= MINIMUM_DAYS_SEEN)
    train = usable & (rows.start_week < test_week)
    test = usable & (rows.start_week >= test_week)
    result: dict[str, Any] = {
        "rows": len(rows),
        "test_week": test_week,
        "train": _extent(rows, train),
        "test": _extent(rows, test),
    }
    both = [
        campaign
        for campaign in np.unique(rows.campaign[train])
        if _has_both(rows.redeemed[train & (rows.campaign == campaign)])
    ]
    if len(both) < 2:
        return result | {"note": "fewer than two training campaigns with and without redemptions"}
    if not _has_both(rows.redeemed[test]):
        return result | {"note": "the test campaigns have no redemptions, or nothing else"}

    fits = {name: _Design(_columns(rows, chosen)) for name, chosen in _MODELS.items()}
    if embedding is not None:
        candidates = [fits["model"], *(_Design(rows.features, embedding, r) for r in EMBEDDING_RIDGES)]
        fits["model"] = min(
            candidates,
            key=lambda design: log_loss(
                rows.redeemed[train], left_out_probability(design, rows, train)[train]
            ),
        )
    probability = {}
    for name, design in fits.items():
        held_out = left_out_probability(design, rows, train)[train]
        probability[name] = design.probability(design.fit(rows.redeemed, train), test)
        result[name] = score(probability[name], rows.redeemed[test]) | {
            "cv_auc": float(roc_auc_score(rows.redeemed[train], held_out)),
            "cv_log_loss": float(log_loss(rows.redeemed[train], held_out)),
        }
    resampled = bootstrap_auc(
        np.stack(list(probability.values())),
        rows.redeemed[test],
        rows.user[test],
        n_bootstrap=n_bootstrap,
        rng=rng,
    )
    for name, estimates in zip(probability, resampled, strict=True):
        interval = percentile_interval(estimates)
        result[name] |= {"auc_low": interval.low, "auc_high": interval.high}
    return result | {
        "embedding_ridge": fits["model"].embedding_ridge,
        "by_campaign": _by_campaign(rows, test, probability["model"]),
        "coefficients": coefficients(fits["model"].fit(rows.redeemed, train)),
    }


def bootstrap_auc(
    probability: FloatArray,
    redeemed: BoolArray,
    user: npt.NDArray[np.int64],
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Return [M, n_bootstrap] AUCs of M models on the same resamples of users, with all rows of each.

    A tie counts half. NaN where a resample holds one outcome only.

    Args:
        probability: [M, N].
        redeemed: [N].
        user: [N], the clusters.
        n_bootstrap: resamples, at least 1.
        rng: draws them.
    """
    _, cluster = np.unique(user, return_inverse=True)
    n_clusters = int(cluster.max()) + 1
    positions = [np.unique(values, return_inverse=True)[1] for values in probability]
    out = np.empty((len(probability), n_bootstrap))
    for b in range(n_bootstrap):
        draws = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
        weight = draws[cluster].astype(np.float64)
        for model, position in enumerate(positions):
            positive = np.bincount(position, weights=weight * redeemed)
            negative = np.bincount(position, weights=weight * ~redeemed)
            pairs = positive.sum() * negative.sum()
            won = positive @ (np.cumsum(negative) - 0.5 * negative)
            out[model, b] = won / pairs if pairs else np.nan
    return out


def left_out_probability(design: _Design, rows: TargetingRows, train: BoolArray) -> FloatArray:
    """Return [N] probabilities of each training campaign under a model of the others, NaN elsewhere."""
    out = np.full(len(rows), np.nan)
    for campaign in np.unique(rows.campaign[train]):
        held_out = train & (rows.campaign == campaign)
        out[held_out] = design.probability(design.fit(rows.redeemed, train & ~held_out), held_out)
    return out


def coefficients(model: RedemptionModel) -> list[dict[str, Any]]:
    """Return the features by strength, in words, with the odds ratio of one standard deviation more."""
    order = np.argsort(-np.abs(model.weight), kind="stable")
    names = list(FEATURES)
    return [
        {
            "feature": names[k],
            "meaning": FEATURES[names[k]],
            "standard_deviation": float(model.scale[k]),
            "odds_ratio": float(np.exp(model.weight[k])),
        }
        for k in order
    ]


@dataclass(frozen=True)
class _Design:
    """What a model sees: features [N, F], and an embedding [N, d] with its penalty, or neither."""

    features: FloatArray
    embedding: npt.NDArray[np.floating] | None = None
    embedding_ridge: float | None = None

    def fit(self, redeemed: BoolArray, chosen: BoolArray) -> RedemptionModel:
        if self.embedding is None or self.embedding_ridge is None:
            return RedemptionModel.fit(self.features[chosen], redeemed[chosen])
        return RedemptionModel.fit(
            self.features[chosen],
            redeemed[chosen],
            embedding=self.embedding[chosen],
            embedding_ridge=self.embedding_ridge,
        )

    def probability(self, model: RedemptionModel, chosen: BoolArray) -> FloatArray:
        embedding = None if self.embedding is None else self.embedding[chosen]
        return model.predict_proba(self.features[chosen], embedding)


def _columns(rows: TargetingRows, names: frozenset[str]) -> FloatArray:
    return rows.features[:, [name in names for name in FEATURES]]


def _has_both(redeemed: BoolArray) -> bool:
    return bool(redeemed.any() and not redeemed.all())


def _extent(rows: TargetingRows, chosen: BoolArray) -> dict[str, Any]:
    return {
        "rows": int(chosen.sum()),
        "campaigns": len(np.unique(rows.campaign[chosen])),
        "users": len(np.unique(rows.user[chosen])),
        "rate": float(rows.redeemed[chosen].mean()) if chosen.any() else None,
    }


def _by_campaign(rows: TargetingRows, test: BoolArray, probability: FloatArray) -> list[dict[str, Any]]:
    """Redeemed and expected users of each test campaign, and AUC within, None where all did the same."""
    campaigns, out = rows.campaign[test], []
    for campaign in np.unique(campaigns):
        inside = campaigns == campaign
        redeemed = rows.redeemed[test][inside]
        out.append(
            {
                "campaign": str(rows.campaign_ids[campaign]),
                "rows": int(inside.sum()),
                "redeemed": int(redeemed.sum()),
                "expected": float(probability[inside].sum()),
                "fully_seen": bool(rows.fully_seen[test][inside].all()),
                "auc": float(roc_auc_score(redeemed, probability[inside])) if _has_both(redeemed) else None,
            }
        )
    return out
