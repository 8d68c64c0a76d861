"""The pipeline engine: runs stages in order, skips what is done, resumes what was cut short.

A stage's *fingerprint* covers everything its outputs depend on: the settings it declares, the seed, the
data, the outputs of its inputs, and the source code it can reach. Its record in ``.couponlab/`` keeps the
fingerprint and the hash of each output, so that a run can tell what is still good:

    complete    same fingerprint, outputs as recorded             → skip
    unfinished  same fingerprint, the last attempt was cut short  → go on in the same folder
    stale       another fingerprint, or outputs not as recorded   → empty the folder and start
    missing     no record                                         → empty the folder and start

The order of writes makes this hold across a ``kill -9`` at any point: the record goes before the
folder is emptied, and says *complete* only after the last output is written. The device and the number of
threads are recorded but are not in the fingerprint, so that a run may move to another machine half-way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments import manifest
from experiments.comparison.record import KEY, load_comparison
from experiments.config import SECTIONS, ConfigError, RunConfig, section_to_dict
from experiments.manifest import CHECKPOINT_FOLDER, STATE_FOLDER, StageRecord
from experiments.progress import EventLog, Reporter
from experiments.stage import RESULTS_FILE, DeclaredConfig, Stage, StageContext, StageError, merge_results

SAVE_SECONDS = 5.0
"""How often a running stage's working time is saved, so that a kill loses little of the account."""


@dataclass(frozen=True)
class RunRequest:
    """What is to be run, and where.

    Attributes:
        config: all settings.
        out: the run folder.
        data: ``complete-journey``, ``synthetic`` or a folder of log tables.
        seed: root of all seed streams.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads.
        preset: name of the preset the settings started from, for the record.
        until: last stage wanted, with what it needs; None runs all.
        force: stages to redo from scratch even if they are complete.
    """

    config: RunConfig
    out: Path
    data: str = "complete-journey"
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    preset: str | None = None
    until: str | None = None
    force: tuple[str, ...] = ()


State = Literal["complete", "unfinished", "stale", "missing", "waiting"]


@dataclass(frozen=True)
class Assessment:
    """How a stage stands.

    Attributes:
        state: see the module's table; ``waiting`` if an input is not complete.
        reason: why, in words for the user.
        inputs: what its fingerprint is made of, as of now.
        record: what is on record.
    """

    state: State
    reason: str
    inputs: dict[str, Any] = field(default_factory=dict)
    record: StageRecord | None = None


def run_pipeline(
    stages: Sequence[Stage], request: RunRequest, console: Console | None = None
) -> dict[str, Any]:
    """Bring the stages of a run folder up to date.

    Args:
        stages: all stages, in order.
        request: what to run.
        console: where to show progress; standard output by default.

    Returns:
        The content of ``results.json``: the merged results of all complete stages, and ``timing``.

    Raises:
        ConfigError: the request does not make sense.
        StageError: a stage cannot do its work, or another process is at work in the run folder.
    """
    check_stages(stages)
    wanted = _wanted(stages, request)
    with locked(request.out), EventLog(request.out / "events.jsonl") as events:
        return _Run(stages, request, console or Console(), events).execute(wanted)


