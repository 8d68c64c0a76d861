"""From the service's decision log to a dataset for off-policy evaluation.

Three rules, each so that an importance weight means what it says:

- *Refusals.* An offer that the budget did not cover was still drawn with the logged propensity; what its user
  then got is what the draw came to. So the drawn offer stays the action, and the row is marked. The value
  estimated is that of drawing offers *in a ledger that refuses as this one did*: right for a policy that
  spends like the one that was logged, too low for one that would have been refused less. Dropping the rows
  would keep the users who happened to stand first in line; calling the action "no offer" would need the
  probability of a refusal, which nobody knows. With more than a few per cent refused, pace first and
  evaluate then.
- *Unknown outcomes.* An episode is cut before its first decision whose outcome is not known. That is only
  harmless if feedback comes for every decision, whether or not the user bought.
- *Gaps.* After a week without a decision the user's state went on unseen. What follows is a new episode,
  under a campaign number of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agents.service.decision_file import DecisionLog
from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset


@dataclass(frozen=True, eq=False)
class ServedDataset:
    """Served decisions, ready to be evaluated.

    Attributes:
        dataset: N steps.
        refused: [N] bool, the steps whose offer the budget did not cover.
        campaigns: names by campaign number; one may have several, see the module.
        n_left_out: decisions left out since their outcome, or one before them, is not known.
    """

    dataset: LoggedDataset
    refused: npt.NDArray[np.bool_]
    campaigns: tuple[str, ...]
    n_left_out: int


def served_dataset(log: DecisionLog) -> ServedDataset:
    """Turn a decision log into a `LoggedDataset`.

    The reward is the margin before coupon cost, the cost what delivery and redemption came to.
    ``next_observation`` is the user's next logged one; where there is none it repeats the row's own, which no
    estimator reads.

    Args:
        log: N' decisions, sorted by campaign, user and week.

    Raises:
        LoggedDataError: no decision has a known outcome, or the log contradicts itself.
    """
    same = (log.campaign[1:] == log.campaign[:-1]) & (log.user[1:] == log.user[:-1])
    follows = np.concatenate([[False], same & (np.diff(log.week) == 1)])
    episode = np.cumsum(~follows) - 1
    # Known up to here: no unknown outcome in the episode so far.
    unknown = np.cumsum(~log.outcome_known)
    before = np.concatenate([[0], unknown[:-1]])
    starts = np.flatnonzero(~follows)
    kept = np.flatnonzero(unknown == before[starts][episode])
    if not kept.size:
        raise LoggedDataError(f"none of {len(log)} decisions has a known outcome; send feedback first")
    followed = np.append(follows[1:], False)
    successor = np.where(followed, np.arange(len(log)) + 1, np.arange(len(log)))
    number, campaigns = _campaign_numbers(log, starts, episode)
    _, user = np.unique(log.user, return_inverse=True)
    order = kept[np.lexsort([log.week[kept], number[kept], user[kept]])]
    last = np.append(episode[order][1:] != episode[order][:-1], True)
    over = last & (log.weeks_left[order] == 1)
    dataset = LoggedDataset(
        observation=log.observation[order],
        action=log.offer[order],
        mask=log.mask[order],
        propensity=log.propensity[order],
        reward=log.margin[order],
        cost=log.cost[order],
        next_observation=log.observation[successor[order]],
        terminated=over,
        truncated=last & ~over,
        user=user[order].astype(np.int64),
        campaign=number[order],
        week=log.week[order],
        dual_price=log.dual_price[order],
        observation_names=log.observation_names,
        propensity_source="logged",
        behaviour_probabilities=log.probabilities[order],
    )
    return ServedDataset(dataset, log.refused[order], campaigns, len(log) - kept.size)


def refused_steps(path: Path, dataset: LoggedDataset) -> npt.NDArray[np.bool_]:
    """Return which steps of an exported log the budget did not cover, [N].

    Args:
        path: the ``decisions.parquet`` that was written with the log.
        dataset: the log, N steps.

    Raises:
        DecisionLogError: the file is no decision log.
        LoggedDataError: the log is not the one that comes of these decisions.
    """
    served = served_dataset(DecisionLog.load(path))
    again = served.dataset
    if any(
        not np.array_equal(getattr(again, name), getattr(dataset, name))
        for name in ("action", "week", "propensity", "cost")
    ):
        raise LoggedDataError(
            f"{path}: these decisions make another log, of {again.n_steps} steps, than this one of "
            f"{dataset.n_steps}; export both with: couponlab served"
        )
    return served.refused


def _campaign_numbers(
    log: DecisionLog, starts: npt.NDArray[np.int64], episode: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Number the campaigns, one number for the users' first episodes, one for their second, and so on."""
    campaign, user = log.campaign[starts], log.user[starts]
    new = np.append(True, (campaign[1:] != campaign[:-1]) | (user[1:] != user[:-1]))
    place = np.arange(len(starts))
    again = place - np.maximum.accumulate(np.where(new, place, 0))
    keys = list(zip(campaign.tolist(), again.tolist(), strict=True))
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    by_episode = np.array([numbers[key] for key in keys], dtype=np.int64)
    return by_episode[episode], tuple(name for name, _ in sorted(numbers))
