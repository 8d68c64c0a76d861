"""Benchmarks: measures on this machine, beside a named peer where one is measured in the same run.

A benchmark is a module here with a function ``run() -> list[Row]``; one that looks at a run folder has
``run(request: Request)``. It is imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from rich.table import Table


@dataclass(frozen=True)
class Request:
    """What a benchmark may look at and leave behind.

    Attributes:
        run: a run folder whose response model is fitted.
        figures: folder for drawings; none are made if None.
    """

    run: Path = Path("runs/default")
    figures: Path | None = None


@dataclass(frozen=True)
class Row:
    """One measure, beside a peer's.

    Attributes:
        measure: what was measured.
        value: ours, in ``unit``.
        unit: such as ``steps/s``, ``s`` or ``MiB``.
        peer: who or what it is compared with, with its version; None if it stands alone.
        peer_value: the peer's value, in ``unit``.
        ratio: how many times better than the peer; above 1 is better, whichever way the unit points.
        bar: the ratio to reach, or without a peer the value.
        met: whether the bar is reached; None without a bar.
        hardware: the machine, in words.
        ci_low: lower end of the value's 95% interval, where there is one; beside a peer that of the paired
            difference, the peer's value added.
        ci_high: upper end.
    """

    measure: str
    value: float
    unit: str
    peer: str | None
    peer_value: float | None
    ratio: float | None
    bar: float | None
    met: bool | None
    hardware: str
    ci_low: float | None = None
    ci_high: float | None = None

    @classmethod
    def compare(
        cls,
        measure: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        peer_value: float | None = None,
        bar: float | None = None,
        higher_is_better: bool = True,
        hardware: str,
    ) -> Self:
        """Build a row, working out ``ratio`` and ``met``.

        Args:
            measure: what was measured.
            value: ours.
            unit: unit of both values.
            peer: who it is compared with.
            peer_value: the peer's value, measured in the same run.
            bar: the ratio to reach; without a peer, the value to reach.
            higher_is_better: False for durations, sizes and errors.
            hardware: see `describe_machine`.
        """
        ratio = None
        if peer_value is not None:
            better, worse = (value, peer_value) if higher_is_better else (peer_value, value)
            ratio = better / worse if worse else None
        met = None
        if bar is not None and peer_value is not None:
            met = ratio is not None and ratio >= bar
        elif bar is not None:
            met = value >= bar if higher_is_better else value <= bar
        return cls(measure, value, unit, peer, peer_value, ratio, bar, met, hardware)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON."""
        return asdict(self)


def describe_machine(device: str = "cpu") -> str:
    """The machine in words, for `Row.hardware`."""
    from experiments.manifest import describe_hardware

    found = describe_hardware(device)
    gpu = f", {found['gpu']}" if "gpu" in found else ""
    return f"{found['cpu']}, {found['cores']} cores{gpu}"


def make_table(name: str, rows: Sequence[Row]) -> Table:
    """The rows as a table for a terminal."""
    table = Table(title=f"{name} · {rows[0].hardware if rows else 'no rows'}")
    with_interval = any(row.ci_low is not None for row in rows)
    interval = ("95% interval",) if with_interval else ()
    for title in ("measure", "value", *interval, "unit", "peer", "peer value", "ratio", "bar", "met"):
        table.add_column(
            title, justify="right" if title in {"value", "peer value", "ratio", "bar"} else "left"
        )
    for row in rows:
        met = {None: "–", True: "yes", False: "no"}[row.met]
        numbers = [_number(value) for value in (row.peer_value, row.ratio, row.bar)]
        ends = [_number(end) for end in (row.ci_low, row.ci_high)]
        found = [" to ".join(ends) if row.ci_low is not None else "–"] if with_interval else []
        table.add_row(row.measure, _number(row.value), *found, row.unit, row.peer or "–", *numbers, met)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _run_module(name: str, request: Request) -> list[Row]:
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    rows: list[Row] = module.run(request) if name in _OF_A_RUN else module.run()
    return rows


_OF_A_RUN = frozenset({"http", "lead", "messages", "ppo", "realism", "robustness", "serve"})

BENCHMARKS: dict[str, Callable[[Request], list[Row]]] = {
    name: partial(_run_module, name)
    for name in (
        "budget-ope",
        "encoder",
        "http",
        "labels",
        "lead",
        "ledger",
        "market",
        "messages",
        "ope",
        "ope-speed",
        "ppo",
        "realism",
        "robustness",
        "serve",
        "tabular",
    )
}
"""Every benchmark by name; a value imports its module when called."""
