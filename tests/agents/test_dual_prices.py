from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.dual_prices import DualPrices, surcharged
from envs.campaign import Campaign
from envs.demo_market import demo_market
from envs.observation import predict
from envs.offers import Catalogue, Offer, OfferKind

prices = st.floats(1e-3, 1e3)
pressures = st.floats(0.0, 1.0)
horizons = st.integers(1, 30)


def multipliers(dual: DualPrices, horizon: int) -> list[float]:
    """μ of each week: a in all of them and b in the last, by their definition."""
    return [float(dual.weekly) + float(dual.at_end) * (week == horizon - 1) for week in range(horizon)]


@given(prices, pressures, horizons)
def test_a_unit_spent_costs_what_all_later_multipliers_add_up_to(
    price: float, pressure: float, horizon: int
) -> None:
    dual = DualPrices.of_first_week(price, pressure, horizon)
    of_week = multipliers(dual, horizon)
    for week in range(horizon):
        left = horizon - week
        assert dual.spend(left) == pytest.approx(sum(of_week[week:]))
        assert dual.reserve(left) == pytest.approx(of_week[week])
        share = float(dual.weekly) * left / sum(of_week[week:]) if sum(of_week[week:]) else 0.0
        assert dual.pressure(left) == pytest.approx(share)
        # λ falls, for what is spent later is missing in fewer weeks, by the multiplier of the week.
        if left > 1:
            assert float(dual.spend(left)) - float(dual.spend(left - 1)) == pytest.approx(
                of_week[week], abs=1e-9 * price
            )


@given(prices, pressures, horizons)
def test_the_first_week_has_the_prices_asked_for(price: float, pressure: float, horizon: int) -> None:
    dual = DualPrices.of_first_week(price, pressure, horizon)
    assert dual.spend(horizon) == pytest.approx(price)
    assert dual.pressure(horizon) == pytest.approx(pressure, abs=1e-9)
    # And any later week's prices, taken as those of a shorter campaign, are the same multipliers.
    if horizon > 1:
        rest = DualPrices.of_first_week(dual.spend(horizon - 1), dual.pressure(horizon - 1), horizon - 1)
        assert multipliers(rest, horizon - 1) == pytest.approx(
            multipliers(dual, horizon)[1:], abs=1e-9 * price
        )


def test_prices_by_hand() -> None:
    # λ = 12 in the first of four weeks, three quarters of it alike in all weeks: a = 9 / 4, b = 3.
    dual = DualPrices.of_first_week(12.0, 0.75, 4)
    assert (dual.weekly, dual.at_end) == (2.25, 3.0)
    assert [dual.spend(left) for left in (4, 3, 2, 1)] == [12.0, 9.75, 7.5, 5.25]
    assert [dual.reserve(left) for left in (4, 3, 2, 1)] == [2.25, 2.25, 2.25, 5.25]
    assert [dual.pressure(left) for left in (4, 3, 2, 1)] == pytest.approx([0.75, 27 / 39, 0.6, 9 / 21])


def test_a_price_per_user_is_that_of_each() -> None:
    price, pressure = torch.tensor([0.5, 2.0, 8.0]), torch.tensor([0.0, 0.3, 1.0])
    together = DualPrices.of_first_week(price, pressure, 6)
    for left in (6, 3, 1):
        for k in range(3):
            alone = DualPrices.of_first_week(float(price[k]), float(pressure[k]), 6)
            for method in ("spend", "pressure", "reserve"):
                found = torch.as_tensor(getattr(together, method)(left))
                assert float(found[k]) == pytest.approx(getattr(alone, method)(left), rel=1e-5)


@pytest.mark.parametrize("pressure", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("horizon", [1, 3, 8])
def test_what_reserving_costs_is_the_sum_of_its_weeks(horizon: int, pressure: float) -> None:
    # λ times what the shop counts as a coupon's reserve is each week's μ times what is reserved in it.
    validities = (1, 2, 3, 5, 9)
    offers = tuple(
        Offer(
            f"{weeks}", OfferKind.PERCENT, slot=1, depth=0.3, max_discount=0.5 + weeks, validity_weeks=weeks
        )
        for weeks in validities
    )
    market = demo_market(n_users=4, horizon_weeks=horizon)
    market = replace(market, catalogue=Catalogue((Offer("nothing", OfferKind.NONE), *offers)))
    running = Campaign(market, market.predictor, start=0, users=torch.arange(4), budget=1e3, seed=0)
    dual = DualPrices.of_first_week(3.0, pressure, horizon)
    of_week = multipliers(dual, horizon)
    for week in range(horizon):
        left = horizon - week
        seen = predict(running.state, market.shop, running.calendar, left)
        found = dual.spend(left) * seen.reserve(float(dual.pressure(left)))
        expected = [0.0]
        for offer in offers:
            # No coupon outlives the campaign.
            expected.append(offer.max_discount * sum(of_week[week : week + offer.validity_weeks]))
        assert found.tolist() == pytest.approx(expected, rel=1e-5)
        # What is spent costs λ, as a coupon redeemed at once for its most would.
        assert dual.spend(left) == pytest.approx(sum(of_week[week:]))


@given(prices, pressures, st.floats(0.0, 1e3), st.integers(1, 30), st.integers(1, 8))
def test_a_dearer_week_is_felt_in_full_by_what_is_spent_or_reserved_longest(
    price: float, pressure: float, more: float, left: int, validity: int
) -> None:
    dual = DualPrices.of_first_week(price, pressure, left)
    of_week = multipliers(dual, left)
    of_week[0] += more
    spend, share = surcharged(price, pressure, more, left, validity)
    assert spend == pytest.approx(sum(of_week))
    # What an observation says of a unit reserved for w weeks: pressure * w / W, and the rest at the end.
    weeks = min(validity, left)
    at_end = 1.0 if weeks >= left else 0.0
    felt = float(spend) * (float(share) * weeks / left + (1.0 - float(share)) * at_end)
    assert felt == pytest.approx(sum(of_week[:weeks]), rel=1e-6, abs=1e-9 * (price + more))


def test_a_week_that_is_not_dearer_keeps_its_prices() -> None:
    assert surcharged(4.0, 0.25, 0.0, 8, 2) == (4.0, 0.25)
    # 4 + 2 in all; 0.25 * 4 and 2 more in one of eight weeks, felt over a coupon's two: (1 + 2 * 8 / 2) / 6.
    assert surcharged(4.0, 0.25, 2.0, 8, 2) == pytest.approx((6.0, 1.5))
