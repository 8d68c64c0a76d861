from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.calendar import PromotionCalendar
from encoders.history import CATEGORY_FEATURES, USER_FEATURES, HistoryState, category_features, user_features
from encoders.response import (
    MOST_FURTHER_TRIPS_LOG,
    PROMOTION_UNIT,
    TERM_LIMIT,
    USER_TERMS,
    FeatureScale,
    ResponseHeads,
    taste_weight,
)

N, C, D = 6, 3, 4


def random_heads(seed: int, spread: float = 1.0) -> ResponseHeads:
    generator = torch.Generator().manual_seed(seed)
    heads = ResponseHeads(torch.tensor([0.3, 0.1, 0.05]), D)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        heads.category_match.copy_(torch.randn(C, D, generator=generator))
        heads.category_mean.copy_(torch.randn(len(CATEGORY_FEATURES), generator=generator))
        heads.category_std.copy_(0.5 + torch.rand(len(CATEGORY_FEATURES), generator=generator))
        heads.user_mean.copy_(torch.randn(len(USER_FEATURES), generator=generator))
        heads.user_std.copy_(0.5 + torch.rand(len(USER_FEATURES), generator=generator))
        heads.calibration.copy_(torch.tensor([[0.8, -0.1], [1.2, 0.3]]))
    return heads.requires_grad_(False)


def random_state(seed: int) -> HistoryState:
    generator = torch.Generator().manual_seed(seed)
    state = HistoryState.empty(N, C)
    for _ in range(10):
        trips = torch.randint(0, 4, (N,), generator=generator)
        bought = (torch.rand(N, C, generator=generator) < 0.4) & (trips > 0)[:, None]
        nobody = torch.zeros(N, dtype=torch.bool)
        state = state.advance(trips, bought, 3.0 * bought.sum(dim=1), coupon_used=nobody)
    return state


def one_week(depth: torch.Tensor) -> PromotionCalendar:
    return PromotionCalendar(
        depth=depth,
        display=torch.tensor([0.1, 0.0, 0.4]),
        mailer=torch.tensor([0.0, 0.2, 0.3]),
        category_trend=torch.tensor([0.1, -0.2, 0.0]),
        visit_trend=torch.tensor(0.05),
        month_start=torch.tensor(0.7),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 5))
def test_purchase_is_monotone_in_depth_whatever_the_parameters(
    seed: int, shallow: float, more: float, spread: float
) -> None:
    heads, state = random_heads(seed, spread), random_state(seed)
    embedding = torch.randn(N, D, generator=torch.Generator().manual_seed(seed))
    low = heads(state, embedding, one_week(torch.full((C,), shallow)))
    high = heads(state, embedding, one_week(torch.full((C,), shallow + more)))
    assert (low.depth_slope >= 0).all()
    assert (high.purchase >= low.purchase).all()
    torch.testing.assert_close(high.visit, low.visit)
    # The slope is exactly what a unit of depth adds, calibration included: coupons are priced with it.
    torch.testing.assert_close(high.purchase, low.purchase + more * low.depth_slope, rtol=1e-4, atol=1e-3)


def user_terms_by_hand(g: torch.Tensor) -> torch.Tensor:
    """Features, then each with itself and all after it, cut at three standard deviations."""
    cut = [min(max(value, -TERM_LIMIT), TERM_LIMIT) for value in g.tolist()]
    products = [a * b for place, a in enumerate(cut) for b in cut[place:]]
    return torch.tensor([*g.tolist(), *products])


def test_user_terms_are_the_features_and_their_products() -> None:
    heads, state = random_heads(9), random_state(9)
    heads.user_std.mul_(0.2)  # so that some features are beyond the cut
    g, terms = heads.standard_user_features(state), heads.user_terms(state)
    assert float(g.abs().max()) > TERM_LIMIT
    assert terms.shape == (N, len(USER_TERMS))
    for row in range(N):
        torch.testing.assert_close(terms[row], user_terms_by_hand(g[row]))
    square = USER_TERMS.index("last_trips x last_trips")
    trips = g[:, USER_FEATURES.index("last_trips")].clamp(-TERM_LIMIT, TERM_LIMIT)
    torch.testing.assert_close(terms[:, square], trips**2)


