"""A trained policy and its encoder as ONNX graphs, which need neither torch nor Stable-Baselines3."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from agents.offer_network import OfferNetwork
from agents.policy_graph import PolicyGraph
from agents.serving.columns import INPUTS, OUTPUTS, ROW_INPUTS
from agents.state_rows import StateRows
from envs.observation import Shop

OPSET = 18


class NetworkGraph(nn.Module):
    """Observation rows to offer probabilities: normalisation, network and mask, without the predictor.

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


def export_policy_graph(
    shop: Shop, network: OfferNetwork, sample: StateRows, path: Path, wide: torch.dtype = torch.float32
) -> None:
    """Write the policy as ONNX: state rows in; probabilities, slots and observation out.

    Args:
        shop: catalogue, predictor and recommender.
        network: the policy.
        sample: any rows, of two users or more, for their shapes.
        path: where to.
        wide: what is computed in per category.
    """
    graph = PolicyGraph(shop, network, wide)
    _trace(graph, sample.arguments(), path, INPUTS, OUTPUTS, ROW_INPUTS)


def export_network_graph(network: OfferNetwork, path: Path) -> None:
    """Write the inner policy: ``observation`` [n, o] float32 to ``probabilities`` [n, K] float32."""
    sample = torch.zeros(2, network.layout.width)
    names = ("observation",)
    _trace(NetworkGraph(network), (sample,), path, names, ("probabilities",), names)


def export_encoder_graph(encoder: nn.Module, path: Path) -> None:
    """Write the encoder as ONNX: ``ids``, ``attention`` [n, L] int64 to ``text_embedding`` [n, d] float32."""
    ids = torch.ones(2, 12, dtype=torch.int64)
    temporary = path.with_name(path.name + ".tmp")
    dynamic = {axis: torch.export.Dim(name) for axis, name in enumerate(("n", "length"))}
    with _quiet("torch.onnx"):
        torch.onnx.export(
            encoder.cpu().eval(),
            (ids, ids.clone()),
            temporary,
            input_names=["ids", "attention"],
            output_names=["text_embedding"],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    os.replace(temporary, path)


def quantise_encoder_graph(path: Path, quantised: Path) -> None:
    """Write an encoder graph again with int8 matrix products, weights scaled per output.

    Activations are quantised as they come, with one scale a matrix; how far embeddings move is for the
    caller to measure.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    temporary = quantised.with_name(quantised.name + ".tmp")
    with _quiet("root"):
        quantize_dynamic(path, temporary, per_channel=True, weight_type=QuantType.QInt8)
    os.replace(temporary, quantised)


def _trace(
    module: nn.Module,
    arguments: tuple[torch.Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    with_rows: tuple[str, ...],
) -> None:
    """Export by tracing: no branch of these graphs depends on data, and torch.export takes 25 times as long.

    Args:
        module: to export.
        arguments: of its forward pass.
        path: where to; the file is put in place at the end.
        inputs: names.
        outputs: names; all have a row a user.
        with_rows: the inputs that have one.
    """
    temporary = path.with_name(path.name + ".tmp")
    # Without gradients the networks are made of plain operations.
    with _quiet("torch.onnx"), torch.no_grad():
        torch.onnx.export(
            module.eval(),
            arguments,
            temporary,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "n"} for name in (*with_rows, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    os.replace(temporary, path)


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without the chatter and deprecations of exporters; parity checks decide whether they did right."""
    speaking = logging.getLogger(logger)
    level = speaking.level
    speaking.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        speaking.setLevel(level)
