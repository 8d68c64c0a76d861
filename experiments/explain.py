"""The response model explained: its parameters with their sources, and what of a history matters most."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoders.history import CATEGORY_FEATURES, USER_FEATURES, HistoryState, slow_rate_logit
from encoders.history_tape import HistoryTape
from encoders.response import TERM_LIMIT, ResponseHeads, taste_weight
from experiments.fitted_run import FittedRun

_WORDS: Mapping[str, str] = {
    "slow_rate_logit": "how often the category was bought on visits of the last months",
    "fast_rate_logit": "how often the category was bought on visits of the last weeks",
    "cautious_rate_logit": "the same, believed only after many visits",
    "log_recency": "how long ago the category was last bought",
    "log_overdue": "how overdue the next purchase of the category is",
    "slow_visit_logit": "how often the user visited in the last months",
    "fast_visit_logit": "how often the user visited in the last weeks",
    "log_visit_recency": "how long ago the last visit was",
    "log_basket_size": "how many categories a basket holds",
    "log_basket_spend": "how much is spent on a visit",
    "log_slow_trips": "how many trips a week in the last months",
    "log_fast_trips": "how many trips a week in the last weeks",
    "last_trips": "how many trips last week",
}
_WEEKLY_WORDS: Mapping[str, str] = {
    "bought": "whether the category was bought",
    "log_basket": "how many categories were bought",
}
"""Features that stand once for each of the last weeks: name_2_weeks_ago."""

_WEEKLY = re.compile(r"(\w+?)_(\d+)_weeks?_ago")

PRODUCTS = "products"
TEXT = "text"
_WHOLE_WORDS = {
    PRODUCTS: "squares and products of these: what one says depends on another",
    TEXT: "what the user text says beyond these, all in all",
}
"""Influences without a single direction."""

SHOWN = 3
"""Influences a head that are named in words."""


def feature_words(name: str) -> str:
    """Return a feature of :mod:`encoders.history` in words."""
    if name in _WORDS:
        return _WORDS[name]
    weekly = _WEEKLY.fullmatch(name)
    if weekly is None:
        raise ValueError(f"no words for the feature {name!r}")
    what, weeks = _WEEKLY_WORDS[weekly[1]], int(weekly[2])
    return f"{what} {'last week' if weeks == 1 else f'{weeks} weeks ago'}"


@dataclass(frozen=True)
class Influence:
    """How a history feature moves one head; or :data:`PRODUCTS` of features, or :data:`TEXT`, as a whole.

    Attributes:
        feature: as in :mod:`encoders.history`, or one of those two.
        words: the same in words.
        coefficient: mean over categories of the change in the head's linear predictor per standard
            deviation of the feature, for an otherwise average user; None for those two.
        size: mean over categories of its absolute value; for those two, the standard deviation over users
            of what they add.
    """

    feature: str
    words: str
    coefficient: float | None
    size: float


@dataclass(frozen=True)
class HeadInfluences:
    """What moves one head, largest first.

    Attributes:
        head: "visit", "trips", "purchase", "spend" or "redemption".
        scale: what a unit of the linear predictor is.
        influences: by size.
    """

    head: str
    scale: str
    influences: list[Influence]


@dataclass(frozen=True)
class ResponseExplanation:
    """All parameters of the response model.

    Attributes:
        fitted: rows of :func:`experiments.parameter_table.fitted_parameters`.
        assumed: rows of :func:`experiments.parameter_table.assumed_parameters`.
        heads: what of a user's history moves each head.
        depth_spread: standard deviation over users of θ, mean over categories: how far users differ in
            price sensitivity.
        week: 1-based start week of the users that sizes of products and text are of.
    """

    fitted: list[Mapping[str, Any]]
    assumed: list[Mapping[str, Any]]
    heads: list[HeadInfluences]
    depth_spread: float
    week: int

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain JSON."""
        return asdict(self)


def explain_response(run: FittedRun) -> ResponseExplanation:
    """Explain the deployed response model of a run, users being as they were at the last start week."""
    start, embedding = int(run.embeddings.start_week[-1]), run.embeddings.embedding[-1]
    heads, state = run.heads, HistoryTape.of_panel(run.panel).week(start)
    with torch.no_grad():
        theta = heads.calibration[1, 0] * heads.depth_effect((embedding @ heads.depth_embedding)[:, None])
        influences = history_influences(heads, state, embedding)
    if int(run.panel.trips[:, : run.panel.split.train_end].max()) < 2:
        # Without a second trip in the logs there is nothing to tell users apart by.
        influences = [one for one in influences if one.head != "trips"]
    return ResponseExplanation(
        fitted=list(run.response["fitted"]),
        assumed=list(run.response["assumed"]),
        heads=influences,
        depth_spread=float(theta.double().std(dim=0, correction=0).mean()),
        week=start + 1,
    )


