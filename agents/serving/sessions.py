"""ONNX graphs of a bundle, loaded from the bytes that were checked."""

from __future__ import annotations

import onnxruntime

from agents.serving.bundle import POLICY_FILE, Bundle
from agents.serving.errors import BundleError
from agents.serving.settings import PolicySettings


def session_of(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    """Return a session of one of a bundle's graphs, on one CPU thread.

    Many users are shared out among threads as blocks, which scales better than threads within an operator.

    Raises:
        BundleError: the file is no graph that this version of onnxruntime reads.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise BundleError(f"{bundle.folder / name} is not a graph that onnxruntime reads: {error}") from error


def policy_session(bundle: Bundle, settings: PolicySettings) -> onnxruntime.InferenceSession:
    """Return the session of the policy's graph, made for what the settings say.

    Raises:
        BundleError: it is no graph, or that of another catalogue or market.
    """
    session = session_of(bundle, POLICY_FILE)
    inputs = {one.name: one.shape for one in session.get_inputs()}
    outputs = {one.name: one.shape for one in session.get_outputs()}
    expected = (
        ("categories", inputs.get("category_slow"), len(settings.categories)),
        ("offers", outputs.get("probabilities"), len(settings.offers)),
        ("observation columns", outputs.get("observation"), len(settings.columns)),
        ("slots", outputs.get("slots"), settings.n_slots),
    )
    for what, shape, count in expected:
        if shape is None or shape[1] != count:
            raise BundleError(
                f"{bundle.folder}: policy.json has {count} {what}, but {POLICY_FILE} was made for "
                f"{shape[1] if shape else 'none'}: another catalogue or market"
            )
    return session
