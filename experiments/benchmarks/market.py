"""Speed of the market core: user-weeks per second at 120 categories, with full baskets, and its memory.

The users are made up, at the rates of Complete Journey's: six in ten visit in a week, and a basket holds
fourteen of the categories. The closest peer reaches 14.6 customer-weeks a second on such a machine, at the
level of 26,000 products; this market is at the level of categories.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import FeatureScale, ResponseHeads
from envs.assumptions import AssumedResponse
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.offers import Catalogue
from envs.population import Population
from envs.simulator import Simulator
from experiments.benchmarks import Row, describe_machine
from experiments.threads import keep_freed_memory

N_CATEGORIES = 120
HORIZON_WEEKS = 8
SMALL, MIDDLE, LARGE = 10_000, 100_000, 1_000_000
RE_ENCODED = 4_000
REPEATS = {SMALL: 3, MIDDLE: 3, LARGE: 1}
RATE_BAR = 500_000.0
GPU_RATE_BAR = 50_000_000.0
MEMORY_BAR = 4.0
GROWTH_BAR = 1.5
"""Cost per user at LARGE over that at SMALL."""

MODES = {
    "week": "a week of full baskets, nothing sent",
    "expectation": "the same with each user's expected margin",
    "policy": "the same with predictions of all offers, and a message to all who may get one",
}


@dataclass(frozen=True)
class Pace:
    """How a market of n users ran.

    Attributes:
        rate: user-weeks per second, median over weeks.
        visit_share: users who visited in a week.
        basket: categories in a basket.
        memory: largest resident memory of the process, GiB.
    """

    rate: float
    visit_share: float
    basket: float
    memory: float


def benchmark_market(n_users: int, embedding: int = 64, seed: int = 0, device: str = "cpu") -> MarketSpec:
    """Build a market of the shape of Complete Journey's with parameters drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    heads = ResponseHeads(0.01 + 0.3 * torch.rand(N_CATEGORIES, generator=generator) ** 2, embedding)
    heads.set_scale(
        FeatureScale(
            category_mean=torch.tensor([-3.0, -2.7, -2.9, 3.1, 0.2, 0.06, 0.06, 0.06, 0.06]),
            category_std=torch.tensor([1.4, 1.1, 1.0, 1.3, 0.3, 0.24, 0.24, 0.24, 0.24]),
            user_mean=torch.tensor([0.1, 0.2, 0.7, 2.2, 3.6, 0.0, 0.0, 0.8, 1.2, 1.2, 1.2, 1.2]),
            user_std=torch.tensor([1.6, 1.4, 1.0, 0.7, 0.9, 1.0, 1.0, 1.1, 1.2, 1.2, 1.2, 1.2]),
        )
    )
    heads.category_match.copy_(torch.randn(N_CATEGORIES, embedding, generator=generator))
    heads.basket_loadings.copy_(0.1 * torch.randn(heads.basket_loadings.shape, generator=generator))
    heads.category_week_deviation.fill_(0.1)
    heads.visit_week_deviation.fill_(0.05)
    heads.other_spend_ratio.fill_(0.25)
    heads.other_spend_share.fill_(0.8)
    heads.other_spend_deviation.fill_(0.8)

    def weekly() -> torch.Tensor:
        return 0.1 * torch.rand(HORIZON_WEEKS, N_CATEGORIES, generator=generator)

    calendar = PromotionCalendar(
        depth=weekly(),
        display=weekly(),
        mailer=weekly(),
        category_trend=weekly(),
        visit_trend=torch.zeros(HORIZON_WEEKS),
        month_start=torch.zeros(HORIZON_WEEKS),
    )
    visits = 8.0 + 8.0 * torch.rand(n_users, generator=generator)
    empty = HistoryState.empty(n_users, N_CATEGORIES)
    for recency in empty.category_recency.split(50_000):
        recency.copy_(torch.randint(1, 21, recency.shape, generator=generator))
    empty.category_slow.copy_(heads.base_rate).mul_(visits[:, None])
    empty.category_fast.copy_(heads.base_rate).mul_(0.4 * visits[:, None])
    history = replace(
        empty,
        visit_recency=1.0 + 2.0 * torch.rand(n_users, generator=generator),
        visits_slow=visits,
        visits_fast=0.4 * visits,
        weeks_slow=torch.full((n_users,), 20.0),
        weeks_fast=torch.full((n_users,), 6.0),
        basket_size=12.0 * visits,
        basket_spend=50.0 * visits,
    )
    population = Population(
        start_weeks=(0,),
        histories=(history,),
        embeddings=torch.randn(1, n_users, embedding, generator=generator),
        calendar=calendar,
    ).to(device)
    predictor = Simulator(heads.to(device), AssumedResponse.central(), 0.28, "benchmark")
    return MarketSpec(population, Catalogue.built_in(), predictor, HORIZON_WEEKS)


