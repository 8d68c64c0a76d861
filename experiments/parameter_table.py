"""The response parameters as a reader can judge them: what is fitted and from what, what is assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encoders.response import PROMOTION_UNIT, ResponseHeads
from encoders.response_data import ResponseData
from encoders.user_text import category_words
from envs.assumptions import ASSUMED_RANGES, AssumedResponse


@dataclass(frozen=True)
class _Parameter:
    """A scalar, or one value a category ([C]), in natural units."""

    name: str
    value: torch.Tensor
    unit: str
    meaning: str
    source: str


def fitted_parameters(
    heads: ResponseHeads, data: ResponseData, redeemed: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Describe the fitted parameters in natural units, calibration included.

    Where the logs hold nothing to fit a parameter on, its source says "prior": it stayed where it started.

    Args:
        heads: fitted and calibrated.
        data: what they were fitted on.
        redeemed: labels of the redemption rows, possibly none.

    Returns:
        Rows of name, value, unit, meaning and source. Where there is one value a category, ``value`` is the
        mean over categories and ``by_category`` holds their standard deviation (``spread``), the lowest and
        the highest value, and the categories of these.
    """
    words = category_words(data.panel)
    with torch.no_grad():
        parameters = [
            *_purchase(heads, data),
            *_visit_and_spend(heads, data),
            _redemption(heads, data, redeemed),
        ]
    return [_row(parameter, words) for parameter in parameters]


def _row(parameter: _Parameter, words: list[str]) -> dict[str, Any]:
    value = parameter.value.detach().double()
    row: dict[str, Any] = {
        "name": parameter.name,
        "value": float(value.mean()),
        "unit": parameter.unit,
        "meaning": parameter.meaning,
        "source": parameter.source,
    }
    if value.ndim:
        lowest, highest = int(value.argmin()), int(value.argmax())
        row["by_category"] = {
            "spread": float(value.std(correction=0)),
            "lowest": float(value[lowest]),
            "lowest_category": words[lowest],
            "highest": float(value[highest]),
            "highest_category": words[highest],
        }
    return row


def _fit_weeks(data: ResponseData) -> str:
    return f"fitted on weeks up to {data.panel.split.train_end}"


def _calibration_weeks(data: ResponseData) -> str:
    return f"weeks {data.panel.split.train_end + 1}-{data.panel.split.tune_end}"


def _seen_weeks(data: ResponseData) -> str:
    return f"in weeks up to {data.panel.split.tune_end}"


def _fitted_and_calibrated(data: ResponseData) -> str:
    return f"{_fit_weeks(data)}, calibrated on {_calibration_weeks(data)}"


def _varies(data: ResponseData, column: torch.Tensor) -> torch.Tensor:
    """Whether a promotion column, [T, C], takes more than one value in the training weeks, [C]."""
    train = column[: data.panel.split.train_end]
    return train.amax(dim=0) > train.amin(dim=0)


def _promotion_source(data: ResponseData, column: torch.Tensor, name: str) -> str:
    """Where the effect of a promotion column, [T, C], comes from."""
    silent = int((~_varies(data, column)).sum())
    if silent == column.shape[1]:
        return f"prior: {name} does not vary in these logs"
    source = _fitted_and_calibrated(data)
    if silent:
        source += (
            f"; prior from the other categories in {silent} of {column.shape[1]}, where it does not vary"
        )
    return source


def _purchase(heads: ResponseHeads, data: ResponseData) -> list[_Parameter]:
    slope, calendar = heads.calibration[1, 0], data.calendar
    return [
        _Parameter(
            "depth effect",
            slope * heads.depth_effect(),
            "log odds per unit of depth",
            "added to the purchase logit by shelf discount, never negative by construction, before what a "
            "user's text adds; used for coupons too, which is assumed",
            _promotion_source(data, calendar.depth, "shelf discount"),
        ),
        _Parameter(
            "display effect",
            slope * heads.display_effect / PROMOTION_UNIT,
            "log odds per unit share",
            "added to the purchase logit by the share of sales on display",
            _promotion_source(data, calendar.display, "display"),
        ),
        _Parameter(
            "mailer effect",
            slope * heads.mailer_effect / PROMOTION_UNIT,
            "log odds per unit share",
            "added to the purchase logit by the share of sales in the mailer",
            _promotion_source(data, calendar.mailer, "mailer"),
        ),
        _Parameter(
            "purchase trend",
            slope * heads.purchase_trend,
            "log odds per unit of log ratio",
            "how far a category's recent rise or fall among all users goes on",
            _fitted_and_calibrated(data),
        ),
        _Parameter(
            "text match",
            slope * heads.match_weight,
            "log odds per unit of scaled match",
            "weight of the match of user and category text in the purchase logit, before a category's own "
            "purchases take the text's place",
            _fitted_and_calibrated(data),
        ),
        _Parameter(
            "base rate",
            heads.base_rate,
            "share of visits",
            "purchases of the category by all users; what a short history is shrunk to",
            f"counted over weeks 1-{data.panel.split.train_end}",
        ),
        _Parameter(
            "month start, purchase",
            slope * heads.purchase_month_start,
            "log odds per unit share",
            "added to the purchase logit by the share of the week's days that are days 1-7 of a month",
            _fitted_and_calibrated(data),
        ),
        _Parameter(
            "basket effect",
            heads.basket_loadings.square().sum(dim=1),
            "share of variance, probit scale",
            "of what decides a purchase, shared within the visit through common factors",
            f"matched to pairs of purchases {_seen_weeks(data)}",
        ),
        _Parameter(
            "weekly shock, purchase",
            heads.category_week_deviation,
            "standard deviation, probit scale",
            "of what moves a category's purchases by all users in a week, and cannot be foreseen",
            f"errors of forecasts {_seen_weeks(data)}, beyond the chance of independent users",
        ),
        _Parameter(
            "purchase calibration, slope",
            slope,
            "factor",
            "of the purchase logit; below 1 the fit was too sure of itself; part of the effects above",
            f"fitted on {_calibration_weeks(data)}",
        ),
        _Parameter(
            "purchase calibration, intercept",
            heads.calibration[1, 1],
            "log odds",
            "added to the purchase logit",
            f"fitted on {_calibration_weeks(data)}",
        ),
        _Parameter(
            "purchase calibration, shift",
            heads.category_shift,
            "log odds",
            "added to the purchase logit of each category: what has moved since the training weeks",
            f"fitted on {_calibration_weeks(data)}, shrunk to nought",
        ),
    ]


