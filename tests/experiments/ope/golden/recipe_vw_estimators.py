"""Write vw_estimators.json: what the estimators of Vowpal Wabbit make of the one-step log in logs.json.

Run by hand in an environment of its own: `pip install vw-estimators==0.2.2`, then
`python recipe_vw_estimators.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from estimators.bandits import gaussian, ips, snips  # type: ignore[import-not-found]

if __name__ == "__main__":
    log: dict[str, Any] = json.loads(Path(__file__).with_name("logs.json").read_text())["one_step"]
    peers = {"IPS": ips.Estimator(), "SNIPS": snips.Estimator(), "IPS interval": gaussian.Interval()}
    for action, reward, behaviour, target in zip(
        log["action"], log["reward"], log["behaviour"], log["target"], strict=True
    ):
        for peer in peers.values():
            peer.add_example(behaviour[action], reward, target[action])
    golden = {name: peer.get() for name, peer in peers.items()}
    Path(__file__).with_name("vw_estimators.json").write_text(json.dumps(golden))
