"""Export of a policy as files that need neither torch nor Stable-Baselines3."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from agents.offer_network import OfferNetwork
from agents.serving import (
    ENCODER_FILE,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    SETTINGS_FILE,
    CouponPolicy,
)
from envs.offers import Catalogue

TIE = 1e-6
"""Probabilities closer than this are equal but for the order of additions in float32."""


class _PolicyGraph(nn.Module):
    """Raw observation rows to offer probabilities: normalisation, network and mask in one graph.

    It reckons in float64: a sharp policy multiplies scores by hundreds, and in float32 two runtimes that
    round differently would disagree by more than the propensities of served offers may be off.
    """

    def __init__(self, network: OfferNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().double().eval()

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Return probabilities [n, K]; the mask is read from the observation's own columns."""
        allowed = self.network.layout.offer_block(observation, "allowed") > 0.5
        return self.network.probabilities(observation.double(), allowed).float()


def export_policy_graph(network: OfferNetwork, path: Path) -> None:
    """Write the policy as ONNX: ``observation`` [n, o] float32 to ``probabilities`` [n, K] float32."""
    sample = torch.zeros(2, network.layout.width)
    _export(_PolicyGraph(network), (sample,), path, ("observation",), "probabilities", ({0: "n"},))


def export_encoder_graph(encoder: nn.Module, path: Path) -> None:
    """Write the encoder as ONNX: ``ids``, ``attention`` [n, L] int64 to ``text_embedding`` [n, d] float32."""
    ids = torch.ones(2, 12, dtype=torch.int64)
    shape = {0: "n", 1: "length"}
    _export(
        encoder.cpu().eval(), (ids, ids.clone()), path, ("ids", "attention"), "text_embedding", (shape, shape)
    )


def _export(
    module: nn.Module,
    arguments: tuple[torch.Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    output: str,
    shapes: tuple[dict[int, str], ...],
) -> None:
    """Run torch's exporter quietly and put its file in place at the end."""
    temporary = path.with_name(path.name + ".tmp")
    dynamic = tuple({axis: torch.export.Dim(name) for axis, name in shape.items()} for shape in shapes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        # Deprecations inside the exporter itself; the parity check decides whether the result is right.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            arguments,
            temporary,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    os.replace(temporary, path)


def write_settings(
    folder: Path,
    network: OfferNetwork,
    catalogue: Catalogue,
    *,
    dual_prices: Mapping[str, float],
    default_dual_price: float,
    provenance: Mapping[str, Any],
) -> None:
    """Write ``policy.json``: schema version, observation columns, offers, λ per budget, provenance.

    Args:
        folder: export folder.
        network: the policy.
        catalogue: its offers.
        dual_prices: budget per user and campaign (as text) -> λ to start from.
        default_dual_price: λ where a caller gives none.
        provenance: where the policy comes from.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "observation": network.layout.names(),
        "offers": [asdict(offer) for offer in catalogue.offers],
        "dual_prices": dict(dual_prices),
        "default_dual_price": default_dual_price,
        "provenance": dict(provenance),
    }
    _write(folder / SETTINGS_FILE, json.dumps(content, indent=2))


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json`` with the sha256 of every other file; the last step of an export."""
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (MANIFEST_FILE, "results.json")
    }
    _write(folder / MANIFEST_FILE, json.dumps({"schema_version": SCHEMA_VERSION, "sha256": hashes}, indent=2))


def policy_parity(
    network: OfferNetwork, folder: Path, observation: npt.NDArray[np.float32]
) -> tuple[float, bool]:
    """Return how far ONNX's probabilities are from torch's at most, and whether the best offers agree.

    Offers alike in everything have the same probability; which of them is first is left to rounding.
    """
    served = CouponPolicy.load(folder).probabilities(observation)
    with torch.no_grad():
        reference = _PolicyGraph(network)(torch.from_numpy(observation)).numpy()
    best = np.take_along_axis(reference, served.argmax(axis=1)[:, None], axis=1)[:, 0]
    agree = bool((best >= reference.max(axis=1) - TIE).all())
    return float(np.abs(served - reference).max()), agree


def encoder_parity(
    encoder: nn.Module, folder: Path, ids: npt.NDArray[np.int64], attention: npt.NDArray[np.int64]
) -> float:
    """Return the largest difference of an embedding entry between ONNX and torch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / ENCODER_FILE), providers=["CPUExecutionProvider"])
    served = session.run(None, {"ids": ids, "attention": attention})[0]
    with torch.no_grad():
        reference = encoder(torch.from_numpy(ids), torch.from_numpy(attention)).numpy()
    return float(np.abs(served - reference).max())


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
