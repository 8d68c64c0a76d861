"""What a λ-conditioned policy earns and takes from the budget at each price level, from one log.

At a fixed price path users do not touch one another, so each level is an ordinary off-policy estimate. All
levels are estimated from the same episodes and resampled together: margin and budget use of one resample
belong to the same users, at every level.

- Margin: weighted doubly robust (Thomas & Brunskill 2016). One value model, that of the logging policy,
  serves all levels and all policies: the correction by weights needs no more of a model than that it has not
  seen the user, and how much a user buys anyway hardly depends on what he is sent.
- Cost and budget use: weighted per decision (Thomas 2015), week by week.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.ope.diagnostics import Diagnostics, diagnose, effective_sample_size
from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.fitted_q import FittedQConfig, fit_q
from experiments.ope.intervals import cluster_bootstrap
from experiments.ope.logged_dataset import (
    FloatArray,
    LoggedDataset,
    require_array,
    require_probabilities,
)
from experiments.ope.sequential import cumulative_ratio, weighted_doubly_robust, weighted_per_decision

Target = Callable[[float], FloatArray]
"""From a price level to the target policy's probabilities at the logged steps, [N, K]."""


def logging_policy_values(
    dataset: LoggedDataset, *, rng: np.random.Generator, config: FittedQConfig | None = None
) -> FloatArray:
    """Return the cross-fitted value of each offer under the policy that logged, [N, K].

    Args:
        dataset: N logged steps.
        rng: assigns users to folds.
        config: of the fit.

    Raises:
        ValueError: the log does not hold the whole distribution of the policy that logged.
    """
    if dataset.behaviour_probabilities is None:
        raise ValueError(
            "the log has no behaviour_probabilities; fit the values of another policy with fit_q, "
            "such as the target's at the logged prices"
        )
    return fit_q(dataset, dataset.behaviour_probabilities, dataset.reward, rng=rng, config=config).q


@dataclass(frozen=True, eq=False)
class LevelTerms:
    """Per-episode terms of a policy at one price level; E episodes of up to T weeks.

    Attributes:
        margin: [E, T + 1], columns of the estimator's own.
        cost: [E, T], a week a column.
        use: [E, T], what each week adds to the commitment.
        ess: effective episodes of the weights, harmonic mean over weeks.
    """

    margin: EpisodeTerms
    cost: EpisodeTerms
    use: EpisodeTerms
    ess: float


def level_terms(
    dataset: LoggedDataset, probabilities: FloatArray, *, values: FloatArray, use: FloatArray
) -> LevelTerms:
    """Return the terms of a policy whose probabilities [N, K] at the logged steps are given.

    Args:
        dataset: N logged steps.
        probabilities: [N, K] of the target.
        values: [N, K] value of each offer from a model that has not seen the user.
        use: [N] what each step takes from the budget.
    """
    require_probabilities("target probabilities", probabilities, dataset.mask.shape)
    rows = np.arange(dataset.n_steps)
    episode, position = dataset.episode, dataset.position
    ratio = probabilities[rows, dataset.action] / dataset.propensity
    weighted = {
        name: weighted_per_decision(outcome=outcome, ratio=ratio, episode=episode, position=position)
        for name, outcome in (("cost", dataset.cost), ("use", use))
    }
    ess = effective_sample_size(cumulative_ratio(ratio, episode, position))
    return LevelTerms(
        margin=weighted_doubly_robust(
            outcome=dataset.reward,
            ratio=ratio,
            q=values[rows, dataset.action],
            v=(probabilities * values).sum(axis=1),
            episode=episode,
            position=position,
        ),
        cost=weighted["cost"],
        use=weighted["use"],
        ess=float(ess.size / (1.0 / ess).sum()) if (ess > 0).all() else 0.0,
    )


@dataclass(frozen=True, eq=False)
class Curves:
    """Margin, cost and budget use by price level, per user and campaign, in the log's currency.

    The last axis has the L levels; there may be resamples before it. NaN where nobody in the log acted as
    the target would.

    Attributes:
        margin: contribution margin before coupon cost.
        cost: charged to the budget by the end.
        use: highest commitment of any week: what the budget must hold. The largest of several estimated
            means is a little too high on average, which errs on the side of the budget.
    """

    margin: FloatArray
    cost: FloatArray
    use: FloatArray


