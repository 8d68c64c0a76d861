"""How real the market's weeks look: the reported weeks of a run, replayed with nothing sent.

Nothing of the response model was fitted on these weeks. What they hold that a year of logs cannot foresee
(on Complete Journey the week of Thanksgiving) is missed, and stays in the figures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from experiments.benchmarks import Request, Row, describe_machine
from experiments.fitted_run import FittedRun
from experiments.realism.bands import coverage
from experiments.realism.classifier import tell_apart
from experiments.realism.distributions import DISTRIBUTIONS, ks_complement, mean_complement, total_errors
from experiments.realism.figures import save_figures
from experiments.realism.lifts import frequent_pairs, pair_lifts, top_pairs
from experiments.realism.replay import replays

N_SEEDS = 20
N_CLASSIFIED = 3
"""Simulations that are told from the real weeks; the area under the curve hardly differs among them."""

LEAST_COMPLEMENT = 0.9
MOST_TOTAL_ERROR = 0.03
COVERAGE = (0.85, 0.95)
MOST_AUC = 0.65


def run(request: Request) -> list[Row]:
    """Replay the reported weeks and compare them with the real ones."""
    fitted = FittedRun.load(request.run)
    panel, hardware = fitted.panel, describe_machine()
    first = panel.split.tune_end
    real, simulated = replays(fitted, N_SEEDS)
    weeks = f"weeks {first + 1}-{panel.split.report_end}"
    # Chosen before the reported weeks, so that luck in them favours no pair.
    earlier = panel.bought[:, :first][panel.visited[:, :first]]
    pairs = top_pairs(earlier)
    complements = {name: mean_complement(real, simulated, samples) for name, samples in DISTRIBUTIONS.items()}
    for name, chosen in (("highest lift", pairs), ("most baskets", frequent_pairs(earlier))):
        if len(chosen[0]):
            truth = pair_lifts(real.baskets, chosen)
            lifts = [ks_complement(truth, pair_lifts(each.baskets, chosen)) for each in simulated]
            complements[f"lifts of the {len(truth)} pairs of {name}"] = float(np.mean(lifts))
    rows = [
        Row.compare(f"{name}, {weeks}", value, "1 - KS", bar=LEAST_COMPLEMENT, hardware=hardware)
        for name, value in complements.items()
    ]
    rows += [
        Row.compare(
            f"total {name}, {weeks}, too {'many' if error > 0 else 'few'} by",
            abs(error),
            "share",
            bar=MOST_TOTAL_ERROR,
            higher_is_better=False,
            hardware=hardware,
        )
        for name, error in total_errors(real, simulated).items()
    ]
    covered = coverage(real, simulated)
    all_weeks = Row.compare(
        f"category counts in the 90% band, {weeks}",
        float(covered.mean()),
        "share",
        bar=COVERAGE[0],
        hardware=hardware,
    )
    rows.append(replace(all_weeks, met=bool(COVERAGE[0] <= covered.mean() <= COVERAGE[1])))
    rows += [
        Row.compare(
            f"category counts in the 90% band, week {first + 1 + k}", float(share), "share", hardware=hardware
        )
        for k, share in enumerate(covered)
    ]
    categories = [str(name) for name in panel.categories]
    verdicts = [
        tell_apart(real, each, categories, seed=seed, threads=1)
        for seed, each in enumerate(simulated[:N_CLASSIFIED])
    ]
    rows.append(
        Row.compare(
            f"AUC of LightGBM, real or simulated user-week, {weeks}",
            float(np.mean([verdict.auc for verdict in verdicts])),
            "AUC",
            bar=MOST_AUC,
            higher_is_better=False,
            hardware=hardware,
        )
    )
    if request.figures is not None:
        save_figures(request.figures, real, simulated, pairs, first + 1)
    return rows
