"""How far an exported policy is from the trained one, measured on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from agents.export import NetworkGraph
from agents.offer_network import OfferNetwork
from agents.policy_graph import PolicyGraph
from agents.serving.bundle import ENCODER_FILE, NETWORK_FILE, POLICY_FILE
from agents.serving.columns import INPUTS, OUTPUTS
from agents.state_rows import StateRows
from envs.observation import Shop

TIE = 1e-6
"""Probabilities closer than this are equal but for the order of additions in float32."""

ROWS = 1024

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """What two runtimes made of the same inputs.

    Attributes:
        largest: largest difference of a probability.
        same_best: whether the most probable offers are the same everywhere; offers alike in everything have
            the same probability, and which of them is first is left to rounding.
        rows: compared.
    """

    largest: float
    same_best: bool
    rows: int

    @classmethod
    def of(cls, served: FloatArray, reference: FloatArray) -> Parity:
        """Compare probabilities [n, K]."""
        best = np.take_along_axis(reference, served.argmax(axis=1)[:, None], axis=1)[:, 0]
        return cls(
            largest=float(np.abs(served - reference).max(initial=0.0)),
            same_best=bool((best >= reference.max(axis=1, initial=0.0) - TIE).all()),
            rows=len(served),
        )

    def worst(self, other: Parity) -> Parity:
        """Return the parity of both sets of rows together."""
        return Parity(
            max(self.largest, other.largest), self.same_best and other.same_best, self.rows + other.rows
        )


def policy_parity(shop: Shop, network: OfferNetwork, folder: Path, states: list[StateRows]) -> Parity:
    """Compare ``policy.onnx`` with the same graph in torch, all in float64, on state rows of any weeks."""
    session = _session(folder / POLICY_FILE)
    graph = PolicyGraph(shop, network, torch.float64).eval()
    found = Parity(0.0, True, 0)
    for rows in states:
        feed = dict(zip(INPUTS, rows.arguments(), strict=True))
        served = session.run([OUTPUTS[0]], {name: value.numpy() for name, value in feed.items()})[0]
        with torch.no_grad():
            reference = graph(*rows.arguments())[0].numpy()
        found = found.worst(Parity.of(served, reference))
    return found


def network_parity(network: OfferNetwork, folder: Path, observation: FloatArray) -> Parity:
    """Compare ``network.onnx`` with torch, on observation rows [n, o]."""
    session = _session(folder / NETWORK_FILE)
    graph = NetworkGraph(network)
    found = Parity(0.0, True, 0)
    for start in range(0, len(observation), ROWS):
        rows = observation[start : start + ROWS]
        with torch.no_grad():
            reference = graph(torch.from_numpy(rows)).numpy()
        found = found.worst(Parity.of(session.run(None, {"observation": rows})[0], reference))
    return found


def encoder_parity(
    encoder: nn.Module,
    folder: Path,
    ids: npt.NDArray[np.int64],
    attention: npt.NDArray[np.int64],
    file: str = ENCODER_FILE,
) -> tuple[float, float]:
    """Compare an exported encoder with torch on padded texts.

    Returns:
        The largest difference of an embedding's entry, and the lowest cosine of two embeddings of a text.
    """
    served = _session(folder / file).run(None, {"ids": ids, "attention": attention})[0]
    with torch.no_grad():
        reference = encoder(torch.from_numpy(ids), torch.from_numpy(attention)).numpy()
    lengths = np.linalg.norm(served, axis=1) * np.linalg.norm(reference, axis=1)
    cosine = (served * reference).sum(axis=1) / lengths
    return float(np.abs(served - reference).max()), float(cosine.min())


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
