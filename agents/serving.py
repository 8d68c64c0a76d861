"""Serving an exported policy with numpy and onnxruntime alone; torch is neither needed nor imported.

    policy = CouponPolicy.load("runs/default/export")
    decisions = policy.decide(observation, rng=numpy.random.default_rng(0))

The bundle's hashes are checked on loading: a file that was changed or lost is refused. Files that the
manifest does not list are never read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

SCHEMA_VERSION = 1
POLICY_FILE = "policy.onnx"
ENCODER_FILE = "encoder.onnx"
SETTINGS_FILE = "policy.json"
MANIFEST_FILE = "manifest.json"


class BundleError(ValueError):
    """An exported policy is incomplete, altered or of another version."""


class DecisionInputError(ValueError):
    """The users to decide for are not described as the policy needs."""


@dataclass(frozen=True)
class Decisions:
    """Offers for n users.

    Attributes:
        offer: [n] int64 index into the policy's offers.
        propensity: [n] float64 probability with which that offer was drawn; log it, so that what is served
            can be evaluated later.
    """

    offer: npt.NDArray[np.int64]
    propensity: npt.NDArray[np.float64]


class CouponPolicy:
    """An exported policy, ready to decide.

    Args:
        session: onnxruntime session of ``policy.onnx``.
        settings: content of ``policy.json``.
    """

    def __init__(self, session: onnxruntime.InferenceSession, settings: dict[str, Any]) -> None:
        self.session = session
        self.settings = settings
        self.columns: tuple[str, ...] = tuple(settings["observation"])
        self.offers: tuple[str, ...] = tuple(offer["name"] for offer in settings["offers"])

    @classmethod
    def load(cls, folder: Path | str, *, threads: int = 1) -> CouponPolicy:
        """Check and load a bundle.

        Args:
            folder: as written by ``couponlab export``.
            threads: CPU threads of onnxruntime.

        Raises:
            BundleError: a file is missing or altered, or the schema version differs.
        """
        folder = Path(folder)
        check_bundle(folder)
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        if settings.get("schema_version") != SCHEMA_VERSION:
            raise BundleError(
                f"{folder / SETTINGS_FILE}: schema version {settings.get('schema_version')!r}, "
                f"this runtime reads {SCHEMA_VERSION}"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(folder / POLICY_FILE), options, providers=["CPUExecutionProvider"]
        )
        return cls(session, settings)

    def probabilities(
        self, observation: npt.NDArray[np.floating[Any]], *, first_row: int = 0
    ) -> npt.NDArray[np.float32]:
        """Return the probability of each offer, [n, K], for observation rows [n, o].

        Args:
            observation: rows in the order of ``columns``.
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
        total = out.sum(axis=1)
        wrong = ~(np.abs(total - 1.0) < 1e-3)
        if wrong.any():
            row = int(wrong.argmax())
            reason = (
                "no offer is allowed, not even to send nothing ('allowed_0')"
                if total[row] == 0
                else "its numbers are too large to compute with"
            )
            raise DecisionInputError(f"row {first_row + row}: {reason} ({int(wrong.sum())} such rows)")
        return out

    def decide(
        self, observation: npt.NDArray[np.floating[Any]], *, rng: np.random.Generator, first_row: int = 0
    ) -> Decisions:
        """Draw an offer for each user.

        Args:
            observation: [n, o] rows in the order of ``columns``.
            rng: source of randomness; the policy is stochastic so that its decisions can be evaluated.
            first_row: what the first row is called in messages.

        Raises:
            DecisionInputError: as of :meth:`probabilities`.
        """
        probabilities = self.probabilities(observation, first_row=first_row).astype(np.float64)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        point = rng.random((len(probabilities), 1))
        cumulative = probabilities.cumsum(axis=1)
        # The total may be a rounding below 1; the last offer with any probability takes the rest.
        offer = (cumulative <= point * cumulative[:, -1:]).sum(axis=1)
        return Decisions(offer.astype(np.int64), probabilities[np.arange(len(offer)), offer])


def check_bundle(folder: Path) -> None:
    """Check every file of a bundle against its manifest.

    Raises:
        BundleError: naming the file and what is wrong.
    """
    manifest = folder / MANIFEST_FILE
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{manifest} is missing: {folder} is not an exported policy") from error
    except ValueError as error:
        raise BundleError(f"{manifest} is not readable: {error}") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{manifest}: schema version differs from {SCHEMA_VERSION}, which this runtime reads"
        )
    hashes = content.get("sha256")
    if not isinstance(hashes, dict):
        raise BundleError(f"{manifest} has no table 'sha256' of files and their hashes")
    for name in (POLICY_FILE, SETTINGS_FILE):
        if name not in hashes:
            raise BundleError(f"{manifest} does not list {name}")
    for name, expected in hashes.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise BundleError(f"{path} is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise BundleError(f"{path} was altered: its sha256 is not the one in {MANIFEST_FILE}")
