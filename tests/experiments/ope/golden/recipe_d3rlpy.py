"""Write d3rlpy.json: the values that d3rlpy's fitted Q evaluation finds on the chain of logs.json.

Run by hand in an environment of its own: `pip install d3rlpy==2.8.1`, then `python recipe_d3rlpy.py`.

The network, two layers without a bend between them, is linear in one-hot (week, state), which makes it a
table with a value for every cell. It is trained on all rows at once, by gradient descent in double precision
until it no longer moves: fit()'s random batches would leave their noise in the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from d3rlpy.models import VectorEncoderFactory  # type: ignore[import-not-found]
from d3rlpy.ope import DiscreteFQE, FQEConfig  # type: ignore[import-not-found]
from d3rlpy.optimizers import SGDFactory  # type: ignore[import-not-found]
from d3rlpy.torch_utility import TorchMiniBatch  # type: ignore[import-not-found]

N_STATES, N_WEEKS, N_OFFERS = 3, 3, 2
STEPS = 8_000


class FixedPolicy:
    """A policy that takes one offer in each state, in the two places where d3rlpy looks."""

    def __init__(self, offers: list[int]) -> None:
        self._offers = torch.tensor(offers * N_WEEKS)

    @property
    def impl(self) -> FixedPolicy:
        return self

    def predict_best_action(self, observation: torch.Tensor) -> torch.Tensor:
        return self._offers[observation.argmax(dim=1)]


def values(chain: dict[str, Any], user: int) -> list[list[float]]:
    """Q [week · state, offer] fitted on the rows of ``user``."""
    rows = np.flatnonzero(np.array(chain["user"]) == user)
    week, state, done = (np.array(chain[key]) for key in ("week", "state", "done"))
    cells = np.eye(N_WEEKS * N_STATES)[week * N_STATES + state]
    following = np.where(done[:, None], 0.0, np.roll(cells, -1, axis=0))
    batch = TorchMiniBatch(
        observations=torch.tensor(cells[rows]),
        actions=torch.tensor(np.array(chain["offer"])[rows, None]),
        rewards=torch.tensor(np.array(chain["reward"])[rows, None]),
        next_observations=torch.tensor(following[rows]),
        next_actions=torch.tensor(np.array(chain["offer"])[rows, None]),
        returns_to_go=torch.zeros(rows.size, 1),
        terminals=torch.tensor(done[rows, None].astype(np.float64)),
        intervals=torch.ones(rows.size, 1),
        device="cpu",
    )
    config = FQEConfig(
        learning_rate=0.5,
        optim_factory=SGDFactory(momentum=0.9),
        encoder_factory=VectorEncoderFactory(hidden_units=[32], exclude_last_activation=True),
        gamma=chain["discount_factor"],
        target_update_interval=1,
    )
    fqe = DiscreteFQE(FixedPolicy(chain["target_offer"]), config)
    fqe.create_impl((N_WEEKS * N_STATES,), N_OFFERS)
    for step in range(STEPS):
        loss = fqe.impl.inner_update(batch, step)["loss"]
    print(f"user {user}: loss {loss:.17g}")
    every = torch.eye(N_WEEKS * N_STATES)
    offers = [torch.full((len(every),), offer) for offer in range(N_OFFERS)]
    return torch.stack([fqe.impl.inner_predict_value(every, offer) for offer in offers], dim=1).tolist()


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    chain = json.loads(Path(__file__).with_name("logs.json").read_text())["chain"]
    golden = {"fitted_on_user": [values(chain, user) for user in (0, 1)]}
    Path(__file__).with_name("d3rlpy.json").write_text(json.dumps(golden))