def assess_run(stages: Sequence[Stage], request: RunRequest) -> dict[str, Assessment]:
    """How each stage of a run folder stands for a request, without changing anything."""
    check_stages(stages)
    return _Ledger(stages, request).assess_all()


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse a registry that contradicts itself.

    Raises:
        StageError: repeated names or folders, unknown sections, or inputs that do not come earlier.
    """
    seen: set[str] = set()
    for stage in stages:
        unknown = [name for name in stage.sections if name not in SECTIONS]
        late = [name for name in stage.inputs if name not in seen]
        if unknown or late or stage.name in seen:
            raise StageError(
                f"stage {stage.name}: repeated, or reads unknown sections {unknown} or later stages {late}"
            )
        seen.add(stage.name)
    if len({stage.folder for stage in stages}) < len(stages):
        raise StageError("two stages share a folder")


def _wanted(stages: Sequence[Stage], request: RunRequest) -> list[Stage]:
    """The stages to bring up to date: all, or one and what it needs."""
    names = [stage.name for stage in stages]
    for name in (*request.force, *([request.until] if request.until else [])):
        if name not in names:
            raise ConfigError(f"no stage {name!r}; the stages are {', '.join(names)}")
    needed = {request.until} if request.until else set(names)
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.inputs)
    if unneeded := [name for name in request.force if name not in needed]:
        raise ConfigError(f"--force {unneeded[0]}: {request.until} does not need that stage")
    return [stage for stage in stages if stage.name in needed]


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder, created if absent, against other processes; the kernel frees it on any death.

    Raises:
        ConfigError: the folder holds something else, or cannot be written to.
        StageError: another process holds it.
    """
    state = run / STATE_FOLDER
    try:
        # Stages empty their folders, so a folder that holds anything else is never adopted.
        if run.exists() and not state.is_dir() and any(run.iterdir()):
            raise ConfigError(f"{run} is not empty and is not a run folder; give another --out")
        state.mkdir(parents=True, exist_ok=True)
        handle = (state / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"{run} cannot be used as a run folder: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise StageError(
                f"another process ({handle.read().strip() or 'unknown'}) is running in {run}; "
                "wait for it, stop it, or give another --out"
            ) from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield


class _Ledger:
    """Compares what a request wants with what a run folder's records say."""

    def __init__(self, stages: Sequence[Stage], request: RunRequest) -> None:
        self.stages, self.request = stages, request
        self.digests: dict[str, str] = {}
        # Outputs hashed by this process: under the lock they change only by its own hand.
        self._verified: set[str] = set()
        # Taken before anything runs: an edit during a long stage must not pass for what produced it.
        self.data = manifest.identify_data(request.data)
        self._sources = {s.name: manifest.hash_source(getattr(s.run, "__module__", "")) for s in stages}

    def folder(self, stage: Stage) -> Path:
        return self.request.out / stage.folder

    def assess(self, stage: Stage) -> Assessment:
        """How a stage stands, given that its complete inputs are in `digests`; adds it if complete."""
        record = manifest.read_record(self.request.out, stage.name)
        if waiting := [name for name in stage.inputs if name not in self.digests]:
            return Assessment("waiting", f"for {', '.join(waiting)}", record=record)
        inputs = {
            "settings": {name: _settings(self.request.config, name) for name in stage.sections},
            "seed": self.request.seed,
            "data": self.data,
            "inputs": {name: self.digests[name] for name in stage.inputs},
            "source": self._sources[stage.name],
        }
        if record is None:
            return Assessment("missing", "not run yet", inputs)
        if record.fingerprint != manifest.hash_value(inputs):
            return Assessment("stale", _explain(record.inputs, inputs), inputs, record)
        if record.status != "complete":
            how = {"running": "was killed", "interrupted": "was interrupted"}.get(record.status, "failed")
            return Assessment("unfinished", f"an earlier attempt {how}", inputs, record)
        if stage.name not in self._verified:
            found = manifest.hash_outputs(self.folder(stage))
            if changed := [name for name, digest in record.outputs.items() if found.get(name) != digest]:
                what = "has changed" if changed[0] in found else "is missing"
                return Assessment("stale", f"its output {stage.folder}/{changed[0]} {what}", inputs, record)
        self.accept(stage, record)
        return Assessment("complete", "unchanged", inputs, record)

    def accept(self, stage: Stage, record: StageRecord) -> None:
        """Take a stage as complete."""
        self._verified.add(stage.name)
        self.digests[stage.name] = record.digest

    def reopen(self, stage: Stage) -> None:
        """Take a stage, and all after it until they are assessed again, as not complete."""
        self._verified.discard(stage.name)
        for later in self.stages[self.stages.index(stage) :]:
            self.digests.pop(later.name, None)

    def assess_all(self) -> dict[str, Assessment]:
        self.digests.clear()
        return {stage.name: self.assess(stage) for stage in self.stages}


