"""Rules of a tabular market under a hard budget: pacing by re-solving, and campaigns played with it.

A family of decision rules, one for each of many dual prices λ, serves every budget: each week the price is
chosen anew so that the exact forecast of the spend still to come meets the money left. The same pacing
serves the λ-indexed rules of dynamic programming (:func:`envs.tabular_solution.solve`), myopic rules
(:func:`envs.tabular_solution.myopic_rule`) and those of a trained network
(:func:`agents.tabular_ppo.network_rules`), so that a comparison is about the rules alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from agents.policy import sample
from envs.money import to_currency
from envs.tabular_campaign import TabularCampaign
from envs.tabular_market import TabularMarket
from envs.tabular_solution import LagrangianBound, no_offer_rule, solve, to_go

ROUNDING = 1e-9
"""Currency; spends that are closer to each other do not differ."""


def price_ladder(low: float, high: float, n_prices: int) -> torch.Tensor:
    """Return rising dual prices at which rules are built: evenly spaced in log λ.

    Args:
        low: lowest λ > 0.
        high: highest λ.
        n_prices: how many, at least 2.

    Returns:
        [n_prices] float64.

    Raises:
        ValueError: the prices are not positive, finite and increasing, or fewer than two.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"prices must be positive, finite and increasing, got {low} to {high}")
    if n_prices < 2:
        raise ValueError(f"n_prices must be >= 2, got {n_prices}")
    return torch.linspace(math.log(low), math.log(high), n_prices, dtype=torch.float64).exp()


class PacedRules:
    """Decision rules at rising prices, and the pacing that chooses among them week by week.

    Each week the rules of every price are forecast from the states that users are in now, and users are
    split by chance between the two neighbouring prices whose spend brackets the money left: states are so
    few that a price alone moves many users at once. What the rules would reserve this week has to fit as
    well, so that what the last week of offers reserves and does not spend is left over: under two per cent
    of the budget in a year of the demo market. Re-solving keeps the loss against the Lagrangian bound small
    as users grow in number (Jasin & Kumar 2012, Mathematics of Operations Research 37(2); Brown & Smith
    2020, Operations Research 68(3)).

    Args:
        market: the model that forecasts.
        rules: [L, T, G, S, K] float64 probability of each action, at L rising prices. Sending nothing is
            added as the rule of a price that nobody pays, so that some rule always fits.

    Raises:
        ValueError: the shape does not fit, probabilities do not sum to one, or a masked action has some.
    """

    def __init__(self, market: TabularMarket, rules: torch.Tensor) -> None:
        if rules.ndim != 5:
            raise ValueError(f"rules must have shape [L, T, G, S, K], got {list(rules.shape)}")
        _, spend = to_go(market, rules)
        reserve = torch.einsum("ltgsk,gks->ltgs", rules, to_currency(market.worst_case_cost))
        self.market = market
        self.rules = torch.cat([rules, no_offer_rule(market)[None]])
        needs = torch.stack([spend[:, :-1], reserve])
        self._needs = torch.cat([needs, torch.zeros_like(needs[:, :1])], dim=1)

    def decide(self, campaign: TabularCampaign, generator: torch.Generator) -> torch.Tensor:
        """Return what to ask for in the coming week.

        Args:
            campaign: before the week; a campaign of this market.
            generator: two uniforms are drawn for each user, whatever is decided.

        Returns:
            [n] int64 actions within the campaign's mask; 0 for users whose action cannot be paid any more.

        Raises:
            ValueError: the campaign is over.
        """
        if campaign.done:
            raise ValueError("the campaign is over")
        uniform = torch.rand(2, campaign.n_users, dtype=torch.float64, generator=generator)
        left = to_currency(campaign.ledger.available)
        needs = (self._needs[:, :, campaign.week] * campaign.counts).sum(dim=(-1, -2))
        # The first rule that fits; the one before it, if there is one, does not.
        thrifty = int((needs <= left + ROUNDING).all(dim=0).int().argmax())
        generous = max(thrifty - 1, 0)
        gap = (needs[:, generous] - needs[:, thrifty]).clamp(min=ROUNDING)
        share = ((left - needs[:, thrifty]) / gap).min()
        price = torch.where(uniform[0] < share, generous, thrifty)
        decided = sample(self.rules[price, campaign.week, campaign.user_type, campaign.state], uniform[1])
        affordable = campaign.mask.gather(1, decided[:, None])[:, 0]
        return torch.where(affordable, decided, 0)


@dataclass(frozen=True)
class PlayedCampaign:
    """What a campaign under a hard budget brought, currency per user.

    Attributes:
        margin: realised, before coupon cost.
        spend: charged to the budget.
        expected_margin: an unbiased estimate of the policy's expected margin with far less noise than
            ``margin``, by the performance difference lemma at the bound's price
            (:attr:`envs.tabular_solution.DualSolution.advantages`).
    """

    margin: float
    spend: float
    expected_margin: float


def play_campaign(paced: PacedRules, bound: LagrangianBound, *, n_users: int, seed: int) -> PlayedCampaign:
    """Play one campaign under a hard budget of ``bound.budget_per_user`` for each user.

    Args:
        paced: who decides.
        bound: of the same market at the budget to play.
        n_users: users who share the budget.
        seed: of the campaign's luck, which two policies share at equal seeds (common random numbers), and
            of the policy's own draws.

    Raises:
        ValueError: there is no user.
    """
    market = paced.market
    advantages = solve(market, bound.dual_price).advantages
    luck, of_policy = (
        torch.Generator().manual_seed(int(number))
        for number in np.random.SeedSequence(seed).generate_state(2, np.uint64) >> np.uint64(1)
    )
    campaign = TabularCampaign(
        market, n_users=n_users, budget=bound.budget_per_user * n_users, generator=luck
    )
    margin = lost = 0.0
    while not campaign.done:
        week, user_type, state = campaign.week, campaign.user_type, campaign.state
        outcome = campaign.step(paced.decide(campaign, of_policy))
        margin += float(outcome.margin.sum())
        lost += float(advantages[week, user_type, state, outcome.sent].sum())
    spend = float(to_currency(campaign.ledger.spent)) / n_users
    # V^λ + λ·spend + advantages, with V^λ = value of the bound − λ·budget.
    unspent = bound.budget_per_user - spend
    return PlayedCampaign(
        margin=margin / n_users,
        spend=spend,
        expected_margin=bound.value - bound.dual_price * unspent + lost / n_users,
    )