def _visit_and_spend(heads: ResponseHeads, data: ResponseData) -> list[_Parameter]:
    fitted, trips = _fit_weeks(data), data.panel.trips[:, : data.panel.split.train_end]
    return [
        _Parameter(
            "visit trend",
            heads.calibration[0, 0] * heads.visit_trend,
            "log odds per unit of log ratio",
            "how far a recent rise or fall of all users' visits goes on",
            _fitted_and_calibrated(data),
        ),
        _Parameter(
            "month start, visit",
            heads.calibration[0, 0] * heads.visit_month_start,
            "log odds per unit share",
            "added to the visit logit by the share of the week's days that are days 1-7 of a month",
            _fitted_and_calibrated(data),
        ),
        _Parameter(
            "weekly shock, visit",
            heads.visit_week_deviation,
            "standard deviation, probit scale",
            "of what moves the visits of all users in a week, and cannot be foreseen",
            f"errors of forecasts {_seen_weeks(data)}, beyond the chance of independent users",
        ),
        _Parameter(
            "visit calibration, slope",
            heads.calibration[0, 0],
            "factor",
            "of the visit logit",
            f"fitted on {_calibration_weeks(data)}",
        ),
        _Parameter(
            "visit calibration, intercept",
            heads.calibration[0, 1],
            "log odds",
            "added to the visit logit",
            f"fitted on {_calibration_weeks(data)}",
        ),
        _Parameter(
            "further trips",
            heads.trips_bias.exp(),
            "trips a week",
            "expected after the first in a week with a visit, by a user of average history",
            f"{fitted}, level calibrated on {_calibration_weeks(data)}"
            if int(trips.max()) > 1
            else "prior: these logs hold no week with two trips",
        ),
        _Parameter(
            "trips with full baskets",
            heads.trips_loadings.square().sum(),
            "share of variance, probit scale",
            "of what decides the number of trips, shared with the basket through common factors",
            f"matched to trips and purchases {_seen_weeks(data)}",
        ),
        _Parameter(
            "spend deviation",
            heads.spend_deviation,
            "standard deviation, log scale",
            "of the spend on a category at a purchase",
            fitted,
        ),
        _Parameter(
            "depth effect on spend",
            heads.spend_depth,
            "log of spend per unit of depth",
            "added to the log of spend by shelf discount; negative where a lower price outweighs buying more",
            fitted
            if _varies(data, data.calendar.depth).any()
            else "prior: shelf discount does not vary in these logs",
        ),
        _Parameter(
            "month start, spend",
            heads.spend_month_start,
            "log of spend per unit share",
            "added to the log of spend by the share of the week's days that are days 1-7 of a month",
            fitted,
        ),
        _Parameter(
            "other spend",
            heads.other_spend_ratio,
            "ratio",
            "spend outside the modelled categories per unit inside",
            f"ratio of sums over {_calibration_weeks(data)}",
        ),
        _Parameter(
            "other spend, share",
            heads.other_spend_share,
            "share of visits",
            "with a modelled purchase that have any spend outside the modelled categories",
            f"counted {_seen_weeks(data)}",
        ),
        _Parameter(
            "other spend, deviation",
            heads.other_spend_deviation,
            "standard deviation, log scale",
            "of spend outside the modelled categories, where there is some",
            f"measured {_seen_weeks(data)}",
        ),
    ]


def _redemption(heads: ResponseHeads, data: ResponseData, redeemed: npt.NDArray[np.bool_]) -> _Parameter:
    seen = len(redeemed) > 0
    return _Parameter(
        "redemption",
        torch.tensor(redeemed.mean()) if seen else torch.sigmoid(heads.redemption_bias),
        "probability",
        "share of purchases of a covered category at which the coupon is used",
        f"fitted on {len(redeemed)} purchases of covered categories up to week {data.panel.split.tune_end}"
        if seen
        else "prior: these logs hold no redemptions",
    )


def assumed_parameters() -> list[dict[str, Any]]:
    """Describe the assumed ranges."""
    return [{"name": f.name, **asdict(ASSUMED_RANGES[f.name])} for f in fields(AssumedResponse)]
