"""A λ-conditioned policy at other dual prices than those of the log.

λ is a column of the observation, so what the policy would have done at each logged step is known for any
price path. The paths looked at are multiples of the logged one, with its pressure: one number, the *price
level*, says which. At level 1 the policy is asked at the logged prices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.pacing import WeekPrices
from agents.policy import Policy
from envs.campaign import Campaign
from envs.observation import CONTEXT_FEATURES, LOG_DUAL_PRICE
from experiments.ope.logged_dataset import FloatArray, LoggedDataError, LoggedDataset

PRICE_COLUMN = CONTEXT_FEATURES[LOG_DUAL_PRICE]
_ROUNDING = 1e-4
"""Of the logarithm of a price in float32."""


def target_at_levels(
    policy: Policy, dataset: LoggedDataset, device: str | torch.device = "cpu"
) -> Callable[[float], FloatArray]:
    """Return a function from a price level > 0 to the policy's probabilities at the logged steps, [N, K].

    Args:
        policy: λ-conditioned.
        dataset: N steps, logged at one price path.
        device: of the policy.

    Raises:
        LoggedDataError: the log's observations are not the market's, or were not made at its dual prices.
    """
    names = dataset.observation_names
    if len(names) <= LOG_DUAL_PRICE or names[LOG_DUAL_PRICE] != PRICE_COLUMN:
        raise LoggedDataError(f"observation column {LOG_DUAL_PRICE} is not {PRICE_COLUMN!r}")
    with np.errstate(divide="ignore"):
        apart = np.abs(dataset.observation[:, LOG_DUAL_PRICE] - np.log(dataset.dual_price))
    if not bool((apart <= _ROUNDING).all()):
        row = int((~(apart <= _ROUNDING)).argmax())
        raise LoggedDataError(
            f"dual_price: row {row} is {dataset.dual_price[row].item()!r}, but the policy saw "
            f"{float(np.exp(dataset.observation[row, LOG_DUAL_PRICE])):.6g}"
        )
    observation = torch.from_numpy(dataset.observation).to(device)
    mask = torch.from_numpy(dataset.mask).to(device)

    def probabilities(level: float) -> FloatArray:
        asked = observation.clone()
        asked[:, LOG_DUAL_PRICE] += float(np.log(level))
        found = policy.probabilities(asked, mask).double().cpu().numpy()
        return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float64)

    return probabilities


@dataclass(frozen=True)
class FixedPath:
    """A pacer that keeps to prices given beforehand, whatever is spent.

    Attributes:
        path: prices of each week.
    """

    path: Sequence[WeekPrices]

    def at_level(self, level: float) -> FixedPath:
        """Return the path at a price level: a multiple of its prices, with their pressure."""
        return FixedPath([WeekPrices(level * week.spend, week.pressure) for week in self.path])

    def prices(self, policy: Policy, campaign: Campaign) -> WeekPrices:
        """Return the coming week's prices."""
        return self.path[campaign.state.week]


def default_levels(n_levels: int = 13, reach: float = 8.0) -> list[float]:
    """Return price levels from 1 / reach to reach times the logged price path, evenly in the logarithm."""
    return [float(level) for level in np.geomspace(1.0 / reach, reach, n_levels)]
