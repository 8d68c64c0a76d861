"""Groups of users by which policies are looked at: by what the shop predicts, by what users say they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from envs.campaign import Campaign
from envs.observation import CONTEXT_FEATURES

DoubleArray = npt.NDArray[np.float64]

SEGMENTS = ("visit frequency", "basket value", "price sensitivity", "opt-in")
FIFTHS = ("lowest fifth", "second fifth", "middle fifth", "fourth fifth", "highest fifth")
OPTED = ("opted out", "opted in")
UNKNOWN = "unknown"
MOST_ATTRIBUTES = 5


def segment_features(campaign: Campaign) -> dict[str, DoubleArray]:
    """Return what the shop's predictor says of each user as a campaign stands, [n] each, by SEGMENTS.

    Visit frequency is the logit of the slow visit rate, basket value the expected margin of a basket, price
    sensitivity the mean of θ (log odds of a purchase per unit of discount) over the recommended categories,
    opt-in 1 or 0.
    """
    state, predictor = campaign.state, campaign.spec.predictor
    prediction = campaign.prediction
    week = predictor.coefficients(campaign.calendar)
    people = predictor.people(state.history, state.embedding, week)
    outlook = predictor.outlook(people, state.history, state.embedding, state.deals, week, pull=False)
    features = {
        "visit frequency": prediction.context[:, CONTEXT_FEATURES.index("slow_visit_logit")],
        "basket value": prediction.context[:, CONTEXT_FEATURES.index("expected_basket_margin")],
        "price sensitivity": outlook.depth_slope.gather(1, prediction.slots).mean(dim=1),
        "opt-in": state.opted_in,
    }
    return {name: value.double().cpu().numpy() for name, value in features.items()}


def segment_groups(name: str, values: DoubleArray) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the members of each group of a segment that has any, lowest first.

    Args:
        name: of SEGMENTS.
        values: [W, n]; fifths are taken in each campaign for itself.

    Returns:
        [W, n] for each group.
    """
    if name == "opt-in":
        place = values.astype(np.int64)
        names: Sequence[str] = OPTED
    else:
        # Users alike stay together, so that groups need not be of a size.
        edges = np.quantile(values, [0.2, 0.4, 0.6, 0.8], axis=1)
        place = (values[None] > edges[:, :, None]).sum(axis=0)
        names = FIFTHS
    members = {group: place == k for k, group in enumerate(names)}
    return {group: found for group, found in members.items() if found.any()}


def profile_attributes(profiles: Sequence[str], *, least: int) -> dict[str, npt.NDArray[np.str_]]:
    """Return what users say of themselves, read from profile texts such as ``age 45-54, income 50-74K``.

    A part of a profile is a label and a value, both possibly of several words. A label is the shortest
    beginning that no profile has twice, and whatever words always follow it: ``household`` stands for nothing
    where profiles have both ``household size 2`` and ``household comp 1 Adult``.

    Args:
        profiles: [n] texts; empty where nothing is known.
        least: users of a group. An attribute with fewer than two groups of so many is left out.

    Returns:
        By label the value of each user, [n], UNKNOWN where he has none: of the MOST_ATTRIBUTES labels that
        most users have, in the order in which they appear.
    """
    parts = [[tuple(part.split()) for part in text.split(", ")] for text in profiles]
    label_length = _label_lengths(parts)
    values: dict[str, list[str]] = {}
    for user, found in enumerate(parts):
        for words in found:
            length = label_length(words)
            if length < len(words):
                label = " ".join(words[:length])
                values.setdefault(label, [UNKNOWN] * len(parts))[user] = " ".join(words[length:])
    told = {
        label: sum(value != UNKNOWN for value in column)
        for label, column in values.items()
        if sum(n >= least for value, n in Counter(column).items() if value != UNKNOWN) >= 2
    }
    # A stable sort: of labels known of as many users, the first to appear.
    kept = set(sorted(told, key=lambda label: -told[label])[:MOST_ATTRIBUTES])
    return {label: np.array(values[label]) for label in values if label in kept}


def _label_lengths(parts: Sequence[Sequence[tuple[str, ...]]]) -> Callable[[tuple[str, ...]], int]:
    """Tell how many words of a part are its label."""
    following: dict[tuple[str, ...], set[str]] = {}
    repeated: set[tuple[str, ...]] = set()
    for found in parts:
        beginnings = Counter(words[:k] for words in found for k in range(1, len(words)))
        repeated |= {beginning for beginning, times in beginnings.items() if times > 1}
        for words in found:
            for k in range(1, len(words)):
                following.setdefault(words[:k], set()).add(words[k])

    def length(words: tuple[str, ...]) -> int:
        for k in range(1, len(words) - 1):
            beginning = words[:k]
            if beginning not in repeated and len(following[beginning]) > 1:
                return k
        return max(len(words) - 1, 1)

    return length
