"""What was played, as rows of results; money for all users of a campaign where no key says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.offer_network import LearnedPolicy
from agents.pacing import WeekPrices
from agents.policy import MyopicUpliftPolicy, NoOfferPolicy
from envs.offers import Catalogue
from experiments.comparison.lineup import EVENLY_PACED, Entrant
from experiments.comparison.play import Block, Played, Season
from experiments.comparison.segments import SEGMENTS, profile_attributes, segment_groups
from experiments.comparison.statistics import Estimate, PairedDifference, Resamples

DoubleArray = npt.NDArray[np.float64]
Row = dict[str, Any]

FRONTIER = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
"""Budgets at which it is shown what more money brings, as multiples of the configured one."""
ON_FRONTIER = (LearnedPolicy.name, MyopicUpliftPolicy.name)
LEAST_USERS = 30
"""Users of a group of which anything is reported: fewer would tell of persons."""
CENT = 0.01


@dataclass(frozen=True)
class Programme:
    """Which blocks a comparison is made of.

    Attributes:
        lineup: who is compared.
        budgets: multiples of the configured budget.
        campaigns: of each entrant at each of them.
        frontier_campaigns: of each entrant at each further budget of the frontier.
        without_lifts: whether PPO also plays where messages and coupons bring no visits, at the budget
            nearest to the configured one.
    """

    lineup: Sequence[Entrant]
    budgets: tuple[float, ...]
    campaigns: int
    frontier_campaigns: int
    without_lifts: bool = False

    @property
    def nearest_one(self) -> float:
        """The multiple nearest to the configured budget."""
        return min(self.budgets, key=lambda multiple: abs(multiple - 1.0))

    def block(self, name: str, multiple: float) -> Block:
        """Return the block of an entrant at a budget, be it compared there or on the frontier only."""
        (entrant,) = (one for one in self.lineup if one.name == name)
        campaigns = self.campaigns if multiple in self.budgets else self.frontier_campaigns
        again = self.without_lifts and (name, multiple) == (LearnedPolicy.name, self.nearest_one)
        return Block(entrant, multiple, campaigns, again)

    def blocks(self) -> list[Block]:
        """Return all blocks, each once; the long ones first, so that no process waits at the end."""
        compared = [self.block(one.name, multiple) for one in self.lineup for multiple in self.budgets]
        further = [
            self.block(name, multiple)
            for name in ON_FRONTIER
            for multiple in FRONTIER
            if multiple not in self.budgets
        ]
        return [*reversed(compared), *further]


class Comparison:
    """The rows of a season that was played.

    Args:
        programme: what was to be played.
        season: what was.
        catalogue: what was sent from.
        profiles: [n] what the users who took part say of themselves, as texts.
        n_resamples: R of the bootstrap.
        seed: of the resamples, the same for all rows.
    """

    def __init__(
        self,
        programme: Programme,
        season: Season,
        catalogue: Catalogue,
        profiles: Sequence[str],
        *,
        n_resamples: int,
        seed: int,
    ) -> None:
        self.programme, self.season = programme, season
        self.catalogue, self.profiles = catalogue, profiles
        self.n_users = len(profiles)
        self._n_resamples, self._seed = n_resamples, seed
        self._resamples: dict[int, Resamples] = {}

    def rows(self) -> dict[str, list[Row]]:
        """Return all tables by their keys in ``results.json``."""
        return {
            "policies": self.policies(),
            "comparison": self.comparison(),
            "pacing": self.pacing(),
            "offers": self.offers(),
            "frontier": self.frontier(),
            "who": self.who(),
            **self.exposure(),
        }

    def policies(self) -> list[Row]:
        """What each entrant brought and spent at each budget."""
        rows = []
        for block, played in self._compared():
            gain = self.gain(block)
            estimate = self.estimate(gain)
            budget, spend = float(played.budget), float(played.cost.sum(axis=1).mean())
            by_world = gain.mean(axis=1) * self.n_users
            rows.append(
                {
                    "name": block.entrant.name,
                    "pacing": block.entrant.pacing.value,
                    "lambda": float(np.exp(np.log(played.dual_price).mean())),
                    "budget_multiple": block.multiple,
                    "budget": budget,
                    "spend": spend,
                    "utilisation": spend / budget,
                    "incremental_margin": estimate.value,
                    "ci_low": estimate.low,
                    "ci_high": estimate.high,
                    "world_low": float(by_world.min()),
                    "world_high": float(by_world.max()),
                    "n_users": self.n_users,
                    "campaigns": block.campaigns,
                    "refused": int(played.refused.sum()),
                    "peak_commitment_share": float(played.committed.max()) / budget,
                }
            )
        return rows

    def comparison(self) -> list[Row]:
        """Paired differences of PPO to each other entrant, and of the myopic rule to itself paced evenly."""
        names = [one.name for one in self.programme.lineup]
        pairs = [(LearnedPolicy.name, name) for name in names if name != LearnedPolicy.name]
        if EVENLY_PACED in names:
            pairs.append((MyopicUpliftPolicy.name, EVENLY_PACED))
        return [
            self._difference(self.programme.block(name, multiple), self.programme.block(baseline, multiple))
            for multiple in self.programme.budgets
            for name, baseline in pairs
        ]

    def _difference(self, block: Block, baseline: Block) -> Row:
        """The paired difference of two blocks at one budget."""
        gain = self.gain(block)
        paired = PairedDifference.of(
            gain,
            self.gain(baseline),
            float(self.season.played[block].cost.sum()),
            float(self.season.played[baseline].cost.sum()),
            self._weights(len(gain)),
        )
        difference = paired.difference.times(self.n_users)
        return {
            "name": block.entrant.name,
            "baseline": baseline.entrant.name,
            "budget_multiple": block.multiple,
            "difference": difference.value,
            "ci_low": difference.low,
            "ci_high": difference.high,
            "relative": paired.relative,
            "spend_share": paired.spend_share,
        }

    def pacing(self) -> list[Row]:
        """Spend against plan and prices week by week; means over campaigns, of λ the geometric one."""
        return [
            {
                "policy": block.entrant.name,
                "budget_multiple": block.multiple,
                "planned": played.planned.tolist(),
                "spend": played.spend.mean(axis=0).tolist(),
                "committed": played.committed.mean(axis=0).tolist(),
                "dual_price": np.exp(np.log(played.dual_price).mean(axis=0)).tolist(),
                "pressure": played.pressure.mean(axis=0).tolist(),
            }
            for block, played in self._compared()
        ]

    def offers(self) -> list[Row]:
        """Which share of user-weeks each offer had."""
        return [
            {
                "policy": block.entrant.name,
                "budget_multiple": block.multiple,
                "offer": offer.name,
                "share": float(count / played.sent.sum()),
            }
            for block, played in self._compared()
            for offer, count in zip(self.catalogue.offers, played.sent, strict=True)
        ]

    def frontier(self) -> list[Row]:
        """What more money brings, and whether any budget was overspent."""
        rows = []
        for name in ON_FRONTIER:
            for multiple in FRONTIER:
                block = self.programme.block(name, multiple)
                played, estimate = self.season.played[block], self.estimate(self.gain(block))
                budget, spend = float(played.budget), played.cost.sum(axis=1)
                # Ledgers count hundredths of a cent; sums of floats need no more than that.
                over = np.maximum(spend, played.committed.max(axis=1)) > budget + CENT * CENT
                rows.append(
                    {
                        "policy": name,
                        "budget_multiple": multiple,
                        "budget": budget,
                        "spend": float(spend.mean()),
                        "utilisation": float(spend.mean()) / budget,
                        "incremental_margin": estimate.value,
                        "ci_low": estimate.low,
                        "ci_high": estimate.high,
                        "overspent": int(over.sum()),
                        "campaigns": block.campaigns,
                        "peak_commitment_share": float(played.committed.max()) / budget,
                        "last_price": float(played.dual_price[:, -1].mean()),
                    }
                )
        return rows

    def who(self) -> list[Row]:
        """Who is sent something and what it brings, by what the shop knew of users before the campaign."""
        rows = []
        for block, played in self._looked_at():
            gain = self.gain(block)
            for place, by in enumerate(SEGMENTS):
                for group, members in segment_groups(by, self.season.idle.segments[:, :, place]).items():
                    rows.append(
                        {
                            "policy": block.entrant.name,
                            "budget_multiple": block.multiple,
                            "by": by,
                            "group": group,
                            "users": round(float(members.sum(axis=1).mean())),
                            "offers_per_user": float(played.offers[members].mean()),
                            "cost_per_user": float(played.cost[members].mean()),
                            "margin_per_user": float(gain[members].mean()),
                        }
                    )
        return rows

    def exposure(self) -> dict[str, list[Row]]:
        """What groups by what users say of themselves are sent, and how far apart the groups are.

        The ratio is that of the four-fifths rule (US Equal Employment Opportunity Commission 1978, Uniform
        Guidelines §4D): the lowest group's rate over the highest group's.
        """
        rows: list[Row] = []
        parity: list[Row] = []
        attributes = profile_attributes(self.profiles, least=LEAST_USERS)
        for block, played in self._looked_at():
            about = {"policy": block.entrant.name, "budget_multiple": block.multiple}
            for attribute, values in attributes.items():
                groups = []
                for group in sorted(set(values.tolist())):
                    members = values == group
                    if members.sum() >= LEAST_USERS:
                        groups.append(
                            {
                                **about,
                                "attribute": attribute,
                                "group": group,
                                "users": int(members.sum()),
                                "offers_per_user": float(played.offers[:, members].mean()),
                                "coupons_per_user": float(played.coupons[:, members].mean()),
                                "discount_per_user": float(played.discount[:, members].mean()),
                            }
                        )
                rows += groups
                rates = [group["offers_per_user"] for group in groups]
                if max(rates) > 0:
                    parity.append({**about, "attribute": attribute, "ratio": min(rates) / max(rates)})
        return {"exposure": rows, "parity": parity}

    def sensitivity(self) -> list[Row]:
        """What PPO brings where messages and coupons bring no visits; needs ``Programme.without_lifts``."""
        played = self.season.played[self._configured()]
        remaining = played.margin_without_lifts - self.season.idle.margin[: len(played.margin)]
        return [
            {
                "policy": LearnedPolicy.name,
                "assumption": "messages and coupons bring no visits",
                "incremental_margin": self.estimate(remaining).value,
                "baseline_margin": self.estimate(self.gain(self._configured())).value,
                "n_users": self.n_users,
            }
        ]

    def price_path(self) -> list[WeekPrices]:
        """Prices of PPO's weeks at the budget nearest to the configured one, mean over campaigns."""
        played = self.season.played[self._configured()]
        spend = np.exp(np.log(played.dual_price).mean(axis=0))
        return [
            WeekPrices(*week)
            for week in zip(spend.tolist(), played.pressure.mean(axis=0).tolist(), strict=True)
        ]

    def gain(self, block: Block) -> DoubleArray:
        """Return a block's incremental margin of each user in each campaign, [W, n]."""
        return self.season.played[block].margin - self.season.idle.margin[: block.campaigns]

    def estimate(self, gain: DoubleArray) -> Estimate:
        """Return the mean of a gain [W, n] over campaigns, for all users together, with its interval."""
        return Estimate.of(gain, self._weights(len(gain))).times(self.n_users)

    def _configured(self) -> Block:
        """PPO's block at the budget nearest to the configured one."""
        return self.programme.block(LearnedPolicy.name, self.programme.nearest_one)

    def _weights(self, campaigns: int) -> Resamples:
        if campaigns not in self._resamples:
            rng = np.random.default_rng(self._seed)
            self._resamples[campaigns] = Resamples.draw(campaigns, self.n_users, self._n_resamples, rng)
        return self._resamples[campaigns]

    def _compared(self) -> list[tuple[Block, Played]]:
        """Blocks of the comparison, budget by budget."""
        programme = self.programme
        blocks = [
            programme.block(one.name, multiple) for multiple in programme.budgets for one in programme.lineup
        ]
        return [(block, self.season.played[block]) for block in blocks]

    def _looked_at(self) -> list[tuple[Block, Played]]:
        """Blocks whose users are looked at: at the configured budget, of all who send anything."""
        programme = self.programme
        return [
            (block, played)
            for block, played in self._compared()
            if block.multiple == programme.nearest_one and block.entrant.name != NoOfferPolicy.name
        ]
