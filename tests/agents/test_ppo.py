from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from agents.offer_network import OfferNetwork, OfferNetworkShape
from agents.pacing import PriceRange
from agents.ppo import OfferActorCritic, PPOConfig, RolloutReport, train_ppo
from agents.training_market import TrainingMarket
from agents.visit_value import VisitValue
from encoders.checkpoint import load_checkpoint
from envs.campaign import MarketSpec
from envs.demo_market import demo_market
from envs.simulator import Simulator

N, WEEKS, ROLLOUTS = 32, 4, 5
CONFIG = PPOConfig(
    total_steps=N * WEEKS * ROLLOUTS - 3,  # rounded up to whole rollouts
    learning_rate=1e-2,
    n_epochs=2,
    batch_size=64,
    gae_lambda=0.95,
    discount_factor=1.0,
    entropy=0.01,
    final_entropy=0.001,
    clip_range=0.2,
    hidden=8,
)


class Interrupted(Exception):
    """Stands for Ctrl-C."""


@cache
def market() -> MarketSpec:
    return demo_market(n_users=40, horizon_weeks=WEEKS)


def worlds() -> list[Simulator]:
    return [market().predictor, replace(market().predictor, margin_rate=0.35)]


@cache
def visit_value() -> VisitValue:
    """Untrained: any value of a visit will do where only the arithmetic is tested."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return VisitValue(4, WEEKS, 0.28).eval().requires_grad_(False)


def train(
    checkpoint: Path,
    *,
    seed: int = 0,
    config: PPOConfig = CONFIG,
    n_users: int = N,
    on_rollout: Callable[[RolloutReport], None] = lambda _: None,
) -> tuple[OfferNetwork, list[RolloutReport]]:
    env = TrainingMarket(
        market(),
        worlds(),
        [0],
        users=torch.arange(40),
        n_users=n_users,
        prices=PriceRange(0.02, 2.0),
        visit_value=visit_value(),
        reward_scale=0.05,
        seed=7,
    )
    return train_ppo(env, config, seed=seed, device="cpu", checkpoint=checkpoint, on_rollout=on_rollout)


def same(one: OfferNetwork, two: OfferNetwork) -> bool:
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[OfferNetwork, list[RolloutReport]]:
    return train(tmp_path_factory.mktemp("whole") / "ppo.pt")


@pytest.mark.parametrize("stop_after", [1, 3, ROLLOUTS])
def test_a_resumed_training_ends_at_the_same_weights(
    whole: tuple[OfferNetwork, list[RolloutReport]], tmp_path: Path, stop_after: int
) -> None:
    seen: list[RolloutReport] = []

    def interrupt(report: RolloutReport) -> None:
        seen.append(report)
        if len(seen) == stop_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(tmp_path / "ppo.pt", on_rollout=interrupt)
    # Resumed from the last whole rollout, not from the start.
    stored = load_checkpoint(tmp_path / "ppo.pt")
    assert (0 if stored is None else len(stored["reports"])) == stop_after - 1
    # What chance does between the two runs must not matter.
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the very stream that SB3 uses
    again: list[RolloutReport] = []
    network, reports = train(tmp_path / "ppo.pt", on_rollout=again.append)
    assert reports == whole[1] == again
    assert same(network, whole[0])


def test_a_resumed_training_on_two_threads_ends_at_the_same_weights(tmp_path: Path) -> None:
    """With batches that torch does split between them."""
    config = replace(CONFIG, total_steps=2 * 512 * WEEKS, batch_size=1024, hidden=64)

    def interrupt(report: RolloutReport) -> None:
        if report.steps > 512 * WEEKS:
            raise Interrupted

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, reports = train(tmp_path / "whole.pt", config=config, n_users=512)
        with pytest.raises(Interrupted):
            train(tmp_path / "ppo.pt", config=config, n_users=512, on_rollout=interrupt)
        two, again = train(tmp_path / "ppo.pt", config=config, n_users=512)
    finally:
        torch.set_num_threads(before)
    assert len(reports) == 2
    assert again == reports
    assert same(one, two)


def test_twice_interrupted_is_the_same_too(
    whole: tuple[OfferNetwork, list[RolloutReport]], tmp_path: Path
) -> None:
    for stop_after in (2, 4):
        count = 0

        def interrupt(_: RolloutReport, stop: int = stop_after) -> None:
            nonlocal count
            count += 1
            if count == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            train(tmp_path / "ppo.pt", on_rollout=interrupt)
    network, reports = train(tmp_path / "ppo.pt")
    assert reports == whole[1]
    assert same(network, whole[0])


def test_a_finished_training_is_only_read(
    whole: tuple[OfferNetwork, list[RolloutReport]], tmp_path: Path
) -> None:
    train(tmp_path / "ppo.pt")
    content = (tmp_path / "ppo.pt").read_bytes()
    network, reports = train(tmp_path / "ppo.pt")
    assert (tmp_path / "ppo.pt").read_bytes() == content
    assert reports == whole[1]
    assert same(network, whole[0])


def test_the_seed_decides(whole: tuple[OfferNetwork, list[RolloutReport]], tmp_path: Path) -> None:
    one, reports = train(tmp_path / "one.pt")
    assert reports == whole[1]
    assert same(one, whole[0])
    other, _ = train(tmp_path / "other.pt", seed=1)
    assert not same(other, whole[0])


def test_reports_count_whole_rollouts(
    whole: tuple[OfferNetwork, list[RolloutReport]], tmp_path: Path
) -> None:
    _, reports = whole
    assert [report.steps for report in reports] == [N * WEEKS * (k + 1) for k in range(ROLLOUTS)]
    for report in reports:
        assert all(np.isfinite(list(vars(report).values())))
        assert report.cost > 0
        assert 0 < report.entropy < np.log(8)
        # Incremental margin is what the reward is before the price of money.
        assert report.reward * 0.05 < report.incremental_margin


def test_the_checkpoint_holds_everything_and_no_code(tmp_path: Path) -> None:
    network, _ = train(tmp_path / "ppo.pt")
    stored = load_checkpoint(tmp_path / "ppo.pt")
    assert stored is not None
    inner = {
        name.removeprefix("mlp_extractor."): value
        for name, value in stored["policy"].items()
        if name.startswith("mlp_extractor.")
    }
    assert set(inner) == set(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(inner[name], value)


def test_training_moves_the_network_and_leaves_its_scaling_alone(tmp_path: Path) -> None:
    network, _ = train(tmp_path / "ppo.pt")
    assert float(network.actor_score.weight.detach().abs().max()) > 1e-4
    fresh = OfferNetwork(network.shape)
    env = TrainingMarket(
        market(),
        worlds(),
        [0],
        users=torch.arange(40),
        n_users=N,
        prices=PriceRange(0.02, 2.0),
        visit_value=visit_value(),
        reward_scale=0.05,
        seed=7,
    )
    fresh.set_scale(torch.from_numpy(env.reset()), market().offers)
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, dict(network.named_buffers())[name])


def test_actions_are_evaluated_as_the_library_does_it() -> None:
    """Also with users who had no choice, and with none who had one."""
    torch.manual_seed(3)
    shape = OfferNetworkShape(3, 5, 8)
    width = shape.layout.width
    policy = OfferActorCritic(
        gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32),
        gymnasium.spaces.Discrete(5),
        lambda _: 1e-3,
        shape=shape,
    )
    network = policy.mlp_extractor
    assert isinstance(network, OfferNetwork)
    with torch.no_grad():
        network.actor_score.weight.normal_()
    observation = torch.randn(12, width)
    mask = torch.rand(12, 5) < 0.5
    mask[:, 0] = True
    mask[:4, 1:] = False
    mask[4:, 1] = True
    actions = torch.multinomial(mask.float(), 1)[:, 0]
    for rows in (slice(0, 12), slice(0, 4), slice(4, 12)):
        gradients = []
        found = []
        for evaluate, seen in (
            (policy.evaluate_actions, network.prepare(observation)),
            (super(OfferActorCritic, policy).evaluate_actions, observation),
        ):
            policy.zero_grad(set_to_none=False)
            values, log_prob, entropy = evaluate(seen[rows], actions[rows], mask[rows])
            assert entropy is not None
            (values.sum() + 2.0 * log_prob.sum() + 3.0 * entropy.sum()).backward()
            found.append((values, log_prob, entropy))
            gradients.append([None if p.grad is None else p.grad.clone() for p in policy.parameters()])
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(*gradients, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    everything = policy.evaluate_actions(network.prepare(observation), actions)
    torch.testing.assert_close(
        everything[1], super(OfferActorCritic, policy).evaluate_actions(observation, actions)[1]
    )
