"""The response parameters as a reader can judge them: what is fitted and from what, what is assumed."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encoders.response import PROMOTION_UNIT, ResponseHeads
from encoders.response_data import ResponseData
from envs.assumptions import ASSUMED_RANGES, AssumedResponse


@torch.no_grad()
def fitted_parameters(
    heads: ResponseHeads, data: ResponseData, redeemed: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Describe the fitted parameters in natural units.

    Where the logs hold nothing to fit a parameter on, its source says "prior": it stayed where it started.

    Args:
        heads: fitted and calibrated.
        data: what they were fitted on.
        redeemed: labels of the redemption rows, possibly none.
    """
    end, tune_end = data.panel.split.train_end, data.panel.split.tune_end
    weeks = f"fitted on weeks 1-{end}, calibrated on weeks {end + 1}-{tune_end}"
    slope = float(heads.calibration[1, 0])
    depth = slope * heads.depth_effect()

    def promotion_source(column: torch.Tensor, name: str) -> str:
        varies = float(column[:end].std(dim=0).max()) > 0
        return weeks if varies else f"prior: {name} does not vary in these logs"

    calendar = data.calendar
    depth_source = promotion_source(calendar.depth, "shelf discount")
    redemption_source = (
        f"fitted on {len(redeemed)} purchases of covered categories up to week {tune_end}"
        if len(redeemed)
        else "prior: these logs hold no redemptions"
    )
    level = torch.sigmoid(heads.redemption_bias)
    rows: list[tuple[str, float | torch.Tensor, str, str]] = [
        (
            "depth effect, mean over categories",
            depth.mean(),
            "added to the purchase logit per unit of shelf discount; used for coupons too, which is assumed",
            depth_source,
        ),
        ("depth effect, smallest category", depth.min(), "never negative by construction", depth_source),
        ("depth effect, largest category", depth.max(), "the same", depth_source),
        (
            "display effect",
            slope * heads.display_effect / PROMOTION_UNIT,
            "per unit share of sales on display",
            promotion_source(calendar.display, "display"),
        ),
        (
            "mailer effect",
            slope * heads.mailer_effect / PROMOTION_UNIT,
            "per unit share of sales in the mailer",
            promotion_source(calendar.mailer, "mailer"),
        ),
        (
            "redemption",
            float(redeemed.mean()) if len(redeemed) else level,
            "share of purchases of a covered category at which the coupon is used",
            redemption_source,
        ),
        (
            "basket effect",
            heads.basket_correlation,
            "correlation within a visit of what decides purchases, probit scale",
            f"matched to basket sizes of weeks {end + 1}-{tune_end}",
        ),
        (
            "other spend",
            heads.other_spend_ratio,
            "spend outside the modelled categories per unit inside",
            f"ratio of sums over weeks 1-{end}",
        ),
        ("text match", heads.match_scale, "weight of the match of user and category text", weeks),
    ]
    return [
        {"name": name, "value": float(value), "meaning": meaning, "source": source}
        for name, value, meaning, source in rows
    ]


def assumed_parameters() -> list[dict[str, Any]]:
    """Describe the assumed ranges."""
    return [{"name": f.name, **asdict(ASSUMED_RANGES[f.name])} for f in fields(AssumedResponse)]
