"""How much of what is attainable policies earn: campaigns on the market that can be solved exactly.

The unit is the *incremental* Lagrangian bound: what the best conceivable policy earns over sending nothing
under the same budget. It is a bound for infinitely many users; under a hard cap a finite campaign stays
below it even when it decides perfectly. All policies are paced alike and share the luck of each campaign.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from scipy.stats import t

from agents.tabular import PacedRules, play_campaign, price_ladder
from agents.tabular_ppo import TabularPPOConfig, network_rules, train_tabular_ppo
from envs.tabular_market import REFERENCE_BUDGET_PER_USER, TabularMarket
from envs.tabular_solution import LagrangianBound, lagrangian_bound, myopic_rule, solve
from experiments.benchmarks import Row, describe_machine
from experiments.threads import one_thread

N_USERS = 1_000
N_CAMPAIGNS = 16
TRAINING_SEEDS = range(5)
BUDGETS_PER_USER = (1.5, REFERENCE_BUDGET_PER_USER, 6.0)
"""Currency; the bars are for the middle one."""

INDEX_BAR = 0.99
MEAN_BAR = 0.97
WORST_BAR = 0.95
MINUTES_BAR = 3.0

EXACT_PRICES = (0.25, 4.0)
"""Prices of the rules that need no training; at the highest nothing is sent by either."""
N_PRICES = 400
"""Fine enough that hardly two changes of a rule fall between neighbours."""


def run() -> list[Row]:
    """Train one policy per seed, and play every policy at every budget."""
    with one_thread():
        return _measure(TabularMarket.demo(), TabularPPOConfig())


def _measure(market: TabularMarket, config: TabularPPOConfig) -> list[Row]:
    hardware = describe_machine()
    exact = price_ladder(*EXACT_PRICES, N_PRICES)
    trained = price_ladder(config.low_price, config.high_price, N_PRICES)
    index = PacedRules(market, solve(market, exact).rule)
    myopic = PacedRules(market, myopic_rule(market, exact))
    networks, minutes = [], []
    for seed in TRAINING_SEEDS:
        start = time.process_time()
        policy = train_tabular_ppo(market, config, seed=seed)
        minutes.append((time.process_time() - start) / 60.0)
        networks.append(PacedRules(market, network_rules(market, policy, trained)))
    rows = []
    for budget in BUDGETS_PER_USER:
        bound = lagrangian_bound(market, budget)
        by_seed = [attained_shares(network, bound) for network in networks]
        worst = min(by_seed, key=fmean)
        # Campaigns by chance and seeds by chance: one mean per seed is what varies independently.
        policies = (
            ("λ-indexed dynamic programme", attained_shares(index, bound), INDEX_BAR),
            ("myopic uplift", attained_shares(myopic, bound), None),
            (f"PPO, mean of {len(networks)} seeds", [fmean(shares) for shares in by_seed], MEAN_BAR),
            (f"PPO, worst of {len(networks)} seeds", worst, WORST_BAR),
        )
        for name, shares, bar in policies:
            row = Row.compare(
                f"{name}; budget {budget:g} a user, {N_USERS:,} users, {N_CAMPAIGNS} campaigns",
                fmean(shares),
                "of the incremental bound",
                bar=bar if budget == REFERENCE_BUDGET_PER_USER else None,
                hardware=hardware,
            )
            low, high = _interval(shares)
            rows.append(replace(row, ci_low=low, ci_high=high))
    rows.append(
        Row.compare(
            f"training of a PPO policy on one thread, the slowest of {len(minutes)}",
            max(minutes),
            "CPU minutes",
            bar=MINUTES_BAR,
            higher_is_better=False,
            hardware=hardware,
        )
    )
    return rows


def attained_shares(paced: PacedRules, bound: LagrangianBound) -> list[float]:
    """Return the shares of the incremental bound that campaigns attain, one per campaign."""
    return [
        bound.share_of_bound(play_campaign(paced, bound, n_users=N_USERS, seed=seed).expected_margin)
        for seed in range(N_CAMPAIGNS)
    ]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean."""
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