def test_the_formula_term_by_term() -> None:
    heads, state = random_heads(5), random_state(5)
    embedding = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    calendar = one_week(torch.tensor([0.1, 0.2, 0.3]))
    utilities = heads(state, embedding, calendar)
    phi = torch.stack(category_features(state, heads.base_rate), dim=2)
    for i in range(N):
        g = (user_features(state)[i] - heads.user_mean) / heads.user_std
        q = user_terms_by_hand(g)
        visit = heads.visit_bias + torch.dot(heads.visit_user, q)
        visit = visit + heads.visit_trend * calendar.visit_trend + heads.visit_month_start * 0.7
        assert float(utilities.visit[i]) == pytest.approx(float(0.8 * visit - 0.1), abs=1e-4)
        for c in range(C):
            standard = (phi[i, c] - heads.category_mean) / heads.category_std
            level = heads.depth_level[c] + embedding[i] @ heads.depth_embedding
            theta = torch.log1p(torch.exp(level)) / PROMOTION_UNIT
            match = heads.match_weight[c] * (embedding[i] @ heads.category_match[c]) / D**0.5
            share = 1 / (1 + state.category_slow[i, c] / (8 * heads.base_rate[c]))
            tastes = share * (match + heads.purchase_embedding[c] @ embedding[i])
            purchase = (
                heads.purchase_bias[c]
                + heads.purchase_features[c] @ standard
                + heads.purchase_user[c] @ q
                + standard[0] * (heads.purchase_rate_user[c] @ g.clamp(-TERM_LIMIT, TERM_LIMIT))
                + tastes
                + theta * calendar.depth[c]
                + heads.display_effect[c] * calendar.display[c] / PROMOTION_UNIT
                + heads.mailer_effect[c] * calendar.mailer[c] / PROMOTION_UNIT
                + heads.purchase_trend[c] * calendar.category_trend[c]
                + heads.purchase_month_start[c] * 0.7
            )
            assert float(utilities.purchase[i, c]) == pytest.approx(float(1.2 * purchase + 0.3), abs=1e-3)
            assert float(utilities.depth_slope[i, c]) == pytest.approx(float(1.2 * theta), rel=1e-4)
            spend = (
                heads.spend_level[c] + torch.dot(heads.spend_user, q) + heads.spend_embedding @ embedding[i]
            )
            spend = spend + heads.spend_depth * calendar.depth[c] + heads.spend_month_start * 0.7
            assert float(utilities.log_spend[i, c]) == pytest.approx(float(spend), abs=1e-4)


def test_a_week_per_row_equals_row_by_row() -> None:
    heads, state = random_heads(2), random_state(2)
    embedding = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(3)
    depth, display, mailer, trend = torch.rand(4, N, C, generator=generator)
    visit_trend, month_start = torch.rand(2, N, generator=generator)
    weeks = PromotionCalendar(depth, display, mailer, trend, visit_trend, month_start)
    together = heads(state, embedding, weeks)
    for row in range(N):
        index = torch.tensor([row])
        alone = heads(state.rows(index), embedding[index], weeks.weeks(torch.tensor(row)))
        torch.testing.assert_close(alone.purchase[0], together.purchase[row])
        torch.testing.assert_close(alone.visit[0], together.visit[row])
        torch.testing.assert_close(alone.log_spend[0], together.log_spend[row])


