"""Write offline_rl_ope.json: what offline_rl_ope makes of logs.json.

Run by hand in an environment of its own:

    pip install "offline-rl-ope==7.0.0" jaxtyping "typeguard<3" pandas d3rlpy
    python recipe_offline_rl_ope.py

It takes episodes of any length. Where it normalises by position (PDWIS, WDR) it leaves ended episodes out of
the denominator, which estimates the outcome of the survivors; this package keeps them. These two are
therefore compared at fixed length only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from offline_rl_ope.api import StandardEstimators as peer  # type: ignore[import-not-found]
from offline_rl_ope.OPEEstimators import DirectMethodBase  # type: ignore[import-not-found]

Q, V = 0, 1


class LoggedModel(DirectMethodBase):  # type: ignore[misc]
    """A value model whose values are written into the state: q of the action taken, and v."""

    def __init__(self) -> None:
        super().__init__(model=None)

    def calculate_q(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return state[:, [Q]]

    def calculate_v(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, [V]]


def estimates(log: dict[str, Any]) -> dict[str, float]:
    behaviour, target, q = (np.array(log[key]) for key in ("behaviour", "target", "q"))
    action = np.array(log["action"])
    rows = np.arange(action.size)
    edges = np.cumsum(log["lengths"])[:-1]
    ratio = np.split(target[rows, action] / behaviour[rows, action], edges)
    state = np.stack([q[rows, action], (target * q).sum(axis=1)], axis=1)
    n, horizon = len(log["lengths"]), max(log["lengths"])
    mask = torch.zeros(n, horizon)
    weight = {"trajectory": torch.zeros(n, horizon), "decision": torch.zeros(n, horizon)}
    for i, found in enumerate(ratio):
        mask[i, : found.size] = 1
        weight["trajectory"][i, : found.size] = float(np.prod(found))
        weight["decision"][i, : found.size] = torch.tensor(np.cumprod(found))
    arguments = {
        "rewards": [torch.tensor(part)[:, None] for part in np.split(np.array(log["reward"]), edges)],
        "states": [torch.tensor(part) for part in np.split(state, edges)],
        "actions": [torch.tensor(part)[:, None].double() for part in np.split(action, edges)],
        "discount": log["discount_factor"],
        "is_msk": mask,
    }
    estimators = {
        "IPS": (peer.VanillaISPDIS(), "trajectory"),
        "SNIPS": (peer.WIS(), "trajectory"),
        "PDIS": (peer.VanillaISPDIS(), "decision"),
        "DR": (peer.VanillaDR(dm_model=LoggedModel()), "decision"),
    }
    if len(set(log["lengths"])) == 1:
        estimators["PDWIS"] = (peer.PDWIS(), "decision")
        estimators["WDR"] = (peer.WDR(dm_model=LoggedModel()), "decision")
    return {
        name: float(estimator.predict(**arguments, weights=weight[kind]))
        for name, (estimator, kind) in estimators.items()
    }


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    logs = json.loads(Path(__file__).with_name("logs.json").read_text())
    golden = {name: estimates(logs[name]) for name in ("fixed", "fixed_undiscounted", "variable")}
    Path(__file__).with_name("offline_rl_ope.json").write_text(json.dumps(golden))
