"""Whether the heads need a second fit after fine-tuning."""

from __future__ import annotations

import torch

from encoders.heads_fit import HeadPriors
from encoders.newton import Prior
from encoders.purchase_fit import PurchasePriors
from encoders.response import ResponseHeads
from encoders.response_data import UserWeeks
from experiments.stages.finetune import _Probe

PRIORS = HeadPriors(PurchasePriors(Prior(torch.zeros(1), torch.ones(1)), 1e-3), 1.0)


def heads(width: int = 3) -> ResponseHeads:
    out = ResponseHeads(torch.full((4,), 0.2), width)
    out.category_match.copy_(torch.linspace(0.0, 1.0, 4 * width).view(4, width))
    return out


def rows(embedding: torch.Tensor) -> UserWeeks:
    return UserWeeks.of_weeks(range(2, 6), [2, 4], embedding, torch.tensor([1.0, 0.0, 1.0]))


def test_an_encoder_that_stayed_needs_no_second_fit_and_any_other_does() -> None:
    embedding = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    probe = _Probe(heads(), PRIORS, rows(embedding))
    assert probe.is_of(heads(), rows(embedding.clone()))

    unlabelled = embedding.clone()
    unlabelled[:, 1] += 1.0
    assert probe.is_of(heads(), rows(unlabelled))

    moved = embedding.clone()
    moved[1, 2, 0] += 1e-6
    assert not probe.is_of(heads(), rows(moved))

    other = heads()
    other.category_match[0, 0] += 1e-6
    assert not probe.is_of(other, rows(embedding))

    assert not probe.is_of(heads(6), rows(embedding.repeat(1, 1, 2)))
