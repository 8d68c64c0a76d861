from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from encoders.scratch import Scratch
from envs.luck import Luck, Stream, _mix, _mix_int, _to_unit, shared_normal

N = 40_000
GOLDEN = 0x9E3779B97F4A7C15
LOW_32, LOW_64 = 2**32 - 1, 2**64 - 1
BITS = 23


def everyone(seed: int = 3, n: int = N) -> Luck:
    return Luck(seed, torch.arange(n))


def finalised(value: int) -> int:
    """SplitMix64's finaliser in Python's integers."""
    value &= LOW_64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & LOW_64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & LOW_64
    return value ^ value >> 31


def key_by_hand(seed: int, stream: Stream, week: int, user: int) -> int:
    base = finalised(finalised(seed + GOLDEN) + (week << 8 | stream) + GOLDEN)
    return finalised(user * GOLDEN + base)


def normals_by_hand(key: int, count: int) -> list[float]:
    """Box and Muller on hashes of the columns: cosines, then sines of the same pairs."""

    def bits(column: int) -> int:
        value = (finalised((column + 1) * GOLDEN) ^ key) & LOW_32
        value = value * (key >> 32 | 1) & LOW_32
        value = (value ^ value >> 16) * 0x7FEB352D & LOW_32
        value = (value ^ value >> 15) * 0x846CA68B & LOW_32
        return value >> 32 - BITS

    half = (count + 1) // 2
    radius = [math.sqrt(-2 * math.log((bits(k) + 0.5) / 2**BITS)) for k in range(half)]
    angle = [2 * math.pi * bits(half + k) / 2**BITS for k in range(half)]
    cosines = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    sines = [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    return (cosines + sines)[:count]


def test_the_mixer_is_splitmix64() -> None:
    # The published first outputs of the generator seeded with 0 and with 1234567.
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    steps = torch.arange(1, 4) * (GOLDEN - 2**64)
    assert [value & LOW_64 for value in _mix(steps).tolist()] == first
    assert _mix_int(0) & LOW_64 == first[0]
    assert _mix_int(1234567) == 6457827717110365317


@settings(max_examples=50)
@given(
    st.integers(-(2**62), 2**70),
    st.sampled_from(list(Stream)),
    st.integers(0, 10_000),
    st.integers(0, 2**62),
    st.integers(1, 9),
)
def test_draws_against_pythons_integers(seed: int, stream: Stream, week: int, user: int, count: int) -> None:
    # Pins the luck itself: with another hash every published figure would change.
    luck, key = Luck(seed, torch.tensor([user])), key_by_hand(seed, stream, week, user)
    assert float(luck.uniform(stream, week)) == ((key >> 64 - BITS) + 0.5) / 2**BITS
    assert int(luck.order(stream, week)) & LOW_64 == key
    angle = 2 * math.pi * ((key & 2**BITS - 1) + 0.5) / 2**BITS
    radius = math.sqrt(-2 * math.log(((key >> 64 - BITS) + 0.5) / 2**BITS))
    assert float(luck.normal(stream, week)) == pytest.approx(radius * math.cos(angle), abs=5e-6)
    expected = pytest.approx(normals_by_hand(key, count), abs=5e-6)
    assert luck.normals(stream, week, count)[0].tolist() == expected


@pytest.mark.parametrize("stream", [Stream.VISIT, Stream.OPT_OUT, Stream.CALENDAR])
@pytest.mark.parametrize("week", [0, 7])
def test_draws_have_their_distribution(stream: Stream, week: int) -> None:
    luck = everyone()
    assert kstest(luck.uniform(stream, week).double().numpy(), "uniform").pvalue > 1e-3
    assert kstest(luck.normal(stream, week).double().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 2, 7, 120])
def test_every_column_is_standard_normal(count: int) -> None:
    values = everyone().normals(Stream.PURCHASE, 2, count).double().numpy()
    assert values.shape == (N, count)
    assert min(kstest(column, "norm").pvalue for column in values.T) > 0.1 / (count * 100)
    # Beyond the reach of that test: the tails.
    np.testing.assert_allclose((values**4).mean(axis=0), 3.0, atol=4.5 * math.sqrt(96 / N))


def test_columns_are_independent_of_each_other() -> None:
    # All pairs at once, cosines and sines of a pair included; also in size, which correlation cannot see.
    z = everyone().normals(Stream.SPEND, 1, 60).double()
    for value in (z, z.square(), z.sign()):
        standard = (value - value.mean(dim=0)) / value.std(dim=0)
        score = standard.T @ standard / math.sqrt(N)
        off = score[~torch.eye(60, dtype=torch.bool)]
        assert float(off.abs().max()) < 5.0
        assert float(off.std()) == pytest.approx(1.0, abs=0.05)


