"""What goes in and out over HTTP, as OpenAPI shows it.

These models check form: names, types, sizes, finite numbers. Whether offers, categories and dates are known
is for the policy to say (:func:`agents.serving.user_from_json`), so that files and HTTP are read by one
rule.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_USERS = 1_000
"""Users in one request; more are sent in several, or decided for from a file."""
MOST_EVENTS = 20_000
"""Events of one kind of one user."""
MOST_MONEY = 1e9
"""Largest amount that is taken for serious, log's currency."""

ID_FORM = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=ID_FORM)]
RequestId = Annotated[
    Identifier,
    Field(
        description="Chosen by the caller, new for each request. A retry with the same id and body gets the "
        "first answer; nothing is done twice.",
        examples=["2017-11-20-batch-7"],
    ),
]
DecisionId = Annotated[
    Identifier, Field(description="From an answer of /decide.", examples=["0f1e2d3c4b5a69788796a5b4c3d2e1f0"])
]
Text = Annotated[str, StringConstraints(max_length=2_000)]
Short = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Timestamp = Annotated[
    str,
    StringConstraints(min_length=10, max_length=40),
    Field(description="ISO 8601, the shop's local time.", examples=["2017-10-02T18:05:00"]),
]
Money = Annotated[float, Field(ge=0.0, le=MOST_MONEY)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Transaction(_Body):
    """A line of a receipt."""

    timestamp: Timestamp
    basket_id: Short
    item_id: Short | None = Field(default=None, description="As in the logs; or give the category.")
    category: Short | None = None
    spend: Money
    coupon_discount: Money = 0.0
    quantity: float | None = None
    discount: float | None = None
    store_id: Short | None = None


class SentOffer(_Body):
    """An offer that was sent to the user."""

    timestamp: Timestamp
    offer: Short = Field(description="Name in the policy's catalogue.")
    category: Short | None = Field(default=None, description="Of a percent coupon.")


class Redemption(_Body):
    """The use of the coupon that the user held then."""

    timestamp: Timestamp


class User(_Body):
    """A user and what is known of him; only ``user_id`` is needed."""

    user_id: Short
    profile: Text | dict[Short, Short] | None = Field(
        default=None, description="Words on the user, or columns of the log's users table."
    )
    opted_in: bool | None = Field(default=None, description="Whether push messages are consented to.")
    since: Timestamp | None = Field(default=None, description="First day on which the user was observed.")
    transactions: list[Transaction] | None = Field(default=None, max_length=MOST_EVENTS)
    offers: list[SentOffer] | None = Field(default=None, max_length=MOST_EVENTS)
    redemptions: list[Redemption] | None = Field(default=None, max_length=MOST_EVENTS)


class Promotion(_Body):
    """Mass promotion of the week by category; what is not named is as in a week without."""

    depth: dict[Short, float] | None = Field(default=None, max_length=MOST_EVENTS)
    display: dict[Short, float] | None = Field(default=None, max_length=MOST_EVENTS)
    mailer: dict[Short, float] | None = Field(default=None, max_length=MOST_EVENTS)
    category_trend: dict[Short, float] | None = Field(default=None, max_length=MOST_EVENTS)
    visit_trend: float | None = None


class Context(_Body):
    """The week that is decided for; ``date`` or ``week`` is needed. The ledger says what is left."""

    date: Timestamp | None = Field(default=None, examples=["2017-11-20"])
    week: int | None = Field(default=None, ge=0, le=100_000, description="1-based week of the log.")
    weeks_left: int | None = Field(default=None, ge=1, le=1_000, description="This one included.")
    budget_per_user: Money | None = Field(
        default=None, description="Of the whole campaign: sets the dual price by the policy's plan."
    )
    left_per_user: Money | None = Field(
        default=None, description="Money not spent yet, instead: sets the dual price by what is left."
    )
    dual_price: Money | None = Field(default=None, description="Margin that a unit of budget must bring.")
    pressure: float | None = None
    query: Text | None = Field(default=None, description="What the user asked for, in his words.")
    promotion: Promotion | None = None


class DecideRequest(_Body):
    """Users to decide for in a week."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "2017-11-20-batch-7",
                    "campaign": "autumn",
                    "context": {"date": "2017-11-20", "weeks_left": 6},
                    "users": [
                        {
                            "user_id": "1001",
                            "transactions": [
                                {
                                    "timestamp": "2017-11-13T18:05:00",
                                    "basket_id": "b1",
                                    "category": "SOFT DRINKS",
                                    "spend": 2.99,
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )

    request_id: RequestId
    campaign: Identifier = Field(description="Whose budget.")
    context: Context
    users: list[User] = Field(
        min_length=1,
        max_length=MOST_USERS,
        description="Each once. A user gets one decision a campaign and week; asked for again, it stands.",
    )


class Reason(BaseModel):
    """Why an offer was drawn or not sent."""

    code: str
    words: str


class Decision(BaseModel):
    """What to send to a user."""

    user_id: str
    decision_id: str
    offer: str
    channel: str | None
    category: str | None
    depth: float
    message: str | None
    reasons: list[Reason]
    propensity: float = Field(description="Probability with which the policy drew its offer.")
    refused: bool = Field(
        description="The policy drew an offer that the budget did not cover; nothing is to be sent."
    )
    expires_at: int | None = Field(description="UNIX time from which the coupon is void.")
    standing: bool = Field(description="The user's decision of this week was made by an earlier request.")


class DecideAnswer(BaseModel):
    """Decisions in the order of the users."""

    campaign: str
    week: int
    decisions: list[Decision]


class RedeemRequest(_Body):
    """A coupon that was used at the till."""

    request_id: RequestId
    decision_id: DecisionId
    cost: Money = Field(description="Discount that was taken off, log's currency.", examples=[0.6])


class ReleaseRequest(_Body):
    """A coupon that will not be used, such as one that never arrived."""

    request_id: RequestId
    decision_id: DecisionId


class CouponAnswer(BaseModel):
    """What became of a coupon."""

    decision_id: str
    state: str
    cost: float


class OutcomeBody(_Body):
    """What followed a decision; to be sent for every decision, also where nothing was bought."""

    decision_id: DecisionId
    margin: float = Field(
        ge=-MOST_MONEY,
        le=MOST_MONEY,
        description="Contribution margin of the user's week before coupon cost, log's currency.",
        examples=[4.2],
    )
    redeemed_cost: Money | None = Field(
        default=None, description="Discount taken with the coupon; needed only if /redeem was not called."
    )


class FeedbackRequest(_Body):
    """Outcomes; all are noted, or none."""

    request_id: RequestId
    outcomes: list[OutcomeBody] = Field(min_length=1, max_length=MOST_USERS)


class FeedbackAnswer(BaseModel):
    """How many outcomes were noted."""

    recorded: int


class Health(BaseModel):
    """The service works."""

    status: str
    policy: str


class Problem(BaseModel):
    """Where a body is wrong."""

    where: str
    problem: str


class Error(BaseModel):
    """What went wrong."""

    code: str
    message: str
    problems: list[Problem] | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: Error


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body is not JSON in UTF-8, or ended early.",
        401: "No API key, or an unknown one.",
        404: "No such campaign, decision or coupon.",
        408: "The body did not arrive in time.",
        409: "The request id was used for something else, or the coupon or decision has ended.",
        413: "The body is too large.",
        422: "The body does not have the form needed, or names what the policy does not know.",
        429: "Too many requests; see Retry-After.",
        503: "The database did not answer in time, or cannot work. Try again with the same request_id.",
        504: "The request took too long. Try again with the same request_id.",
    }.items()
}
"""Answers that every operation may give."""
