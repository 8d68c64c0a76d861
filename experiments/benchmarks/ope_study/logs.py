"""Logs of the study's market, with the probabilities of the policy that acted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from envs.campaign import UNLIMITED_BUDGET
from envs.tabular_campaign import TabularCampaign
from experiments.benchmarks.ope_study.market import StudyMarket
from experiments.ope.logged_dataset import LoggedDataset

EXPLORATION_STREAM = 1_000_000_007
"""Added to a log's seed for the draws of offers, which must not shift the market's luck."""


@dataclass(frozen=True, eq=False)
class StudyLog:
    """One campaign as logged, and where each decision was taken.

    Attributes:
        dataset: N = n · T rows; ``reward`` is margin before cost.
        week: [N] int64 index of the week, from 0.
        segment: [N] int64.
        state: [N] int64.
    """

    dataset: LoggedDataset
    week: torch.Tensor
    segment: torch.Tensor
    state: torch.Tensor


def write_log(study: StudyMarket, behaviour: torch.Tensor, *, n_users: int, seed: int) -> StudyLog:
    """Play a campaign without a cap by a behaviour rule [T, Z, S, K], and log every decision.

    Args:
        study: the market.
        behaviour: rule with full support.
        n_users: n; their types and first states are drawn.
        seed: of all chance.
    """
    horizon = study.world.horizon_weeks
    market_luck = torch.Generator().manual_seed(seed)
    chooser = torch.Generator().manual_seed(seed + EXPLORATION_STREAM)
    campaign = TabularCampaign(study.world, n_users=n_users, budget=UNLIMITED_BUDGET, generator=market_luck)
    segment = study.segment[campaign.user_type]
    states, masks, actions, margins, costs = [campaign.state], [], [], [], []
    for week in range(horizon):
        masks.append(campaign.mask)
        chosen = torch.multinomial(
            behaviour[week, segment, campaign.state], 1, replacement=True, generator=chooser
        )[:, 0]
        outcome = campaign.step(chosen)
        actions.append(chosen)
        margins.append(outcome.margin)
        costs.append(outcome.cost)
        states.append(campaign.state)

    def rows(weeks: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(weeks, dim=1).flatten(end_dim=1)

    week_of = torch.arange(horizon).repeat(n_users)
    segment_of, state_of = segment.repeat_interleave(horizon), rows(states[:-1])
    taken = rows(actions)
    probabilities = behaviour[week_of, segment_of, state_of]
    dataset = LoggedDataset(
        observation=study.observation[segment_of, state_of].numpy(),
        action=taken.numpy(),
        mask=rows(masks).numpy(),
        propensity=probabilities.gather(1, taken[:, None])[:, 0].numpy(),
        reward=rows(margins).numpy(),
        cost=rows(costs).numpy(),
        next_observation=study.observation[segment_of, rows(states[1:])].numpy(),
        terminated=(week_of == horizon - 1).numpy(),
        truncated=np.zeros(len(week_of), dtype=np.bool_),
        user=np.repeat(np.arange(n_users, dtype=np.int64), horizon),
        campaign=np.zeros(len(week_of), dtype=np.int64),
        week=week_of.numpy(),
        dual_price=np.ones(len(week_of)),
        observation_names=study.observation_names,
        propensity_source="logged",
        behaviour_probabilities=probabilities.numpy(),
    )
    return StudyLog(dataset, week_of, segment_of, state_of)
