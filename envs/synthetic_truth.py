"""The parameters behind a synthetic log, to compare fits and estimates with."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Names = npt.NDArray[np.str_]


def sigmoid(logit: _Floats) -> _Floats:
    """Return the probability of a logit, elementwise, of any shape."""
    return np.asarray(1.0 / (1.0 + np.exp(-logit)), dtype=np.float64)


@dataclass(frozen=True)
class SyntheticTruth:
    """True parameters; n users, T weeks (week w is index w - 1), C categories, G campaigns.

    A panel may hold fewer users and another order of categories: match its users by the pseudonyms of
    ``user_ids`` and its categories by name.

    Attributes:
        user_ids: [n] raw user ids.
        categories: [C] category names.
        departments: [C] department of each.
        theta: [C] effect of shelf depth on the purchase logit, > 0.
        kappa_display: effect of display on the purchase logit.
        kappa_mailer: effect of the mailer on the purchase logit.
        coupon_lift: effect of a held coupon on the purchase logit.
        user_visit_logit: [n] user's part of the visit logit.
        season: [T] week's part of the visit logit.
        taste: [n, C] purchase logit given a visit, without promotion.
        factors: [n, F] latent factors of taste; the profile shows them with noise.
        depth: [T, C] shelf discount as a fraction.
        display: [T, C] 0 or 1.
        mailer: [T, C] 0 or 1.
        log_spend_mean: [C] mean of the log of a purchase's shelf value, before the shelf discount.
        log_spend_sd: standard deviation of that log.
        redemption_probability: [n] redemption given a purchase covered by a coupon in hand.
        propensity: [G, n] probability that the user was sent the campaign.
    """

    user_ids: _Names
    categories: _Names
    departments: _Names
    theta: _Floats
    kappa_display: float
    kappa_mailer: float
    coupon_lift: float
    user_visit_logit: _Floats
    season: _Floats
    taste: _Floats
    factors: _Floats
    depth: _Floats
    display: _Floats
    mailer: _Floats
    log_spend_mean: _Floats
    log_spend_sd: float
    redemption_probability: _Floats
    propensity: _Floats

    @property
    def visit_logit(self) -> _Floats:
        """[n, T] logit of visiting."""
        return self.user_visit_logit[:, None] + self.season[None, :]

    @property
    def purchase_logit(self) -> _Floats:
        """[n, T, C] logit of buying given a visit, without a coupon in hand."""
        promotion = (
            self.theta * self.depth + self.kappa_display * self.display + self.kappa_mailer * self.mailer
        )
        return self.taste[:, None, :] + promotion[None, :, :]

    def save(self, path: Path) -> None:
        """Write as JSON, exactly (floats are written in full)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        stored = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stored), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> SyntheticTruth:
        """Read what :meth:`save` wrote."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {
            name: np.array(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        # Without campaigns the list is empty, and its second dimension is lost in JSON.
        values["propensity"] = values["propensity"].reshape(-1, len(values["user_ids"]))
        return cls(**values)
