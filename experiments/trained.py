"""The trained policy of a run, and what it was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agents.offer_network import LearnedPolicy, OfferNetwork, OfferNetworkShape
from agents.pacing import PriceRange
from agents.visit_value import VisitValue
from experiments.artifacts import POLICY_FILE, POLICY_SHAPE_FILE, VISIT_VALUE_FILE, load_module


@dataclass(frozen=True)
class Trained:
    """What the ``train`` stage leaves behind.

    Attributes:
        policy: PPO's.
        prices: range of λ that it was trained at.
        visit_value: what a visit is worth later.
    """

    policy: LearnedPolicy
    prices: PriceRange
    visit_value: VisitValue

    @classmethod
    def load(cls, folder: Path, device: str) -> Trained:
        """Read the ``train`` stage's folder."""
        content = json.loads((folder / POLICY_SHAPE_FILE).read_text(encoding="utf-8"))
        network = OfferNetwork(OfferNetworkShape(**content["shape"]))
        load_module(network, folder / POLICY_FILE)
        visit_value = VisitValue(**content["visit_value"])
        load_module(visit_value, folder / VISIT_VALUE_FILE)
        return cls(
            LearnedPolicy(network.to(device)),
            PriceRange(*content["price_range"]),
            visit_value.to(device).eval().requires_grad_(False),
        )
