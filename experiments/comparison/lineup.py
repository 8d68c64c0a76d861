"""Who is compared: PPO, what shops do without it, and what else one might train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from agents.bandits import LinearThompsonSampling, LinUCB
from agents.experience import Experience, collect_experience
from agents.policy import MyopicUpliftPolicy, NoOfferPolicy, Policy, RandomPolicy
from agents.traditional import traditional_strategies
from agents.uplift_learners import Learner, fit_uplift
from envs.assumptions import AssumedResponse
from envs.campaign import MarketSpec
from experiments.artifacts import MarketParts
from experiments.seeding import seed_generator, seed_integer
from experiments.trained import Trained

EXPERIENCE_ROWS = 200_000
EXPERIENCE_USERS = 512
"""Users of one campaign of experience; with few, more worlds are met in as many rows."""
UPLIFT_WEEKS = 2
"""A coupon sent late in its week is mostly used in the next."""


EVENLY_PACED = f"{MyopicUpliftPolicy.name}, even pacing"
"""What industry runs."""


class Pacing(StrEnum):
    """How an entrant's spend is kept to its budget.

    FORECAST plays the campaign through beforehand and follows that plan (:mod:`agents.forecast`);
    EVEN divides the money left by the weeks left (:class:`agents.pacing.EvenPacing`).
    """

    FORECAST = "forecast"
    EVEN = "even"


@dataclass(frozen=True)
class Entrant:
    """One who is compared.

    Attributes:
        name: unique, for tables.
        policy: what it sends.
        pacing: at what prices.
    """

    name: str
    policy: Policy
    pacing: Pacing = Pacing.FORECAST


def core_lineup(market: MarketSpec, trained: Trained) -> list[Entrant]:
    """Return PPO and the baselines that need no training.

    The myopic policy plays at both pacings, so that what pacing brings and what the policy brings can be told
    apart; with even pacing it is what industry runs.
    """
    myopic = MyopicUpliftPolicy(market.layout)
    nothing, learned = NoOfferPolicy(), trained.policy
    return [
        # Whoever sends nothing has nothing to plan.
        Entrant(nothing.name, nothing, Pacing.EVEN),
        Entrant(RandomPolicy.name, RandomPolicy()),
        Entrant(myopic.name, myopic),
        Entrant(EVENLY_PACED, myopic, Pacing.EVEN),
        Entrant(learned.name, learned),
    ]


BASELINE_STEPS = 7
"""Steps that :func:`all_lineup` reports: two collections of experience and five fits."""


def all_lineup(
    parts: MarketParts,
    starts: list[int],
    trained: Trained,
    seed: int,
    *,
    threads: int = 1,
    on_step: Callable[[], None] = lambda: None,
) -> list[Entrant]:
    """Return the core lineup, the traditional strategies and the learners of :mod:`agents`, fitted here.

    The learners meet the training worlds, weeks and users that PPO met. All follows from the seed.

    Args:
        parts: the market; its judge worlds are not touched.
        starts: positions of the start weeks that served PPO's training.
        trained: PPO.
        seed: the run's.
        threads: of LightGBM; the trees do not depend on it.
        on_step: called after each of BASELINE_STEPS steps.

    Raises:
        ValueError: the catalogue has too many offers to learn their effects from EXPERIENCE_ROWS rows.
    """
    policies: list[Policy] = [*traditional_strategies(parts.market)]
    experience = _experience(parts, starts, UPLIFT_WEEKS, seed)
    on_step()
    for learner in Learner:
        fit_seed = seed_integer(seed, f"comparison/{learner.value}")
        policies.append(fit_uplift(experience, learner, fit_seed, threads=threads))
        on_step()
    experience = _experience(parts, starts, 1, seed)
    on_step()
    policies.append(LinUCB.fit(experience))
    on_step()
    policies.append(LinearThompsonSampling.fit(experience, seed=seed_integer(seed, "comparison/LinTS")))
    on_step()
    core = core_lineup(parts.market, trained)
    # PPO stays last, as readers of tables expect.
    return [*core[:-1], *(Entrant(policy.name, policy) for policy in policies), core[-1]]


def _experience(parts: MarketParts, starts: list[int], window_weeks: int, seed: int) -> Experience:
    """Randomised experience with what is assumed drawn anew, as for PPO."""
    market = parts.market
    campaigns = -(-EXPERIENCE_ROWS // (EXPERIENCE_USERS * market.horizon_weeks))
    # Each world meets each start; so many draws of what is assumed leave no campaign over.
    draws = max(len(parts.train_worlds), -(-campaigns // len(starts)))
    rng = seed_generator(seed, "comparison/assumptions")
    worlds = []
    for number in range(draws):
        world = parts.train_worlds[number % len(parts.train_worlds)]
        name = f"{world.name}, draw {number // len(parts.train_worlds) + 1}"
        worlds.append(replace(world, assumed=AssumedResponse.draw(rng), name=name))
    order = seed_generator(seed, "comparison/starts").permutation(len(starts))
    return collect_experience(
        market,
        worlds,
        [starts[int(k)] for k in np.asarray(order)],
        users=parts.train_users,
        n_users=EXPERIENCE_USERS,
        n_rows=EXPERIENCE_ROWS,
        window_weeks=window_weeks,
        seed=seed_integer(seed, "comparison/experience"),
    )