def measure(n_users: int, mode: str, device: str = "cpu") -> Pace:
    """Play campaigns, and measure all their weeks but the first.

    Args:
        n_users: n.
        mode: of MODES.
        device: "cpu" or "cuda".
    """
    import resource

    market = benchmark_market(n_users, device=device)
    users = torch.arange(n_users, device=device)
    seconds: list[float] = []
    visits, purchases = 0, 0
    for seed in range(REPEATS[n_users]):
        campaign = Campaign(
            market, market.predictor, start=0, users=users, budget=UNLIMITED_BUDGET, seed=seed
        )
        while not campaign.done:
            _wait(device)
            start = time.perf_counter()
            if mode == "week":
                outcome = campaign.step()
            elif mode == "expectation":
                outcome, _ = campaign.step_with_expectation()
            else:
                outcome, _ = campaign.step_with_expectation((campaign.mask[:, 1]).long())
            _wait(device)
            if campaign.state.week > 1:
                seconds.append(time.perf_counter() - start)
                visits += int(outcome.visited.sum())
                purchases += int(outcome.bought.sum())
            del outcome
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Pace(
        rate=n_users / median(seconds),
        visit_share=visits / (n_users * len(seconds)),
        basket=purchases / max(visits, 1),
        memory=peak / (2**30 if sys.platform == "darwin" else 2**20),
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _in_own_process(n_users: int, mode: str, device: str = "cpu") -> Pace:
    """Measure in a process of its own, whose memory is that of the market alone."""
    command = [sys.executable, "-m", __name__, str(n_users), mode, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-500:]}")
    return Pace(**json.loads(done.stdout.splitlines()[-1]))


def run() -> list[Row]:
    """Measure rates at three sizes, how cost grows with users, and memory."""
    hardware, rows = describe_machine(), []
    paces = {
        (n_users, mode): _in_own_process(n_users, mode)
        for n_users in (SMALL, MIDDLE, LARGE)
        for mode in MODES
    }
    for (n_users, mode), pace in paces.items():
        lived = f"{pace.visit_share:.0%} visit, {pace.basket:.0f} of {N_CATEGORIES} categories a basket"
        rows.append(
            Row.compare(
                f"{MODES[mode]}; {n_users:,} users ({lived})",
                pace.rate,
                "user-weeks/s",
                bar=RATE_BAR if (n_users, mode) == (MIDDLE, "week") else None,
                hardware=hardware,
            )
        )
    rows.append(
        Row.compare(
            f"time per user and week at {LARGE:,} users over {SMALL:,}",
            paces[SMALL, "week"].rate / paces[LARGE, "week"].rate,
            "times",
            bar=GROWTH_BAR,
            higher_is_better=False,
            hardware=hardware,
        )
    )
    rows.append(
        Row.compare(
            f"resident memory at {LARGE:,} users",
            max(paces[LARGE, mode].memory for mode in MODES),
            "GiB",
            bar=MEMORY_BAR,
            higher_is_better=False,
            hardware=hardware,
        )
    )
    # In a module of its own, which imports this one.
    from experiments.benchmarks.re_encoding import re_encoding_pace

    rate, share = re_encoding_pace(RE_ENCODED)
    rows.append(
        Row.compare(
            f"{MODES['week']}, tiny BERT reading everyone anew every 4 weeks ({share:.0%} of the time); "
            f"{RE_ENCODED:,} users",
            rate,
            "user-weeks/s",
            hardware=hardware,
        )
    )
    if torch.cuda.is_available():
        rows.append(
            Row.compare(
                f"{MODES['week']}; {MIDDLE:,} users, CUDA",
                _in_own_process(MIDDLE, "week", "cuda").rate,
                "user-weeks/s",
                bar=GPU_RATE_BAR,
                hardware=describe_machine("cuda"),
            )
        )
    return rows


if __name__ == "__main__":
    keep_freed_memory()
    print(json.dumps(asdict(measure(int(sys.argv[1]), sys.argv[2], sys.argv[3]))))
