from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from agents.export import export_encoder_graph, quantise_encoder_graph
from agents.offer_network import LearnedPolicy, OfferNetwork
from agents.parity import encoder_parity, network_parity
from agents.serving import CouponPolicy, ObservationPolicy
from agents.serving.bundle import INT8_ENCODER_FILE
from agents.serving.columns import INPUTS, OUTPUTS
from encoders.bert import TextEncoder, new_pretraining_model
from envs.campaign import MarketSpec
from envs.observation import LOG_DUAL_PRICE
from envs.offers import Catalogue

K = len(Catalogue.built_in())

Rows = npt.NDArray[np.float32]


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec


def wild_rows(layout_width: int, logged: Rows, n: int) -> Rows:
    """Rows as seen, shuffled by column, stretched, and at the edges of what a number can be."""
    rng = np.random.default_rng(0)
    out = logged[rng.integers(0, len(logged), n)].copy()
    half = n // 2
    out[half:] = rng.permuted(out[half:], axis=0) * rng.choice([-1.0, 0.0, 0.5, 3.0], size=out[half:].shape)
    edge = n // 10
    out[-edge:] = rng.choice([0.0, -0.0, 1e-38, 1.0, -1.0, 1e6, -1e6], size=(edge, layout_width))
    out[:, LOG_DUAL_PRICE] = rng.uniform(-20, 20, n)
    out[:, -K:] = rng.random((n, K)) < 0.5
    out[:, -K] = 1.0
    return out.astype(np.float32)


def reference(network: OfferNetwork, rows: Rows) -> Rows:
    """In float64: at a price of e^20 uplift less cost has no digit left in float32."""
    mask = torch.from_numpy(rows[:, -K:] > 0.5)
    precise = LearnedPolicy(copy.deepcopy(network).double())
    out: Rows = precise.probabilities(torch.from_numpy(rows).double(), mask).float().numpy()
    return out


def test_on_what_a_market_shows_float32_agrees(exported: Exported, rows: Rows) -> None:
    mask = torch.from_numpy(rows[:, -K:] > 0.5)
    single = LearnedPolicy(exported.network).probabilities(torch.from_numpy(rows), mask).numpy()
    np.testing.assert_allclose(single, reference(exported.network, rows), atol=1e-4)


def test_the_served_policy_is_the_trained_one(exported: Exported, rows: Rows) -> None:
    wild = wild_rows(exported.market.layout.width, rows, 10_000)
    served = CouponPolicy.load(exported.folder).probabilities(wild)
    trained = reference(exported.network, wild)
    assert float(np.abs(served - trained).max()) <= 1e-5
    ordered = np.sort(trained, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-5
    assert clear.mean() > 0.5
    assert np.array_equal(served.argmax(axis=1)[clear], trained.argmax(axis=1)[clear])
    assert (served[wild[:, -K:] <= 0.5] == 0).all()
    np.testing.assert_allclose(served.sum(axis=1), 1.0, atol=1e-5)
    parity = network_parity(exported.network, exported.folder, wild)
    assert parity.largest == pytest.approx(float(np.abs(served - trained).max()), abs=1e-7)
    assert parity.same_best
    assert parity.rows == len(wild)


def test_parity_does_not_depend_on_the_number_of_rows(exported: Exported, rows: Rows) -> None:
    policy = CouponPolicy.load(exported.folder)
    together = policy.probabilities(rows)
    for n in (1, 2, 3, 7):
        np.testing.assert_allclose(policy.probabilities(rows[:n]), together[:n], atol=1e-6)
    assert policy.probabilities(rows[:0]).shape == (0, K)


def test_parity_tells_another_policy_apart(exported: Exported, rows: Rows) -> None:
    other = type(exported.network)(exported.network.shape)
    other.load_state_dict(exported.network.state_dict())
    with torch.no_grad():
        other.sharpness.mul_(-1.0)
    parity = network_parity(other, exported.folder, rows)
    assert parity.largest > 0.1
    assert not parity.same_best


def test_the_files_of_a_bundle(exported: Exported) -> None:
    names = {path.name for path in exported.folder.iterdir()}
    assert names == {  # nothing temporary
        "policy.onnx",
        "network.onnx",
        "encoder.onnx",
        "encoder.int8.onnx",
        "tokenizer.json",
        "policy.json",
        "tables.npz",
        "manifest.json",
    }
    manifest = json.loads((exported.folder / "manifest.json").read_text())
    assert manifest["sha256"] == {
        name: hashlib.sha256((exported.folder / name).read_bytes()).hexdigest()
        for name in names - {"manifest.json"}
    }
    settings = json.loads((exported.folder / "policy.json").read_text())
    assert settings["observation"] == exported.market.layout.names()
    assert [offer["name"] for offer in settings["offers"]] == [
        offer.name for offer in exported.market.catalogue.offers
    ]
    assert settings["offers"][3]["kind"] == "percent"
    assert settings["offers"][3]["liability_ticks"] == 12_000
    assert settings["frequency_cap"] == {"messages": 6, "weeks": 8}
    assert [plan["budget_per_user"] for plan in settings["pacing"]] == [0.05, 0.5]
    for name, inputs, outputs in (
        ("policy.onnx", INPUTS, OUTPUTS),
        ("network.onnx", ("observation",), ("probabilities",)),
    ):
        graph = onnx.load(exported.folder / name).graph
        assert tuple(value.name for value in graph.input) == inputs
        assert tuple(value.name for value in graph.output) == outputs
        # One file: no weights beside it that the manifest would have to know of.
        assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in graph.initializer)


