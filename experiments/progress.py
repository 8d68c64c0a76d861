"""What a run tells its user: bars on a terminal, a few lines in a CI log, every event in a file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0
"""At most one progress line in this time, on a stream that is not a terminal, and one event a bar."""

DRAW_SECONDS = 0.1


class EventLog:
    """Appends one JSON object a line to a file; each is on disk for other readers once written.

    Args:
        path: the file, created if absent. A line cut short by a kill is closed first.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        if self._file.seek(0, 2) and (self._file.seek(-1, 2), self._file.read(1))[1] != b"\n":
            self._file.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append an event, stamped with the time in UTC."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._file.write(json.dumps(line, default=str, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Bar:
    """One task's progress. Cheap to advance: drawing is limited to some ten times a second."""

    def __init__(
        self, reporter: Reporter, stage: str, description: str, total: int | None, completed: int
    ) -> None:
        self.stage, self.description, self.total, self.completed = stage, description, total, completed
        self.metrics: dict[str, float] = {}
        self._reporter = reporter
        self._first = completed
        self._started = self._drawn = self._logged = time.monotonic()

    def advance(self, steps: int = 1, **metrics: float) -> None:
        """Move on by some steps, with the newest value of any metrics worth showing."""
        self.completed += steps
        self.metrics.update(metrics)
        now = time.monotonic()
        if now - self._drawn >= DRAW_SECONDS:
            self._drawn = now
            self._reporter.draw(self)
        if now - self._logged >= LINE_SECONDS:
            self._logged = now
            self._reporter.record(self, "progress")

    @property
    def seconds(self) -> float:
        """Seconds since the bar was opened."""
        return time.monotonic() - self._started

    def metrics_text(self) -> str:
        """The metrics in few digits."""
        return " ".join(f"{name}={float(value):.4g}" for name, value in self.metrics.items())

    def line(self) -> str:
        """The bar in one line of text."""
        parts = [self.description, f"{self.completed:,}" + (f"/{self.total:,}" if self.total else "")]
        if self.total:
            parts.append(f"({self.completed / self.total:.0%})")
        rate = (self.completed - self._first) / max(self.seconds, 1e-9)
        if rate > 0:
            parts.append(f"{rate:,.1f}/s")
            if self.total and self.completed < self.total:
                left = round((self.total - self.completed) / rate)
                parts.append(f"{left // 60}:{left % 60:02d} left")
        return " ".join([*parts, self.metrics_text()]).rstrip()


class Reporter:
    """Shows and records what a stage does.

    Args:
        console: where to show it; bars are drawn only if it is a terminal.
        events: where to record it.
        on_sign_of_life: called whenever the stage reports anything.
    """

    def __init__(
        self, console: Console, events: EventLog, on_sign_of_life: Callable[[], None] = lambda: None
    ) -> None:
        self.console, self.events = console, events
        self._sign_of_life = on_sign_of_life
        self._last_line = time.monotonic()
        self._live: Progress | None = None
        self._tasks: dict[int, TaskID] = {}

    def log(self, message: str, *, stage: str) -> None:
        """Show and record a message."""
        self.console.print(f"  {message}", markup=False, highlight=False, soft_wrap=True)
        self.events.write("log", stage=stage, message=message)
        self._sign_of_life()

    @contextmanager
    def progress(
        self, description: str, total: int | None = None, *, stage: str, completed: int = 0
    ) -> Iterator[Bar]:
        """Open a bar; bars may nest.

        Args:
            description: what is going on.
            total: steps in all, if known.
            stage: name of the stage, for the event log.
            completed: steps that an earlier attempt has already done.
        """
        bar = Bar(self, stage, description, total, completed)
        if self.console.is_terminal:
            if self._live is None:
                self._live = Progress(
                    TextColumn("  {task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[metrics]}", markup=False),
                    console=self.console,
                    transient=True,
                )
                self._live.start()
            self._tasks[id(bar)] = self._live.add_task(
                escape(description), total=total, completed=completed, metrics=""
            )
        try:
            yield bar
            self.record(bar, "progress_finished")
        finally:
            if self._live is not None:
                self._live.remove_task(self._tasks.pop(id(bar)))
                if not self._tasks:
                    self._live.stop()
                    self._live = None

    def draw(self, bar: Bar) -> None:
        """Show a bar's new state."""
        self._sign_of_life()
        if self._live is not None:
            self._live.update(self._tasks[id(bar)], completed=bar.completed, metrics=bar.metrics_text())
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.console.print(f"  {bar.line()}", markup=False, highlight=False, soft_wrap=True)

    def record(self, bar: Bar, event: str) -> None:
        """Write a bar's state to the event log."""
        self.events.write(
            event,
            stage=bar.stage,
            description=bar.description,
            completed=bar.completed,
            total=bar.total,
            seconds=round(bar.seconds, 3),
            metrics={name: _finite(value) for name, value in bar.metrics.items()},
        )


def _finite(value: float) -> float | None:
    # JSON has no NaN; a diverged loss must not make the log unreadable.
    return float(value) if math.isfinite(value) else None
