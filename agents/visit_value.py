"""What a visit this week is worth later: the value of a user left alone, after a visit and after none.

A message works through a visit, and a visit changes the weeks after it: who came is more likely to come
again. In a sampled campaign that effect is there, but buried: one visit more or less among fifty sends the
rest of the campaign another way, and the noise of that is fifty times the effect of a message. Here it is
estimated once, in expectation, from many weeks of many users:

    A_v(s) = E[margin of the weeks after this one | history s, visit v, nothing sent any more]
    B(s) = m(s) + p(s)·A_1(s) + (1 - p(s))·A_0(s)

with m(s) and p(s) the market's own closed-form margin and visit probability of a week in which nothing is
held or sent. A is fitted by fitted value iteration on B(s'), the next week's value (Ernst, Geurts & Wehenkel
2005, JMLR 6). Then

    r = m(s, a) - m(s) + (p(s, a) - p(s))·(A_1(s) - A_0(s))

is the expected gain of acting a now and leaving the user alone afterwards. Summed over a campaign under any
policy it has the mean of the margin over that of sending nothing (potential-based shaping: Ng, Harada &
Russell 1999, ICML), up to the fit of A and to what a redeemed coupon does to later purchases other than
through the visit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from encoders.history import USER_FEATURES, user_features
from envs.assumptions import AssumedResponse
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.simulator import Expectation, Simulator

BASKET_SPEND = USER_FEATURES.index("log_basket_spend")
ROUNDS_PER_WEEK = 2
"""Rounds of fitted value iteration for each week that value must travel back through."""


class VisitValue(nn.Module):
    """A_0 and A_1 from a user's history and embedding.

    A is an expected number of later visits, between 0 and the weeks that are left, times the margin of a
    basket as the user's history has it, times a learnt factor.

    Args:
        embedding: width d of the user embedding.
        horizon_weeks: T.
        margin_rate: contribution margin per unit of spend.
        hidden: width of the network.
    """

    def __init__(self, embedding: int, horizon_weeks: int, margin_rate: float, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = embedding
        self.horizon_weeks = horizon_weeks
        self.margin_rate = margin_rate
        self.hidden = hidden
        width = len(USER_FEATURES) + embedding + 2
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, 3)

    def shape(self) -> dict[str, Any]:
        """Return the arguments that build a network of this shape."""
        return {name: getattr(self, name) for name in ("embedding", "horizon_weeks", "margin_rate", "hidden")}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return A_0 and A_1 of rows of :func:`visit_features`, [n, 2], currency."""
        hidden = self.body(((features - self.mean) / self.std).clamp(-8.0, 8.0))
        without, more, factor = self.head(hidden).unbind(dim=1)
        visits = torch.sigmoid(torch.stack([without, without + more], dim=1))
        later_weeks = (features[:, -1] * self.horizon_weeks - 1.0).clamp(min=0.0)
        basket = self.margin_rate * torch.expm1(features[:, BASKET_SPEND]) * torch.exp(factor)
        return visits * (later_weeks * basket)[:, None]

    @torch.no_grad()
    def after(self, campaign: Campaign) -> torch.Tensor:
        """Return A_0 and A_1 for a campaign before its coming week, [n, 2] currency."""
        found: torch.Tensor = self(visit_features(campaign))
        return found


def incremental_margin(expected: Expectation, after: torch.Tensor) -> torch.Tensor:
    """Return the expected margin of a week over that of an idle one, now and by way of the visit later, [n].

    Args:
        expected: of the week.
        after: [n, 2] A_0 and A_1 before it; see the module's text for the formula.
    """
    now = expected.margin - expected.idle_margin
    return now + (expected.visit - expected.idle_visit) * (after[:, 1] - after[:, 0])


def visit_features(campaign: Campaign) -> torch.Tensor:
    """Return what the value of a visit is told from, [n, len(USER_FEATURES) + d + 2].

    The last two columns are the log of how many weeks the history goes back, for in a short one each visit
    weighs more, and the share of the campaign's weeks that is left.
    """
    state = campaign.state
    share = torch.full_like(state.fatigue, campaign.weeks_left / campaign.spec.horizon_weeks)
    history = state.history
    length = torch.log1p(history.weeks_slow)
    return torch.cat([user_features(history), state.embedding, length[:, None], share[:, None]], dim=1)


@dataclass(frozen=True)
class VisitValueConfig:
    """How the value of a visit is fitted.

    Attributes:
        rows: user-weeks that it is fitted on, rounded up to whole campaigns.
        n_users: users of a campaign.
        batch_size: rows a gradient step.
        learning_rate: peak of Adam's, falling linearly to zero.
    """

    rows: int = 400_000
    n_users: int = 4096
    batch_size: int = 4096
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class _Rows:
    """Weeks of users one after the other; the last week of each campaign has no successor.

    Attributes:
        features: [N, f].
        margin: [N] expected if nothing is held or sent.
        visit: [N] probability, likewise.
        visited: [N] bool.
        last: [N] bool, the campaign's last week.
        n_users: rows that a week has: row i + n_users is row i a week later.
    """

    features: torch.Tensor
    margin: torch.Tensor
    visit: torch.Tensor
    visited: torch.Tensor
    last: torch.Tensor
    n_users: int


