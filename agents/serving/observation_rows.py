"""The policy behind its observation: for rows that a market, a file or an explanation brings along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from agents.serving.bundle import NETWORK_FILE, Bundle
from agents.serving.drawing import draw, normalised, uniforms
from agents.serving.errors import DecisionInputError
from agents.serving.sessions import session_of
from agents.serving.settings import PolicySettings


@dataclass(frozen=True, eq=False)
class RowDecisions:
    """Offers for n observation rows.

    Attributes:
        offer: [n] int64 index into the policy's offers.
        propensity: [n] float64 probability with which that offer was drawn.
    """

    offer: npt.NDArray[np.int64]
    propensity: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ObservationPolicy:
    """Observation rows to offer probabilities.

    Attributes:
        session: of ``network.onnx``.
        settings: of the bundle.
    """

    session: onnxruntime.InferenceSession
    settings: PolicySettings

    @classmethod
    def of_bundle(cls, bundle: Bundle, settings: PolicySettings) -> ObservationPolicy:
        """Load the graph.

        Raises:
            BundleError: it is none.
        """
        return cls(session_of(bundle, NETWORK_FILE), settings)

    @classmethod
    def load(cls, folder: Path) -> ObservationPolicy:
        """Check a bundle, and load what observation rows need of it.

        Raises:
            BundleError: a file is missing or altered, or the schema version differs.
        """
        bundle = Bundle.read(folder)
        return cls.of_bundle(bundle, PolicySettings.of_bundle(bundle))

    @property
    def columns(self) -> tuple[str, ...]:
        """[o] names of the observation's columns."""
        return self.settings.columns

    @property
    def offers(self) -> tuple[str, ...]:
        """[K] names of the offers."""
        return tuple(offer.name for offer in self.settings.offers)

    def probabilities(
        self, observation: npt.NDArray[np.floating[Any]], *, first_row: int = 0
    ) -> npt.NDArray[np.float32]:
        """Return the probability of each offer, [n, K].

        Args:
            observation: [n, o] rows in the order of ``columns``.
            first_row: what the first row is called in messages.

        Raises:
            DecisionInputError: wrong width, a value that is not finite (row and column named), numbers too
                large to compute with, or a user to whom no offer is allowed, not even none.
        """
        if observation.ndim != 2 or observation.shape[1] != len(self.columns):
            raise DecisionInputError(
                f"observations have shape {observation.shape}, expected (n, {len(self.columns)})"
            )
        with np.errstate(over="ignore"):  # becomes infinite and is named below
            rows = np.ascontiguousarray(observation, dtype=np.float32)
        bad = ~np.isfinite(rows)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DecisionInputError(
                f"column {self.columns[column]!r}, row {first_row + row}: {rows[row, column]} is not a "
                f"finite number ({int(bad.sum())} such values)"
            )
        if not len(rows):
            return np.zeros((0, len(self.offers)), dtype=np.float32)
        out: npt.NDArray[np.float32] = self.session.run(None, {"observation": rows})[0]
        normalised(out, first_row)
        return out

    def decide(
        self,
        observation: npt.NDArray[np.floating[Any]],
        *,
        rng: np.random.Generator | None = None,
        uniform: npt.NDArray[np.float64] | None = None,
        first_row: int = 0,
    ) -> RowDecisions:
        """Draw an offer for each row.

        Args:
            observation: [n, o] rows in the order of ``columns``.
            rng: source of randomness.
            uniform: [n] numbers in [0, 1) to draw by instead.
            first_row: what the first row is called in messages.

        Raises:
            DecisionInputError: as of :meth:`probabilities`; neither or both of ``rng`` and ``uniform``.
        """
        probabilities = self.probabilities(observation, first_row=first_row)
        numbers = uniforms(len(observation), rng, uniform)
        return RowDecisions(*draw(normalised(probabilities, first_row), numbers))
