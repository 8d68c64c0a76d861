from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.ope.logged_dataset import FloatArray
from experiments.ope.pareto import fit_generalised_pareto, highest_reliable_shape, pareto_shape

GOLDEN = Path(__file__).parent / "golden" / "pareto_shape.json"


def quantiles(shape: float, scale: float, n: int) -> FloatArray:
    """The n mid-quantiles of the law: a sample without luck."""
    survival = 1 - (np.arange(n) + 0.5) / n
    if shape == 0:
        return np.asarray(-scale * np.log(survival))
    return np.asarray(scale / shape * (survival**-shape - 1))


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.3, 0.7, 1.2])
def test_recovers_a_generalised_pareto_law(shape: float) -> None:
    n = 4000
    found = fit_generalised_pareto(quantiles(shape, 2.0, n))
    # The prior pulls towards 0.5 with the weight of ten of n + 10 values.
    assert found.shape == pytest.approx((n * shape + 10 * 0.5) / (n + 10), abs=0.01)
    assert found.scale == pytest.approx(2.0, rel=0.02)


def test_fit_scales_with_its_values() -> None:
    values = quantiles(0.4, 1.0, 60)
    one, thousand = fit_generalised_pareto(values), fit_generalised_pareto(1000 * values)
    assert thousand.shape == pytest.approx(one.shape)
    assert thousand.scale == pytest.approx(1000 * one.scale)


@pytest.mark.parametrize("n", [5, 100, 5000])
def test_equal_excesses_are_no_heavy_tail(n: int) -> None:
    assert fit_generalised_pareto(np.full(n, 3.0)).shape < 0.5


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"], ids=lambda case: case["name"])
def test_equals_the_peer(case: dict[str, object]) -> None:
    """ArviZ's psislw on the same weights; see golden/recipe_arviz.py."""
    weight = np.array(case["weight"])
    assert pareto_shape(weight) == pytest.approx(case["shape"], rel=1e-8)
    assert pareto_shape(17 * weight) == pytest.approx(case["shape"], rel=1e-8)


def test_tail_of_weights_from_a_known_law() -> None:
    # Weights U^-k have survival w^(-1/k), so every tail of theirs is generalised Pareto with shape k.
    uniform = (np.arange(100_000) + 0.5) / 100_000
    for shape in (0.2, 0.5, 0.9):
        assert pareto_shape(uniform**-shape) == pytest.approx(shape, abs=0.03)


def test_weights_with_few_values() -> None:
    crowd = np.full(1000, 1.25)
    assert pareto_shape(crowd) == -math.inf
    assert pareto_shape(np.append(crowd, np.zeros(300))) == -math.inf
    # A few outliers above a crowd, too few for a tail of their own: the farther out, the worse.
    found = [pareto_shape(np.append(crowd, [far, far, 1.1 * far])) for far in (2.0, 20.0, 500.0, 5000.0)]
    assert found == sorted(found)
    assert found[0] < 0 < 0.7 < found[-1]
    assert pareto_shape(np.zeros(5)) == -math.inf


def test_too_few_weights_say_nothing_good() -> None:
    assert pareto_shape(np.linspace(1.0, 2.0, 20)) == math.inf
    assert pareto_shape(np.linspace(1.0, 2.0, 21)) < 0.5


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_refuses_what_is_no_weight(wrong: float) -> None:
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        pareto_shape(np.array([1.0, wrong]))


def test_refuses_short_or_improper_tails() -> None:
    with pytest.raises(ValueError, match="at least 5 values, not 4"):
        fit_generalised_pareto(np.ones(4))
    with pytest.raises(ValueError, match="positive and finite"):
        fit_generalised_pareto(np.array([1.0, 2.0, 3.0, 4.0, 0.0]))


def test_highest_reliable_shape() -> None:
    assert highest_reliable_shape(100) == pytest.approx(0.5)
    assert highest_reliable_shape(1_000_000) == 0.7
    assert highest_reliable_shape(5) == 0.0
