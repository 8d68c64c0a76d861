"""Policies that go on learning from what their offers bring."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

import torch

from agents.policy import Policy


@runtime_checkable
class AdaptivePolicy(Policy, Protocol):
    """A policy that learns within a campaign.

    Between two calls of :meth:`learn` its probabilities are a fixed function of observation and mask, so that
    pacing can ask for them at several dual prices and then send what it asked about.
    """

    def fresh(self, seed: int) -> Self:
        """Return an independent copy for one campaign; what the copy learns does not change this policy.

        Args:
            seed: of all that the copy draws.
        """

    def learn(
        self, observation: torch.Tensor, offer: torch.Tensor, margin: torch.Tensor, cost: torch.Tensor
    ) -> None:
        """Learn from one week.

        Args:
            observation: [n, o] on which the offers were chosen.
            offer: [n] int64, sent.
            margin: [n] realised contribution margin of the week before coupon cost, currency.
            cost: [n] charged to the budget in the week, currency.
        """
