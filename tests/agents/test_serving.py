from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from agents.bundle_writer import write_manifest
from agents.offer_network import OfferNetwork
from agents.serving import (
    BundleError,
    CouponPolicy,
    DecisionInputError,
    context_from_json,
    user_from_json,
)
from envs.campaign import MarketSpec

Rows = npt.NDArray[np.float32]


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec


Copy = Callable[[], Path]


@pytest.fixture
def policy(exported: Exported) -> CouponPolicy:
    return CouponPolicy.load(exported.folder)


# Decisions -----------------------------------------------------------------------------------------


def test_a_decision_comes_with_the_probability_of_its_draw(policy: CouponPolicy, rows: Rows) -> None:
    decided = policy.decide_rows(rows, rng=np.random.default_rng(0))
    probabilities = policy.probabilities(rows).astype(np.float64)
    assert decided.offer.dtype == np.int64
    drawn = probabilities[np.arange(len(rows)), decided.offer]
    np.testing.assert_allclose(decided.propensity, drawn, rtol=1e-6)
    assert (decided.propensity > 0).all()
    again = policy.decide_rows(rows, rng=np.random.default_rng(0))
    assert np.array_equal(again.offer, decided.offer)
    other = policy.decide_rows(rows, rng=np.random.default_rng(1))
    assert not np.array_equal(other.offer, decided.offer)


def test_offers_come_as_often_as_their_propensity(policy: CouponPolicy, rows: Rows) -> None:
    probabilities = policy.probabilities(rows)
    flat = int(probabilities.max(axis=1).argmin())
    n = 50_000
    decided = policy.decide_rows(np.repeat(rows[flat : flat + 1], n, axis=0), rng=np.random.default_rng(3))
    p = probabilities[flat].astype(np.float64)
    counts = np.bincount(decided.offer, minlength=len(policy.offers))
    possible = p > 1e-3
    assert possible.sum() > 2
    expected = counts[possible].sum() * p[possible] / p[possible].sum()
    assert chisquare(counts[possible], expected).pvalue > 0.001


def test_rows_are_drawn_one_after_another(policy: CouponPolicy, rows: Rows) -> None:
    # In any batches, the same generator gives the same draws.
    whole = policy.decide_rows(rows, rng=np.random.default_rng(5))
    rng = np.random.default_rng(5)
    parts = [policy.decide_rows(rows[start : start + 100], rng=rng) for start in range(0, len(rows), 100)]
    assert np.array_equal(np.concatenate([part.offer for part in parts]), whole.offer)


class NearOne:
    """A generator whose every number is as close to 1 as a number below 1 can be."""

    def random(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        return np.full(shape, np.nextafter(1.0, 0.0))


def test_even_the_largest_uniform_draws_a_possible_offer(policy: CouponPolicy, rows: Rows) -> None:
    masked = rows.copy()
    masked[:, 4 - len(policy.offers) :] = 0.0
    decided = policy.decide_rows(masked, rng=NearOne())  # type: ignore[arg-type]
    assert (decided.propensity > 0).all()
    assert (decided.offer < 4).all()


# Input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_named(policy: CouponPolicy, rows: Rows, value: float) -> None:
    bad = rows.copy()
    bad[7, 3] = bad[9, 5] = value
    with pytest.raises(DecisionInputError) as error:
        policy.probabilities(bad)
    message = str(error.value)
    assert repr(policy.columns[3]) in message
    assert "row 7" in message
    assert "(2 such values)" in message


def test_a_wrong_shape_is_named(policy: CouponPolicy, rows: Rows) -> None:
    width = rows.shape[1]
    for wrong in (rows[:, :-1], rows[0], np.zeros((2, width + 1), np.float32)):
        with pytest.raises(DecisionInputError, match=rf"expected \(n, {width}\)"):
            policy.probabilities(wrong)


def test_a_user_to_whom_nothing_may_be_sent_not_even_nothing_is_an_error(
    policy: CouponPolicy, rows: Rows
) -> None:
    bad = rows.copy()
    bad[11, -len(policy.offers) :] = 0.0
    with pytest.raises(DecisionInputError, match=r"row 11: .*allowed"):
        policy.decide_rows(bad, rng=np.random.default_rng(0))


@pytest.mark.parametrize("column", ["log_dual_price", "uplift_3"])
def test_numbers_beyond_arithmetic_are_an_error(policy: CouponPolicy, rows: Rows, column: str) -> None:
    bad = rows.copy()
    bad[4, policy.columns.index("log_dual_price")] = 1e30
    if column != "log_dual_price":
        bad[4, policy.columns.index(column)] = 3e38
    with pytest.raises(DecisionInputError, match=r"row 4: .*too large"):
        policy.decide_rows(bad, rng=np.random.default_rng(0))


def test_other_float_types_and_layouts_are_accepted(policy: CouponPolicy, rows: Rows) -> None:
    expected = policy.probabilities(rows)
    assert np.array_equal(policy.probabilities(rows.astype(np.float64)), expected)
    assert np.array_equal(policy.probabilities(np.asfortranarray(rows)), expected)


# Bundles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "policy.onnx",
        "network.onnx",
        "encoder.onnx",
        "encoder.int8.onnx",
        "policy.json",
        "tables.npz",
        "tokenizer.json",
    ],
)
def test_a_flipped_byte_or_a_lost_file_is_refused_by_name(copied: Copy, name: str) -> None:
    folder = copied()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=rf"{name} was altered"):
        CouponPolicy.load(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        CouponPolicy.load(str(folder))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_change_of_the_manifest_is_refused_or_harmless(copied: Copy, place: int, change: int) -> None:
    folder = copied()
    path = folder / "manifest.json"
    before = json.loads(path.read_text())
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(bytes(content))
    try:
        CouponPolicy.load(folder)
    except BundleError as error:
        assert str(folder) in str(error)  # noqa: PT017 - either is right, and nothing else
    else:
        assert json.loads(path.read_text())["sha256"].items() >= before["sha256"].items() - {
            ("tokenizer.json", before["sha256"]["tokenizer.json"])
        }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"schema_version": 2}',
        '{"schema_version": 2, "sha256": ["policy.onnx", "policy.json"]}',
        '{"schema_version": 2, "sha256": {}}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(copied: Copy, content: str) -> None:
    folder = copied()
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        CouponPolicy.load(folder)