def test_the_encoder_with_any_number_of_texts_of_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = new_pretraining_model(50, 2, 32, 2, 0.1, max_tokens=64)
    encoder = TextEncoder(bert.bert, 6).eval()
    export_encoder_graph(encoder, tmp_path / "encoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n, length in ((1, 1), (1, 40), (2, 12), (5, 3), (17, 25), (3, 96)):
        ids = rng.integers(5, 50, (n, length))
        attention = np.ones((n, length), dtype=np.int64)
        for row in range(1, n):
            attention[row, rng.integers(1, length + 1) :] = 0
        ids[attention == 0] = 0
        assert encoder_parity(encoder, tmp_path, ids, attention)[0] <= 1e-4
        served = session.run(None, {"ids": ids, "attention": attention})[0]
        assert served.shape == (n, 6)
        # Padding changes nothing: each text alone, cut to its own length, has the same embedding.
        for row in range(min(n, 3)):
            own = int(attention[row].sum())
            alone = {"ids": ids[row : row + 1, :own], "attention": attention[row : row + 1, :own]}
            np.testing.assert_allclose(session.run(None, alone)[0][0], served[row], atol=1e-4)


def test_the_int8_encoder_says_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(new_pretraining_model(50, 2, 32, 2, 0.1, max_tokens=64).bert, 6).eval()
    export_encoder_graph(encoder, tmp_path / "encoder.onnx")
    quantise_encoder_graph(tmp_path / "encoder.onnx", tmp_path / INT8_ENCODER_FILE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [INT8_ENCODER_FILE, "encoder.onnx"]
    assert (tmp_path / INT8_ENCODER_FILE).stat().st_size < (tmp_path / "encoder.onnx").stat().st_size
    ids = np.random.default_rng(0).integers(5, 50, (20, 30))
    attention = np.ones_like(ids)
    exact, cosine = encoder_parity(encoder, tmp_path, ids, attention)
    assert exact <= 1e-4
    assert cosine == pytest.approx(1.0, abs=1e-5)
    moved, cosine = encoder_parity(encoder, tmp_path, ids, attention, INT8_ENCODER_FILE)
    assert moved > exact
    assert cosine > 0.99


def test_observation_rows_need_no_more_than_the_inner_graph(exported: Exported, rows: Rows) -> None:
    alone = ObservationPolicy.load(exported.folder)
    whole = CouponPolicy.load(exported.folder)
    assert alone.columns == whole.columns
    assert alone.offers == whole.offers
    assert np.array_equal(alone.probabilities(rows), whole.probabilities(rows))