def fit_visit_value(
    market: MarketSpec,
    worlds: Sequence[Simulator],
    starts: Sequence[int],
    *,
    users: torch.Tensor,
    seed: int,
    config: VisitValueConfig | None = None,
    on_round: Callable[[float], None] = lambda _: None,
) -> VisitValue:
    """Fit the value of a visit on campaigns of the training worlds.

    Args:
        market: the market.
        worlds: whose users answer; what is assumed is drawn anew for each campaign.
        starts: positions of start weeks, in turn.
        users: [m] users that campaigns draw from.
        seed: of everything drawn.
        config: how to fit.
        on_round: called with the share of the fit that is done.
    """
    config = config or VisitValueConfig()
    device = market.population.embeddings.device
    generator = torch.Generator().manual_seed(seed)
    rows = _collect(market, worlds, starts, users, config, np.random.default_rng(seed))
    rate = worlds[0].margin_rate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = VisitValue(market.population.embedding, market.horizon_weeks, rate).to(device)
    value.mean.copy_(rows.features.mean(dim=0))
    value.std.copy_(rows.features.std(dim=0).clamp(min=1e-3))
    optimizer = torch.optim.Adam(value.parameters(), lr=config.learning_rate)
    known = (~rows.last).nonzero()[:, 0]
    # In a campaign of one week there is no later one to learn about: A is 0 as it stands.
    n_rounds = ROUNDS_PER_WEEK * market.horizon_weeks if len(known) else 0
    n_steps = n_rounds * -(-len(known) // config.batch_size)
    step = 0
    for done in range(n_rounds):
        target = _next_value(value, rows)
        for batch in known[torch.randperm(len(known), generator=generator).to(device)].split(
            config.batch_size
        ):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1.0 - step / n_steps)
            after = value(rows.features[batch]).gather(1, rows.visited[batch].long()[:, None])[:, 0]
            aim = target[batch]
            # Spend differs tenfold between users; relative errors count about alike.
            loss = ((after - aim) ** 2 / (1.0 + aim)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
        on_round((done + 1) / n_rounds)
    return value.eval().requires_grad_(False)


@torch.no_grad()
def _next_value(value: VisitValue, rows: _Rows) -> torch.Tensor:
    """[N] B of the week after each row; 0 where there is none."""
    after = torch.cat([value(part) for part in rows.features.split(65_536)])
    base = rows.margin + torch.lerp(after[:, 0], after[:, 1], rows.visit)
    following = torch.zeros_like(base)
    following[: -rows.n_users] = base[rows.n_users :]
    return torch.where(rows.last, 0.0, following)


def _collect(
    market: MarketSpec,
    worlds: Sequence[Simulator],
    starts: Sequence[int],
    users: torch.Tensor,
    config: VisitValueConfig,
    rng: np.random.Generator,
) -> _Rows:
    """Play campaigns in which users get random offers, each at a rate of his own."""
    n, horizon = config.n_users, market.horizon_weeks
    weeks: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("features", "margin", "visit", "visited", "last")
    }
    for episode in range(-(-config.rows // (n * horizon))):
        chosen = torch.from_numpy(rng.integers(len(users), size=n))
        drawn = [replace(world, assumed=AssumedResponse.draw(rng)) for world in worlds]
        campaign = Campaign(
            market,
            drawn,
            start=starts[episode % len(starts)],
            users=users.cpu()[chosen].to(market.population.embeddings.device),
            budget=UNLIMITED_BUDGET,
            seed=int(rng.integers(2**62)),
        )
        send = torch.from_numpy(rng.uniform(size=n)).to(campaign.device)
        while not campaign.done:
            features, last = visit_features(campaign), campaign.weeks_left == 1
            sent = torch.from_numpy(rng.uniform(size=n)).to(campaign.device) < send
            scores = torch.from_numpy(rng.uniform(size=campaign.mask.shape)).to(campaign.device)
            offer = torch.where(campaign.mask, scores, -1.0).argmax(dim=1)
            outcome, expected = campaign.step_with_expectation(torch.where(sent, offer, 0))
            weeks["features"].append(features)
            weeks["margin"].append(expected.idle_margin)
            weeks["visit"].append(expected.idle_visit)
            weeks["visited"].append(outcome.visited)
            weeks["last"].append(torch.full_like(outcome.visited, last))
    return _Rows(**{name: torch.cat(parts) for name, parts in weeks.items()}, n_users=n)
