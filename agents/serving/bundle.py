"""The files of an exported policy: read once, checked against their hashes, then used from memory.

What is checked is what is used: a file that changes after the check changes nothing. Files that the manifest
does not list are never read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.serving.errors import BundleError

SCHEMA_VERSION = 2
POLICY_FILE = "policy.onnx"
NETWORK_FILE = "network.onnx"
ENCODER_FILE = "encoder.onnx"
INT8_ENCODER_FILE = "encoder.int8.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "policy.json"
TABLES_FILE = "tables.npz"
MODEL_CARD_FILE = "MODEL_CARD.md"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"

REQUIRED = (POLICY_FILE, NETWORK_FILE, ENCODER_FILE, TOKENIZER_FILE, SETTINGS_FILE, TABLES_FILE)
"""Without these nothing can be decided."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are as they were exported.

    Attributes:
        folder: where it was read from, for messages.
        files: content by name, as the manifest lists them.
        fingerprint: sha256 of the manifest, and by it of everything.
    """

    folder: Path
    files: dict[str, bytes]
    fingerprint: str

    @classmethod
    def read(cls, folder: Path, *, public_key: bytes | None = None) -> Bundle:
        """Read and check a bundle.

        Args:
            folder: as written by ``couponlab export``.
            public_key: Ed25519, 32 raw bytes; the manifest must then be signed by its private half.

        Raises:
            BundleError: naming the file and what is wrong.
        """
        manifest = folder / MANIFEST_FILE
        raw = _read(manifest, f"{manifest} is missing: {folder} is not an exported policy")
        if public_key is not None:
            _check_signature(folder, raw, public_key)
        hashes = _hashes(manifest, raw)
        files = {}
        for name, expected in hashes.items():
            path = folder / name
            if Path(name).name != name or "\0" in name:
                raise BundleError(f"{manifest} lists {name!r}, which is not a file of its folder")
            content = _read(path, f"{path} is missing")
            if hashlib.sha256(content).hexdigest() != expected:
                raise BundleError(f"{path} was altered: its sha256 is not the one in {MANIFEST_FILE}")
            files[name] = content
        return cls(folder, files, hashlib.sha256(raw).hexdigest())

    def json(self, name: str) -> dict[str, Any]:
        """Return a file as a JSON object.

        Raises:
            BundleError: it is none.
        """
        try:
            content = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.folder / name} is not readable: {error}") from error
        if not isinstance(content, dict):
            raise BundleError(f"{self.folder / name} holds no JSON object")
        return content


def _hashes(manifest: Path, raw: bytes) -> dict[str, str]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{manifest} is not readable: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{manifest}: schema version {version!r}, this runtime reads {SCHEMA_VERSION}; export again"
        )
    hashes = content.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise BundleError(f"{manifest} has no table 'sha256' of files and their hashes")
    for name in REQUIRED:
        if name not in hashes:
            raise BundleError(f"{manifest} does not list {name}")
    return hashes


def _read(path: Path, missing: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(missing) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error


def _check_signature(folder: Path, manifest: bytes, public_key: bytes) -> None:
    try:
        from cryptography.exceptions import InvalidSignature  # type: ignore[import-not-found]
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # type: ignore[import-not-found]
    except ImportError as error:
        raise BundleError("checking a signature needs: pip install cryptography") from error
    path = folder / SIGNATURE_FILE
    signature = _read(path, f"{path} is missing: the policy is not signed, but a public key was given")
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise BundleError(f"the public key is not an Ed25519 key of 32 bytes: {error}") from error
    try:
        key.verify(signature, manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"{path} does not sign {MANIFEST_FILE} with the private half of this key"
        ) from error
