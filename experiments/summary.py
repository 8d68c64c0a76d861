"""What a run came to, as tables for a terminal; everything in them is in ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_POLICY_COLUMNS = {
    "name": "policy",
    "pacing": "pacing",
    "budget": "budget",
    "spend": "spend",
    "utilisation": "utilisation",
    "incremental_margin": "incremental margin",
    "interval": "95% interval",
    "world_low": "lowest simulator",
    "world_high": "highest simulator",
}
_COMPARISON_COLUMNS = {
    "name": "policy",
    "baseline": "against",
    "times": "budget",
    "difference": "difference",
    "interval": "95% interval",
    "relative": "relative",
    "spend_share": "baseline's spend",
    "reading": "the interval",
}
_BACKTEST_COLUMNS = {
    "measure": "measure",
    "value": "model",
    "peer": "peer",
    "peer_value": "peer's value",
    "difference": "difference",
    "interval": "95% interval",
    "bar": "bar",
    "met": "met",
}
_OPE_COLUMNS = {
    "policy": "policy",
    "estimator": "estimator",
    "value": "value",
    "interval": "95% interval",
    "truth": "simulated truth",
    "ess": "ESS",
    "verdict": "verdict",
}
_SHOWN_ESTIMATORS = ("DM", "SNIPS", "DR")
_INTERVAL = ("ci_low", "ci_high")


def show_results(console: Console, results: Mapping[str, Any], out: Path) -> None:
    """Print the policies, their differences, the back-test, the off-policy estimates, and where things are.

    Args:
        console: where to.
        results: the content of ``results.json``; nothing else is printed.
        out: the run folder.
    """
    from experiments.report.judged import judged  # the report draws, and what draws is slow to import

    results = judged(results)
    if policies := results.get("policies"):
        title = "Policies, judged on simulators that trained none of them; money for all users of a campaign"
        console.print(_table(title, policies, _POLICY_COLUMNS))
    if compared := results.get("comparison"):
        title = "Paired differences in incremental margin, for all users of a campaign"
        console.print(_table(title, [_read(row) for row in compared], _COMPARISON_COLUMNS))
    fidelity = results.get("fidelity") or {}
    if measured := (results.get("backtest") or {}).get("table"):
        split = f" on weeks {fidelity['split']}, which it has not seen" if "split" in fidelity else ""
        title = f"Response model{split}; the interval is of the difference, or of the model without a peer"
        console.print(_table(title, [_in_percent(row) for row in measured], _BACKTEST_COLUMNS))
    elif fidelity:
        console.print(_fidelity_line(fidelity), markup=False, highlight=False, soft_wrap=True)
    if estimates := results.get("ope"):
        shown = [
            row
            for row in estimates
            if row.get("outcome", "reward") == "reward" and row["estimator"] in _SHOWN_ESTIMATORS
        ]
        title = "Offline estimates of margin per user, from logged data; the report has all of them"
        console.print(_table(title, shown, _OPE_COLUMNS))
    exported = (results.get("export") or {}).get("path")
    paths = {
        "report": out / "report" / "index.html",
        "policy": out / exported if exported else None,
        "results": out / "results.json",
    }
    for name, path in paths.items():
        if path is not None and path.exists():
            console.print(f"{name + ':':<9}{path}", markup=False, highlight=False, soft_wrap=True)


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    """A paired difference with its shares in percent, and what its interval says in words."""
    low, high = (row.get(key) for key in _INTERVAL)
    words = "–" if low is None or high is None else "includes 0" if low <= 0 <= high else "excludes 0"
    shares = {
        key: f"{value:{sign}.1%}"
        for key, sign in (("relative", "+"), ("spend_share", ""))
        if (value := row.get(key)) is not None
    }
    times = row.get("budget_multiple")
    return {**row, **shares, "reading": words, **({} if times is None else {"times": f"× {times:g}"})}


def _in_percent(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the back-test; what is a share of the peer's value becomes a text in percent."""
    if not str(row.get("measure", "")).endswith(", relative"):
        return dict(row)
    shares = ("difference", *_INTERVAL, "bar")
    return {k: f"{v:.2%}" if k in shares and v is not None else v for k, v in row.items()}


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """Rows as a table of the given columns (key -> heading); a column that no row has is left out."""
    present = {key for row in rows for key in row} | {"interval"}
    shown = {key: heading for key, heading in columns.items() if key in present}
    table = Table(title=title, title_justify="left")
    for key, heading in shown.items():
        text = any(isinstance(row.get(key), str) and not row[key].endswith("%") for row in rows)
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_interval(row) if key == "interval" else _cell(row.get(key)) for key in shown))
    return table


def _interval(row: Mapping[str, Any]) -> str:
    low, high = (row.get(key) for key in _INTERVAL)
    return "–" if low is None or high is None else f"{_cell(low)} … {_cell(high)}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("[", r"\[")


def _fidelity_line(fidelity: Mapping[str, Any]) -> str:
    """The model and its peers in one line, on the same rows."""
    measures = ("auc", "average_precision", "log_loss", "ece")

    def words(found: Mapping[str, Any]) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {_cell(found[name])}" for name in measures if name in found
        )

    peers = [f"{name} ({words(found)})" for name, found in fidelity.items() if isinstance(found, Mapping)]
    split = f" on weeks {fidelity['split']}" if "split" in fidelity else ""
    beside = f"; beside it {'; '.join(peers)}" if peers else ""
    return f"Response model{split}: {words(fidelity)}{beside}"
