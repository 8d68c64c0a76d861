"""An exported policy explained: which inputs drive whom it sends something, and what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from agents.pacing import WeekPrices
from agents.rollout import CampaignSetting, log_campaign
from agents.serving import ObservationPolicy
from experiments.artifacts import MarketParts, late_starts, load_market
from experiments.config import ConfigError
from experiments.fitted_run import FittedRun
from experiments.manifest import read_record
from experiments.policy_drivers import (
    CAVEAT,
    Deciding,
    DecisionRows,
    Driver,
    Measured,
    decide_in_batches,
    in_words,
    rank_drivers,
)
from experiments.policy_inputs import DoubleArray
from experiments.stages import export, finetune, prepare
from experiments.threads import one_thread

MOST_USERS = 1000
REPEATS = 5
SEED = 0


class ServedPolicy:
    """An exported policy where the market expects one of its own.

    Args:
        exported: the bundle.
        observation_names: the market's columns; those that the bundle does not know are left out.

    Raises:
        ConfigError: the bundle needs a column that the market does not have.
    """

    name = "exported"

    def __init__(self, exported: Deciding, observation_names: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(observation_names)}
        for name in exported.columns:
            if name not in places:
                raise ConfigError(
                    f"the exported policy needs the column {name!r}, which this version's market does not "
                    "have; run the stage train again"
                )
        self.exported = exported
        self.places = [places[name] for name in exported.columns]

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the probability of each offer, [n, K]; the mask is among the columns."""
        rows = observation[:, self.places].cpu().numpy()
        return torch.from_numpy(self.exported.probabilities(rows)).to(observation.device)


