from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from envs.assumptions import ASSUMED_RANGES, AssumedRange, AssumedResponse


def test_every_parameter_has_a_range_a_meaning_and_a_source() -> None:
    assert set(asdict(AssumedResponse.central())) == set(ASSUMED_RANGES)
    for assumed in ASSUMED_RANGES.values():
        assert assumed.low < assumed.high
        assert assumed.meaning
        assert assumed.source


def test_draws_fill_their_ranges_and_follow_their_seed() -> None:
    draws = [asdict(AssumedResponse.draw(np.random.default_rng(seed))) for seed in range(400)]
    assert draws[3] == asdict(AssumedResponse.draw(np.random.default_rng(3)))
    for name, assumed in ASSUMED_RANGES.items():
        values = [draw[name] for draw in draws]
        width = assumed.high - assumed.low
        assert assumed.low <= min(values) < assumed.low + 0.05 * width
        assert assumed.high - 0.05 * width < max(values) <= assumed.high


@pytest.mark.parametrize("values", [(0.2, 0.1, 0.3), (0.1, 0.4, 0.3), (0.1, float("nan"), 0.3)])
def test_a_range_out_of_order_is_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="out of order"):
        AssumedRange(*values, meaning="m", source="s")


def test_opting_out_is_linear_in_fatigue() -> None:
    assumed = AssumedResponse.central()
    probability = assumed.opt_out_probability(torch.tensor([0.0, 0.5, 1.0]))
    middle = 0.5 * (assumed.opt_out_rested + assumed.opt_out_fatigued)
    assert probability.tolist() == pytest.approx([assumed.opt_out_rested, middle, assumed.opt_out_fatigued])
    # Whatever is drawn, a tired user is at least as likely to leave.
    assert ASSUMED_RANGES["opt_out_rested"].high <= ASSUMED_RANGES["opt_out_fatigued"].low
