from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.pacing import PriceRange
from agents.policy import ExploringPolicy, MyopicUpliftPolicy, NoOfferPolicy, Policy, RandomPolicy
from agents.rollout import (
    CampaignResult,
    CampaignSetting,
    LoggedWeek,
    control_margin,
    log_campaign,
    play,
    value_at_prices,
)
from envs.campaign import MarketSpec
from envs.demo_market import demo_market
from envs.offers import Catalogue

N, WEEKS = 32, 5
K = len(Catalogue.built_in())
PRICES = PriceRange(0.01, 20.0)
PATH = [0.02, 0.05, 0.1, 0.3, 1.0]


@cache
def market() -> MarketSpec:
    return demo_market(n_users=N, horizon_weeks=WEEKS)


def setting(seed: int = 3, n: int = N) -> CampaignSetting:
    """A world in which coupons are mostly noticed, so that money is really spent."""
    spec = market()
    heads = type(spec.predictor.heads)(spec.predictor.heads.base_rate, spec.predictor.heads.embedding)
    heads.load_state_dict(spec.predictor.heads.state_dict())
    heads.requires_grad_(False).redemption_bias.fill_(2.0)
    return CampaignSetting(replace(spec.predictor, heads=heads), 0, torch.arange(n), seed)


class PushIgnoringPrice:
    """Wants the dearest coupon for everyone whatever the price: pacing cannot hold it, only the ledger."""

    name = "reckless"

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        last = mask.long() * torch.arange(1, mask.shape[1] + 1)
        return torch.nn.functional.one_hot(last.argmax(dim=1), mask.shape[1]).float()


def policies() -> list[Policy]:
    myopic = MyopicUpliftPolicy(market().layout)
    return [NoOfferPolicy(), RandomPolicy(), myopic, ExploringPolicy(myopic, 0.3), PushIgnoringPrice()]


@settings(max_examples=30)
@given(st.floats(0, 40), st.integers(0, 2**40), st.integers(0, 4))
def test_a_campaign_never_overspends_and_its_money_adds_up(budget: float, seed: int, which: int) -> None:
    result = play(policies()[which], market(), setting(seed), budget, PRICES)
    assert result.peak_commitment <= budget + 0.5e-4  # the cap is the budget rounded to a tick
    assert result.weekly_spend.sum() == pytest.approx(result.cost.sum(), abs=1e-9)
    assert result.cost.sum() <= result.peak_commitment + 1e-9
    assert (result.cost >= 0).all()
    assert (result.margin >= 0).all()
    assert int(result.offers_sent.sum()) == N * WEEKS
    assert len(result.dual_price) == len(result.weekly_spend) == WEEKS
    assert ((result.dual_price >= PRICES.low) & (result.dual_price <= PRICES.high * (1 + 1e-12))).all()
    assert result.budget == budget


def test_the_ledger_was_really_needed() -> None:
    result = play(PushIgnoringPrice(), market(), setting(), 6.0, PRICES)
    assert result.refused > 10
    assert result.peak_commitment > 5.0


def test_the_peak_counts_what_is_reserved_after_issuing() -> None:
    # In a campaign of one week all coupons end with it: only after issuing is anything reserved.
    spec = demo_market(n_users=N, horizon_weeks=1)
    result = play(PushIgnoringPrice(), spec, setting(), 1e4, PRICES)
    assert int(result.offers_sent[-1]) > 10
    committed = [
        count * (offer.max_discount + offer.delivery_cost)
        for count, offer in zip(result.offers_sent, spec.catalogue.offers, strict=True)
    ]
    assert result.peak_commitment == pytest.approx(sum(committed))


def same(one: CampaignResult, two: CampaignResult) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(CampaignResult))


def test_the_same_setting_is_the_same_result() -> None:
    for policy in policies():
        assert same(*(play(policy, market(), setting(5), 4.0, PRICES) for _ in range(2)))
    one, two = (play(RandomPolicy(), market(), setting(seed), 4.0, PRICES) for seed in (5, 6))
    assert not same(one, two)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_control_arm_is_a_campaign_without_offers(seed: int) -> None:
    nothing = play(NoOfferPolicy(), market(), setting(seed), 10.0, PRICES)
    assert np.array_equal(control_margin(market(), setting(seed)), nothing.margin)
    assert nothing.cost.sum() == nothing.peak_commitment == nothing.refused == 0
    # Common luck: sending something earns more margin, almost user by user, than sending nothing.
    sent = play(RandomPolicy(), market(), setting(seed), 1e4, PRICES)
    assert sent.margin.sum() > nothing.margin.sum()


