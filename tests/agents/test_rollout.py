from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.adaptive import AdaptivePolicy
from agents.pacing import EvenPacing, PriceRange, WeekPrices
from agents.policy import ExploringPolicy, MyopicUpliftPolicy, NoOfferPolicy, Policy, RandomPolicy, sample
from agents.rollout import (
    CampaignResult,
    CampaignSetting,
    LoggedWeek,
    control_margin,
    expected_margin,
    log_campaign,
    open_campaign,
    play,
    value_at_prices,
)
from agents.visit_value import VisitValue
from envs.campaign import Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.offers import Catalogue

N, WEEKS = 32, 5
K = len(Catalogue.built_in())
PRICES = PriceRange(0.01, 20.0)
EVEN = EvenPacing(PRICES)
PATH = [WeekPrices(*week) for week in ((0.02, 1.0), (0.05, 0.8), (0.1, 0.5), (0.3, 0.2), (1.0, 0.0))]


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
    result = play(policies()[which], market(), setting(seed), budget, EVEN)
    assert result.peak_commitment <= budget + 0.5e-4  # the cap is the budget rounded to a tick
    assert result.weekly_spend.sum() == pytest.approx(result.cost.sum(), abs=1e-9)
    assert result.cost.sum() <= result.peak_commitment + 1e-9
    assert (result.cost >= 0).all()
    assert (result.margin >= 0).all()
    assert int(result.offers_sent.sum()) == N * WEEKS
    assert len(result.dual_price) == len(result.weekly_spend) == len(result.committed) == WEEKS
    assert (result.pressure == 1).all()
    # Spent so far is part of what is committed, and what is reserved is never negative.
    assert (result.committed >= np.cumsum(result.weekly_spend) - 1e-9).all()
    assert (result.sent.sum(axis=1) == WEEKS).all()
    assert ((result.dual_price >= PRICES.low) & (result.dual_price <= PRICES.high * (1 + 1e-12))).all()
    assert result.budget == budget


def test_the_ledger_was_really_needed() -> None:
    result = play(PushIgnoringPrice(), market(), setting(), 6.0, EVEN)
    assert result.refused > 10
    assert result.peak_commitment > 5.0


def test_the_peak_counts_what_is_reserved_after_issuing() -> None:
    # In a campaign of one week all coupons end with it: only after issuing is anything reserved.
    spec = demo_market(n_users=N, horizon_weeks=1)
    result = play(PushIgnoringPrice(), spec, setting(), 1e4, EVEN)
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
        assert same(*(play(policy, market(), setting(5), 4.0, EVEN) for _ in range(2)))
    one, two = (play(RandomPolicy(), market(), setting(seed), 4.0, EVEN) for seed in (5, 6))
    assert not same(one, two)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_control_arm_is_a_campaign_without_offers(seed: int) -> None:
    nothing = play(NoOfferPolicy(), market(), setting(seed), 10.0, EVEN)
    assert np.array_equal(control_margin(market(), setting(seed)), nothing.margin)
    assert nothing.cost.sum() == nothing.peak_commitment == nothing.refused == 0
    # Common luck: sending something earns more margin, almost user by user, than sending nothing.
    sent = play(RandomPolicy(), market(), setting(seed), 1e4, EVEN)
    assert sent.margin.sum() > nothing.margin.sum()


def test_a_subset_of_users_may_take_part() -> None:
    some = replace(setting(), users=torch.tensor([3, 3, 9]))
    result = play(RandomPolicy(), market(), some, 3.0, EVEN)
    assert result.margin.shape == result.cost.shape == (3,)


def test_common_luck_makes_users_comparable_one_by_one() -> None:
    # Who is never sent anything has the margin of the control arm, whatever others get.
    class OnlyEven(RandomPolicy):
        def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            out = super().probabilities(observation, mask)
            out[1::2] = torch.eye(mask.shape[1])[0]
            return out

    result = play(OnlyEven(), market(), setting(), 1e3, EVEN)
    control = control_margin(market(), setting())
    assert np.array_equal(result.margin[1::2], control[1::2])
    assert (result.sent[1::2, 0] == WEEKS).all()
    treated = result.sent[::2, 0] < WEEKS
    assert treated.sum() > 5
    assert (result.margin[::2][treated] != control[::2][treated]).all()
    # Half of the users by themselves live through the same.
    odd = replace(setting(), users=torch.arange(1, N, 2))
    assert np.array_equal(control_margin(market(), odd), control[1::2])


@dataclass(frozen=True)
class Path:
    """Follows prices given beforehand, and notes what it was shown."""

    prices_of_week: tuple[WeekPrices, ...]
    asked: list[Policy]

    def prices(self, policy: Policy, campaign: Campaign) -> WeekPrices:
        self.asked.append(policy)
        return self.prices_of_week[campaign.state.week]


