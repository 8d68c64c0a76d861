"""What drives a policy's decisions: grouped permutation importance over user-weeks that it played itself.

The values of one group of inputs are dealt out anew, each user getting another's, and the policy is asked
again: what it decides otherwise, it had decided by that group. Breiman (2001), "Random Forests", Machine
Learning 45, section 10, permutes one input and looks at the error; Fisher, Rudin & Dominici (2019), "All
Models are Wrong, but Many are Useful", JMLR 20(177), give each row another's values (their ``e_switch``) and
groups of inputs. A policy has no right answer to err from, so that here it is its own decisions that are
compared, and what it predicts to earn by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from agents.parity import TIE
from experiments.policy_inputs import DoubleArray, InputGroup, input_groups

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

BATCH = 256
"""Rows asked about at a time: what the network computes in between then stays in the processor's cache."""

N_BOOTSTRAP = 500

CAVEAT = (
    "What this does not say: the figures are about what the policy looks at, not about what makes users buy. "
    "Inputs that tell nearly the same (visits, trips and recent baskets; uplift and cost) stand in for one "
    "another, so that each alone may look unimportant. A user with another's values may be one who never "
    "comes, about whom the policy was never asked. And what may be sent at all is a rule to obey, not a "
    "preference: without it the policy sends what it must not, and may seem to earn more by it."
)


class Deciding(Protocol):
    """What is explained; :class:`agents.serving.ObservationPolicy` is one."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs, [o]."""

    @property
    def offers(self) -> tuple[str, ...]:
        """Names of the offers, [K]; the first is to send nothing."""

    def probabilities(self, observation: FloatArray, /) -> FloatArray:
        """Return the probability of each offer, [n, K], for rows [n, o] in the order of ``columns``."""


@dataclass(frozen=True)
class DecisionRows:
    """Decisions to explain: N user-weeks.

    Attributes:
        observation: [N, o] float32, columns as the policy names them.
        user: [N] int64, whose they are, counted from 0; intervals are over users.
        week: [N] int64, equal for rows of the same week of the same campaign.
    """

    observation: FloatArray
    user: IntArray
    week: IntArray

    def __post_init__(self) -> None:
        n = len(self.observation)
        if self.observation.ndim != 2 or self.user.shape != (n,) or self.week.shape != (n,):
            raise ValueError(
                f"rows do not fit together: observations {self.observation.shape}, users {self.user.shape}, "
                f"weeks {self.week.shape}"
            )
        if n < 2:
            raise ValueError(f"{n} rows: values can be dealt out anew among two or more only")