def _settings(config: RunConfig, name: str) -> dict[str, Any]:
    """A section for the fingerprint; a setting that names a file stands for the file's content."""
    section = getattr(config, name)
    values = section_to_dict(section)
    for item in fields(section):
        value = values[item.name]
        if item.metadata["file"] and value not in item.metadata["names"] and Path(value).exists():
            values[item.name] = f"sha256:{manifest.hash_path(Path(value))}"
    return values


def _explain(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two fingerprints' inputs, in a few words."""
    before, after = _flatten(old), _flatten(new)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    settings = [
        f"{name.removeprefix('settings.')} ({before.get(name)} → {after.get(name)})"
        for name in names
        if name.startswith("settings.")
    ]
    words = {"seed": "the seed", "data": "the data", "source": "the source code"}
    others = [words.get(name, f"the output of {name.removeprefix('inputs.')}") for name in names]
    rest = [text for name, text in zip(names, others, strict=True) if not name.startswith("settings.")]
    return f"changed: {', '.join([*settings[:3], *(['…'] if len(settings) > 3 else []), *rest])}"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return flat


class _Run:
    """One locked run: executes stages and keeps the folder's records, manifest and results true."""

    def __init__(
        self, stages: Sequence[Stage], request: RunRequest, console: Console, events: EventLog
    ) -> None:
        self.stages, self.request = stages, request
        self.console, self.events = console, events
        self.ledger = _Ledger(stages, request)
        self.surroundings = {
            "versions": manifest.describe_versions(),
            "hardware": manifest.describe_hardware(request.device, request.threads),
            "git": manifest.describe_git(),
        }

    def execute(self, wanted: Sequence[Stage]) -> dict[str, Any]:
        self.events.write("run_started", until=self.request.until, force=self.request.force)
        self.ledger.assess_all()
        self._write_manifest()
        for position, stage in enumerate(wanted, start=1):
            found = self.ledger.assess(stage)
            title = f"[{position}/{len(wanted)}] {stage.name}"
            if found.state == "complete" and found.record and stage.name not in self.request.force:
                self._say(f"{title}: unchanged ({found.record.seconds:.1f} s)")
                self.events.write("stage_skipped", stage=stage.name)
                # A kill between completion and this line leaves checkpoints behind.
                shutil.rmtree(self.ledger.folder(stage) / CHECKPOINT_FOLDER, ignore_errors=True)
            else:
                self._run_stage(stage, found, title)
        self.ledger.assess_all()
        results = self._publish()
        self.events.write("run_finished")
        return results

    def _run_stage(self, stage: Stage, found: Assessment, title: str) -> None:
        forced = stage.name in self.request.force
        record = None if forced else found.record
        resuming = found.state == "unfinished" and record is not None
        folder = self.ledger.folder(stage)
        reason = "forced" if forced else found.reason
        self.ledger.reopen(stage)
        self._say(f"{title}: {stage.help} ({'going on; ' if resuming else ''}{reason})")
        if resuming and record is not None:
            record.status, record.attempts = "running", record.attempts + 1
            for litter in folder.rglob("*.tmp"):
                litter.unlink()
        else:
            # The record goes first: a folder half emptied must not look unfinished, let alone complete.
            manifest.record_path(self.request.out, stage.name).unlink(missing_ok=True)
            _empty(folder)
            fingerprint = manifest.hash_value(found.inputs)
            record = StageRecord(fingerprint, found.inputs, attempts=1, started=manifest.now())
        record.surroundings = self.surroundings
        folder.mkdir(parents=True, exist_ok=True)
        self._save(stage, record)
        self._publish()
        self.events.write("stage_started", stage=stage.name, resuming=resuming, reason=reason)
        clock = _Clock(record, lambda: self._save(stage, record))
        try:
            self._complete(stage, record, resuming, clock)
        except BaseException as error:
            record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            clock.stop()
            self._save(stage, record)
            self.events.write(f"stage_{record.status}", stage=stage.name, error=repr(error))
            raise
        self._say(f"{title}: done in {record.seconds:.1f} s")
        self.events.write("stage_finished", stage=stage.name, seconds=round(record.seconds, 3))
        self._publish()

    def _complete(self, stage: Stage, record: StageRecord, resuming: bool, clock: _Clock) -> None:
        folder = self.ledger.folder(stage)
        request = self.request
        by_name = {other.name: other for other in self.stages}
        context = StageContext(
            stage=stage.name,
            config=DeclaredConfig(request.config, stage),
            seed=request.seed,
            folder=folder,
            device=request.device,
            threads=request.threads,
            data=request.data,
            resuming=resuming,
            _inputs={name: self.ledger.folder(by_name[name]) for name in stage.inputs},
            _reporter=Reporter(self.console, self.events, clock.tick),
        )
        fragment = stage.run(context)
        if "timing" in fragment:
            raise StageError(f"stage {stage.name} gives the result 'timing', which the pipeline writes")
        manifest.write_json(folder / RESULTS_FILE, manifest.to_json(fragment, stage.name))
        record.outputs = manifest.hash_outputs(folder)
        record.status, record.finished = "complete", manifest.now()
        clock.stop()
        self._save(stage, record)
        self.ledger.accept(stage, record)
        shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)

    def _publish(self) -> dict[str, Any]:
        """Write results and manifest from the stages known to be complete."""
        complete = [stage for stage in self.stages if stage.name in self.ledger.digests]
        results = merge_results(
            {stage.name: manifest.read_json(self.ledger.folder(stage) / RESULTS_FILE) for stage in complete}
        )
        records = {stage.name: manifest.read_record(self.request.out, stage.name) for stage in complete}
        results["timing"] = {name: round(record.seconds, 3) for name, record in records.items() if record}
        market = section_to_dict(self.request.config.market)
        compared = load_comparison(self.request.out, market, self.request.seed, self.ledger.digests)
        if compared is not None:
            results[KEY] = compared
        manifest.write_json(self.request.out / RESULTS_FILE, results)
        self._write_manifest()
        return results

    def _write_manifest(self) -> None:
        request = self.request
        manifest.write_json(
            request.out / "manifest.json",
            {
                "written": manifest.now(),
                "preset": request.preset,
                "config": request.config.to_dict(),
                "data": {"source": request.data, "identity": self.ledger.data},
                "seed": request.seed,
                **self.surroundings,
                "stages": {stage.name: self._entry(stage) for stage in self.stages},
            },
        )

    def _entry(self, stage: Stage) -> dict[str, Any]:
        record = manifest.read_record(self.request.out, stage.name)
        if record is None:
            return {"folder": stage.folder, "status": "missing"}
        entry = {"folder": stage.folder, **record.to_dict()}
        if record.status == "complete" and stage.name not in self.ledger.digests:
            entry["status"] = "stale"
        return entry

    def _save(self, stage: Stage, record: StageRecord) -> None:
        manifest.write_record(self.request.out, stage.name, record)

    def _say(self, message: str) -> None:
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)


class _Clock:
    """Adds working time to a record and saves it now and then."""

    def __init__(self, record: StageRecord, save: Callable[[], None]) -> None:
        self._record, self._save = record, save
        self._before = record.seconds
        self._started = self._saved = time.monotonic()

    def tick(self) -> None:
        """Called whenever a stage shows a sign of life."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.stop()
            self._saved = time.monotonic()
            self._save()

    def stop(self) -> None:
        """Bring the record's working time up to date."""
        self._record.seconds = self._before + time.monotonic() - self._started


def _empty(folder: Path) -> None:
    """Delete what is in a folder, but not the folder, which may be a link to a larger disk."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