@pytest.mark.parametrize("budget", [3.0, 1e4])
def test_a_result_against_the_same_campaign_played_by_hand(budget: float) -> None:
    policy = ExploringPolicy(MyopicUpliftPolicy(market().layout), 0.4)
    result = play(policy, market(), setting(), budget, Path(tuple(PATH), []))
    chooser = torch.Generator().manual_seed(setting().seed ^ 0x5EED)
    running = open_campaign(market(), setting(), budget)
    sent = np.zeros((N, K), dtype=np.int64)
    margin, cost, spend, committed, refused = np.zeros(N), np.zeros(N), [], [], 0
    for prices in PATH:
        seen = running.observation(torch.full((N,), prices.spend), prices.pressure)
        probabilities = policy.probabilities(seen, running.mask)
        offer = sample(probabilities, torch.rand(N, generator=chooser))
        before = running.state.ledger
        outcome, expected = running.step_with_expectation(offer)
        for user in range(N):
            sent[user, int(outcome.offer[user])] += 1
        offers = market().offers
        asked = offers.delivery_cost[outcome.offer] + offers.liability[outcome.offer]
        committed.append(int(before.spent + before.reserved + asked.sum()) / 10_000)
        refused += int((outcome.offer != offer).sum())
        margin += expected.margin.double().numpy()
        cost += outcome.cost.numpy()
        spend.append(float(running.state.ledger.spent - before.spent) / 10_000)
    assert np.array_equal(result.sent, sent)
    assert result.offers_sent.tolist() == sent.sum(axis=0).tolist()
    assert result.committed.tolist() == pytest.approx(committed)
    assert result.peak_commitment == pytest.approx(max(committed))
    assert result.weekly_spend.tolist() == pytest.approx(spend)
    np.testing.assert_allclose(result.margin, margin)
    np.testing.assert_allclose(result.cost, cost)
    assert result.refused == refused
    assert (refused > 0) == (budget == 3.0)
    assert result.dual_price.tolist() == [prices.spend for prices in PATH]
    assert result.pressure.tolist() == [prices.pressure for prices in PATH]


# Policies that learn -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    observation: torch.Tensor
    offer: torch.Tensor
    margin: torch.Tensor
    cost: torch.Tensor


class Pupil(RandomPolicy):
    """Sends at random until it has learnt, and then nothing; keeps its lessons and its copies."""

    name = "pupil"

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self.lessons: list[Lesson] = []
        self.copies: list[Pupil] = []

    def fresh(self, seed: int) -> Pupil:
        self.copies.append(Pupil(seed))
        return self.copies[-1]

    def learn(
        self, observation: torch.Tensor, offer: torch.Tensor, margin: torch.Tensor, cost: torch.Tensor
    ) -> None:
        self.lessons.append(Lesson(observation, offer, margin, cost))

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if len(self.lessons) >= 3:
            return NoOfferPolicy().probabilities(observation, mask)
        return super().probabilities(observation, mask)


def test_who_learns_starts_afresh_and_learns_from_what_happened() -> None:
    pupil = Pupil()
    assert isinstance(pupil, AdaptivePolicy)
    assert not isinstance(RandomPolicy(), AdaptivePolicy)
    # So little money that not all that is asked for is sent.
    path = Path(tuple(PATH), [])
    first = play(pupil, market(), setting(), 3.0, path)
    second = play(pupil, market(), setting(), 3.0, Path(tuple(PATH), []))
    assert same(first, second)
    assert pupil.lessons == []
    assert [copy.seed for copy in pupil.copies] == [setting().seed] * 2
    learner = pupil.copies[0]
    # The copy acts and is paced, not the policy itself.
    assert path.asked == [learner] * WEEKS
    assert len(learner.lessons) == WEEKS
    running = open_campaign(market(), setting(), 3.0)
    for week, lesson in enumerate(learner.lessons):
        prices = PATH[week]
        seen = running.observation(torch.full((N,), prices.spend), prices.pressure)
        assert torch.equal(lesson.observation, seen)
        # What was sent is granted again; realised margin and cost, not expected ones.
        outcome, expected = running.step_with_expectation(lesson.offer)
        assert torch.equal(lesson.offer, outcome.offer)
        assert torch.equal(lesson.margin, outcome.margin)
        assert torch.equal(lesson.cost, outcome.cost)
        assert not torch.allclose(lesson.margin, expected.margin)
    assert first.refused > 0
    counts = torch.stack([lesson.offer for lesson in learner.lessons])
    assert first.offers_sent.tolist() == torch.bincount(counts.flatten(), minlength=K).tolist()
    assert float(sum(lesson.cost.sum() for lesson in learner.lessons)) == pytest.approx(first.cost.sum())
    # And what it learnt it acts on.
    assert (counts[3:] == 0).all()
    assert (counts[:3] > 0).any()


