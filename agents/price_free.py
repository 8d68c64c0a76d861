"""Gains that do not depend on the dual price, taken to the budget by λ.

What an offer brings is one thing, what a unit of the budget is worth another: policies that learn the first
and are told the second share this file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from agents.policy import greedy
from envs.observation import LOG_DUAL_PRICE, PRESSURE, ObservationLayout


def best_net_of_price(
    gain: torch.Tensor, observation: torch.Tensor, mask: torch.Tensor, layout: ObservationLayout
) -> torch.Tensor:
    """Return probability 1 on the allowed offer with the best gain − λ·budget use, [n, K].

    Args:
        gain: [n, K] currency.
        observation: [n, o] with λ and the predictor's cost and reserve.
        mask: [n, K] bool.
        layout: of the observation.
    """
    price = torch.exp(observation[:, LOG_DUAL_PRICE].to(gain.dtype))[:, None]
    use = layout.offer_block(observation, "cost") + layout.offer_block(observation, "reserve")
    return greedy(gain - price * use, mask).to(observation.dtype)


def user_columns(layout: ObservationLayout) -> list[int]:
    """Return the columns of context and embedding that say something of the user, not of who asks."""
    return [k for k in range(layout.n_context) if k not in (LOG_DUAL_PRICE, PRESSURE)]


class LastGain:
    """The gain worked out last, for as long as the observation stays the same but for the price.

    Pacing asks a policy about the same week at some fifteen dual prices; this spares all but the first from
    working out the gain. It changes no answer.

    Args:
        layout: of the observations.
    """

    def __init__(self, layout: ObservationLayout) -> None:
        self._layout = layout
        self._asked: torch.Tensor | None = None
        self._gain: torch.Tensor | None = None

    def of(self, observation: torch.Tensor, work_out: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the gain, [n, K].

        Args:
            observation: [n, o].
            work_out: gives the gain for rows in which λ is 1, and its pressure and the reserves are 0.
        """
        asked = observation.clone()
        asked[:, [LOG_DUAL_PRICE, PRESSURE]] = 0.0
        self._layout.offer_block(asked, "reserve").zero_()
        if self._gain is None or self._asked is None or not torch.equal(self._asked, asked):
            self._asked, self._gain = asked, work_out(asked)
        return self._gain