@torch.no_grad()
def history_influences(
    heads: ResponseHeads, state: HistoryState, embedding: torch.Tensor
) -> list[HeadInfluences]:
    """Rank the features of each head by their coefficients per standard deviation, calibration included.

    Args:
        heads: fitted; its features are standardised, so their coefficients compare as they are.
        state: [n] histories of all users, over whom products and text are measured.
        embedding: [n, d] of the same.
    """
    visit, purchase = heads.calibration[0, 0], heads.calibration[1, 0]
    terms, odds = heads.user_terms(state), "log odds"
    own_rate = slow_rate_logit(state, heads.base_rate)
    standard_rate = (own_rate - heads.category_mean[0]) / heads.category_std[0]
    bounded = heads.standard_user_features(state).clamp(-TERM_LIMIT, TERM_LIMIT)
    rate_weight = purchase * (bounded @ heads.purchase_rate_user.T)
    text = {
        "purchase": purchase
        * taste_weight(state, heads.base_rate)
        * (embedding @ heads.category_vectors().T),
        "spend": embedding @ heads.spend_embedding,
        "redemption": embedding @ heads.redemption_embedding,
    }
    of_category = purchase * heads.purchase_features
    found = [
        ("visit", odds, _of_user(terms, visit * heads.visit_user)),
        ("trips", "log of further trips", _of_user(terms, heads.trips_features)),
        (
            "purchase",
            odds,
            _directed(CATEGORY_FEATURES, of_category)
            + _of_user(terms, purchase * heads.purchase_user, standard_rate * rate_weight),
        ),
        ("spend", "log of spend", _of_user(terms, heads.spend_user)),
        ("redemption", odds, _of_user(terms, heads.redemption_features)),
    ]
    ranked = []
    for head, scale, influences in found:
        if head in text:
            influences = [*influences, _whole(TEXT, text[head])]
        ranked.append(HeadInfluences(head, scale, sorted(influences, key=lambda one: -one.size)))
    return ranked


def _of_user(
    terms: torch.Tensor, weights: torch.Tensor, further: torch.Tensor | float = 0.0
) -> list[Influence]:
    """Of user terms, [n, P], with weights [P] or [C, P]; or [G] or [C, G] for a head of plain features.

    ``further`` is what products with category features add, [n, C].
    """
    plain = len(USER_FEATURES)
    found = _directed(USER_FEATURES, weights[..., :plain])
    if weights.shape[-1] > plain:
        found.append(_whole(PRODUCTS, terms[:, plain:] @ torch.atleast_2d(weights)[:, plain:].T + further))
    return found


def _directed(features: Sequence[str], coefficients: torch.Tensor) -> list[Influence]:
    """Of features with a coefficient each, [F] or [C, F]."""
    table = coefficients.double().reshape(-1, len(features))
    return [
        Influence(name, feature_words(name), float(mean), float(size))
        for name, mean, size in zip(features, table.mean(dim=0), table.abs().mean(dim=0), strict=True)
    ]


def _whole(name: str, added: torch.Tensor) -> Influence:
    """Of something that adds [n] or [n, C] to the linear predictor."""
    size = float(added.double().std(dim=0, correction=0).mean())
    return Influence(name, _WHOLE_WORDS[name], None, size)


def in_words(head: HeadInfluences) -> str:
    """Return a sentence on what moves a head most."""
    told = []
    for one in head.influences[:SHOWN]:
        if one.coefficient is None:
            told.append(f"{one.words} (±{one.size:.2f})")
        elif head.scale == "log odds":
            told.append(f"{one.words} (odds ×{np.exp(one.coefficient):.2f})")
        else:
            told.append(f"{one.words} (×{np.exp(one.coefficient):.2f})")
    return f"{head.head}: above all {'; then '.join(told)}; per standard deviation."


def show_response(console: Console, found: ResponseExplanation) -> None:
    """Print an explanation.

    Args:
        console: where to.
        found: the explanation.
    """
    console.print(_fitted_table(found.fitted))
    console.print(_assumed_table(found.assumed))
    console.print(_influence_table(found.heads))

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say("What of a user's history matters most:")
    for head in found.heads:
        say(f"  {in_words(head)}")
    say(
        "Features that tell nearly the same, as the rates of months and of weeks do, share an effect between "
        "them; read them together. Coefficients are those of an otherwise average user; ± is the spread over "
        f"users at week {found.week} of what squares and products, or the text, add."
    )
    say(
        f"Users differ in the depth effect θ by a standard deviation of {found.depth_spread:.2g}; that comes "
        "from their texts."
    )


def _fitted_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title="Fitted: from these logs; one value a category where a standard deviation stands",
        title_justify="left",
    )
    for name in (
        "parameter",
        "value or mean",
        "std. dev.",
        "lowest",
        "highest",
        "unit and meaning",
        "source",
    ):
        number = name in ("value or mean", "std. dev.")
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        among = row.get("by_category")
        spread = ["–", "–", "–"]
        if among:
            spread = [
                _number(among["spread"]),
                *(f"{_number(among[k])} {escape(among[f'{k}_category'])}" for k in ("lowest", "highest")),
            ]
        meaning = escape(f"{row['unit']}: {row['meaning']}")
        table.add_row(row["name"], _number(row["value"]), *spread, meaning, escape(row["source"]))
    return table


def _assumed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title="Assumed: these logs cannot tell; simulators draw from the range, plans take the central value",
        title_justify="left",
    )
    for name in ("parameter", "low", "central", "high", "meaning", "source"):
        table.add_column(name, justify="right" if name in ("low", "central", "high") else "left")
    for row in rows:
        numbers = [_number(row[key]) for key in ("low", "central", "high")]
        name = row["name"].replace("_", " ")
        table.add_row(name, *numbers, escape(row["meaning"]), escape(row["source"]))
    return table


def _influence_table(heads: Sequence[HeadInfluences]) -> Table:
    table = Table(
        title="History: change per standard deviation of a feature (purchase: mean over categories)",
        title_justify="left",
    )
    for name in ("head", "feature", "coefficient", "size"):
        table.add_column(name, justify="right" if name in ("coefficient", "size") else "left")
    for head in heads:
        for place, one in enumerate(head.influences):
            last = place == len(head.influences) - 1
            coefficient = "–" if one.coefficient is None else f"{one.coefficient:+.3f}"
            first = f"{head.head} ({head.scale})" if place == 0 else ""
            table.add_row(first, one.words, coefficient, f"{one.size:.3f}", end_section=last)
    return table


def _number(value: float) -> str:
    return f"{value:.3g}"
