"""Logs to and from Minari, the standard format for offline reinforcement learning data.

An episode of the log is an episode of Minari: observations (one more than steps), actions, rewards,
terminations, truncations. What Minari has no place for goes into ``infos``, one entry per step and a last one
that repeats the step before: mask, propensity, cost, dual price, week, user, campaign, and the behaviour
policy's whole distribution if it is known. So the way there and back changes nothing.

Needs the extra ``couponlab[minari]``. Source: Younis et al. (2024), Minari, https://minari.farama.org/ .
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset

_KEY: Final = "couponlab_logged_dataset"
_STEP_INFOS: Final[dict[str, type[np.generic]]] = {
    "user": np.int64,
    "campaign": np.int64,
    "week": np.int64,
    "propensity": np.float64,
    "cost": np.float64,
    "dual_price": np.float64,
    "mask": np.bool_,
}
_NEXT, _PROBABILITIES = "next_observation", "behaviour_probabilities"


def to_minari(dataset: LoggedDataset, dataset_id: str) -> Any:
    """Write a log as a new Minari dataset, where Minari keeps its datasets (``MINARI_DATASETS_PATH``).

    Args:
        dataset: the log.
        dataset_id: name such as ``coupons/spring-v0``; must not exist yet.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        LoggedDataError: Minari is not installed, or the log has no observation columns.
        ValueError: Minari refuses the name, or has a dataset of that name.
    """
    minari = _minari()
    if not dataset.observation_names:
        raise LoggedDataError("observation: Minari cannot hold a log without observation columns")
    infos = {name: getattr(dataset, name) for name in _STEP_INFOS}
    if dataset.behaviour_probabilities is not None:
        infos[_PROBABILITIES] = dataset.behaviour_probabilities
    inner = np.flatnonzero(~dataset.is_last)
    # By bits: 0.0 and -0.0 are equal and not the same.
    if dataset.next_observation[inner].tobytes() != dataset.observation[inner + 1].tobytes():
        infos[_NEXT] = dataset.next_observation
    buffer = import_module("minari.data_collector").EpisodeBuffer
    episodes = [
        buffer(
            id=number,
            observations=_with_one_more(dataset.observation[rows], dataset.next_observation[rows]),
            actions=dataset.action[rows],
            rewards=dataset.reward[rows],
            terminations=dataset.terminated[rows],
            truncations=dataset.truncated[rows],
            infos={name: _with_one_more(values[rows], values[rows]) for name, values in infos.items()},
        )
        for number, rows in enumerate(dataset.episode_slices())
    ]
    with warnings.catch_warnings():
        # It misses an environment, an author and a link to code; a log has none of them.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"minari\.utils")
        written = minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            observation_space=Box(-np.inf, np.inf, (len(dataset.observation_names),), np.float32),
            action_space=Discrete(dataset.n_offers),
            description="Logged coupon decisions; infos: propensity, mask, cost, dual price of each step.",
        )
    # Written last: a dataset without it is not complete, and is refused.
    written.storage.update_metadata(
        {
            _KEY: {
                "observation_names": list(dataset.observation_names),
                "propensity_source": dataset.propensity_source,
            }
        }
    )
    return written


def from_minari(source: Any) -> LoggedDataset:
    """Read a log that :func:`to_minari` wrote.

    Args:
        source: a ``minari.MinariDataset``, or the name of one that Minari keeps here.

    Raises:
        LoggedDataError: Minari is not installed, the dataset was not written by :func:`to_minari`, or its
            content is not valid.
    """
    stored = _minari().load_dataset(source) if isinstance(source, str) else source
    described = stored.storage.metadata.get(_KEY)
    if described is None:
        raise LoggedDataError(
            f"{stored.spec.dataset_id}: not a log that to_minari has written to its end: an offline estimate "
            "needs propensities, masks and users, for which Minari itself has no place"
        )
    episodes = list(stored.iterate_episodes())
    first = episodes[0].infos

    def stack(parts: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.concatenate(parts).astype(dtype, casting="safe")

    def info(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return stack([np.asarray(episode.infos[name])[:-1] for episode in episodes], dtype)

    following = [np.asarray(episode.observations)[1:] for episode in episodes]
    return LoggedDataset(
        observation=stack([np.asarray(episode.observations)[:-1] for episode in episodes], np.float32),
        next_observation=info(_NEXT, np.float32) if _NEXT in first else stack(following, np.float32),
        action=stack([np.asarray(episode.actions) for episode in episodes], np.int64),
        reward=stack([np.asarray(episode.rewards) for episode in episodes], np.float64),
        terminated=stack([np.asarray(episode.terminations) for episode in episodes], np.bool_),
        truncated=stack([np.asarray(episode.truncations) for episode in episodes], np.bool_),
        **{name: info(name, dtype) for name, dtype in _STEP_INFOS.items()},
        behaviour_probabilities=info(_PROBABILITIES, np.float64) if _PROBABILITIES in first else None,
        observation_names=tuple(described["observation_names"]),
        propensity_source=described["propensity_source"],
    )


def _with_one_more(values: npt.NDArray[Any], last: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Append the last entry of ``last``: Minari has one more observation, and info, than steps."""
    return np.concatenate([values, last[-1:]])


def _minari() -> Any:
    try:
        return import_module("minari")
    except ModuleNotFoundError as error:
        raise LoggedDataError("Minari is not installed: pip install couponlab[minari]") from error
