"""The campaigns that every entrant plays: judge worlds, judge users, weeks after the training weeks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agents.rollout import CampaignSetting
from envs.assumptions import AssumedResponse
from experiments.artifacts import MarketParts, late_starts, load_market
from experiments.config import MarketConfig
from experiments.seeding import seed_generator, seed_integer
from experiments.trained import Trained


@dataclass(frozen=True)
class Arena:
    """What is played, and where it is read from: all that a process needs to play along.

    Attributes:
        prepared: output folder of ``prepare``.
        response: output folder of ``finetune``.
        policy: output folder of ``train``.
        market: the settings of the market.
        device: ``cpu`` or ``cuda``.
        seed: the run's.
        campaigns: number of campaigns.
    """

    prepared: Path
    response: Path
    policy: Path
    market: MarketConfig
    device: str
    seed: int
    campaigns: int

    def open(self) -> OpenArena:
        """Load the market and lay out the campaigns."""
        parts = load_market(self.prepared, self.response, self.market, self.device)
        trained = Trained.load(self.policy, self.device)
        return OpenArena(parts, trained, judge_settings(parts, self.market, self.campaigns, self.seed))


@dataclass(frozen=True)
class OpenArena:
    """An arena that has been loaded.

    Attributes:
        parts: the market and its worlds.
        trained: PPO, its prices and the value of visits.
        settings: the campaigns.
    """

    parts: MarketParts
    trained: Trained
    settings: tuple[CampaignSetting, ...]


def judge_settings(
    parts: MarketParts, market: MarketConfig, campaigns: int, seed: int
) -> tuple[CampaignSetting, ...]:
    """Return the campaigns: judge worlds and late start weeks in turn, the same users, luck of their own.

    No two campaigns share a world. The heads of the J judges return every J campaigns, but what is assumed is
    drawn anew then, and so is what users are like and the logs do not tell. The first campaigns are the same
    however many there are.

    Args:
        parts: the market and its worlds.
        market: gives how many users take part.
        campaigns: number of campaigns.
        seed: the run's.
    """
    late, judges = late_starts(parts), parts.judge_worlds
    users = parts.judge_users
    if market.n_users:
        chosen = seed_generator(seed, "comparison/users").permutation(len(users))[: market.n_users]
        users = users[torch.from_numpy(np.sort(chosen)).to(users.device)]
    users = users.to(parts.market.population.embeddings.device)
    settings = []
    for k in range(campaigns):
        world, again = judges[k % len(judges)], k // len(judges)
        if again:
            drawn = AssumedResponse.draw(seed_generator(seed, f"comparison/assumptions of campaign {k}"))
            # The name seeds what users are like in a world.
            world = replace(world, assumed=drawn, name=f"{world.name}, draw {again + 1}")
        luck = seed_integer(seed, f"comparison/campaign {k}")
        settings.append(CampaignSetting(world, late[k % len(late)], users, luck))
    return tuple(settings)


def without_lifts(setting: CampaignSetting) -> CampaignSetting:
    """Return the campaign in a world where messages and coupons bring no visits.

    Who is sent nothing notices no difference.
    """
    assumed = replace(setting.world.assumed, message_lift=0.0, coupon_lift=0.0)
    return replace(setting, world=replace(setting.world, assumed=assumed))
