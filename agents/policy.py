"""What a policy is, and the baselines that need no training."""

from __future__ import annotations

from typing import Protocol

import torch

from envs.observation import LOG_DUAL_PRICE, ObservationLayout


class Policy(Protocol):
    """Probabilities over offers for a batch of observations."""

    @property
    def name(self) -> str:
        """Short name for tables."""

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the probability of each offer.

        Args:
            observation: [n, o] rows of :class:`envs.observation.ObservationLayout`.
            mask: [n, K] bool, offers that may be sent.

        Returns:
            [n, K]; rows sum to 1 and are 0 outside the mask.
        """


def sample(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one offer per row by inversion, so that equal uniforms give comparable draws.

    Args:
        probabilities: [n, K].
        uniform: [n] in [0, 1).

    Returns:
        [n] int64; never an offer of probability 0.
    """
    cumulative = probabilities.double().cumsum(dim=1)
    # Scaling by the row's own total keeps rounding from pointing past the last possible offer.
    point = uniform.double()[:, None] * cumulative[:, -1:]
    return (cumulative <= point).sum(dim=1).clamp(max=probabilities.shape[1] - 1)


def greedy(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return probability 1 on the best allowed offer of each row, [n, K]; the first one on a tie."""
    best = torch.where(mask, scores, -torch.inf).argmax(dim=1)
    return torch.nn.functional.one_hot(best, scores.shape[1]).to(scores.dtype)


class NoOfferPolicy:
    """Send nothing to anyone: the zero of incremental margin."""

    name = "no offer"

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return all probability on the first offer."""
        out = torch.zeros(mask.shape, dtype=observation.dtype, device=observation.device)
        out[:, 0] = 1.0
        return out


class RandomPolicy:
    """Send a uniformly random allowed offer with probability 1 / (1 + λ), else nothing.

    The dual price only sets how often, so that it can be paced to the same spend as the others.
    """

    name = "random"

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the same probability on every allowed offer but the first."""
        send = 1.0 / (1.0 + torch.exp(observation[:, LOG_DUAL_PRICE]))
        others = mask.clone()
        others[:, 0] = False
        count = others.sum(dim=1)
        share = torch.where(count > 0, send / count.clamp(min=1), 0.0)
        out = others.to(observation.dtype) * share[:, None]
        # Ten tenths can add up to a rounding more than one.
        out[:, 0] = (1.0 - out.sum(dim=1)).clamp(min=0.0)
        return out


class MyopicUpliftPolicy:
    """Send what maximises predicted uplift − λ·budget use of this offer, later weeks not considered.

    At the λ that exhausts the budget this is the dual of the multiple-choice knapsack: what industry runs
    (Sinha & Zoltners 1979, Operations Research 27(3); Zhao et al. 2019, arXiv:1911.12728).

    Args:
        layout: where uplift and cost stand in an observation.
    """

    name = "myopic uplift"

    def __init__(self, layout: ObservationLayout) -> None:
        self.layout = layout

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return probability 1 on the offer with the best net uplift."""
        return greedy(self.layout.net_uplift(observation), mask)


class ExploringPolicy:
    """Another policy mixed with uniformly random allowed offers: a behaviour policy with full support.

    Args:
        base: the policy that is followed most of the time.
        exploration: share of decisions taken uniformly at random over the allowed offers.
    """

    def __init__(self, base: Policy, exploration: float) -> None:
        if not 0 < exploration <= 1:
            raise ValueError(f"exploration must be in (0, 1], got {exploration}")
        self.base = base
        self.exploration = exploration

    @property
    def name(self) -> str:
        """Name of the base policy with the share explored."""
        return f"{self.base.name}, {self.exploration:.0%} explored"

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the mixture."""
        uniform = mask.to(observation.dtype) / mask.sum(dim=1, keepdim=True)
        base = self.base.probabilities(observation, mask)
        return (1.0 - self.exploration) * base + self.exploration * uniform