@dataclass(frozen=True)
class Measured:
    """A mean over user-weeks with its 95% interval over users and repetitions."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Direction:
    """Who is sent something more often: the fifth of user-weeks with the lowest values, or the highest.

    Attributes:
        low: the lowest fifth in words.
        high: the highest fifth in words.
        sent_low: probability of being sent anything in the lowest fifth, mean.
        sent_high: the same in the highest fifth.
        effect: how much higher the probability of being sent anything is with the group's values of someone
            in the highest fifth than with those of someone in the lowest, all other inputs as they were.
    """

    low: str
    high: str
    sent_low: float
    sent_high: float
    effect: float


@dataclass(frozen=True)
class Driver:
    """What a group of inputs has to do with the decisions.

    Attributes:
        name: of the group.
        words: what the group tells.
        columns: its columns.
        dealt_among: among whom values were dealt out anew: users of the same week, or where all users of a
            week share them, all user-weeks; None where all share them and nothing can be said.
        distance: mean total variation distance between the probabilities before and after: the share of
            decisions that come out differently.
        changed: share of user-weeks whose most probable decision is another.
        net_uplift_change: change in the mean predicted net uplift of what is sent, log's currency a user and
            week; uplift and cost are those predicted for the user himself.
        direction: None where nothing was dealt out or no one number puts users in order.
    """

    name: str
    words: str
    columns: tuple[str, ...]
    dealt_among: Literal["users", "user-weeks"] | None
    distance: Measured | None
    changed: Measured | None
    net_uplift_change: Measured | None
    direction: Direction | None


def rank_drivers(
    policy: Deciding,
    rows: DecisionRows,
    net_uplift: DoubleArray,
    *,
    repeats: int,
    rng: np.random.Generator,
) -> list[Driver]:
    """Return every group of inputs, that with the largest distance first.

    All columns of a group come from the same other user, so that a user's uplifts stay those of one user.

    Args:
        policy: asked again and again.
        rows: user-weeks, best those that the policy brought about itself.
        net_uplift: [N, K] predicted uplift less the dual price of the budget used, log's currency.
        repeats: R, how often each group is dealt out anew.
        rng: source of all chance.

    Raises:
        ValueError: shapes do not fit, or there is nothing to repeat.
    """
    n, n_columns = rows.observation.shape
    if n_columns != len(policy.columns) or net_uplift.shape != (n, len(policy.offers)):
        raise ValueError(
            f"the policy has {len(policy.columns)} inputs and {len(policy.offers)} offers, but observations "
            f"are {rows.observation.shape} and net uplifts {net_uplift.shape}"
        )
    if repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {repeats}")
    before = decide_in_batches(policy, rows.observation)
    drivers = [
        _measure(policy, group, rows, net_uplift, before, repeats, rng)
        for group in input_groups(policy.columns)
    ]
    return sorted(drivers, key=lambda one: -(one.distance.value if one.distance else -1.0))


def decide_in_batches(policy: Deciding, observation: FloatArray) -> DoubleArray:
    """Return the probabilities [N, K] for rows [N, o]."""
    parts = [policy.probabilities(observation[k : k + BATCH]) for k in range(0, len(observation), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def _measure(
    policy: Deciding,
    group: InputGroup,
    rows: DecisionRows,
    net_uplift: DoubleArray,
    before: DoubleArray,
    repeats: int,
    rng: np.random.Generator,
) -> Driver:
    columns, names = list(group.columns), tuple(policy.columns[place] for place in group.columns)
    own = rows.observation[:, columns]
    if bool((own == own[0]).all()):
        return Driver(group.name, group.words, names, None, None, None, None, None)
    shared = _is_shared(own, rows.week)
    strata = [np.arange(len(own))] if shared else _places_by(rows.week)
    gauge = group.gauge_values(rows.observation)
    fifths = None if gauge is None else outer_fifths(gauge)
    best, sent = before.argmax(axis=1), 1.0 - before[:, 0]
    totals = np.zeros((3, repeats, len(own)))
    effects = []
    for r in range(repeats):
        donor = switched(strata, len(own), rng)
        dealt = rows.observation.copy()
        dealt[:, columns] = own[donor]
        after = decide_in_batches(policy, dealt)
        totals[0, r] = 0.5 * np.abs(after - before).sum(axis=1)
        # Offers alike in everything have the same probability; which of them is first is no decision.
        totals[1, r] = np.take_along_axis(after, best[:, None], axis=1)[:, 0] < after.max(axis=1) - TIE
        totals[2, r] = ((after - before) * net_uplift).sum(axis=1)
        if fifths is not None:
            moved = 1.0 - after[:, 0] - sent
            low, high = (moved[fifth[donor]].mean() for fifth in fifths)
            effects.append(high - low)
    direction = None
    if group.gauge is not None and gauge is not None and fifths is not None:
        low, high = fifths
        direction = Direction(
            low=group.gauge.low.format(group.gauge.say(float(gauge[low].max()))),
            high=group.gauge.high.format(group.gauge.say(float(gauge[high].min()))),
            sent_low=float(sent[low].mean()),
            sent_high=float(sent[high].mean()),
            effect=float(np.mean(effects)),
        )
    return Driver(
        group.name,
        group.words,
        names,
        "user-weeks" if shared else "users",
        distance=_interval(totals[0], rows.user, rng),
        changed=_interval(totals[1], rows.user, rng),
        net_uplift_change=_interval(totals[2], rows.user, rng),
        direction=direction,
    )


def _is_shared(values: FloatArray, week: IntArray) -> bool:
    """Whether all rows of a week have the same values, [N, g]."""
    first = np.unique(week, return_index=True, return_inverse=True)
    return bool((values == values[first[1]][first[2]]).all())


def _places_by(week: IntArray) -> list[IntArray]:
    order = np.argsort(week, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(week[order])) + 1)


def switched(strata: Sequence[IntArray], n: int, rng: np.random.Generator) -> IntArray:
    """Return for each of n rows another row of its stratum, [n]; each row is given once.

    Rows of a stratum stand in a circle at random and each gets its neighbour's place, so that none but the
    only row of a stratum gets its own.
    """
    donor = np.arange(n)
    for stratum in strata:
        circle = rng.permutation(stratum)
        donor[circle] = np.roll(circle, 1)
    return donor


def outer_fifths(values: DoubleArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """Return which rows have the lowest and which the highest fifth of values, [N] each.

    Equal values are never torn apart: a fifth holds more where many are equal, and where most are, it is all
    of these against the rest.

    Args:
        values: [N].

    Returns:
        None if all values are equal.
    """
    least, most = np.percentile(values, [20, 80], method="inverted_cdf")
    low, high = values <= least, values >= most
    if least < most:
        return low, high
    if bool((values > least).any()):
        return low, values > least
    return (values < least, high) if bool((values < least).any()) else None


def _interval(total: DoubleArray, user: IntArray, rng: np.random.Generator) -> Measured:
    """Mean of [R, N] over rows; users and repetitions are resampled, never single rows."""
    n_users = int(user.max()) + 1
    rows_of = np.bincount(user, minlength=n_users).astype(np.float64)
    sums = np.stack([np.bincount(user, weights=one, minlength=n_users) for one in total])
    present = rows_of > 0
    rows_of, sums = rows_of[present], sums[:, present]
    repeats, n = sums.shape
    drawn = np.empty(N_BOOTSTRAP)
    for b in range(N_BOOTSTRAP):
        some = rng.integers(n, size=n)
        of_users = sums[rng.integers(repeats, size=repeats)].mean(axis=0)
        drawn[b] = of_users[some].sum() / rows_of[some].sum()
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Measured(float(total.mean()), float(low), float(high))


def in_words(driver: Driver) -> str:
    """Return what a driver does, in a sentence or two for people who do not know the method."""
    if driver.distance is None or driver.changed is None or driver.net_uplift_change is None:
        return f"{driver.words}: the same for all users and weeks that were played; nothing can be said."
    if driver.distance.value < TIE:
        return f"{driver.words}: no decision depends on it."
    said = (
        f"{driver.words}: {_share(driver.distance.value)} of decisions come out differently without it, and "
        f"what is sent is predicted to earn {_money(driver.net_uplift_change.value)}."
    )
    one = driver.direction
    if one is None:
        return said
    gap, alone = (round(100 * points) for points in (one.sent_high - one.sent_low, one.effect))
    how = f"{_points(gap)} {_more(gap)} often than" if gap else "as often as"
    if alone:
        by_itself = f"by itself, all else equal, it makes that {_points(alone)} {_more(alone)}"
    else:
        others = ": other inputs make the difference" if gap else ""
        by_itself = f"by itself, all else equal, it moves that by less than a point{others}"
    return (
        f"{said} {one.high[:1].upper()}{one.high[1:]} are sent something {how} {one.low} "
        f"({one.sent_high:.0%} against {one.sent_low:.0%}); {by_itself}."
    )


def _more(points: int) -> str:
    return "more" if points > 0 else "less"


def _points(points: int) -> str:
    return f"{abs(points)} point{'' if abs(points) == 1 else 's'}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def _money(change: float) -> str:
    if abs(change) < 0.0005:
        return "the same"
    return f"{abs(change):.3f} {'less' if change < 0 else 'more'} a user and week"