def test_another_schema_version_is_refused(copied: Copy) -> None:
    folder = copied()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    with pytest.raises(BundleError, match=r"manifest\.json: schema version"):
        CouponPolicy.load(folder)
    folder = copied()
    content = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(content | {"schema_version": 1}))
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"policy\.json: schema version 1, this runtime reads 2"):
        CouponPolicy.load(folder)


@pytest.mark.parametrize("name", ["../outside", "policy\0.onnx", "/etc/hosts"])
def test_a_manifest_cannot_point_outside_its_folder(copied: Copy, name: str) -> None:
    folder = copied()
    (folder.parent / "outside").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a file of its folder"):
        CouponPolicy.load(folder)


def test_a_folder_that_is_no_bundle_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError, match="is not an exported policy"):
            CouponPolicy.load(folder)


# Without the training stack ------------------------------------------------------------------------

PROGRAM = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "stable_baselines3", "sb3_contrib", "transformers", "pandas",
                                  "gymnasium", "scipy", "sklearn", "duckdb", "onnx", "safetensors",
                                  "pyarrow", "cryptography"}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import json
import numpy as np
from agents.serving import CouponPolicy, context_from_json, user_from_json

folder, asked = sys.argv[1:]
asked = json.loads(asked)
users = [user_from_json(user) for user in asked["users"]]
policy = CouponPolicy.load(folder)
decided = policy.decide(users, context_from_json(asked["context"]), rng=np.random.default_rng(7))
loaded = {name.split(".")[0] for name in sys.modules}
print(json.dumps([decided.records(), sorted(loaded & {"torch", "envs", "experiments", "onnx"})]))
"""

ASKED: dict[str, Any] = {
    "users": [
        {
            "user_id": f"u{k}",
            "profile": {"age": "35-44"},
            "transactions": [
                {
                    "timestamp": f"2018-0{1 + k % 4}-1{j}T10:00:00",
                    "basket_id": f"{k}-{j}",
                    "item_id": f"i0{j}1",
                    "spend": 2.5,
                }
                for j in range(k % 5)
            ],
            "offers": [{"timestamp": "2018-05-02", "offer": "push only"}] if k % 3 else [],
        }
        for k in range(12)
    ],
    "context": {"date": "2018-05-16", "weeks_left": 4, "budget_per_user": 0.3, "available": 50.0},
}


def test_it_serves_where_neither_torch_nor_pandas_nor_arrow_is_installed(exported: Exported) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(exported.folder), json.dumps(ASKED)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records, loaded = json.loads(done.stdout)
    assert loaded == []
    policy = CouponPolicy.load(exported.folder)
    users = [user_from_json(user) for user in ASKED["users"]]
    decided = policy.decide(users, context_from_json(ASKED["context"]), rng=np.random.default_rng(7))
    assert records == decided.records()
    assert [record["user_id"] for record in records] == [f"u{k}" for k in range(12)]


@pytest.mark.slow
def test_it_serves_in_an_environment_that_has_no_torch(exported: Exported, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    packages = ("numpy", "onnxruntime", "tokenizers")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert missing.returncode != 0
    done = subprocess.run(
        [python, "-c", PROGRAM, str(exported.folder), json.dumps(ASKED)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    policy = CouponPolicy.load(exported.folder)
    users = [user_from_json(user) for user in ASKED["users"]]
    decided = policy.decide(users, context_from_json(ASKED["context"]), rng=np.random.default_rng(7))
    for record, own in zip(json.loads(done.stdout)[0], decided.records(), strict=True):
        assert record.pop("propensity") == pytest.approx(own.pop("propensity"), abs=1e-6)
        assert record == own
