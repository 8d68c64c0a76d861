"""PPO with masks, conditioned on the dual price; resumes exactly where it was interrupted.

Stable-Baselines3 does the learning (MaskablePPO of sb3-contrib); this module gives it the network, the
market and a checkpoint per rollout. Every rollout is one campaign, seeded by its number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from agents.offer_network import OfferNetwork, OfferNetworkShape
from agents.prepared_buffer import PreparedRolloutBuffer
from agents.training_market import TrainingMarket
from encoders.checkpoint import load_checkpoint, save_checkpoint

FINAL_RATE = 0.02
"""Share of the peak learning rate that the last rollouts keep."""


@dataclass(frozen=True)
class PPOConfig:
    """How the policy is trained; names as in Schulman et al. 2017.

    Attributes:
        total_steps: user-weeks of experience, rounded up to whole rollouts.
        learning_rate: peak of Adam's, falling linearly to FINAL_RATE of it.
        n_epochs: passes over each rollout.
        batch_size: user-weeks in a gradient step.
        gae_lambda: λ of generalised advantage estimation.
        discount_factor: of rewards, per week.
        entropy: weight of the entropy bonus at the start.
        final_entropy: weight that it falls to, linearly. Above zero, or offers that pay only at some prices
            are given up before their prices were seen often enough.
        clip_range: of the probability ratio.
        hidden: width of the network.
    """

    total_steps: int
    learning_rate: float
    n_epochs: int
    batch_size: int
    gae_lambda: float
    discount_factor: float
    entropy: float
    final_entropy: float
    clip_range: float
    hidden: int


@dataclass(frozen=True)
class RolloutReport:
    """What one rollout brought; money in the log's currency per user and campaign.

    Attributes:
        steps: user-weeks so far.
        reward: scaled training reward.
        incremental_margin: expected margin over the control arm.
        cost: expected charge to the budget.
        entropy: of the policy, nats.
    """

    steps: int
    reward: float
    incremental_margin: float
    cost: float
    entropy: float


class OfferActorCritic(MaskableActorCriticPolicy):
    """Stable-Baselines3's policy around an :class:`OfferNetwork`, whose scores are the logits."""

    def __init__(self, *args: Any, shape: OfferNetworkShape, **kwargs: Any) -> None:
        self.shape = shape
        super().__init__(*args, **{**kwargs, "ortho_init": False})

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OfferNetwork(self.shape)  # type: ignore[assignment]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        # The network already scores each offer; a linear layer over offers would tie it to their order.
        self.action_net = nn.Identity()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5, fused=True)

    def evaluate_actions(
        self, obs: torch.Tensor, actions: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return values [n, 1], log probabilities [n] and entropies [n] of actions taken.

        Who could be sent nothing chose with probability 1 whatever the scores are, and teaches the actor
        nothing: his offers are not scored.

        Args:
            obs: [n, p] prepared rows (:meth:`OfferNetwork.prepare`), as the buffer's samples hold them.
            actions: [n] int64 offers.
            action_masks: [n, K] as numbers or bool, what could be sent; None if everything.
        """
        network: OfferNetwork = self.mlp_extractor  # type: ignore[assignment]
        values = self.value_net(network.appraise(obs))
        if action_masks is None:
            mask = torch.ones(len(obs), network.shape.n_offers, dtype=torch.bool, device=obs.device)
        else:
            mask = action_masks.bool().view(len(obs), -1)
        choosing = (mask.sum(dim=1) > 1).nonzero()[:, 0]
        allowed = mask[choosing]
        scores = torch.where(allowed, network.score(obs[choosing]), -torch.inf)
        log_share = torch.log_softmax(scores, dim=1)
        log_chosen = log_share.gather(1, actions[choosing, None])[:, 0]
        finite = torch.where(allowed, log_share, 0.0)
        nobody = obs.new_zeros(len(obs))
        return (
            values,
            nobody.index_put((choosing,), log_chosen),
            nobody.index_put((choosing,), -(torch.exp(finite) * allowed * finite).sum(dim=1)),
        )


def train_ppo(
    env: TrainingMarket,
    config: PPOConfig,
    *,
    seed: int,
    device: str,
    checkpoint: Path,
    tensorboard: Path | None = None,
    on_rollout: Callable[[RolloutReport], None] = lambda _: None,
) -> tuple[OfferNetwork, list[RolloutReport]]:
    """Train a policy and return its network and a report per rollout.

    Args:
        env: training market; one rollout is one of its episodes.
        config: how to train.
        seed: of network, sampling and minibatches.
        device: where the network runs.
        checkpoint: file to resume from and to write at the start of each rollout.
        tensorboard: folder for TensorBoard logs, or None.
        on_rollout: called with each report; also for the rollouts that a resumed run skips.
    """
    horizon = env.market.horizon_weeks
    shape = OfferNetworkShape(env.market.layout.embedding, len(env.market.catalogue), config.hidden)
    steps_per_rollout = horizon * env.num_envs
    n_rollouts = -(-config.total_steps // steps_per_rollout)
    model = MaskablePPO(
        OfferActorCritic,
        env,
        # SB3 counts a rollout's steps before it learns from them: without the floor the last one is lost.
        learning_rate=lambda remaining: config.learning_rate * max(remaining, FINAL_RATE),
        n_steps=horizon,
        batch_size=min(config.batch_size, steps_per_rollout),
        n_epochs=config.n_epochs,
        gamma=config.discount_factor,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy,
        policy_kwargs={"shape": shape},
        tensorboard_log=None if tensorboard is None else str(tensorboard),
        seed=seed,
        device=device,
    )
    network: OfferNetwork = model.policy.mlp_extractor  # type: ignore[assignment]
    model.rollout_buffer = PreparedRolloutBuffer(
        network.prepare,
        buffer_size=horizon,
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=model.device,
        gae_lambda=config.gae_lambda,
        gamma=config.discount_factor,
        n_envs=env.num_envs,
    )
    sample = torch.from_numpy(env.reset()).to(device)
    network.set_scale(sample, env.market.offers)
    bookkeeper = _Bookkeeper(env, config, seed, checkpoint, n_rollouts, on_rollout)
    stored = load_checkpoint(checkpoint)
    if stored is not None:
        model.policy.load_state_dict(stored["policy"])
        model.policy.optimizer.load_state_dict(stored["optimizer"])
        bookkeeper.reports = [RolloutReport(**report) for report in stored["reports"]]
        env.episode = len(bookkeeper.reports)
        model.num_timesteps = env.episode * steps_per_rollout
        for report in bookkeeper.reports:
            on_rollout(report)
    remaining = n_rollouts * steps_per_rollout - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callback=bookkeeper, reset_num_timesteps=False, tb_log_name="ppo")
        bookkeeper.save()
    return network, bookkeeper.reports


class _Bookkeeper(BaseCallback):
    """Seeds, reports and saves at rollout boundaries."""

    def __init__(
        self,
        env: TrainingMarket,
        config: PPOConfig,
        seed: int,
        checkpoint: Path,
        n_rollouts: int,
        on_rollout: Callable[[RolloutReport], None],
    ) -> None:
        super().__init__()
        self.env = env
        self.config = config
        self.seed = seed
        self.checkpoint = checkpoint
        self.n_rollouts = n_rollouts
        self.notify = on_rollout
        self.reports: list[RolloutReport] = []

    def _on_rollout_start(self) -> None:
        if self.reports:
            self.save()
        done = len(self.reports)
        rng = np.random.default_rng([self.seed, done])
        torch.manual_seed(int(rng.integers(2**62)))
        np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002 - SB3 shuffles minibatches with it
        self.env.take_totals()
        first, last = self.config.entropy, self.config.final_entropy
        self.model.ent_coef = first + (last - first) * done / self.n_rollouts  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        totals = self.env.take_totals()
        campaigns = totals["user_weeks"] / self.env.market.horizon_weeks
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        report = RolloutReport(
            steps=self.num_timesteps,
            reward=totals["reward"] / campaigns,
            incremental_margin=totals["incremental_margin"] / campaigns,
            cost=totals["cost"] / campaigns,
            entropy=float(-buffer.log_probs.mean()),
        )
        self.reports.append(report)
        for name in ("reward", "incremental_margin", "cost", "entropy"):
            self.logger.record(f"campaign/{name}", getattr(report, name))
        self.notify(report)

    def save(self) -> None:
        """Write weights, optimiser and reports; all else follows from the seed and their number."""
        policy = self.model.policy
        save_checkpoint(
            self.checkpoint,
            {
                "policy": policy.state_dict(),
                "optimizer": policy.optimizer.state_dict(),
                "reports": [vars(report) for report in self.reports],
            },
        )
