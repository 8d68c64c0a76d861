"""The normal distribution function by a rational function: ONNX Runtime has no error function in float64."""

from __future__ import annotations

import torch

_WIDEST = 7.07
_ABOVE = (
    3.52624965998911e-2,
    0.700383064443688,
    6.37396220353165,
    33.912866078383,
    112.079291497871,
    221.213596169931,
    220.206867912376,
)
_BELOW = (
    8.83883476483184e-2,
    1.75566716318264,
    16.064177579207,
    86.7807322029461,
    296.564248779674,
    637.333633378831,
    793.826512519948,
    440.413735824752,
)


def normal_cdf(value: torch.Tensor) -> torch.Tensor:
    """Return Φ(value), float64, to 1e-12: Hart's algorithm 5666 (1968) as given by West (2005).

    G. West, "Better approximations to cumulative normal functions", Wilmott Magazine, May 2005. Beyond 7.07
    deviations, where less than 1e-12 is left, the value there is kept.
    """
    size = value.abs().clamp(max=_WIDEST)
    tail = torch.exp(-0.5 * size * size) * _polynomial(_ABOVE, size) / _polynomial(_BELOW, size)
    return torch.where(value > 0, 1.0 - tail, tail)


def _polynomial(coefficients: tuple[float, ...], at: torch.Tensor) -> torch.Tensor:
    """By Horner's rule, highest power first."""
    value = coefficients[0] * at + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * at + coefficient
    return value
