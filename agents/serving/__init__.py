"""Serving an exported policy with numpy, onnxruntime and tokenizers; torch is neither needed nor imported.

    policy = CouponPolicy.load("runs/default/export")
    decisions = policy.decide(users, Context(date=today, budget_per_user=0.5), rng=numpy.random.default_rng())

``users`` are raw events in the columns of the log schema, or states worked out before. Bundles are checked on
loading: a file that was changed or lost is refused.
"""

from agents.serving.bundle import SCHEMA_VERSION, Bundle
from agents.serving.context import Context, Promotion
from agents.serving.decisions import Decisions
from agents.serving.errors import BundleError, DecisionInputError
from agents.serving.events import MOST_EVENTS, Purchases, SentOffer, UserEvents
from agents.serving.json_input import context_from_json, user_from_json
from agents.serving.observation_rows import ObservationPolicy, RowDecisions
from agents.serving.offer_terms import OfferTerms
from agents.serving.policy import CouponPolicy
from agents.serving.reasons import Reason
from agents.serving.states import UserStates

__all__ = [
    "MOST_EVENTS",
    "SCHEMA_VERSION",
    "Bundle",
    "BundleError",
    "Context",
    "CouponPolicy",
    "DecisionInputError",
    "Decisions",
    "ObservationPolicy",
    "OfferTerms",
    "Promotion",
    "Purchases",
    "Reason",
    "RowDecisions",
    "SentOffer",
    "UserEvents",
    "UserStates",
    "context_from_json",
    "user_from_json",
]
