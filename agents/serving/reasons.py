"""Why a decision came out as it did: short codes for machines, and words for people.

They are read off what the policy saw (the predictor's uplift and cost, the mask, the user's context), not off
the network: they say what spoke for a decision, not what the network made of it. For that see
``couponlab explain policy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.serving.offer_terms import OfferTerms

RESTED_FATIGUE = 0.1
LAPSED_WEEKS = 4
LIKELY_VISIT = 0.8


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        code: for machines; the codes are those of this file.
        words: for people.
    """

    code: str
    words: str


@dataclass(frozen=True, eq=False)
class Seen:
    """What the policy saw of one user.

    Attributes:
        context: names of the context columns -> values.
        uplift: [K] predicted margin that an offer adds.
        use: [K] budget that it uses: predicted cost and reserve.
        allowed: [K] bool.
        probabilities: [K].
        dual_price: λ.
    """

    context: Mapping[str, float]
    uplift: npt.NDArray[np.float32]
    use: npt.NDArray[np.float32]
    allowed: npt.NDArray[np.bool_]
    probabilities: npt.NDArray[np.float64]
    dual_price: float

    @property
    def net(self) -> npt.NDArray[np.float32]:
        """[K] uplift less the worth of the budget used."""
        return self.uplift - np.float32(self.dual_price) * self.use


def reasons(
    offer: int, offers: tuple[OfferTerms, ...], seen: Seen, category: str | None
) -> tuple[Reason, ...]:
    """Return the reasons of a decision, what weighs most first.

    Args:
        offer: index of what was decided.
        offers: the catalogue.
        seen: what the policy saw.
        category: that the offer covers, in words.
    """
    found = (
        _of_nothing(offers, seen)
        if offers[offer].kind == "none"
        else _of_offer(offer, offers, seen, category)
    )
    if seen.probabilities[offer] < seen.probabilities.max():
        likeliest = offers[int(seen.probabilities.argmax())].name
        found.append(
            Reason(
                "DRAWN",
                f"drawn with propensity {seen.probabilities[offer]:.3g}; the most probable was {likeliest!r} "
                f"at {seen.probabilities.max():.3g}",
            )
        )
    return tuple(found)


def _of_nothing(offers: tuple[OfferTerms, ...], seen: Seen) -> list[Reason]:
    found = []
    message = np.array([one.is_message for one in offers])
    if seen.context["opted_in"] <= 0:
        found.append(Reason("OPTED_OUT", "the user wants no messages"))
    elif seen.context["messages_left"] <= 0 and not seen.allowed[message].any():
        found.append(Reason("FREQUENCY_CAP", "the frequency cap leaves no message for this week"))
    if seen.context["coupon_held"] > 0:
        found.append(Reason("COUPON_HELD", "the user still holds a coupon"))
    sendable = seen.allowed.copy()
    sendable[0] = False
    if not sendable.any():
        if not found:
            found.append(Reason("BUDGET_SHORT", "the budget left does not cover any offer"))
        return found
    best = int(np.where(sendable, seen.net, -np.inf).argmax())
    if seen.net[best] <= 0:
        found.append(
            Reason(
                "NOT_WORTH_ITS_BUDGET",
                f"the best offer, {offers[best].name!r}, is predicted to add {seen.uplift[best]:.3f} of "
                f"margin, less than its budget is worth ({seen.dual_price * seen.use[best]:.3f})",
            )
        )
    else:
        found.append(
            Reason(
                "WAITING",
                f"{offers[best].name!r} would pay now, but the policy expects more of keeping it for later",
            )
        )
    return found


def _of_offer(offer: int, offers: tuple[OfferTerms, ...], seen: Seen, category: str | None) -> list[Reason]:
    uplift, worth = float(seen.uplift[offer]), seen.dual_price * float(seen.use[offer])
    words = f"predicted to add {uplift:.3f} of margin for budget worth {worth:.3f}"
    found = [
        Reason("WORTH_ITS_BUDGET", words)
        if uplift > worth
        else Reason("BEYOND_THE_WEEK", f"{words}; the policy expects more of it in later weeks")
    ]
    terms, context = offers[offer], seen.context
    if category is not None:
        rank = ("most", "second most", "third most")
        place = f"{rank[terms.slot - 1]} " if terms.slot <= len(rank) else f"{terms.slot}th most "
        found.append(Reason("LIKELY_CATEGORY", f"{category} is the user's {place}likely purchase"))
    if terms.is_message and context["fatigue"] <= RESTED_FATIGUE:
        found.append(Reason("RESTED", "hardly any messages lately"))
    weeks = float(np.exp(context["log_visit_recency"]))
    if weeks >= LAPSED_WEEKS:
        found.append(Reason("LAPSED", f"last visit {weeks:.0f} weeks ago"))
    elif context["visit_probability"] >= LIKELY_VISIT:
        found.append(
            Reason(
                "FREQUENT_VISITOR", f"likely to visit ({context['visit_probability']:.0%}) even without it"
            )
        )
    return found
