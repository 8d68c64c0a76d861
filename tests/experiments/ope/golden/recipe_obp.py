"""Write obp.json: what Open Bandit Pipeline makes of the one-step log in logs.json.

Run by hand in an environment of its own: `pip install obp==0.4.1 "numpy<2"`, then `python recipe_obp.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from obp import ope  # type: ignore[import-not-found]

THRESHOLDS = (0.0, 0.5, 1.0, 2.0)
SHRINKAGES = (0.0, 0.3, 1.0, 10.0)

if __name__ == "__main__":
    log: dict[str, Any] = json.loads(Path(__file__).with_name("logs.json").read_text())["one_step"]
    behaviour, target, q = (np.array(log[key]) for key in ("behaviour", "target", "q"))
    action = np.array(log["action"])
    arguments = {
        "reward": np.array(log["reward"]),
        "action": action,
        "position": np.zeros(action.size, dtype=int),
        "pscore": behaviour[np.arange(action.size), action],
        "action_dist": target[:, :, None],
        "estimated_rewards_by_reg_model": q[:, :, None],
    }
    estimators = {
        "DM": ope.DirectMethod(),
        "IPS": ope.InverseProbabilityWeighting(),
        "SNIPS": ope.SelfNormalizedInverseProbabilityWeighting(),
        "DR": ope.DoublyRobust(),
        "SNDR": ope.SelfNormalizedDoublyRobust(),
        **{f"SWITCH-DR {tau}": ope.SwitchDoublyRobust(tau=tau) for tau in THRESHOLDS},
        **{f"DRos {lambda_}": ope.DoublyRobustWithShrinkage(lambda_=lambda_) for lambda_ in SHRINKAGES},
    }
    golden = {
        name: float(estimator.estimate_policy_value(**arguments)) for name, estimator in estimators.items()
    }
    Path(__file__).with_name("obp.json").write_text(json.dumps(golden))
