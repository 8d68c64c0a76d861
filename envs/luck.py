"""The chance of a campaign, as a pure function of who, when and what for.

Every draw is a hash of (seed, stream, week, user, category): nothing is drawn in order, nothing is stored.
So a user's luck depends neither on who else takes part nor on what anyone was sent: two policies live
through the same luck (common random numbers), n users together have the luck that each has alone, and a
campaign taken up again in the middle goes on as it would have.

Users and streams are mixed by the finaliser of SplitMix64 (Steele, Lea & Flood 2014, OOPSLA); categories by
a multiply-and-shift hash of 32 bits keyed with 64 (the multipliers of Wellons' `lowbias32`). The tests hold
both against the uniform and the normal distribution, and check that neighbours are uncorrelated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch

from encoders.scratch import Scratch

_GOLDEN = 0x9E3779B97F4A7C15
_SPLITMIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_LOWBIAS = (0x7FEB352D, 0x846CA68B)
_BITS = 23
"""Bits of a uniform: with half a unit added, as many as float32 holds exactly; so it is never 0 or 1."""


class Stream(IntEnum):
    """What a draw is for; each has its own."""

    OPT_IN = 0
    RECEPTIVITY = 1
    VISIT = 2
    BASKET = 3
    PURCHASE = 4
    SPEND = 5
    OPT_OUT = 6
    PRIORITY = 7
    WEEK_VISIT = 8
    WEEK_CATEGORY = 9
    CALENDAR = 10


@dataclass(frozen=True)
class Luck:
    """The chance of n users.

    Attributes:
        seed: of the campaign.
        user: [n] int64 who they are; equal numbers have equal luck.
    """

    seed: int
    user: torch.Tensor

    def rows(self, index: torch.Tensor | slice) -> Luck:
        """Return the chance of the given users."""
        return Luck(self.seed, self.user[index])

    def uniform(self, stream: Stream, week: int) -> torch.Tensor:
        """Return uniforms in (0, 1), [n] float32."""
        return _to_unit(_high(self._hash(stream, week)))

    def order(self, stream: Stream, week: int) -> torch.Tensor:
        """Return random numbers to sort by, [n] int64; different for different users, so that none tie."""
        return self._hash(stream, week)

    def normal(self, stream: Stream, week: int) -> torch.Tensor:
        """Return standard normals, [n] float32: Box and Muller's (1958), from two parts of one hash."""
        key = self._hash(stream, week)
        radius = _to_unit(_high(key)).log_().mul_(-2.0).sqrt_()
        return _to_unit(key & (1 << _BITS) - 1).mul_(2.0 * math.pi).cos_().mul_(radius)

    def normals(self, stream: Stream, week: int, count: int, scratch: Scratch | None = None) -> torch.Tensor:
        """Return ``count`` independent standard normals for each user, [n, count] float32.

        Box and Muller on pairs of uniforms: the first half of the columns are cosines, the second half sines
        of the same pairs.

        Args:
            stream: what they are for.
            week: of the campaign.
            count: how many.
            scratch: for the arrays in between and the result, which is then valid until the next call for as
                many users and as large a count.
        """
        array = Scratch() if scratch is None else scratch
        key, n, device = self._hash(stream, week), len(self.user), self.user.device
        half = (count + 1) // 2
        # As int32, a 64-bit key is two keys of 32 bits: one to add, one to multiply with, odd so that it
        # loses nothing.
        halves = (key | 1 << 32).view(torch.int32).view(n, 2)
        exclusive, factor = halves[:, :1], halves[:, 1:]
        place = _places(2 * half, str(device))
        bits, shifted = (array(name, n, half, torch.int32, device) for name in ("bits", "shifted"))
        # Contiguous halves, for vectorised cosines.
        radius, angle, part = (array(name, n, half, device=device) for name in ("radius", "angle", "part"))
        _to_unit(_scramble(place[:half], exclusive, factor, bits, shifted), radius)
        radius.log_().mul_(-2.0).sqrt_()
        angle.copy_(_scramble(place[half:], exclusive, factor, bits, shifted))
        angle.mul_(2.0 * math.pi * 2.0**-_BITS)
        out = array(f"normals of {stream.name}", n, count, device=device)
        out[:, :half] = torch.cos(angle, out=part).mul_(radius)
        out[:, half:] = angle.sin_().mul_(radius)[:, : count - half]
        return out

    def _hash(self, stream: Stream, week: int) -> torch.Tensor:
        """[n] int64, 64 mixed bits."""
        base = _mix_int(_mix_int(self.seed) + (week << 8 | int(stream)))
        return _mix(self.user * _signed(_GOLDEN, 64) + base)


def shared_normal(seed: int, stream: Stream, week: int, count: int, device: torch.device) -> torch.Tensor:
    """Return ``count`` standard normals that all users of a campaign share in a week, [count] float32."""
    return Luck(seed, torch.arange(count, device=device)).normal(stream, week)


@lru_cache(maxsize=64)
def _places(count: int, device: str) -> torch.Tensor:
    """[count] int32, a hash of each column."""
    mixed = _mix(torch.arange(1, count + 1, device=device) * _signed(_GOLDEN, 64))
    return (mixed & 0xFFFFFFFF).to(torch.int32)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser."""
    value = (value ^ _shift(value, 30)) * _signed(_SPLITMIX[0], 64)
    value = (value ^ _shift(value, 27)) * _signed(_SPLITMIX[1], 64)
    return value ^ _shift(value, 31)


def _mix_int(value: int) -> int:
    """The same of one number, as a signed 64-bit integer."""
    mask = (1 << 64) - 1
    value = (value + _GOLDEN) & mask
    value = ((value ^ value >> 30) * _SPLITMIX[0]) & mask
    value = ((value ^ value >> 27) * _SPLITMIX[1]) & mask
    return _signed(value ^ value >> 31, 64)


def _scramble(
    place: torch.Tensor,
    exclusive: torch.Tensor,
    factor: torch.Tensor,
    bits: torch.Tensor,
    shifted: torch.Tensor,
) -> torch.Tensor:
    """Fill ``bits`` [n, c] with integers in [0, 2^_BITS): a hash of places [c] under keys [n, 1]."""
    torch.bitwise_xor(place, exclusive, out=bits).mul_(factor)
    for by, multiplier in ((16, _LOWBIAS[0]), (15, _LOWBIAS[1])):
        torch.bitwise_right_shift(bits, by, out=shifted).bitwise_and_((1 << 32 - by) - 1)
        bits.bitwise_xor_(shifted).mul_(_signed(multiplier, 32))
    # The last xor of the finaliser would touch the low half only; the top bits are the best mixed.
    return bits.bitwise_right_shift_(32 - _BITS).bitwise_and_((1 << _BITS) - 1)


def _to_unit(bits: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Uniforms in (0, 1), from integers of _BITS bits; never 0 or 1."""
    unit = bits.float() if out is None else out.copy_(bits)
    return unit.add_(0.5).mul_(2.0**-_BITS)


def _shift(value: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right without the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _high(key: torch.Tensor) -> torch.Tensor:
    """The highest _BITS bits of 64."""
    return _shift(key, 64 - _BITS)


def _signed(value: int, bits: int) -> int:
    """The number with the same bits in two's complement."""
    return value - (1 << bits) if value >= 1 << (bits - 1) else value
