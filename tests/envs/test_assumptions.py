from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_fatigue_by_hand() -> None:
    assumed = replace(AssumedResponse.central(), fatigue_gain=0.4, fatigue_memory=0.5)
    fatigue, sent = torch.tensor([0.0, 0.0, 0.6, 1.0]), torch.tensor([False, True, True, False])
    assert assumed.next_fatigue(fatigue, sent).tolist() == pytest.approx([0.0, 0.2, 0.5, 0.5])
    # Never above 1, at which a message has no effect left.
    endless = replace(assumed, fatigue_gain=5.0)
    assert endless.next_fatigue(fatigue, sent).tolist() == pytest.approx([0.0, 1.0, 1.0, 0.5])


def test_past_deals_by_hand() -> None:
    assumed = replace(
        AssumedResponse.central(),
        stock_effect=0.3,
        stock_memory=0.5,
        reference_effect=1.2,
        reference_memory=0.9,
    )
    weeks, depth = torch.tensor([1.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 0.5, 0.5, 0.25])
    expected = [0.3, 0.3 + 0.6, 0.15 + 0.6 * 0.9, 0.3 * 0.5**4 + 0.3 * 0.9**4]
    assert assumed.deal_penalty(weeks, depth).tolist() == pytest.approx(expected)


@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_whatever_is_drawn_deals_are_forgotten_and_deeper_ones_weigh_more(
    seed: int, weeks: int, depth: float, other: float
) -> None:
    assumed = AssumedResponse.draw(np.random.default_rng(seed))
    shallow, deep = sorted((depth, other))

    def penalty(weeks_ago: int, of_depth: float) -> float:
        return float(assumed.deal_penalty(torch.tensor([float(weeks_ago)]), torch.tensor([of_depth])))

    assert 0 <= penalty(weeks + 1, deep) <= penalty(weeks, deep)
    assert penalty(weeks, shallow) <= penalty(weeks, deep)
    fatigue = assumed.next_fatigue(torch.linspace(0, 1, 11), torch.ones(11, dtype=torch.bool))
    assert ((fatigue >= 0) & (fatigue <= 1)).all()
