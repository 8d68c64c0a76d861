"""Write logs.json: small random logs, on which this package and its peers are compared.

Run by hand, `python recipe_logs.py`; numpy is all it takes. The recipes of the peers read its file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20261123
N_OFFERS = 3


def random_log(rng: np.random.Generator, lengths: list[int], discount_factor: float) -> dict[str, Any]:
    n = sum(lengths)
    behaviour = rng.dirichlet(np.full(N_OFFERS, 2.0), size=n)
    action = np.array([rng.choice(N_OFFERS, p=row) for row in behaviour])
    return {
        "discount_factor": discount_factor,
        "lengths": lengths,
        "behaviour": behaviour.tolist(),
        "target": rng.dirichlet(np.full(N_OFFERS, 2.0), size=n).tolist(),
        "action": action.tolist(),
        "reward": rng.normal(1.0, 2.0, size=n).tolist(),
        "q": rng.normal(2.0, 1.0, size=(n, N_OFFERS)).tolist(),
    }


def random_chain(rng: np.random.Generator) -> dict[str, Any]:
    """Two users in 60 campaigns of three weeks, three states; offer 1 in state 2 ends an episode.

    Noise is small enough that no residual reaches 1, where d3rlpy's loss is no longer a square. In every
    campaign some user stays to the end, for the end of a campaign is read off its last logged week.
    """
    episodes: dict[tuple[int, int], list[tuple[int, int, int, float, bool]]] = {}
    for campaign in range(60):
        pair: list[list[tuple[int, int, int, float, bool]]] = []
        while max(map(len, pair), default=0) < 3:
            pair = [random_episode(rng) for _ in range(2)]
        episodes |= {(user, campaign): pair[user] for user in range(2)}
    rows = [(*pair, *step) for pair in sorted(episodes) for step in episodes[pair]]
    names = ("user", "campaign", "week", "state", "offer", "reward", "done")
    chain: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return chain | {"discount_factor": 0.9, "target_offer": [1, 0, 1]}


def random_episode(rng: np.random.Generator) -> list[tuple[int, int, int, float, bool]]:
    """Week, state, offer, reward and whether the episode ends here, of each step."""
    steps: list[tuple[int, int, int, float, bool]] = []
    state = int(rng.integers(3))
    for week in range(3):
        offer = int(rng.integers(2))
        reward = 0.2 * state + 0.1 * offer + float(rng.uniform(-0.1, 0.1))
        done = week == 2 or (state == 2 and offer == 1)
        steps.append((week, state, offer, reward, done))
        if done:
            break
        state = int(rng.choice(3, p=[[0.6, 0.3, 0.1], [0.1, 0.6, 0.3]][offer]))
    return steps


if __name__ == "__main__":
    rng = np.random.default_rng(SEED)
    logs = {
        "one_step": random_log(rng, [1] * 40, 1.0),
        "fixed": random_log(rng, [4] * 20, 0.9),
        "fixed_undiscounted": random_log(rng, [3] * 16, 1.0),
        "variable": random_log(rng, rng.integers(1, 6, size=20).tolist(), 0.9),
        "chain": random_chain(rng),
    }
    Path(__file__).with_name("logs.json").write_text(json.dumps(logs))
