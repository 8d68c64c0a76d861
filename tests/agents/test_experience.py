from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from agents.experience import Experience, collect_experience
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.observation import CONTEXT_FEATURES, LOG_DUAL_PRICE
from envs.simulator import Simulator

N, WEEKS = 20, 4
ARRAYS = ("observation", "mask", "offer", "propensity", "margin", "cost")


@cache
def market() -> MarketSpec:
    return demo_market(n_users=40, horizon_weeks=WEEKS)


def worlds() -> list[Simulator]:
    predictor = market().predictor
    return [predictor, replace(predictor, margin_rate=0.5, name="rich")]


def collected(**changes: Any) -> Experience:
    arguments: dict[str, Any] = {
        "users": torch.arange(40),
        "n_users": N,
        "n_rows": N * WEEKS,
        "window_weeks": 1,
        "seed": 3,
    }
    given = {"worlds": worlds(), "starts": [0], **arguments, **changes}
    return collect_experience(market(), given.pop("worlds"), given.pop("starts"), **given)


def test_shapes_types_and_propensities() -> None:
    found = collected(n_rows=200)
    k = len(market().catalogue)
    assert len(found) == 200
    assert found.observation.shape == (200, market().layout.width)
    assert found.observation.dtype == found.margin.dtype == found.cost.dtype == np.float32
    assert found.mask.shape == (200, k)
    assert found.mask[np.arange(200), found.offer].all()
    np.testing.assert_allclose(found.propensity, 1.0 / found.mask.sum(axis=1), rtol=1e-6)
    # The mask is the one that the observation shows, and the price is 1.
    assert (found.observation[:, -k:] == found.mask).all()
    assert (found.observation[:, LOG_DUAL_PRICE] == 0).all()


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_margin_and_cost_by_hand_from_two_campaigns(window: int) -> None:
    found = collected(window_weeks=window)
    # The documented seeding: everything of a campaign follows from the seed and its number.
    rng = np.random.default_rng([3, 0])
    rng.permutation(N * WEEKS)
    users = torch.from_numpy(rng.choice(40, N, replace=False))
    luck = int(rng.integers(2**62))
    treated, control = (
        Campaign(market(), worlds()[0], start=0, users=users, budget=UNLIMITED_BUDGET, seed=luck)
        for _ in range(2)
    )
    margin, cost = (np.zeros((WEEKS, N)) for _ in range(2))
    for week in range(WEEKS):
        rows = slice(week * N, (week + 1) * N)
        seen = treated.observation(torch.ones(N)).numpy()
        np.testing.assert_array_equal(found.observation[rows], seen)
        outcome, expected = treated.step_with_expectation(torch.from_numpy(found.offer[rows]))
        _, nothing = control.step_with_expectation()
        margin[week] = expected.margin.double() - nothing.margin.double()
        cost[week] = expected.discount.double() + outcome.delivery.double() / 10_000
    for week in range(WEEKS):
        rows = slice(week * N, (week + 1) * N)
        np.testing.assert_allclose(found.margin[rows], margin[week : week + window].sum(axis=0), atol=1e-4)
        np.testing.assert_allclose(found.cost[rows], cost[week : week + window].sum(axis=0), atol=1e-5)


def test_every_allowed_offer_comes_alike() -> None:
    found = collected(n_rows=1_600, n_users=200, seed=1)
    free = found.mask.all(axis=1)
    counts = np.bincount(found.offer[free], minlength=len(market().catalogue))
    assert counts.sum() > 300
    assert chisquare(counts).pvalue > 0.001


def test_worlds_and_starts_take_turns() -> None:
    population = market().population
    two_starts = replace(
        market(),
        population=replace(
            population,
            start_weeks=(population.start_weeks[0] - 2, population.start_weeks[0]),
            histories=population.histories * 2,
            embeddings=torch.cat([population.embeddings, population.embeddings + 100.0]),
        ),
    )
    found = collect_experience(
        two_starts,
        worlds(),
        [0, 1],
        users=torch.arange(40),
        n_users=N,
        n_rows=4 * N * WEEKS,
        window_weeks=1,
        seed=0,
    )
    embedding = found.observation[:, len(CONTEXT_FEATURES)].reshape(4, -1)
    assert [bool((part > 50).all()) for part in embedding] == [False, False, True, True]


def test_a_world_answers_in_its_turn() -> None:
    # The same chance and a margin rate that differs: all money in the second campaign is in proportion.
    base = market().predictor
    rich = replace(base, margin_rate=2.0 * base.margin_rate)
    alone = collected(worlds=[base], n_rows=2 * N * WEEKS).margin
    both = collected(worlds=[base, rich], n_rows=2 * N * WEEKS).margin
    first, second = slice(N * WEEKS), slice(N * WEEKS, None)
    np.testing.assert_array_equal(both[first], alone[first])
    np.testing.assert_allclose(both[second], 2.0 * alone[second], rtol=1e-3, atol=1e-4)


def test_equal_seeds_give_equal_rows_and_others_do_not() -> None:
    first, again, other = collected(), collected(), collected(seed=4)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.offer, other.offer)


def test_more_rows_begin_with_the_same_campaigns() -> None:
    longer, first = collected(n_rows=3 * N * WEEKS - 30), collected(n_rows=2 * N * WEEKS)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(longer, name)[: 2 * N * WEEKS], getattr(first, name))
    # Of the last campaign a random part, not its first weeks.
    left = longer.observation[2 * N * WEEKS :, CONTEXT_FEATURES.index("weeks_left")]
    assert set(left.tolist()) == {1.0, 2.0, 3.0, 4.0}


def test_users_come_twice_only_where_there_are_too_few() -> None:
    first_week = collected(users=torch.arange(20, 40)).observation[:N, len(CONTEXT_FEATURES)]
    assert len(set(first_week.tolist())) == N
    crowded = collected(users=torch.arange(5)).observation[:N, len(CONTEXT_FEATURES)]
    assert len(set(crowded.tolist())) <= 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worlds": []}, "at least one world"),
        ({"starts": []}, "at least one world"),
        ({"users": torch.arange(0)}, "at least one world"),
        ({"n_users": 0}, "n_users must be >= 1"),
        ({"n_rows": 0}, "n_rows must be >= 1"),
        ({"window_weeks": 0}, "window_weeks must be >= 1"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collected(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": np.zeros(3, dtype=np.float32)}, r"margin has shape \(3,\)"),
        ({"observation": np.zeros((80, 3), dtype=np.float32)}, "observation has shape"),
        ({"propensity": np.zeros(80, dtype=np.float32)}, "propensity"),
        ({"mask": np.zeros((80, len(demo_market(2).catalogue)), dtype=np.bool_)}, "outside the mask"),
        ({"window_weeks": 0}, "window_weeks"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(collected(), **change)