def test_the_start_is_close_to_each_users_own_rate() -> None:
    state = random_state(4)
    heads = ResponseHeads(torch.tensor([0.3, 0.1, 0.05]), 0)
    phi, g = category_features(state, heads.base_rate), user_features(state)
    heads.set_scale(
        FeatureScale(
            category_mean=torch.stack([feature.mean() for feature in phi]),
            category_std=torch.stack([feature.std() for feature in phi]),
            user_mean=g.mean(dim=0),
            user_std=g.std(dim=0),
        )
    )
    zero = torch.zeros(C)
    calendar = PromotionCalendar(zero, zero, zero, zero, torch.zeros(()), torch.zeros(()))
    utilities = heads(state, torch.zeros(N, 0), calendar)
    torch.testing.assert_close(utilities.visit, g[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        utilities.purchase, 0.9 * phi[0] + 0.1 * torch.logit(heads.base_rate), rtol=0, atol=1e-5
    )


def test_the_depth_effect_is_what_a_unit_of_depth_adds_before_calibration() -> None:
    heads = random_heads(3)
    level = heads.depth_level
    torch.testing.assert_close(heads.depth_effect(), torch.log1p(level.exp()) / PROMOTION_UNIT)
    users = torch.tensor([[-1.0], [0.5]])
    torch.testing.assert_close(
        heads.depth_effect(users)[1], torch.log1p((level + 0.5).exp()) / PROMOTION_UNIT
    )
    assert heads.depth_effect(users).shape == (2, C)
    # Untrained, all categories share the start of about 2.
    assert ResponseHeads(torch.full((C,), 0.1), 0).depth_effect().tolist() == pytest.approx(
        [2.014] * C, abs=1e-3
    )


def test_tastes_count_in_full_before_the_first_purchase_and_less_with_each() -> None:
    state = HistoryState.empty(1, 2)
    base_rate = torch.tensor([0.25, 0.05])
    assert taste_weight(state, base_rate).tolist() == [[1.0, 1.0]]
    purchase = torch.tensor([[True, False]])
    no_coupon = torch.tensor([False])
    state = state.advance(torch.tensor([1]), purchase, torch.tensor([3.0]), coupon_used=no_coupon)
    # Eight visits at a rate of a quarter are two purchases, against the one that was made.
    assert taste_weight(state, base_rate)[0].tolist() == pytest.approx([2 / 3, 1.0])
    # As in a beta posterior, to first order: how far its logit follows the prior's.
    purchases, visits, rate = 3.0, 12.0, 0.05

    def posterior_logit(prior: float) -> float:
        return float(torch.logit(torch.tensor((purchases + 8 * prior) / (visits + 8)).double()))

    step = 1e-3
    slope = (posterior_logit(rate + step) - posterior_logit(rate - step)) / (
        float(
            torch.logit(torch.tensor(rate + step).double()) - torch.logit(torch.tensor(rate - step).double())
        )
    )
    assert 8 * rate / (8 * rate + purchases) == pytest.approx(slope, abs=0.03)


def test_category_vectors_are_what_an_embedding_is_multiplied_with() -> None:
    heads, state = random_heads(6), random_state(6)
    embedding = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    calendar = one_week(torch.zeros(C))
    heads.depth_embedding.zero_()
    difference = (
        heads(state, embedding, calendar).purchase - heads(state, torch.zeros(N, D), calendar).purchase
    )
    weight = taste_weight(state, heads.base_rate)
    expected = heads.calibration[1, 0] * weight * (embedding @ heads.category_vectors().T)
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-3)
    # Category embeddings under training take the place of the stored ones, there and in the logit.
    match = torch.randn(C, D, generator=torch.Generator().manual_seed(2))
    expected = heads.match_weight[:, None] * match / D**0.5 + heads.purchase_embedding
    torch.testing.assert_close(heads.category_vectors(match), expected)
    trained = heads(state, embedding, calendar, match)
    heads.category_match.copy_(match)
    torch.testing.assert_close(heads(state, embedding, calendar).purchase, trained.purchase)


def test_further_trips_are_log_linear_and_capped() -> None:
    heads, state = random_heads(8, spread=0.1), random_state(8)
    g = heads.standard_user_features(state)
    expected = torch.exp(heads.trips_bias + g @ heads.trips_features)
    torch.testing.assert_close(heads.mean_further_trips(state), expected)
    heads.trips_bias.fill_(50.0)
    assert heads.mean_further_trips(state).tolist() == pytest.approx([math.exp(MOST_FURTHER_TRIPS_LOG)] * N)
    heads.trips_bias.fill_(-200.0)
    assert heads.mean_further_trips(state).tolist() == [0.0] * N


def test_text_can_be_left_out() -> None:
    heads = ResponseHeads(torch.tensor([0.3, 0.1, 0.05]), 0)
    utilities = heads(random_state(1), torch.zeros(N, 0), one_week(torch.zeros(C)))
    assert utilities.purchase.shape == (N, C)
    assert torch.isfinite(utilities.purchase).all()
