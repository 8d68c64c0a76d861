"""Uplift by meta-learners with gradient-boosted trees: the S-, T- and X-learner.

Künzel, Sekhon, Bickel & Yu (2019), *Metalearners for estimating heterogeneous treatment effects using
machine learning*, PNAS 116(10), with LightGBM as the base learner and each offer a treatment of its own:

* S-learner: one model f(x, k) of the outcome; the uplift of offer k is f(x, k) − f(x, 0).
* T-learner: a model μ_k(x) for each offer; the uplift is μ_k(x) − μ_0(x).
* X-learner: T-learner first; then effects imputed for who was sent k, y − μ_0(x), and for who was sent
  nothing, μ_k(x) − y, each learned by a model; the uplift is their mean weighted by the propensity, here
  one half: the experience draws k and nothing alike.

x is what the shop knows of the user (context and embedding) with the predictor's own uplift and cost of the
offer, so that a learner corrects the predictor rather than starts from nothing. The uplift is taken to the
budget as by :class:`agents.policy.MyopicUpliftPolicy`: greedy in uplift − λ·use is the dual of the
multiple-choice knapsack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import torch

from agents.experience import Experience
from agents.price_free import LastGain, best_net_of_price, user_columns
from envs.observation import ObservationLayout

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

MODEL_FILE = "uplift.json"


class Learner(StrEnum):
    """Which meta-learner."""

    S = "S-learner"
    T = "T-learner"
    X = "X-learner"


@dataclass(frozen=True)
class BoostingConfig:
    """How each LightGBM model is grown; shallow and slow, for an offer's effect is small beside its noise.

    Attributes:
        n_rounds: trees.
        learning_rate: shrinkage of each.
        num_leaves: most leaves of a tree.
        min_rows_in_leaf: fewest rows in a leaf; an offer needs twice as many rows to be learned at all.
        l2: ridge on leaf values.
    """

    n_rounds: int = 100
    learning_rate: float = 0.05
    num_leaves: int = 7
    min_rows_in_leaf: int = 300
    l2: float = 1.0


class UpliftPolicy:
    """Send what maximises learned uplift − λ·budget use, the use as the predictor reckons it.

    Args:
        learner: which meta-learner made the models.
        layout: of the observations.
        models: by role: ``outcome`` of the S-learner, ``outcome_k`` of the T-learner, ``treated_k`` and
            ``control_k`` of the X-learner.
    """

    def __init__(
        self, learner: Learner, layout: ObservationLayout, models: Mapping[str, lightgbm.Booster]
    ) -> None:
        missing = sorted(set(_roles(learner, layout.n_offers)) - set(models))
        if missing:
            raise ValueError(f"{learner.value} of {layout.n_offers} offers needs a model {missing[0]!r}")
        self.learner = learner
        self.layout = layout
        self.models = dict(models)
        self._last = LastGain(layout)

    @property
    def name(self) -> str:
        """Name of the learner."""
        return self.learner.value

    def uplift(self, observation: torch.Tensor) -> torch.Tensor:
        """Return the learned uplift of each offer over sending nothing, [n, K] currency; whatever λ."""
        return self._last.of(observation, self._predicted)

    def _predicted(self, observation: torch.Tensor) -> torch.Tensor:
        found = predicted_uplift(self.learner, self.models, observation.cpu().numpy(), self.layout)
        return torch.from_numpy(found).to(observation.device)

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return probability 1 on the offer with the best net uplift."""
        return best_net_of_price(self.uplift(observation), observation, mask, self.layout)

    def save(self, folder: Path) -> None:
        """Write the models as LightGBM text and what they are as JSON; the JSON last."""
        folder.mkdir(parents=True, exist_ok=True)
        for role, model in self.models.items():
            model.save_model(str(folder / f"{role}.txt"))
        content = {
            "learner": self.learner.value,
            "embedding": self.layout.embedding,
            "n_offers": self.layout.n_offers,
            "columns": self.layout.names(),
            "models": sorted(self.models),
        }
        (folder / MODEL_FILE).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> UpliftPolicy:
        """Read a policy written by :meth:`save`.

        Raises:
            ValueError: it was learned on other columns than observations have now.
        """
        content: Mapping[str, Any] = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        layout = ObservationLayout(content["embedding"], content["n_offers"])
        if content["columns"] != layout.names():
            raise ValueError(f"the uplift models in {folder} were learned on other observation columns")
        models = {
            role: lightgbm.Booster(model_file=str(folder / f"{role}.txt")) for role in content["models"]
        }
        return cls(Learner(content["learner"]), layout, models)


