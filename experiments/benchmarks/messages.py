"""Whether the match that chooses message texts means anything: on a run's users, in the reported weeks.

Texts are scaled on the users' embeddings at the start of the reported weeks; what users do in these weeks
decides. The peer is the plain dot product of the same embeddings, neither centred nor scaled.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from agents.message_query import as_listed
from agents.message_templates import SEASONS
from envs.offers import Catalogue, Offer, OfferKind
from experiments.backtest.ranking import HouseholdRanking
from experiments.benchmarks import Request, Row
from experiments.benchmarks.message_study import FloatArray, MessageStudy
from experiments.threads import one_thread

BoolArray = npt.NDArray[np.bool_]

N_RESAMPLES = 200
BATCH, REPEATS = 10_000, 5
PLAIN = "plain dot product"

CATEGORY_BAR = 0.55
AUDIENCE_BAR = 0.6
QUERY_BAR = 0.9
"""A match that says something; no more was promised of an encoder that has read the words of logs alone."""

_FREQUENT_COUPONS = 0.25
"""Share of the weeks with a visit in which a coupon was used, for users who use them often."""


def run(request: Request) -> list[Row]:
    """Measure matches of categories, audiences and queries, how diverse texts are, and how fast chosen."""
    with one_thread():
        study = MessageStudy.load(request)
        return [
            *_category_rows(study),
            *_audience_rows(study),
            *_diversity_rows(study),
            *_query_rows(study),
            *_speed_rows(study),
        ]


def _category_rows(study: MessageStudy) -> list[Row]:
    """Do users match texts on what they buy? Between users of a category, between categories of a user."""
    shopping = study.panel.visited[:, study.first :].any(axis=1)
    bought = np.asarray(study.panel.bought[shopping][:, study.first :].any(axis=1))
    weeks = f"weeks {study.first + 1}-{study.panel.split.report_end}"
    ours, plain = study.mean_match()[shopping], study.raw_match()[shopping]
    own = study.panel.bought[shopping][:, : study.first].mean(axis=1)
    record = mean_auc_by_column(own, bought, 0)
    return [
        _compared(
            f"between users: AUC of buying a category in {weeks}, by the match with texts on it",
            *(mean_auc_by_column(match, bought, N_RESAMPLES) for match in (ours, plain)),
            bar=CATEGORY_BAR,
            hardware=study.hardware,
        ),
        _compared(
            f"within a user: AUC of the categories bought in {weeks}, by the match with texts on them",
            *(mean_auc_by_column(match.T, bought.T, 0) for match in (ours, plain)),
            bar=CATEGORY_BAR,
            hardware=study.hardware,
        ),
        Row.compare(
            "between users, for scale: by how often each bought the category so far",
            record[0],
            "AUC",
            hardware=study.hardware,
        ),
    ]


def _audience_rows(study: MessageStudy) -> list[Row]:
    """Do users match the audience that they turn out to be of?"""
    panel, first = study.panel, study.first
    visited, later = panel.visited[:, :first], panel.visited[:, first:]
    visits = later.sum(axis=1)
    coupon_weeks = (panel.coupon_used[:, first:] & later).sum(axis=1)
    truths = {
        "regulars": ("visits in every reported week", later.all(axis=1)),
        "coupon_users": (
            "uses coupons in a quarter of the reported weeks with a visit",
            coupon_weeks >= _FREQUENT_COUPONS * np.maximum(visits, 1),
        ),
        "away": ("no visit in the two weeks before", ~visited[:, -2:].any(axis=1)),
    }
    rows = []
    for name, (what, truth) in truths.items():
        place = next(k for k, one in enumerate(study.book.catalogue.templates) if one.audience == name)
        match = study.book.vectors.audience_match(study.users, np.array([place]))
        found = mean_auc_by_column(match, truth[:, None], N_RESAMPLES)
        row = Row.compare(
            f"audience {name}: AUC of {what}",
            found[0],
            "AUC",
            bar=AUDIENCE_BAR,
            hardware=study.hardware,
        )
        rows.append(replace(row, ci_low=found[1], ci_high=found[2]))
    return rows


def _diversity_rows(study: MessageStudy) -> list[Row]:
    """How many texts are in use, were all users sent the same offer; and what the season changes."""
    n, catalogue = len(study.users), Catalogue.built_in()
    rows, chosen = [], {}
    first_of_kind = {
        kind: next(offer for offer in catalogue.offers if offer.kind is kind)
        for kind in (OfferKind.PUSH, OfferKind.PERCENT, OfferKind.THRESHOLD)
    }
    for kind, offer in first_of_kind.items():
        covered = study.slots[:, 0] if kind is OfferKind.PERCENT else np.full(n, -1)
        for season in SEASONS:
            messages = study.book.best(
                [offer] * n, covered, study.slots, study.users, season=season, user_texts=study.user_texts
            )
            chosen[kind, season] = [message.template for message in messages if message is not None]
        subjects = covered[:, None] if kind is OfferKind.PERCENT else study.slots
        rows.append(
            Row.compare(
                f"texts in use for {kind.value} offers in winter, of "
                f"{len(study.book.catalogue.fitting(kind, offer.channel, 'winter'))}",
                effective_number(chosen[kind, "winter"]),
                "texts (exp of entropy)",
                peer=PLAIN,
                peer_value=effective_number(_plain_choice(study, offer, subjects)),
                hardware=study.hardware,
            )
        )
    changed = np.mean(
        [
            a != b
            for kind in first_of_kind
            for a, b in zip(chosen[kind, "winter"], chosen[kind, "summer"], strict=True)
        ]
    )
    rows.append(
        Row.compare(
            "users whose text is another in summer than in winter, the same embedding",
            float(changed),
            "share",
            hardware=study.hardware,
        )
    )
    return rows


def _plain_choice(study: MessageStudy, offer: Offer, subjects: npt.NDArray[np.int64]) -> list[str]:
    """The template whose plain embedding has the largest dot product, of those that name a category."""
    catalogue = study.book.catalogue
    fitting = [k for k in catalogue.fitting(offer.kind, offer.channel, "winter") if k in study.naming]
    matched = np.einsum(
        "bfsd,bd->bfs", study.raw[np.array(fitting)[None, :, None], subjects[:, None, :]], study.users
    )
    best = matched.max(axis=2).argmax(axis=1)
    return [catalogue.templates[fitting[k]].name for k in best]


def _query_rows(study: MessageStudy) -> list[Row]:
    """Does one word of a category find a category that has it?"""
    queries = study.book.queries
    asked = [max(words.split(), key=len) for words in queries.words]
    known = [query for query in asked if queries.understood(query)]
    listed = queries.embed([as_listed(words) for words in queries.words])
    hits, plain = [], []
    for query in known:
        has_it = np.array([query in words.split() for words in queries.words])
        match = queries.match(query)
        hits.append(match is not None and has_it[int(match.argmax())])
        plain.append(has_it[int((listed @ queries.embed([as_listed(query)])[0]).argmax())])
    row = Row.compare(
        f"queries of one word ({len(known)}) that find a category with that word",
        float(np.mean(hits)),
        "share",
        peer=PLAIN,
        peer_value=float(np.mean(plain)),
        hardware=study.hardware,
    )
    return [replace(row, bar=QUERY_BAR, met=row.value >= QUERY_BAR)]


def _speed_rows(study: MessageStudy) -> list[Row]:
    """How fast texts are chosen, offers of all kinds in one batch."""
    place = np.arange(BATCH) % len(study.users)
    catalogue = Catalogue.built_in().offers
    offers = [catalogue[1 + k % (len(catalogue) - 1)] for k in range(BATCH)]
    slots = study.slots[place]
    covered = np.array([slots[k, 0] if offer.slot else -1 for k, offer in enumerate(offers)])
    user_texts = [study.user_texts[k] for k in place]
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        study.book.best(offers, covered, slots, study.users[place], season="winter", user_texts=user_texts)
        seconds.append(time.perf_counter() - start)
    return [
        Row.compare(
            f"texts chosen in a batch of {BATCH:,}, one thread",
            BATCH / min(seconds),
            "users/s",
            hardware=study.hardware,
        )
    ]


def _compared(
    measure: str,
    ours: tuple[float, float, float],
    plain: tuple[float, float, float],
    *,
    bar: float,
    hardware: str,
) -> Row:
    row = Row.compare(measure, ours[0], "AUC", peer=PLAIN, peer_value=plain[0], hardware=hardware)
    return replace(row, ci_low=ours[1], ci_high=ours[2], bar=bar, met=ours[0] >= bar)


def mean_auc_by_column(score: FloatArray, label: BoolArray, n_resamples: int) -> tuple[float, float, float]:
    """Return the mean over columns of the AUC of ``score`` [r, k] for ``label`` [r, k], and its 95% interval.

    Columns without both classes are left out. Rows are resampled; with ``n_resamples`` 0, columns are taken
    as the independent units instead, and the interval is the normal one of their mean.
    """
    n_rows = len(score)
    counts = np.ones((1 + n_resamples, n_rows))
    rng = np.random.default_rng(0)
    for row in counts[1:]:
        row[:] = np.bincount(rng.integers(n_rows, size=n_rows), minlength=n_rows)
    place = np.arange(n_rows)
    usable = np.flatnonzero(label.any(axis=0) & ~label.all(axis=0))
    auc = np.stack(
        [HouseholdRanking(score[:, k], label[:, k], place, n_rows).auc(counts) for k in usable], axis=1
    )
    mean = float(auc[0].mean())
    if n_resamples:
        low, high = np.nanquantile(auc[1:].mean(axis=1), [0.025, 0.975])
        return mean, float(low), float(high)
    half = 1.96 * float(auc[0].std(ddof=1)) / math.sqrt(len(usable))
    return mean, mean - half, mean + half


def effective_number(choices: Sequence[str]) -> float:
    """Return the exponential of the entropy of the shares: so many equally frequent ones are as mixed."""
    shares = np.array(list(Counter(choices).values())) / len(choices)
    return float(np.exp(-(shares * np.log(shares)).sum()))