NEIGHBOURS = {
    "user": (everyone(), Luck(3, torch.arange(N) + 1), Stream.VISIT, Stream.VISIT, 4, 4),
    "seed": (everyone(), everyone(4), Stream.VISIT, Stream.VISIT, 4, 4),
    "week": (everyone(), everyone(), Stream.VISIT, Stream.VISIT, 4, 5),
    "stream": (everyone(), everyone(), Stream.PURCHASE, Stream.SPEND, 4, 4),
    "stream and week": (everyone(), everyone(), Stream.OPT_IN, Stream.RECEPTIVITY, 1, 0),
    "twin": (everyone(), Luck(3, torch.arange(N) + (1 << 40)), Stream.VISIT, Stream.VISIT, 4, 4),
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbours_have_nothing_to_do_with_each_other(what: str) -> None:
    a, b, stream, other, week, later = NEIGHBOURS[what]
    draws = [
        (a.uniform(stream, week), b.uniform(other, later)),
        (a.normal(stream, week), b.normal(other, later)),
        *zip(a.normals(stream, week, 6).T, b.normals(other, later, 6).T, strict=True),
    ]
    for x, y in draws:
        for f in (torch.Tensor.double, lambda v: v.double().square()):
            score = float(torch.corrcoef(torch.stack([f(x), f(y)]))[0, 1]) * math.sqrt(N)
            assert abs(score) < 4.5


def test_a_user_seen_alone_over_many_weeks_is_as_random() -> None:
    weeks = 4000
    one = Luck(9, torch.tensor([17]))
    rows = torch.cat([one.normals(Stream.PURCHASE, week, 4) for week in range(weeks)]).double()
    assert all(kstest(column.numpy(), "norm").pvalue > 1e-3 for column in rows.T)
    for lag in (1, 2, 52):
        score = (rows[lag:] * rows[:-lag]).mean(dim=0) * math.sqrt(weeks - lag)
        assert float(score.abs().max()) < 4.5


@given(st.lists(st.integers(0, 299), min_size=1, max_size=40), st.integers(0, 50), st.integers(1, 13))
def test_who_else_takes_part_does_not_matter(index: list[int], week: int, count: int) -> None:
    luck, rows = everyone(n=300), torch.tensor(index)
    few = luck.rows(rows)
    for stream in (Stream.VISIT, Stream.PURCHASE):
        assert torch.equal(few.uniform(stream, week), luck.uniform(stream, week)[rows])
        assert torch.equal(few.normal(stream, week), luck.normal(stream, week)[rows])
        assert torch.equal(few.normals(stream, week, count), luck.normals(stream, week, count)[rows])
    part = slice(3, 40)
    assert torch.equal(luck.rows(part).uniform(Stream.VISIT, week), luck.uniform(Stream.VISIT, week)[part])


def test_arrays_used_again_change_nothing() -> None:
    scratch = Scratch()
    for n, count in ((64, 10), (7, 3), (200, 12), (200, 11), (64, 10)):
        luck = everyone(n, n)
        fresh = luck.normals(Stream.SPEND, n, count)
        assert torch.equal(luck.normals(Stream.SPEND, n, count, scratch), fresh)
        # Those of one stream stay while those of another are drawn.
        kept = luck.normals(Stream.BASKET, n, count, scratch)
        before = kept.clone()
        luck.normals(Stream.PURCHASE, n, count, scratch)
        assert torch.equal(kept, before)
        assert kept.is_contiguous()


def test_the_extremes_are_finite() -> None:
    ends = _to_unit(torch.tensor([0, 2**BITS - 1]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]
    luck = everyone(n=2**20)
    uniform = luck.uniform(Stream.PURCHASE, 0)
    assert 0 < float(uniform.min()) < 1e-5 < 1 - 1e-5 < float(uniform.max()) < 1
    for normal in (luck.normal(Stream.PURCHASE, 0), luck.normals(Stream.PURCHASE, 0, 3)):
        assert torch.isfinite(normal).all()
        assert 4.5 < float(normal.abs().max()) <= math.sqrt(2 * 24 * math.log(2)) * 1.0001


def test_no_two_users_stand_at_the_same_place_of_a_queue() -> None:
    luck = everyone()
    # Uniforms of 23 bits collide among so many; the order of service must not fall back on the index.
    assert len(luck.uniform(Stream.PRIORITY, 0).unique()) < N
    order = luck.order(Stream.PRIORITY, 0)
    assert len(order.unique()) == N
    rank = torch.argsort(torch.argsort(order)).double()
    assert abs(float(torch.corrcoef(torch.stack([rank, torch.arange(N).double()]))[0, 1])) * N**0.5 < 4.5


def test_what_all_users_share_is_normal_and_new_every_week() -> None:
    weeks = torch.stack(
        [shared_normal(5, Stream.WEEK_CATEGORY, week, 40, torch.device("cpu")) for week in range(400)]
    ).double()
    assert kstest(weeks.flatten().numpy(), "norm").pvalue > 1e-3
    assert float((weeks[1:] * weeks[:-1]).mean()) * math.sqrt(399 * 40) < 4.5
    # A narrower call is the beginning of a wider one.
    few = shared_normal(5, Stream.WEEK_CATEGORY, 7, 3, torch.device("cpu"))
    assert torch.equal(few.double(), weeks[7, :3])