# Without the luck of the visits --------------------------------------------------------------------


def test_without_a_visit_value_the_margin_is_the_expected_one() -> None:
    one, two = (open_campaign(market(), setting(), 100.0) for _ in range(2))
    for week in range(WEEKS):
        offer = one.mask[:, 3] * (3 if week % 2 == 0 else 0)
        outcome, margin = expected_margin(one, offer, None)
        again, expected = two.step_with_expectation(offer)
        assert torch.equal(margin, expected.margin.double())
        assert torch.equal(outcome.spend, again.spend)
        assert torch.equal(outcome.visited, again.visited)


def test_what_is_taken_off_by_hand(fitted: tuple[MarketSpec, VisitValue]) -> None:
    spec, value = fitted
    where = CampaignSetting(spec.predictor, 0, torch.arange(48), 5)
    one, two = (open_campaign(spec, where, 100.0) for _ in range(2))
    while not one.done:
        offer = one.mask[:, 1].long()
        after = value.after(two)
        outcome, margin = expected_margin(one, offer, value)
        again, expected = two.step_with_expectation(offer)
        came, p = again.visited.double(), expected.visit.double()
        luck = (came - p) * (after[:, 1] - after[:, 0])
        torch.testing.assert_close(margin, expected.margin - luck, rtol=1e-5, atol=1e-5)
        assert torch.equal(outcome.visited, again.visited)
    # Nothing comes after the last week: there the margin is the expected one.
    torch.testing.assert_close(margin, expected.margin.double())


@pytest.mark.parametrize("trained", [True, False])
def test_taking_off_the_luck_of_visits_moves_no_mean(
    fitted: tuple[MarketSpec, VisitValue], trained: bool
) -> None:
    spec, value = fitted
    if not trained:
        # Whatever the value is: the visit's luck has mean zero.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            value = VisitValue(4, 5, 0.28).eval().requires_grad_(False)
    # All that users of a week share is in the visits too.
    heads = copy.deepcopy(spec.predictor.heads)
    heads.visit_week_deviation.fill_(0.1)
    world = replace(spec.predictor, heads=heads)
    users = torch.arange(48).repeat(6)
    with_luck, without = [], []
    for seed in range(16):
        where = CampaignSetting(world, 0, users, seed)
        with_luck.append(control_margin(spec, where))
        without.append(control_margin(spec, where, value))
    taken = np.array(with_luck) - np.array(without)
    by_seed = taken.mean(axis=1)
    assert np.abs(taken).mean() > 0.1
    assert abs(by_seed.mean()) < 4 * by_seed.std(ddof=1) / 4
    if trained:
        # A user's margin varies with the luck of his visits; with it goes most of the variance.
        assert np.var(without, axis=0).mean() < 0.5 * np.var(with_luck, axis=0).mean()
        assert np.mean(without, axis=1).var() < 0.5 * np.mean(with_luck, axis=1).var()


def test_the_comparison_of_two_policies_gets_sharper(fitted: tuple[MarketSpec, VisitValue]) -> None:
    spec, value = fitted
    gains: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(9):
        where = CampaignSetting(spec.predictor, 0, torch.arange(48).repeat(4), seed)
        for adjusted, found in gains.items():
            given = value if adjusted else None
            played = play(RandomPolicy(), spec, where, 20.0, Path((WeekPrices(0.3),) * 5, []), given)
            found.append(float((played.margin - control_margin(spec, where, given)).mean()))
    difference = np.array(gains[True]) - np.array(gains[False])
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / 3
    assert np.std(gains[True]) < 0.8 * np.std(gains[False])


# Logs ----------------------------------------------------------------------------------------------


def test_logged_propensities_are_the_policys_probabilities() -> None:
    behaviour = ExploringPolicy(MyopicUpliftPolicy(market().layout), 0.3)
    weeks = log_campaign(behaviour, market(), setting(), PATH)
    assert [week.prices for week in weeks] == PATH
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
            week.observation[:, names.index("log_dual_price")], np.log(PATH[number].spend), rtol=1e-5
        )
        np.testing.assert_allclose(week.observation[:, names.index("pressure")], PATH[number].pressure)
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
            assert a == b if f.name == "prices" else np.array_equal(a[odd], b[odd])
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
        played = play(policy, market(), setting(seed), 1e6, EVEN)
        path = [
            WeekPrices(price, pressure)
            for price, pressure in zip(played.dual_price, played.pressure, strict=True)
        ]
        margin, _ = value_at_prices(policy, market(), setting(seed), path)
        np.testing.assert_allclose(played.margin, margin)
