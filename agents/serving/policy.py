"""An exported policy, ready to decide.

policy = CouponPolicy.load("runs/default/export")
decisions = policy.decide(users, Context(date=today, budget_per_user=0.5), rng=numpy.random.default_rng())
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from agents.message_book import TEXTS_FILE, VECTORS_FILE, Message, MessageBook
from agents.message_templates import TemplateError
from agents.serving.bundle import (
    ENCODER_FILE,
    INT8_ENCODER_FILE,
    TOKENIZER_FILE,
    Bundle,
)
from agents.serving.columns import OUTPUTS
from agents.serving.context import Context, DecisionWeek, decision_week
from agents.serving.decisions import Decisions
from agents.serving.drawing import draw, normalised, uniforms
from agents.serving.errors import BundleError, DecisionInputError
from agents.serving.events import UserEvents
from agents.serving.observation_rows import ObservationPolicy, RowDecisions
from agents.serving.offer_terms import OfferTerms
from agents.serving.replay import Replayed, replay
from agents.serving.sessions import policy_session, session_of
from agents.serving.settings import PolicySettings
from agents.serving.states import UserStates
from agents.serving.tables import Tables
from agents.serving.text_encoder import OnnxTextEncoder
from encoders.history_words import season_of_week

BLOCK_USERS = 512
"""Users that the graph is asked about at a time: what it computes in between then stays in the cache."""

REPLAYED_USERS = 512
"""Users whose weeks are replayed at a time; a week of all of them takes a megabyte or so."""


class CouponPolicy:
    """An exported policy.

    Args:
        bundle: its files.
        threads: CPU threads to use for many users; a single user takes one.
        encoder: which of the two encoders reads texts.

    Raises:
        BundleError: the files contradict each other.
    """

    def __init__(
        self, bundle: Bundle, *, threads: int = 1, encoder: Literal["fp32", "int8"] = "fp32"
    ) -> None:
        self.fingerprint = bundle.fingerprint
        self.settings = PolicySettings.of_bundle(bundle)
        self.tables = Tables.of_bundle(bundle, self.settings)
        self.columns: tuple[str, ...] = self.settings.columns
        self.catalogue: tuple[OfferTerms, ...] = self.settings.offers
        self.offers: tuple[str, ...] = tuple(offer.name for offer in self.catalogue)
        self.categories: tuple[str, ...] = self.settings.categories
        self._bundle = bundle
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._graph = policy_session(bundle, self.settings)
        file = ENCODER_FILE if encoder == "fp32" else INT8_ENCODER_FILE
        if file not in bundle.files:
            raise BundleError(f"{bundle.folder} holds no {file}")
        self.encoder = OnnxTextEncoder(
            session_of(bundle, file),
            Tokenizer.from_str(bundle.files[TOKENIZER_FILE].decode()),
            self.settings.max_tokens,
            sum(name.startswith("embedding_") for name in self.columns),
        )
        self.book: MessageBook | None = None
        if TEXTS_FILE in bundle.files and VECTORS_FILE in bundle.files:
            try:
                self.book = MessageBook.load(bundle.folder, embed=self.encoder.embed)
            except TemplateError as error:
                raise BundleError(str(error)) from error

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        threads: int = 1,
        encoder: Literal["fp32", "int8"] = "fp32",
        public_key: bytes | None = None,
    ) -> CouponPolicy:
        """Check and load a bundle.

        Args:
            folder: as written by ``couponlab export``.
            threads: CPU threads to use for many users.
            encoder: which of the two encoders reads texts.
            public_key: Ed25519, 32 raw bytes; the bundle must then be signed by its private half.

        Raises:
            BundleError: a file is missing or altered, the schema version differs, or the signature does not
                hold.
        """
        return cls(Bundle.read(Path(folder), public_key=public_key), threads=threads, encoder=encoder)

    def states(self, users: Sequence[UserEvents], context: Context) -> UserStates:
        """Return users as they stand before the context's week, embeddings included.

        Args:
            users: at least one; ids distinct.
            context: gives the week and how many are left.

        Raises:
            DecisionInputError: naming the user by his place, and what is wrong.
        """
        week = decision_week(context, self.settings, self.tables)
        if not users:
            raise DecisionInputError("there are no users to decide for")
        parts = []
        for start in range(0, len(users), REPLAYED_USERS):
            block = users[start : start + REPLAYED_USERS]
            try:
                found = replay(block, self.settings, self.tables, week.week, week.weeks_left)
            except DecisionInputError as error:
                raise DecisionInputError(
                    f"{error} (users counted from {start})" if start else str(error)
                ) from error
            parts.append(self._states_of(block, found))
        return UserStates.joined(parts)

    def _states_of(self, users: Sequence[UserEvents], found: Replayed) -> UserStates:
        return UserStates(
            user_id=tuple(user.user_id for user in users),
            category_recency=found.history.category_recency,
            category_slow=found.history.category_slow,
            category_fast=found.history.category_fast,
            recent=found.history.recent,
            user=found.user,
            messages=found.memory.messages,
            deal_category=found.memory.deal_category,
            deal_depth=found.memory.deal_depth,
            deal_weeks_ago=found.memory.deal_weeks_ago,
            embedding=self.encoder.embed(found.texts),
            text=tuple(found.texts),
            last_template=tuple(user.last_template for user in users),
        )

    def texts_of(self, users: Sequence[UserEvents], context: Context) -> list[str]:
        """Return the texts by which the encoder knows the users, [n]."""
        week = decision_week(context, self.settings, self.tables)
        return replay(users, self.settings, self.tables, week.week, week.weeks_left).texts

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embeddings of any texts, [m, d]."""
        return self.encoder.embed(texts)

    def decide(
        self,
        users: Sequence[UserEvents] | UserStates,
        context: Context,
        *,
        rng: np.random.Generator | None = None,
        uniform: npt.NDArray[np.float64] | None = None,
    ) -> Decisions:
        """Draw an offer for each user.

        Args:
            users: events, or states worked out before.
            context: week, price and budget.
            rng: source of randomness; the policy is stochastic so that its decisions can be evaluated.
            uniform: [n] numbers in [0, 1) to draw by instead.

        Raises:
            DecisionInputError: users or context are not as the policy needs them; neither or both of ``rng``
                and ``uniform`` are given.
        """
        week = decision_week(context, self.settings, self.tables)
        states = users if isinstance(users, UserStates) else self.states(users, context)
        twice = _repeated(states.user_id)
        if twice is not None:
            raise DecisionInputError(
                f"users[{twice}] has the id of an earlier one; a user is decided for once"
            )
        numbers = uniforms(len(states), rng, uniform)
        probabilities, slots, observation = self._ask(states, week)
        exact = normalised(probabilities, 0)
        offer, propensity = draw(exact, numbers)
        first = self.columns.index("allowed_0")
        return Decisions(
            user_id=states.user_id,
            offer=offer,
            propensity=propensity,
            probabilities=exact,
            mask=observation[:, first : first + len(self.offers)] > 0.5,
            observation=observation,
            slots=slots,
            embedding=states.embedding,
            week=week.week,
            weeks_left=week.weeks_left,
            dual_price=week.dual_price,
            pressure=week.pressure,
            catalogue=self.catalogue,
            categories=self.categories,
            columns=self.columns,
            write_messages=partial(self._messages, states, week),
        )

    def _ask(
        self, states: UserStates, week: DecisionWeek
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Run the graph block by block: probabilities [n, K], slots [n, M], observations [n, o]."""
        n = len(states)
        widths = {"category_slow": len(self.categories), "embedding": self.encoder.width}
        for name, width in widths.items():
            if getattr(states, name).shape[1:] != (width,):
                raise DecisionInputError(
                    f"states: {name} has shape {getattr(states, name).shape}, expected {(n, width)}"
                )
        if ((states.deal_category < -1) | (states.deal_category >= len(self.categories))).any():
            raise DecisionInputError(f"states: deal_category must be in -1..{len(self.categories) - 1}")
        price = np.array([[week.dual_price, week.pressure]], dtype=np.float32)
        shared = {"calendar": week.calendar, "week": week.terms, "available": week.available}

        def run(first: int) -> list[npt.NDArray[Any]]:
            feed = states.feed(first, min(first + BLOCK_USERS, n))
            feed["price"] = np.repeat(price, len(feed["user"]), axis=0)
            found: list[npt.NDArray[Any]] = self._graph.run(list(OUTPUTS), feed | shared)
            return found

        starts = range(0, n, BLOCK_USERS)
        parts = list(self._pool.map(run, starts) if self._pool and n > BLOCK_USERS else map(run, starts))
        probabilities, slots, observation = (
            np.concatenate(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)
        )
        return probabilities, slots, observation

    def _messages(self, states: UserStates, week: DecisionWeek, decisions: Decisions) -> list[Message | None]:
        if self.book is None:
            return [None] * len(decisions)
        return self.book.best(
            [self.catalogue[k] for k in decisions.offer],
            decisions.category_index,
            decisions.slots,
            decisions.embedding,
            season=season_of_week(self.settings.first_week_of_year + week.week - 1),
            user_texts=states.text or None,
            query=week.query,
            last_template=states.last_template or None,
        )

    @cached_property
    def rows(self) -> ObservationPolicy:
        """The inner policy, for observation rows that were made elsewhere."""
        return ObservationPolicy.of_bundle(self._bundle, self.settings)

    def probabilities(
        self, observation: npt.NDArray[np.floating[Any]], *, first_row: int = 0
    ) -> npt.NDArray[np.float32]:
        """Return the probability of each offer for observation rows; see :class:`ObservationPolicy`."""
        return self.rows.probabilities(observation, first_row=first_row)

    def decide_rows(
        self,
        observation: npt.NDArray[np.floating[Any]],
        *,
        rng: np.random.Generator | None = None,
        uniform: npt.NDArray[np.float64] | None = None,
        first_row: int = 0,
    ) -> RowDecisions:
        """Draw an offer for each observation row; see :class:`ObservationPolicy`."""
        return self.rows.decide(observation, rng=rng, uniform=uniform, first_row=first_row)


def _repeated(ids: Sequence[str]) -> int | None:
    """Place of the first id that stood before, or None."""
    if len(set(ids)) == len(ids):
        return None
    seen: set[str] = set()
    for place, one in enumerate(ids):
        if one in seen:
            return place
        seen.add(one)
    return None
