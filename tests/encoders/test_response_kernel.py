"""The kernel against the heads' own forward pass, which the fit and its tests use."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import MOST_FURTHER_TRIPS_LOG, FeatureScale, ResponseHeads
from encoders.response_kernel import People, ResponseKernel
from encoders.scratch import Scratch

TOLERANCE = 1e-5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_heads(n_categories: int, embedding: int, seed: int, spread: float = 0.3) -> ResponseHeads:
    """Heads in which nothing is zero, nothing is one and no two parameters are alike."""
    chance = generator(seed)
    heads = ResponseHeads(0.01 + 0.5 * torch.rand(n_categories, generator=chance), embedding)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=chance)

    heads.set_scale(
        FeatureScale(
            category_mean=normal(heads.category_mean),
            category_std=0.5 + torch.rand(heads.category_std.shape, generator=chance),
            user_mean=normal(heads.user_mean),
            user_std=0.5 + torch.rand(heads.user_std.shape, generator=chance),
        )
    )
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(spread * normal(parameter))
        heads.category_match.copy_(normal(heads.category_match))
        heads.category_shift.copy_(normal(heads.category_shift))
        heads.calibration.copy_(torch.tensor([[0.8, -0.1], [1.2, 0.3]]) + 0.1 * normal(heads.calibration))
    return heads.eval().requires_grad_(False)


def random_week(n_categories: int, seed: int) -> PromotionCalendar:
    chance = generator(seed)
    of_category = torch.rand(4, n_categories, generator=chance)
    return PromotionCalendar(
        depth=of_category[0],
        display=of_category[1],
        mailer=of_category[2],
        category_trend=of_category[3] - 0.5,
        visit_trend=torch.tensor(0.3),
        month_start=torch.tensor(0.7),
    )


def lived(n_users: int, n_categories: int, weeks: int, share: float, seed: int) -> HistoryState:
    """Users who visit in two weeks of three and then buy each category with a probability."""
    chance = generator(seed)
    state = HistoryState.empty(n_users, n_categories)
    for _ in range(weeks):
        trips = torch.randint(0, 3, (n_users,), generator=chance)
        bought = (torch.rand(n_users, n_categories, generator=chance) < share) & (trips > 0)[:, None]
        state = state.advance(trips, bought, 9.0 * bought.sum(dim=1), coupon_used=trips > 1)
    return state


def idle(state: HistoryState, weeks: int) -> HistoryState:
    """The same users after weeks without a visit."""
    nothing = torch.zeros(state.recent.shape, dtype=torch.bool)
    never = nothing[:, 0]
    for _ in range(weeks):
        state = state.advance(never.long(), nothing, never.float(), coupon_used=never)
    return state


def joined(*states: HistoryState) -> HistoryState:
    return HistoryState(
        **{f.name: torch.cat([getattr(s, f.name) for s in states]) for f in fields(HistoryState)}
    )


def all_sorts(n_categories: int, seed: int) -> HistoryState:
    """Twelve users: of all kinds, unknown ones, some not seen for over a year, some who always buy all."""
    some = lived(4, n_categories, 20, 0.3, seed)
    gone = idle(lived(2, n_categories, 12, 0.5, seed + 1), 70)
    faithful = lived(2, n_categories, 80, 1.0, seed + 2)
    abstinent = lived(2, n_categories, 15, 0.0, seed + 3)
    return joined(some, HistoryState.empty(2, n_categories), gone, faithful, abstinent)


def assert_close(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert found.shape == exact.shape
    torch.testing.assert_close(found, exact, rtol=TOLERANCE, atol=TOLERANCE * float(1 + exact.abs().max()))


def assert_agrees(heads: ResponseHeads, state: HistoryState, seed: int, scratch: Scratch) -> None:
    """Every figure of the kernel against the heads, for one random week and random embeddings."""
    n, n_categories = state.recent.shape
    week = random_week(n_categories, seed)
    embedding = torch.randn(n, heads.embedding, generator=generator(seed))
    kernel = ResponseKernel(heads, scratch)
    coefficients = kernel.coefficients(week)
    people = kernel.people(state, embedding, coefficients)
    purchase, slope = kernel.purchase(people, state, embedding, coefficients)

    exact = heads(state, embedding, week)
    assert_close(purchase, exact.purchase)
    assert_close(slope, exact.depth_slope)
    assert (slope >= 0).all()
    assert_close(people.log_spend[:, None] + coefficients.log_spend, exact.log_spend)
    assert_close(people.visit, exact.visit)
    assert_close(people.visit, heads.visit_logit(state, week))
    assert_close(people.further_trips, heads.mean_further_trips(state))
    assert_close(people.redemption, heads.redemption_logit(state, embedding))
    assert_close(people.terms.T, heads.user_terms(state))


@pytest.mark.parametrize("embedding", [0, 4])
@pytest.mark.parametrize("n_categories", [1, 3, 12])
def test_the_kernel_is_the_forward_pass(n_categories: int, embedding: int) -> None:
    scratch = Scratch()
    for seed in range(10):
        heads = random_heads(n_categories, embedding, seed)
        assert_agrees(heads, all_sorts(n_categories, seed), seed, scratch)


@settings(max_examples=30)
@given(
    st.integers(1, 40), st.integers(1, 9), st.sampled_from([0, 4]), st.integers(0, 60), st.integers(0, 10**6)
)
def test_the_kernel_is_the_forward_pass_for_any_users(
    n: int, n_categories: int, embedding: int, weeks: int, seed: int
) -> None:
    heads = random_heads(n_categories, embedding, seed)
    assert_agrees(heads, lived(n, n_categories, weeks, 0.3, seed), seed, Scratch())


def test_coefficients_far_from_zero() -> None:
    # Steep curves, expected trips at their cap, θ where softplus is a straight line.
    heads = random_heads(5, 4, 1, spread=2.0)
    heads.depth_level.fill_(25.0)
    heads.trips_bias.fill_(10.0)
    state = all_sorts(5, 1)
    assert float(heads.mean_further_trips(state).max()) == pytest.approx(math.exp(MOST_FURTHER_TRIPS_LOG))
    assert_agrees(heads, state, 1, Scratch())


def test_histories_are_not_touched_and_people_outlive_the_scratch() -> None:
    heads, state = random_heads(6, 4, 2), all_sorts(6, 2)
    before = joined(state)
    kernel = ResponseKernel(heads, Scratch())
    week = kernel.coefficients(random_week(6, 2))
    embedding = torch.randn(12, 4, generator=generator(3))
    people = kernel.people(state, embedding, week)
    kept = {f.name: getattr(people, f.name).clone() for f in fields(People)}
    first = [value.clone() for value in kernel.purchase(people, state, embedding, week)]
    other = lived(50, 6, 5, 0.4, 4)
    others = kernel.people(other, embedding[:1].expand(50, -1), week)
    kernel.purchase(others, other, embedding[:1].expand(50, -1), week)
    for name, value in kept.items():
        assert torch.equal(getattr(people, name), value)
    for f in fields(HistoryState):
        assert torch.equal(getattr(state, f.name), getattr(before, f.name))
    again = kernel.purchase(people, state, embedding, week)
    for value, found in zip(first, again, strict=True):
        assert torch.equal(value, found)


def test_people_of_some_users_are_those_users() -> None:
    heads, state = random_heads(3, 4, 5), all_sorts(3, 5)
    kernel = ResponseKernel(heads, Scratch())
    week = kernel.coefficients(random_week(3, 5))
    people = kernel.people(state, torch.randn(12, 4, generator=generator(5)), week)
    index = torch.tensor([11, 0, 0, 5])
    rows = people.rows(index)
    assert torch.equal(rows.terms, people.terms[:, index])
    for name in ("visit", "log_spend", "depth", "further_trips", "redemption"):
        assert torch.equal(getattr(rows, name), getattr(people, name)[index])


def test_the_kernel_follows_its_heads() -> None:
    # Coefficients are folded anew every week: heads changed in between, by a test or a fit, are heeded.
    heads, state = random_heads(3, 0, 6), all_sorts(3, 6)
    scratch = Scratch()
    assert_agrees(heads, state, 6, scratch)
    heads.calibration[1, 0] = 0.5
    heads.purchase_bias.add_(1.0)
    assert_agrees(heads, state, 6, scratch)
