"""Tables of the service. Money is whole ticks (:mod:`envs.ticks`), times are UNIX seconds.

The database itself refuses what must never be: more spent and reserved than the budget, a redemption above
its liability, a second decision for a user and week.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1
ID_LENGTH = 128
"""Most characters of a campaign, request or commitment id."""
USER_KEY_LENGTH = 32

METADATA = MetaData()

schema_versions = Table("schema_versions", METADATA, Column("version", Integer, primary_key=True))

budgets = Table(
    "budgets",
    METADATA,
    Column("campaign", String(ID_LENGTH), primary_key=True),
    Column("budget", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    CheckConstraint("spent >= 0 AND reserved >= 0", name="counters_not_negative"),
    CheckConstraint("spent + reserved <= budget", name="within_budget"),
)
"""One hard cap a campaign: settled discounts and delivery costs, and the liability outstanding."""

requests = Table(
    "requests",
    METADATA,
    Column("request_id", String(ID_LENGTH), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("answer", Text, nullable=True),
    Column("received_at", BigInteger, nullable=False),
)
"""What was asked and answered; the answer is written in the transaction that did the work."""

commitments = Table(
    "commitments",
    METADATA,
    Column("commitment_id", String(ID_LENGTH), primary_key=True),
    Column("campaign", String(ID_LENGTH), ForeignKey(budgets.c.campaign), nullable=False),
    Column("request_id", String(ID_LENGTH), ForeignKey(requests.c.request_id), nullable=False),
    Column("user_key", String(USER_KEY_LENGTH), nullable=False),
    Column("charge", BigInteger, nullable=False),
    Column("liability", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("granted_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger, nullable=True),
    CheckConstraint("charge >= 0 AND liability >= 0", name="amounts_not_negative"),
    CheckConstraint("cost >= 0 AND cost <= liability", name="cost_within_liability"),
    CheckConstraint("state IN ('reserved', 'settled', 'released', 'expired')", name="known_state"),
    CheckConstraint("state = 'settled' OR cost = 0", name="only_settled_cost"),
)
"""What was granted to a user: a charge, and a liability that is reserved until it ends one way or another."""

Index(
    "commitments_due",
    commitments.c.campaign,
    commitments.c.expires_at,
    sqlite_where=commitments.c.state == "reserved",
    postgresql_where=commitments.c.state == "reserved",
)

policies = Table(
    "policies",
    METADATA,
    Column("fingerprint", String(64), primary_key=True),
    Column("observation_names", Text, nullable=False),
    Column("offer_names", Text, nullable=False),
)
"""The bundles that decided: what the numbers of their decisions mean, as JSON lists."""

decisions = Table(
    "decisions",
    METADATA,
    Column("decision_id", String(ID_LENGTH), primary_key=True),
    Column("request_id", String(ID_LENGTH), ForeignKey(requests.c.request_id), nullable=False),
    Column("campaign", String(ID_LENGTH), ForeignKey(budgets.c.campaign), nullable=False),
    Column("user_key", String(USER_KEY_LENGTH), nullable=False),
    Column("week", Integer, nullable=False),
    Column("weeks_left", Integer, nullable=False),
    Column("policy", String(64), ForeignKey(policies.c.fingerprint), nullable=False),
    Column("offer", Integer, nullable=False),
    Column("refused", Boolean, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("dual_price", Double, nullable=False),
    Column("observation", LargeBinary, nullable=False),
    Column("mask", LargeBinary, nullable=False),
    Column("probabilities", LargeBinary, nullable=False),
    Column("answer", Text, nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    UniqueConstraint("campaign", "user_key", "week", name="one_decision_a_week"),
    CheckConstraint("propensity > 0 AND propensity <= 1", name="proper_propensity"),
)
"""Every draw: the offer drawn, also where the ledger then refused it; arrays as little-endian bytes."""

feedback = Table(
    "feedback",
    METADATA,
    Column("decision_id", String(ID_LENGTH), ForeignKey(decisions.c.decision_id), primary_key=True),
    Column("request_id", String(ID_LENGTH), ForeignKey(requests.c.request_id), nullable=False),
    Column("margin", Double, nullable=False),
    Column("received_at", BigInteger, nullable=False),
)
"""What followed: contribution margin before coupon cost, in the log's currency. Costs are the ledger's."""