def fit_uplift(
    experience: Experience,
    learner: Learner,
    seed: int,
    config: BoostingConfig | None = None,
    *,
    threads: int = 1,
) -> UpliftPolicy:
    """Fit a meta-learner.

    Args:
        experience: randomised; its window is that of the uplift.
        learner: which.
        seed: of LightGBM.
        config: how the models are grown; the default of :class:`BoostingConfig` if None.
        threads: of LightGBM.

    Raises:
        ValueError: an offer was sent too rarely to learn its effect.
    """
    config = BoostingConfig() if config is None else config
    layout, margin = experience.layout, experience.margin.astype(np.float64)
    sent = np.bincount(experience.offer, minlength=layout.n_offers)
    fewest = int(sent.argmin())
    if sent[fewest] < 2 * config.min_rows_in_leaf:
        raise ValueError(
            f"offer {fewest} was sent {sent[fewest]} times in the experience; learning its effect needs at "
            f"least {2 * config.min_rows_in_leaf}"
        )

    def grown(features: Floats, target: Doubles, *, categorical: bool = False) -> lightgbm.Booster:
        return _grown(features, target, config, seed, threads, categorical=categorical)

    rows = experience.observation
    if learner is Learner.S:
        features = _features(rows, layout, experience.offer, name_offer=True)
        return UpliftPolicy(learner, layout, {"outcome": grown(features, margin, categorical=True)})
    outcome: dict[int, lightgbm.Booster] = {}
    for k in range(layout.n_offers):
        of_offer = experience.offer == k
        outcome[k] = grown(_features(rows[of_offer], layout, k), margin[of_offer])
    if learner is Learner.T:
        return UpliftPolicy(learner, layout, {f"outcome_{k}": model for k, model in outcome.items()})
    models = {}
    untreated = experience.offer == 0
    for k in range(1, layout.n_offers):
        treated, control = experience.offer == k, untreated & experience.mask[:, k]
        gain = margin[treated] - _predict(outcome[0], _features(rows[treated], layout, 0))
        missed = _predict(outcome[k], _features(rows[control], layout, k)) - margin[control]
        models[f"treated_{k}"] = grown(_features(rows[treated], layout, k), gain)
        models[f"control_{k}"] = grown(_features(rows[control], layout, k), missed)
    return UpliftPolicy(learner, layout, models)


def predicted_uplift(
    learner: Learner, models: Mapping[str, lightgbm.Booster], rows: Floats, layout: ObservationLayout
) -> Doubles:
    """Return the uplift of each offer for observation rows [n, o], [n, K]; 0 for sending nothing."""
    n, n_offers = len(rows), layout.n_offers
    out = np.zeros((n, n_offers))
    if n == 0:
        return out
    if learner is Learner.S:
        # One call for all offers: a call costs about as much as a thousand rows.
        offers = np.repeat(np.arange(n_offers), n)
        features = _features(np.tile(rows, (n_offers, 1)), layout, offers, name_offer=True)
        outcome = _predict(models["outcome"], features).reshape(n_offers, n).T
        out[:] = outcome - outcome[:, :1]
        return out
    if learner is Learner.T:
        nothing = _predict(models["outcome_0"], _features(rows, layout, 0))
        for k in range(1, n_offers):
            out[:, k] = _predict(models[f"outcome_{k}"], _features(rows, layout, k)) - nothing
        return out
    for k in range(1, n_offers):
        features = _features(rows, layout, k)
        sides = [_predict(models[f"{side}_{k}"], features) for side in ("treated", "control")]
        out[:, k] = 0.5 * (sides[0] + sides[1])
    return out


def _roles(learner: Learner, n_offers: int) -> list[str]:
    """Names of the models that a learner needs."""
    if learner is Learner.S:
        return ["outcome"]
    if learner is Learner.T:
        return [f"outcome_{k}" for k in range(n_offers)]
    return [f"{side}_{k}" for side in ("treated", "control") for k in range(1, n_offers)]


def _features(
    rows: Floats, layout: ObservationLayout, offer: int | npt.NDArray[np.int64], *, name_offer: bool = False
) -> Floats:
    """Columns that a model sees of one offer per row: user, predicted uplift and cost, perhaps its number.

    Args:
        rows: [n, o].
        layout: of the rows.
        offer: one for all rows, or [n].
        name_offer: add the offer's number as the last column.
    """
    names = layout.names()
    offers = np.broadcast_to(np.asarray(offer), (len(rows),))
    every = np.arange(len(rows))
    columns = [rows[:, user_columns(layout)]]
    for feature in ("uplift", "cost"):
        columns.append(rows[every, names.index(f"{feature}_0") + offers][:, None])
    if name_offer:
        columns.append(offers[:, None].astype(np.float32))
    return np.concatenate(columns, axis=1)


def _grown(
    features: Floats, target: Doubles, config: BoostingConfig, seed: int, threads: int, *, categorical: bool
) -> lightgbm.Booster:
    parameters = {
        "objective": "regression",
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "lambda_l2": config.l2,
        "num_threads": threads,
        "seed": seed % 2**31,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(
        features, target, categorical_feature=[features.shape[1] - 1] if categorical else []
    )
    return lightgbm.train(parameters, data, num_boost_round=config.n_rounds)


def _predict(model: lightgbm.Booster, features: Floats) -> Doubles:
    return np.asarray(model.predict(features, num_threads=1), dtype=np.float64)