@dataclass(frozen=True)
class PolicyExplanation:
    """What drives the decisions of an exported policy.

    Attributes:
        drivers: groups of inputs, that with the largest share of decisions first.
        dual_prices: at which campaigns were played, of the budgets that the bundle was exported for.
        n_users: users of the campaigns.
        user_weeks: decisions looked at.
        sent: share of user-weeks in which something is sent.
        net_uplift: mean predicted net uplift of what is sent, log's currency a user and week.
        repeats: how often each group was dealt out anew.
    """

    drivers: list[Driver]
    dual_prices: list[float]
    n_users: int
    user_weeks: int
    sent: float
    net_uplift: float
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain JSON, with its sentences."""
        drivers = [asdict(one) | {"sentence": in_words(one)} for one in self.drivers]
        return asdict(self) | {"drivers": drivers, "caveat": CAVEAT}


@one_thread()
def explain_policy(folder: Path) -> PolicyExplanation:
    """Explain the exported policy of a run by campaigns that it plays with judge users in the judge worlds.

    Args:
        folder: a run folder up to stage ``export``.

    Raises:
        ConfigError: it is no run folder, nothing is exported yet, or the export is of another market.
        BundleError: the exported files are altered or missing.
    """
    run = FittedRun.load(folder)
    record = read_record(folder, export.STAGE.name)
    if record is None or record.status != "complete":
        raise ConfigError(
            f"{folder}: stage {export.STAGE.name} is not complete; run: couponlab export --out {folder}"
        )
    policy = ObservationPolicy.load(folder / export.STAGE.folder)
    parts = load_market(
        folder / prepare.STAGE.folder, folder / finetune.STAGE.folder, run.config.market, "cpu"
    )
    offers = tuple(offer.name for offer in parts.market.catalogue.offers)
    if policy.offers != offers:
        raise ConfigError(
            f"{folder}: the exported policy knows the offers {', '.join(policy.offers)}, but the run's "
            f"catalogue has {', '.join(offers)}; run: couponlab export --out {folder}"
        )
    prices = policy.settings.mean_prices()
    rows, net_uplift = played_rows(policy, parts, prices, n_users=MOST_USERS, seed=SEED)
    probabilities = decide_in_batches(policy, rows.observation)
    rng = np.random.default_rng(SEED)
    return PolicyExplanation(
        drivers=rank_drivers(policy, rows, net_uplift, repeats=REPEATS, rng=rng),
        dual_prices=prices,
        n_users=int(rows.user.max()) + 1,
        user_weeks=len(rows.user),
        sent=float(1.0 - probabilities[:, 0].mean()),
        net_uplift=float((probabilities * net_uplift).sum(axis=1).mean()),
        repeats=REPEATS,
    )


def played_rows(
    policy: Deciding, parts: MarketParts, dual_prices: Sequence[float], *, n_users: int, seed: int
) -> tuple[DecisionRows, DoubleArray]:
    """Let a policy play campaigns at fixed dual prices without a cap, and return what it saw.

    Each judge world answers to its share of the users; at every price the same users have the same luck.

    Args:
        policy: the bundle.
        parts: the run's market; campaigns start after its training weeks.
        dual_prices: a campaign for each, in each world.
        n_users: users at most, drawn from the judge users.
        seed: of all chance.

    Returns:
        The decisions, and the predicted net uplift of every offer in each, [N, K].
    """
    market, late = parts.market, late_starts(parts)
    served = ServedPolicy(policy, market.layout.names())
    drawn = np.random.default_rng(seed).permutation(len(parts.judge_users))[:n_users]
    # A world without users would have no campaign.
    worlds = parts.judge_worlds[: len(drawn)]
    observation: list[npt.NDArray[np.float32]] = []
    user: list[npt.NDArray[np.int64]] = []
    week: list[npt.NDArray[np.int64]] = []
    net: list[DoubleArray] = []
    for price in dual_prices:
        for k, world in enumerate(worlds):
            own = np.sort(np.arange(len(drawn))[k :: len(worlds)])
            setting = CampaignSetting(
                world=world,
                start=late[k % len(late)],
                users=parts.judge_users[torch.from_numpy(drawn[own])],
                seed=seed + k,
            )
            for logged in log_campaign(served, market, setting, [WeekPrices(price)] * market.horizon_weeks):
                net.append(market.layout.net_uplift(torch.from_numpy(logged.observation)).double().numpy())
                observation.append(logged.observation[:, served.places])
                user.append(own)
                week.append(np.full(len(own), len(week)))
    rows = DecisionRows(np.concatenate(observation), np.concatenate(user), np.concatenate(week))
    return rows, np.concatenate(net)


def show_policy(console: Console, found: PolicyExplanation) -> None:
    """Print an explanation.

    Args:
        console: where to.
        found: the explanation.
    """
    console.print(_driver_table(found))

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    prices = ", ".join(f"{price:.3g}" for price in found.dual_prices)
    say(
        f"{found.user_weeks:,} decisions about {found.n_users:,} users, at dual prices {prices}: something "
        f"is sent in {found.sent:.0%} of user-weeks, predicted to earn {found.net_uplift:.3f} a user and "
        "week net of the budget used. What drives it, most first:"
    )
    for place, driver in enumerate(found.drivers, start=1):
        say(f"  {place}. {in_words(driver)}")
    say(CAVEAT)


def _driver_table(found: PolicyExplanation) -> Table:
    table = Table(
        title=f"Inputs of the exported policy, each dealt out anew among users {found.repeats} times "
        "(95% intervals over users)",
        title_justify="left",
    )
    names = (
        "input",
        "decisions that differ",
        "best offer differs",
        "net uplift",
        "sent: low → high",
        "alone",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "input" else "right")
    for driver in found.drivers:
        one = driver.direction
        table.add_row(
            driver.words + (" *" if driver.dealt_among == "user-weeks" else ""),
            _percent(driver.distance),
            _percent(driver.changed),
            _money(driver.net_uplift_change),
            "–" if one is None else f"{one.sent_low:.0%} → {one.sent_high:.0%}",
            "–" if one is None else f"{100 * one.effect:+.1f} points",
        )
    if any(driver.dealt_among == "user-weeks" for driver in found.drivers):
        table.caption = "* shared by all users of a week: dealt out among all weeks played"
    return table


def _percent(found: Measured | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:.1%} ({100 * found.ci_low:.1f} to {100 * found.ci_high:.1f})"


def _money(found: Measured | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:+.4f} ({found.ci_low:+.4f} to {found.ci_high:+.4f})"
