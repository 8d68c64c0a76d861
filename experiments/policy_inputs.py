"""The inputs of a policy in groups that tell of one thing each, with words for people.

Groups are found by the names of columns, so that they hold for a policy of any number of offers and for
inputs that are not known here: such a column is a group by itself, and columns numbered from 0 are one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.history import RECENT_BASKETS

DoubleArray = npt.NDArray[np.float64]

ALLOWED = "allowed"
EMBEDDING = "embedding"
_NUMBERED = re.compile(r"(\w+)_(\d+)")


@dataclass(frozen=True)
class Gauge:
    """One number by which users are put in order from low to high on a group.

    Attributes:
        column: a column, or a block of which one number is made.
        low: users with low values in words; ``{}`` stands for the highest of these values.
        high: users with high values in words; ``{}`` stands for the lowest of these values.
        say: writes a value as it is read by people.
        of_block: makes one number of a block's columns, [N, K - 1], sending nothing left out; to [N].
    """

    column: str
    low: str
    high: str
    say: Callable[[float], str]
    of_block: Callable[[DoubleArray], DoubleArray] | None = None


@dataclass(frozen=True)
class _Known:
    """A group as it is known before a policy is seen; ``columns`` are columns or blocks."""

    name: str
    words: str
    columns: tuple[str, ...]
    gauge: Gauge | None


def _number(value: float) -> str:
    return f"{value:.2f}"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _exponential(value: float) -> str:
    return f"{np.exp(value):.2f}"


def _weeks(value: float) -> str:
    return "1 week" if round(value) == 1 else f"{value:.0f} weeks"


def _log_weeks(value: float) -> str:
    return _weeks(float(np.exp(value)))


def _offers(value: float) -> str:
    return "1 offer" if round(value) == 1 else f"{value:.0f} offers"


def _log_categories(value: float) -> str:
    count = round(float(np.expm1(value)))
    return "1 category" if count == 1 else f"{count} categories"


def _mean(block: DoubleArray) -> DoubleArray:
    return np.asarray(block.mean(axis=1))


def _best(block: DoubleArray) -> DoubleArray:
    return np.asarray(block.max(axis=1))


def _total(block: DoubleArray) -> DoubleArray:
    return np.asarray(block.sum(axis=1))


_KNOWN = (
    _Known(
        "visits",
        "how often and how lately the user visits",
        ("visit_probability", "slow_visit_logit", "fast_visit_logit", "log_visit_recency"),
        Gauge(
            "log_visit_recency",
            "users whose last visit was within {}",
            "users whose last visit was {} ago or longer",
            _log_weeks,
        ),
    ),
    _Known(
        "basket_value",
        "what a basket is worth",
        ("log_basket_size", "log_basket_spend", "expected_basket_margin"),
        Gauge(
            "expected_basket_margin",
            "users whose visit is expected to earn at most {}",
            "users whose visit is expected to earn {} or more",
            _number,
        ),
    ),
    _Known(
        "recent_baskets",
        "how much was bought in each of the last weeks",
        tuple(f"log_basket_{k}_weeks_ago" for k in range(1, RECENT_BASKETS + 1)),
        Gauge(
            "log_basket_1_weeks_ago",
            "users who bought from at most {} last week",
            "users who bought from {} or more last week",
            _log_categories,
        ),
    ),
    _Known(
        "trips",
        "how many shopping trips the user makes",
        ("log_slow_trips", "log_fast_trips", "last_trips"),
        Gauge(
            "log_slow_trips",
            "users who make at most {} trips a week",
            "users who make {} trips a week or more",
            _exponential,
        ),
    ),
    _Known(
        "uplift",
        "how much each offer is predicted to bring",
        ("uplift",),
        Gauge(
            "uplift",
            "users to whom the best offer is predicted to bring at most {}",
            "users to whom the best offer is predicted to bring {} or more",
            _number,
            _best,
        ),
    ),
    _Known(
        "cost",
        "how much each offer is predicted to cost",
        ("cost",),
        Gauge(
            "cost",
            "users whose offers are predicted to cost at most {} on average",
            "users whose offers are predicted to cost {} or more on average",
            _number,
            _mean,
        ),
    ),
    _Known(
        "reserve",
        "how much of the budget each offer keeps reserved",
        ("reserve",),
        Gauge(
            "reserve",
            "users whose offers reserve at most {} on average",
            "users whose offers reserve {} or more on average",
            _number,
            _mean,
        ),
    ),
    _Known(
        "fatigue",
        "how tired the user is of messages",
        ("fatigue",),
        Gauge(
            "fatigue",
            "users least tired of messages (fatigue of at most {})",
            "users most tired of messages (fatigue of {} or more)",
            _number,
        ),
    ),
    _Known(
        "redemption",
        "how readily the user redeems coupons",
        ("notice_probability",),
        Gauge(
            "notice_probability",
            "users who redeem at most {} of the coupons that they could use",
            "users who redeem {} or more of the coupons that they could use",
            _percent,
        ),
    ),
    _Known(
        "coupon_held",
        "whether the user holds a coupon already",
        ("coupon_held", "coupon_depth", "coupon_weeks_left"),
        Gauge("coupon_held", "users without a coupon", "users who hold a coupon", _count),
    ),
    _Known(
        "weeks_left",
        "how many weeks of the campaign are left",
        ("weeks_left",),
        Gauge(
            "weeks_left",
            "users with at most {} of the campaign left",
            "users with {} or more of the campaign left",
            _weeks,
        ),
    ),
    _Known(
        "promotion",
        "whether the promotion calendar speaks for many visits",
        ("visit_trend",),
        Gauge(
            "visit_trend",
            "users in weeks with few visits expected (trend of at most {})",
            "users in weeks with many visits expected (trend of {} or more)",
            lambda value: f"{value:+.3f}",
        ),
    ),
    _Known(
        "dual_price",
        "how dear the budget is",
        ("log_dual_price", "pressure"),
        Gauge(
            "log_dual_price",
            "users at a dual price of at most {}",
            "users at a dual price of {} or more",
            _exponential,
        ),
    ),
    _Known(
        "messages_left",
        "how many more messages the frequency cap leaves",
        ("messages_left",),
        Gauge(
            "messages_left",
            "users who may get at most {} more messages",
            "users who may get {} or more messages yet",
            _count,
        ),
    ),
    _Known(
        ALLOWED,
        "what may be sent to the user at all",
        ("opted_in", ALLOWED),
        Gauge(
            ALLOWED,
            "users to whom at most {} may be sent",
            "users to whom {} or more may be sent",
            _offers,
            _total,
        ),
    ),
    _Known(EMBEDDING, "what the user's text embedding says", (EMBEDDING,), None),
)


@dataclass(frozen=True)
class InputGroup:
    """Inputs of a policy that tell of one thing.

    Attributes:
        name: short, for machines.
        words: what they tell, a noun phrase.
        columns: their places in an observation.
        gauge: how users are put in order on it; None where no one number says it.
        gauge_columns: places of the gauge's column or block.
    """

    name: str
    words: str
    columns: tuple[int, ...]
    gauge: Gauge | None
    gauge_columns: tuple[int, ...] = ()

    def gauge_values(self, observation: npt.NDArray[np.float32]) -> DoubleArray | None:
        """Return the number that puts each of the rows [N, o] in order, [N]; None without a gauge."""
        if self.gauge is None:
            return None
        values = observation[:, list(self.gauge_columns)].astype(np.float64)
        return values[:, 0] if self.gauge.of_block is None else self.gauge.of_block(values[:, 1:])


def input_groups(columns: Sequence[str]) -> list[InputGroup]:
    """Sort the columns of an observation into groups; each column is in one of them.

    Args:
        columns: [o] names, as ``policy.json`` lists them under ``observation``.

    Raises:
        ValueError: a name stands twice.
    """
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if list(columns).count(name) > 1)
        raise ValueError(f"the column {twice!r} stands twice in the observation")
    blocks = _blocks(columns)
    places = {name: (place,) for place, name in enumerate(columns)} | blocks
    left = set(range(len(columns)))
    groups = []
    for known in _KNOWN:
        found = [places[name] for name in known.columns if name in places]
        if not found:
            continue
        # Without its column, or with a single one where a block is expected, there is nothing to sort by.
        gauge = known.gauge
        sorted_by = places.get(gauge.column, ()) if gauge else ()
        if gauge is None or len(sorted_by) < (2 if gauge.of_block else 1):
            gauge, sorted_by = None, ()
        own = tuple(place for each in found for place in each)
        groups.append(InputGroup(known.name, known.words, own, gauge, sorted_by))
        left -= set(own)
    for name, block in blocks.items():
        if left.issuperset(block):
            groups.append(InputGroup(name, f"{_spoken(name)} of all offers", block, None))
            left -= set(block)
    groups += [_unknown(columns[place], place) for place in sorted(left)]
    return groups


def _blocks(columns: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Columns ``name_0``, ``name_1``, ... without a gap, at least two, by name."""
    numbered: dict[str, dict[int, int]] = {}
    for place, name in enumerate(columns):
        if (match := _NUMBERED.fullmatch(name)) is not None:
            numbered.setdefault(match[1], {})[int(match[2])] = place
    return {
        name: tuple(places[k] for k in range(len(places)))
        for name, places in numbered.items()
        if len(places) > 1 and set(places) == set(range(len(places)))
    }


def _unknown(name: str, place: int) -> InputGroup:
    spoken = _spoken(name)
    gauge = Gauge(
        name,
        f"users with a {spoken} of at most {{}}",
        f"users with a {spoken} of {{}} or more",
        lambda value: f"{value:.3g}",
    )
    return InputGroup(name, spoken, (place,), gauge, (place,))


def _spoken(name: str) -> str:
    return name.replace("_", " ")