def test_a_subset_of_users_may_take_part() -> None:
    some = replace(setting(), users=torch.tensor([3, 3, 9]))
    result = play(RandomPolicy(), market(), some, 3.0, PRICES)
    assert result.margin.shape == result.cost.shape == (3,)


# Logs ----------------------------------------------------------------------------------------------


def test_logged_propensities_are_the_policys_probabilities() -> None:
    behaviour = ExploringPolicy(MyopicUpliftPolicy(market().layout), 0.3)
    weeks = log_campaign(behaviour, market(), setting(), PATH)
    assert [week.dual_price for week in weeks] == PATH
    names = market().layout.names()
    for number, week in enumerate(weeks):
        mask = torch.from_numpy(week.mask)
        again = behaviour.probabilities(torch.from_numpy(week.observation), mask).double().numpy()
        np.testing.assert_allclose(week.probabilities, again, atol=1e-6)
        np.testing.assert_allclose(week.probabilities.sum(axis=1), 1.0, atol=1e-12)
        drawn = week.probabilities[np.arange(N), week.action]
        assert (drawn > 0).all()
        assert week.mask[np.arange(N), week.action].all()
        allowed = week.observation[:, [names.index(f"allowed_{k}") for k in range(K)]]
        assert np.array_equal(allowed > 0.5, week.mask)
        np.testing.assert_allclose(
            week.observation[:, names.index("log_dual_price")], np.log(PATH[number]), rtol=1e-5
        )
        if number:
            assert np.array_equal(week.observation, weeks[number - 1].next_observation)
    # Terminal observations are finite and say that no week is left.
    assert np.isfinite(weeks[-1].next_observation).all()
    assert (weeks[-1].next_observation[:, names.index("weeks_left")] == 0).all()


def test_actions_come_as_often_as_their_propensities_say() -> None:
    behaviour = ExploringPolicy(MyopicUpliftPolicy(market().layout), 0.5)
    logs = [week for seed in range(20) for week in log_campaign(behaviour, market(), setting(seed), PATH)]
    p = np.concatenate([week.probabilities for week in logs])
    taken = np.eye(K)[np.concatenate([week.action for week in logs])]
    error = np.sqrt((p * (1 - p)).sum(axis=0)) + 1e-9
    assert (np.abs((taken - p).sum(axis=0)) < 4.5 * error).all()


def test_logged_users_do_not_touch_each_other() -> None:
    # However the even users are treated, the log of the odd ones stays the same.
    class OnlyOdd:
        name = "odd users only"

        def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            out = PushIgnoringPrice().probabilities(observation, mask)
            out[::2] = torch.eye(mask.shape[1])[0]
            return out

    everyone = log_campaign(PushIgnoringPrice(), market(), setting(), PATH)
    odd_only = log_campaign(OnlyOdd(), market(), setting(), PATH)
    odd = np.arange(N) % 2 == 1
    for one, two in zip(everyone, odd_only, strict=True):
        for f in fields(LoggedWeek):
            a, b = getattr(one, f.name), getattr(two, f.name)
            assert a == b if f.name == "dual_price" else np.array_equal(a[odd], b[odd])
    assert any((one.action != two.action).any() for one, two in zip(everyone, odd_only, strict=True))


def test_a_log_has_no_cap() -> None:
    weeks = log_campaign(PushIgnoringPrice(), market(), setting(), PATH)
    for week in weeks:
        coupon_free = week.mask[:, -1]
        assert (week.action[coupon_free] == K - 1).all()
    # Asked for is sent: message costs of all weeks are there.
    first = weeks[0]
    assert (first.cost >= 0.02 * (first.action > 0) - 1e-9).all()


def test_the_value_at_prices_is_what_the_log_brings_on_average() -> None:
    policy = RandomPolicy()
    margins, costs = [], []
    for seed in range(60):
        margin, cost = value_at_prices(policy, market(), setting(seed), PATH)
        weeks = log_campaign(policy, market(), setting(seed), PATH)
        margins.append(margin.mean() - sum(week.reward.mean() for week in weeks))
        costs.append(cost.mean() - sum(week.cost.mean() for week in weeks))
    # The same campaigns: expected and realised values differ by chance alone.
    for differences in (margins, costs):
        assert np.std(differences) > 0.001
        assert abs(np.mean(differences)) < 4 * np.std(differences) / np.sqrt(len(differences))


def test_play_without_a_binding_cap_earns_the_value_at_its_own_prices() -> None:
    policy = RandomPolicy()
    for seed in range(5):
        played = play(policy, market(), setting(seed), 1e6, PRICES)
        margin, _ = value_at_prices(policy, market(), setting(seed), played.dual_price.tolist())
        np.testing.assert_allclose(played.margin, margin)
