"""Randomised experience of the training worlds, for learners that need no sequence: bandits and uplift.

Offers are drawn uniformly over what is allowed, anew for each user and week, so that the effect of an offer
is identified without any assumption on who is sent what. Beside each campaign runs a control twin that lives
through the same luck and receives nothing, and both arms are counted in expectation, as in
:class:`agents.training_market.TrainingMarket`. No log of a shop has either: there the noise of baskets is a
hundred times the effect of an offer. Learners trained on this are therefore stronger opponents than the same
learners would be on real logs of this size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agents.policy import sample
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.money import to_currency
from envs.observation import ObservationLayout
from envs.simulator import Simulator


@dataclass(frozen=True)
class Experience:
    """N user-weeks with randomised offers; money in the log's currency.

    Attributes:
        layout: where things stand in an observation.
        observation: [N, o] float32, at a dual price of 1.
        mask: [N, K] bool, offers that could be sent.
        offer: [N] int64, sent.
        propensity: [N] float32, probability with which that offer was drawn.
        margin: [N] float32, expected margin above the control arm's, summed over the window.
        cost: [N] float32, expected cost charged to the budget, summed over the window.
        window_weeks: length of the window from the week of sending on; a campaign's end cuts it short.
    """

    layout: ObservationLayout
    observation: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    offer: npt.NDArray[np.int64]
    propensity: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    cost: npt.NDArray[np.float32]
    window_weeks: int

    def __post_init__(self) -> None:
        n, k = len(self.offer), self.layout.n_offers
        shapes = {
            "observation": (n, self.layout.width),
            "mask": (n, k),
            "offer": (n,),
            "propensity": (n,),
            "margin": (n,),
            "cost": (n,),
        }
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"Experience.{name} has shape {found}, expected {shape}")
        if self.window_weeks < 1:
            raise ValueError(f"window_weeks must be >= 1, got {self.window_weeks}")
        if n and not bool(self.mask[np.arange(n), self.offer].all()):
            raise ValueError("Experience.offer has an offer outside the mask")
        if n and not bool(((self.propensity > 0) & (self.propensity <= 1)).all()):
            raise ValueError("Experience.propensity must be in (0, 1]")

    def __len__(self) -> int:
        return len(self.offer)


def collect_experience(
    market: MarketSpec,
    worlds: Sequence[Simulator],
    starts: Sequence[int],
    *,
    users: torch.Tensor,
    n_users: int,
    n_rows: int,
    window_weeks: int,
    seed: int,
) -> Experience:
    """Play campaigns with random offers, worlds and starts in turn, until there are N rows.

    Memory is that of the N rows and of one campaign. The margin of a window also holds what offers of the
    weeks before and within it brought; as these are drawn at random, they change the mean of a row's margin
    alike whichever offer it has, but for offers that a held coupon or the frequency cap rules out later.

    Args:
        market: what all campaigns share.
        worlds: simulators that answer; one per campaign, in turn.
        starts: positions of the start weeks that may be used; each with each world, in turn.
        users: [m] users that campaigns draw from.
        n_users: users in a campaign; drawn with replacement only where they are more than m.
        n_rows: N; the last campaign gives a random part of its rows.
        window_weeks: weeks over which margin and cost are summed, that of sending included.
        seed: of everything drawn.

    Raises:
        ValueError: there is no world, start or user, or a number is below 1.
    """
    if not worlds or not starts or not len(users):
        raise ValueError("experience needs at least one world, one start week and one user")
    for name, value in (("n_users", n_users), ("n_rows", n_rows), ("window_weeks", window_weeks)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    layout = market.layout
    whole = Experience(
        layout=layout,
        observation=np.zeros((n_rows, layout.width), dtype=np.float32),
        mask=np.ones((n_rows, layout.n_offers), dtype=np.bool_),
        offer=np.zeros(n_rows, dtype=np.int64),
        propensity=np.ones(n_rows, dtype=np.float32),
        margin=np.zeros(n_rows, dtype=np.float32),
        cost=np.zeros(n_rows, dtype=np.float32),
        window_weeks=window_weeks,
    )
    per_campaign = n_users * market.horizon_weeks
    for number in range(-(-n_rows // per_campaign)):
        rng = np.random.default_rng([seed, number])
        filled = number * per_campaign
        wanted = min(per_campaign, n_rows - filled)
        kept = np.sort(rng.permutation(per_campaign)[:wanted])
        chosen = users.cpu()[torch.from_numpy(rng.choice(len(users), n_users, replace=n_users > len(users)))]
        # Worlds turn fastest, so that each meets each start whatever their numbers have in common.
        start = starts[number // len(worlds) % len(starts)]
        _play(market, worlds[number % len(worlds)], start, chosen, whole, filled, kept, rng)
    return whole


def _play(
    market: MarketSpec,
    world: Simulator,
    start: int,
    users: torch.Tensor,
    whole: Experience,
    filled: int,
    kept: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Play one campaign and write its ``kept`` rows (week · n + user) from row ``filled`` on."""
    device = market.population.embeddings.device
    luck, n = int(rng.integers(2**62)), len(users)
    treated, control = (
        Campaign(market, world, start=start, users=users.to(device), budget=UNLIMITED_BUDGET, seed=luck)
        for _ in range(2)
    )
    chooser = torch.Generator(device=device).manual_seed(int(rng.integers(2**62)))
    price = torch.ones(n, device=device)
    margins, costs = (np.zeros((market.horizon_weeks, n)) for _ in range(2))
    for week in range(market.horizon_weeks):
        first, last = np.searchsorted(kept, [week * n, (week + 1) * n])
        place, taken = slice(filled + first, filled + last), torch.from_numpy(kept[first:last] - week * n)
        mask = treated.mask
        uniform = mask.double() / mask.sum(dim=1, keepdim=True)
        offer = sample(uniform, torch.rand(n, generator=chooser, device=device))
        whole.observation[place] = treated.observation(price).cpu()[taken].numpy()
        whole.mask[place] = mask.cpu()[taken].numpy()
        whole.offer[place] = offer.cpu()[taken].numpy()
        whole.propensity[place] = uniform.gather(1, offer[:, None])[:, 0].cpu()[taken].numpy()
        outcome, expected = treated.step_with_expectation(offer)
        _, nothing = control.step_with_expectation()
        margins[week] = (expected.margin - nothing.margin).cpu().numpy()
        costs[week] = (expected.discount + to_currency(outcome.delivery)).cpu().numpy()
    place = slice(filled, filled + len(kept))
    whole.margin[place] = _window_sums(margins, whole.window_weeks).ravel()[kept]
    whole.cost[place] = _window_sums(costs, whole.window_weeks).ravel()[kept]


def _window_sums(weekly: npt.NDArray[np.float64], window_weeks: int) -> npt.NDArray[np.float64]:
    """Sum of each week and those after it within the window, [T, n], cut at the end."""
    return np.stack([weekly[k : k + window_weeks].sum(axis=0) for k in range(len(weekly))])
