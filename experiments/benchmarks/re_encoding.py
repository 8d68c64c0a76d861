"""Speed of a market whose users are encoded anew every few weeks: what BERT costs it.

BERT is of the size of preset ``tiny`` and untrained, which takes as long as trained. Categories have made-up
names of one to three words, and each user's history is of his own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from encoders.bert import EnsembleEncoder, TextEncoder, new_pretraining_model, train_wordpiece
from encoders.history import HistoryState
from encoders.user_encoder import UserEncoder
from encoders.user_text import UserTextStyle, UserTextWriter
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from experiments.benchmarks.market import N_CATEGORIES, benchmark_market
from experiments.config import EncoderConfig, TextConfig

RE_ENCODE_WEEKS = 4
TOKENIZER_TEXTS = 2_000
WARM_UP_USERS = 1_000
_SYLLABLES = ("ba", "cor", "del", "fin", "gra", "hus", "ket", "lom", "mar", "nip", "pol", "rus", "sel", "tov")
_AGES = ("19-24", "25-34", "35-44", "45-54", "55-64", "65+")


def re_encoding_pace(n_users: int, weeks: int = 8) -> tuple[float, float]:
    """Play a campaign on a CPU in which users are encoded anew every RE_ENCODE_WEEKS weeks.

    Nothing is sent and nothing predicted, as in the fastest weeks that there are: beside policies that look
    at users, BERT's share is smaller.

    Args:
        n_users: n.
        weeks: length of the campaign.

    Returns:
        User-weeks per second, and the share of the time that texts and BERT take.
    """
    market, encoder = re_encoding_market(n_users, weeks)
    users = torch.arange(n_users)
    # A shape's first batch is slower, as kernels are generated.
    some = users[:WARM_UP_USERS]
    encoder.embed(market.population.histories[0].rows(some), some, 1)
    campaign = Campaign(market, market.predictor, start=0, users=users, budget=UNLIMITED_BUDGET, seed=0)
    encoder.clock.seconds = 0.0
    start = time.perf_counter()
    while not campaign.done:
        campaign.step()
    seconds = time.perf_counter() - start
    return n_users * weeks / seconds, encoder.clock.seconds / seconds


@dataclass
class Clock:
    """Seconds that passed in what is timed."""

    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class TimedUserEncoder(UserEncoder):
    """A user encoder that adds up the time that it takes."""

    clock: Clock = field(default_factory=Clock)

    def embed(self, state: HistoryState, users: torch.Tensor, week: int) -> torch.Tensor:  # type: ignore[override]
        """Return the embeddings, as :meth:`UserEncoder.embed` does."""
        start = time.perf_counter()
        embedding = super().embed(state, users, week)
        self.clock.seconds += time.perf_counter() - start
        return embedding


def re_encoding_market(n_users: int, weeks: int, seed: int = 0) -> tuple[MarketSpec, TimedUserEncoder]:
    """Build the benchmark's market with histories that differ, and an untrained encoder for its users."""
    rng = np.random.default_rng(seed)
    market = benchmark_market(n_users, EncoderConfig().embedding, seed)
    population = market.population
    history = _lived(population.histories[0], torch.Generator().manual_seed(seed))
    writer = UserTextWriter(
        tuple(_profiles(n_users, rng)),
        tuple(_category_names(rng)),
        UserTextStyle(max_items=TextConfig().max_items),
    )
    some = range(min(n_users, TOKENIZER_TEXTS))
    tokenizer = train_wordpiece(
        writer.write(history.rows(slice(0, len(some))), some, 1), EncoderConfig().vocabulary
    )
    shape, max_tokens = EncoderConfig(), TextConfig().max_tokens
    torch.manual_seed(seed)
    bert = new_pretraining_model(
        tokenizer.get_vocab_size(), shape.layers, shape.width, shape.heads, shape.dropout, max_tokens
    ).bert
    encoder = TimedUserEncoder(
        writer, tokenizer, EnsembleEncoder([TextEncoder(bert, shape.embedding)]), max_tokens
    )
    return (
        replace(
            market,
            population=replace(population, histories=(history,)),
            horizon_weeks=weeks,
            # The benchmark's calendar is short; drawn from, it serves any length.
            resample_weeks=population.calendar.n_weeks,
            user_encoder=encoder,
            re_encode_weeks=RE_ENCODE_WEEKS,
        ),
        encoder,
    )


def _lived(history: HistoryState, generator: torch.Generator) -> HistoryState:
    """Histories at the same rates, in which each user bought each category as often as chance had it."""
    mean = history.category_slow.float()
    bought = torch.poisson(mean, generator=generator)
    share = history.visits_fast / history.visits_slow
    chance = bought / history.visits_slow[:, None] * 0.6
    recent = torch.zeros_like(history.recent)
    for k in range(2):
        recent |= (torch.rand(chance.shape, generator=generator) < chance).to(torch.uint8) << k
    return replace(
        history,
        category_slow=bought.half(),
        category_fast=(bought * share[:, None]).half(),
        recent=recent,
        trips_slow=1.5 * history.visits_slow,
        trips_fast=1.5 * history.visits_fast,
        coupons_slow=0.1 * history.visits_slow,
    )


def _category_names(rng: np.random.Generator) -> list[str]:
    def word() -> str:
        return "".join(rng.choice(_SYLLABLES, rng.integers(2, 4)))

    return [" ".join(word() for _ in range(rng.integers(1, 4))) for _ in range(N_CATEGORIES)]


def _profiles(n_users: int, rng: np.random.Generator) -> list[str]:
    return [
        f"age {_AGES[age]} , household size {size}"
        for age, size in zip(rng.integers(len(_AGES), size=n_users), rng.integers(1, 6, n_users), strict=True)
    ]
