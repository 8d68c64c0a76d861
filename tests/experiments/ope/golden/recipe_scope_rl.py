"""Write scope_rl.json: what SCOPE-RL makes of logs.json.

Run by hand in an environment of its own: `pip install scope-rl==0.2.1`, then `python recipe_scope_rl.py`.

SCOPE-RL takes episodes of one length only. The variable log is therefore padded, by this recipe, with steps
at which both policies take offer 0 for certain and nothing is earned: what this package says a short episode
means. Distributions are compared on an undiscounted log, for SCOPE-RL discounts a trajectory's first reward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scope_rl.ope import discrete  # type: ignore[import-not-found]

ESTIMATORS = {
    "DM": discrete.DirectMethod,
    "IPS": discrete.TrajectoryWiseImportanceSampling,
    "PDIS": discrete.PerDecisionImportanceSampling,
    "DR": discrete.DoublyRobust,
    "SNIPS": discrete.SelfNormalizedTIS,
    "PDWIS": discrete.SelfNormalizedPDIS,
    "WDR": discrete.SelfNormalizedDR,
}
DISTRIBUTIONS = {
    "importance_sampling": discrete.CumulativeDistributionTIS,
    "self_normalised": discrete.CumulativeDistributionSNTIS,
    "doubly_robust": discrete.CumulativeDistributionTDR,
}
LEVELS = np.array([0.05, 0.2, 0.5, 0.8])


def padded(log: dict[str, Any]) -> dict[str, Any]:
    horizon = max(log["lengths"])
    starts = np.cumsum([0, *log["lengths"]])[:-1]
    absorbing = {"behaviour": [1.0, 0.0, 0.0], "target": [1.0, 0.0, 0.0], "q": [0.0, 0.0, 0.0]}
    columns: dict[str, list[Any]] = {key: [] for key in ("behaviour", "target", "action", "reward", "q")}
    for start, length in zip(starts, log["lengths"], strict=True):
        for key, column in columns.items():
            rest = [absorbing.get(key, 0)] * (horizon - length)
            column += log[key][start : start + length] + rest
    arrays = {key: np.array(column) for key, column in columns.items()}
    rows = np.arange(arrays["action"].size)
    return {
        "step_per_trajectory": horizon,
        "action": arrays["action"],
        "reward": arrays["reward"].astype(float),
        "pscore": arrays["behaviour"][rows, arrays["action"]],
        "evaluation_policy_action_dist": arrays["target"],
        "state_action_value_prediction": arrays["q"],
        "gamma": log["discount_factor"],
    }


def distribution(estimator: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The distribution on a grid that ends just above each return or value, so that none lies on an edge."""
    horizon = arguments["step_per_trajectory"]
    returns = arguments["reward"].reshape(-1, horizon).sum(axis=1)
    expected = arguments["evaluation_policy_action_dist"] * arguments["state_action_value_prediction"]
    start_values = expected.sum(axis=1).reshape(-1, horizon)[:, 0]
    points = np.sort(np.concatenate([returns, start_values]))
    grid = np.concatenate([[points[0] - 1.0], points + 1e-12])
    if not isinstance(estimator, discrete.CumulativeDistributionTDR):
        grid = np.concatenate([[returns.min() - 1.0], np.sort(returns) + 1e-12])
    found = {**arguments, "reward_scale": grid}
    return {
        "grid": grid[1:].tolist(),
        "cdf": estimator.estimate_cumulative_distribution_function(**found)[1:].tolist(),
        "mean": float(estimator.estimate_mean(**found)),
        "variance": float(estimator.estimate_variance(**found)),
        "levels": LEVELS.tolist(),
        "cvar": estimator.estimate_conditional_value_at_risk(**found, alphas=LEVELS).tolist(),
    }


if __name__ == "__main__":
    logs = json.loads(Path(__file__).with_name("logs.json").read_text())
    golden: dict[str, Any] = {"values": {}, "distributions": {}}
    for name in ("fixed", "fixed_undiscounted", "variable"):
        arguments = padded(logs[name])
        golden["values"][name] = {
            key: float(peer().estimate_policy_value(**arguments)) for key, peer in ESTIMATORS.items()
        }
    arguments = padded(logs["fixed_undiscounted"])
    for key, peer in DISTRIBUTIONS.items():
        golden["distributions"][key] = distribution(peer(), arguments)
    Path(__file__).with_name("scope_rl.json").write_text(json.dumps(golden))
