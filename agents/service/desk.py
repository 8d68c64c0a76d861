"""What the service does, without HTTP: decide under the budget, redeem, release, take feedback.

Each call is one transaction and idempotent by request id. A user gets one decision a campaign and week; asked
again, by another request, that decision stands. Where the ledger cannot cover an offer the user gets none:
the decision keeps the offer that the policy drew and its propensity, and is marked as refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from agents.service import ledger
from agents.service.database import Database
from agents.service.granting import Ask
from agents.service.idempotency import claim, find_answer, hash_body, store_answer
from agents.service.keys import ServiceKeys
from agents.service.outcomes import Outcome, note_outcomes
from agents.service.policy_port import DecisionMaker, Draws, JsonObject
from agents.service.tables import decisions, policies
from envs.ticks import TICKS_PER_UNIT, to_ticks

WEEK_SECONDS = 7 * 24 * 3600
REFUSED_REASON = {"code": "BUDGET_EXHAUSTED", "words": "the campaign's budget does not cover this offer"}


class RepeatedUserError(ValueError):
    """A request names a user twice."""


@dataclass(frozen=True)
class Answer:
    """What a call came to.

    Attributes:
        content: JSON object for the caller.
        repeated: whether the request had been carried out before, and this is its answer again.
    """

    content: dict[str, Any]
    repeated: bool


@dataclass(frozen=True)
class CouponDesk:
    """The service over a database and a policy. Safe to call from several threads and processes.

    Attributes:
        database: the ledger and the decision log.
        policy: who decides.
        keys: pseudonyms and draws.
        grace_seconds: for how long after a coupon's last day its redemption can still be reported.
        clock: UNIX time.
    """

    database: Database
    policy: DecisionMaker
    keys: ServiceKeys
    grace_seconds: int = 0
    clock: Callable[[], float] = time.time

    def register_policy(self) -> None:
        """Note in the database what the numbers of this policy's decisions mean."""
        row = {
            "fingerprint": self.policy.fingerprint,
            "observation_names": json.dumps(self.policy.columns),
            "offer_names": json.dumps([offer.name for offer in self.policy.offers]),
        }
        with self.database.write() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            connection.execute(insert(policies).values(row).on_conflict_do_nothing())

    def decide(
        self, request_id: str, campaign: str, users: Sequence[JsonObject], context: JsonObject
    ) -> Answer:
        """Draw an offer for each user, and commit what the budget covers.

        Args:
            request_id: chosen by the caller; a retry repeats it.
            campaign: whose budget.
            users: n users with their events, each with a ``user_id``.
            context: the week, and what the policy should know of it.

        Returns:
            ``{"week": …, "decisions": [n objects in the order of users]}``.

        Raises:
            RequestConflictError: the id stands for another request.
            RepeatedUserError: a user comes twice.
            DecisionInputError: users or context cannot be read.
            UnknownError: there is no such campaign.
        """
        user_ids = [str(user["user_id"]) for user in users]
        _refuse_repeats(user_ids)
        digest = hash_body({"campaign": campaign, "users": users, "context": context})
        now = int(self.clock())
        with self.database.read() as connection:
            answered = find_answer(connection, request_id, "decide", digest)
            if answered is not None:
                return Answer(_with_user_ids(answered, user_ids), repeated=True)
            available = ledger.read_available(connection, campaign, now=now) / TICKS_PER_UNIT
        user_keys = [self.keys.user_key(user_id) for user_id in user_ids]
        week = self.policy.week_of(context)
        draws = self.policy.draw(users, context, self.keys.uniforms(campaign, week, user_keys), available)
        with self.database.write() as connection:
            answered = claim(connection, request_id, "decide", digest, now=now)
            if answered is not None:
                return Answer(_with_user_ids(answered, user_ids), repeated=True)
            decided = self._commit_draws(connection, request_id, campaign, week, user_keys, draws, now)
            content = {"campaign": campaign, "week": week, "decisions": decided}
            store_answer(connection, request_id, content)
        return Answer(_with_user_ids(content, user_ids), repeated=False)

    def _commit_draws(
        self,
        connection: Connection,
        request_id: str,
        campaign: str,
        week: int,
        user_keys: Sequence[str],
        draws: Draws,
        now: int,
    ) -> list[dict[str, Any]]:
        # From here on nobody else decides for this campaign, so what stands now is all there is.
        ledger.read_balance(connection, campaign, lock=True)
        ids = [self.keys.decision_id(campaign, week, key) for key in user_keys]
        found = connection.execute(
            select(decisions.c.decision_id, decisions.c.answer).where(decisions.c.decision_id.in_(ids))
        )
        standing = {row.decision_id: json.loads(row.answer) for row in found}
        new = [place for place, decision_id in enumerate(ids) if decision_id not in standing]
        asks = [self._ask(ids[place], user_keys[place], draws, place, now) for place in new]
        granted = ledger.reserve(connection, campaign, request_id, asks, seed=self.keys.grant_seed, now=now)
        rows = []
        for place, ask, fits in zip(new, asks, granted, strict=True):
            offer = int(draws.offer[place])
            answer = self._answer(ask, draws.answers[place], refused=not fits)
            answer["propensity"] = float(draws.probabilities[place, offer])
            standing[ask.commitment_id] = answer
            rows.append(
                {
                    "decision_id": ask.commitment_id,
                    "request_id": request_id,
                    "campaign": campaign,
                    "user_key": ask.user_key,
                    "week": week,
                    "weeks_left": draws.weeks_left,
                    "policy": self.policy.fingerprint,
                    "offer": offer,
                    "refused": not fits,
                    "propensity": answer["propensity"],
                    "dual_price": draws.dual_price,
                    "observation": np.ascontiguousarray(draws.observation[place], dtype="<f4").tobytes(),
                    "mask": np.packbits(draws.mask[place]).tobytes(),
                    "probabilities": np.ascontiguousarray(draws.probabilities[place], dtype="<f8").tobytes(),
                    "answer": json.dumps(answer, allow_nan=False),
                    "decided_at": now,
                }
            )
        if rows:
            connection.execute(decisions.insert(), rows)
        fresh = {ids[place] for place in new}
        return [standing[decision_id] | {"standing": decision_id not in fresh} for decision_id in ids]

    def _ask(self, decision_id: str, user_key: str, draws: Draws, place: int, now: int) -> Ask:
        price = self.policy.offers[int(draws.offer[place])]
        weeks = min(price.validity_weeks, draws.weeks_left)  # no coupon outlives the campaign
        lifetime = weeks * WEEK_SECONDS + self.grace_seconds if price.liability else 0
        return Ask(decision_id, user_key, price.charge, price.liability, now + lifetime)

    def _answer(self, ask: Ask, drawn: JsonObject, *, refused: bool) -> dict[str, Any]:
        shown: dict[str, Any] = dict(drawn)
        if refused:
            nothing = {"offer": self.policy.offers[0].name, "reasons": [REFUSED_REASON]}
            shown = dict.fromkeys(shown) | {"depth": 0.0} | nothing
        expires_at = ask.expires_at if ask.liability and not refused else None
        return shown | {"decision_id": ask.commitment_id, "refused": refused, "expires_at": expires_at}

    def redeem(self, request_id: str, decision_id: str, cost: float) -> Answer:
        """Settle a coupon: ``cost`` currency was taken off at the till.

        Raises:
            RequestConflictError: the id stands for another request.
            UnknownError: no coupon was issued by that decision.
            ClosedError: it was redeemed, released, or has expired.
            LedgerError: the cost is above what the coupon can cost.
        """

        def work(connection: Connection, now: int) -> dict[str, Any]:
            ledger.settle(connection, {decision_id: to_ticks(cost)}, now=now)
            return {"decision_id": decision_id, "state": ledger.CommitmentState.SETTLED, "cost": cost}

        return self._once(request_id, "redeem", {"decision_id": decision_id, "cost": cost}, work)

    def release(self, request_id: str, decision_id: str) -> Answer:
        """Take a coupon back that will not be used, such as one that never arrived.

        Raises:
            RequestConflictError: the id stands for another request.
            UnknownError: no coupon was issued by that decision.
            ClosedError: it was redeemed, released, or has expired.
        """

        def work(connection: Connection, now: int) -> dict[str, Any]:
            ledger.release(connection, decision_id, now=now)
            return {"decision_id": decision_id, "state": ledger.CommitmentState.RELEASED, "cost": 0.0}

        return self._once(request_id, "release", {"decision_id": decision_id}, work)

    def take_feedback(self, request_id: str, outcomes: Sequence[Outcome]) -> Answer:
        """Note what followed decisions: all of them, or none if one cannot be.

        Raises:
            RequestConflictError: the id stands for another request.
            UnknownError: there is no such decision.
            FeedbackConflictError: an outcome was reported before, or its cost is not what was redeemed.
            LedgerError: a cost is above what the coupon can cost.
        """

        def work(connection: Connection, now: int) -> dict[str, Any]:
            note_outcomes(connection, request_id, outcomes, now=now)
            return {"recorded": len(outcomes)}

        body = [[outcome.decision_id, outcome.margin, outcome.redeemed_cost] for outcome in outcomes]
        return self._once(request_id, "feedback", body, work)

    def _once(
        self, request_id: str, kind: str, body: Any, work: Callable[[Connection, int], dict[str, Any]]
    ) -> Answer:
        now = int(self.clock())
        digest = hash_body(body)
        with self.database.write() as connection:
            answered = claim(connection, request_id, kind, digest, now=now)
            if answered is not None:
                return Answer(answered, repeated=True)
            content = work(connection, now)
            store_answer(connection, request_id, content)
        return Answer(content, repeated=False)


def _refuse_repeats(user_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for place, user_id in enumerate(user_ids):
        if user_id in seen:
            raise RepeatedUserError(
                f"users[{place}]: user_id comes a second time; a user gets one decision a week"
            )
        seen.add(user_id)


def _with_user_ids(content: dict[str, Any], user_ids: Sequence[str]) -> dict[str, Any]:
    """Put ids beside decisions. They are not stored: the caller, who sent the same request, has them."""
    named = [
        {"user_id": user_id} | decision
        for user_id, decision in zip(user_ids, content["decisions"], strict=True)
    ]
    return content | {"decisions": named}