@dataclass(frozen=True, eq=False)
class PriceCurves:
    """A policy's curves over price levels, estimated from one log.

    Attributes:
        dataset: the log.
        target: the policy at the logged steps.
        levels: [L] ascending; multiples of the logged price path.
        first_price: λ of the campaign's first week at level 1.
        point: the estimates, [L] each.
        resampled: the same on B resamples of users, [B, L] each.
        ess: [L] effective episodes.
        n_clusters: users or campaigns that were resampled.
    """

    dataset: LoggedDataset
    target: Target
    levels: FloatArray
    first_price: float
    point: Curves
    resampled: Curves
    ess: FloatArray
    n_clusters: int

    def diagnostics(self, level: float) -> Diagnostics:
        """Measure weights and overlap of the target at any price level."""
        probabilities, log = self.target(level), self.dataset
        ratio = probabilities[np.arange(log.n_steps), log.action] / log.propensity
        weight = cumulative_ratio(ratio, log.episode, log.position)
        return diagnose(log, probabilities, weight, self.n_clusters)


def estimate_curves(
    dataset: LoggedDataset,
    target: Target,
    *,
    levels: Sequence[float] | FloatArray,
    values: FloatArray,
    rng: np.random.Generator,
    use: FloatArray | None = None,
    n_bootstrap: int = 1000,
    cluster: Literal["user", "campaign"] = "user",
) -> PriceCurves:
    """Estimate a policy's margin, cost and budget use at each price level.

    Args:
        dataset: N steps of a log without a cap, at one price path for all users.
        target: see :func:`experiments.ope.price_levels.target_at_levels`.
        levels: L >= 2 ascending multiples of the logged price path, closest where the root is expected.
        values: [N, K] see :func:`logging_policy_values`.
        rng: draws the resamples.
        use: [N] what each step adds to the commitment, see
            :func:`experiments.ope.commitment.commitment_change`; the cost if None, for a budget that holds
            payments alone.
        n_bootstrap: resamples.
        cluster: what is resampled.

    Raises:
        LoggedDataError: probabilities, values or use do not fit the log.
        ValueError: the levels are not ascending, users of a week were logged at different prices or at 0, or
            there are fewer than 2 clusters.
    """
    grid = np.asarray(levels, dtype=np.float64)
    if grid.ndim != 1 or grid.size < 2 or not (grid[0] > 0 and (np.diff(grid) > 0).all()):
        raise ValueError(f"levels must be two or more, positive and ascending, not {grid.tolist()}")
    require_array("values", values, np.float64, dataset.mask.shape)
    use = dataset.cost if use is None else use
    require_array("use", use, np.float64, (dataset.n_steps,))
    first_price = _common_first_price(dataset)
    terms: list[EpisodeTerms] = []
    ess: list[float] = []
    for level in grid.tolist():
        found = level_terms(dataset, target(level), values=values, use=use)
        terms += [found.margin, found.cost, *_columns(found.use)]
        ess.append(found.ess)
    clusters = getattr(dataset, cluster)[dataset.episode_starts]
    bootstrap = cluster_bootstrap(terms, clusters, rng=rng, n_bootstrap=n_bootstrap)
    return PriceCurves(
        dataset=dataset,
        target=target,
        levels=grid,
        first_price=first_price,
        point=_curves(bootstrap.estimate, grid.size),
        resampled=_curves(bootstrap.estimates, grid.size),
        ess=np.array(ess),
        n_clusters=int(np.unique(clusters).size),
    )


def _columns(terms: EpisodeTerms) -> list[EpisodeTerms]:
    """Each column of per-week terms by itself, so that the weeks can be added up one by one."""
    return [
        EpisodeTerms(terms.numerator[:, [week]], terms.denominator[:, [week]])
        for week in range(terms.numerator.shape[1])
    ]


def _curves(estimates: FloatArray, n_levels: int) -> Curves:
    """Estimates [..., L · (2 + T)] of margin, cost and weekly changes of the commitment as curves."""
    by_level = estimates.reshape(*estimates.shape[:-1], n_levels, -1)
    committed = np.cumsum(by_level[..., 2:], axis=-1)
    return Curves(margin=by_level[..., 0], cost=by_level[..., 1], use=committed.max(axis=-1))


def _common_first_price(dataset: LoggedDataset) -> float:
    """λ of the first week, after making sure that a week has one price for everybody."""
    place = dataset.weeks_to_go
    if np.unique(dataset.campaign).size > 1:
        # Campaigns may have paths of their own; each is scaled by the same level.
        _, campaign = np.unique(dataset.campaign, return_inverse=True)
        place = place + campaign * (int(place.max()) + 1)
    order = np.argsort(place, kind="stable")
    price, place = dataset.dual_price[order], place[order]
    apart = (np.diff(place) == 0) & (np.diff(price) != 0)
    if apart.any():
        row = int(order[1:][apart][0])
        raise ValueError(
            f"dual_price: row {row} has {dataset.dual_price[row].item()!r} in week {dataset.week[row]}, "
            "others of that week another one: users at prices of their own are no market at a price path"
        )
    if not (dataset.dual_price > 0).all():
        raise ValueError("dual_price: a log at the price 0 has no multiples to look at")
    return float(np.exp(np.log(dataset.dual_price[dataset.episode_starts]).mean()))
