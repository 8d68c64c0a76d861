"""What a run shows at the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.summary import show_results

FIDELITY = {"split": "45-48", "auc": 0.75, "frequency": {"auc": 0.5}}
RELATIVE = {
    **{"measure": "purchase: log loss, relative", "value": 0.1683, "peer": "lightgbm", "peer_value": 0.1691},
    **{"difference": -0.00471, "ci_low": -0.0067, "ci_high": -0.0025, "bar": -0.01, "met": False},
}
OWN_VALUE = {
    **{"measure": "calibration error (ECE)", "value": 0.00213, "peer": None, "peer_value": None},
    **{"difference": None, "ci_low": 0.0018, "ci_high": 0.0029, "bar": 0.004, "met": True},
}


def shown(results: dict[str, Any], width: int = 160) -> str:
    stream = io.StringIO()
    show_results(Console(file=stream, width=width), results, Path("nowhere"))
    return stream.getvalue()


def cells(text: str, measure: str) -> list[str]:
    line = next(line for line in text.splitlines() if measure in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_back_test_is_a_table_in_place_of_the_line() -> None:
    text = shown({"fidelity": FIDELITY, "backtest": {"table": [RELATIVE, OWN_VALUE]}})
    assert "weeks 45-48" in text
    assert "beside it" not in text
    assert "peer's value" in text
    expected = ["0.1683", "lightgbm", "0.1691", "-0.47%", "-0.67% … -0.25%", "-1.00%", "no"]
    assert cells(text, "log loss")[1:] == expected
    assert cells(text, "ECE")[1:] == ["0.00213", "–", "–", "–", "0.0018 … 0.0029", "0.004", "yes"]


def test_a_difference_that_is_not_defined_is_a_dash() -> None:
    absent = {**RELATIVE, "difference": None, "ci_low": None, "ci_high": None, "bar": None, "met": None}
    text = shown({"backtest": {"table": [absent]}})
    assert cells(text, "log loss")[4:] == ["–", "–", "–", "–"]


def test_a_narrow_terminal_folds_names_and_cuts_nothing() -> None:
    row = {**OWN_VALUE, "measure": "display semi-elasticity"}
    text = shown({"backtest": {"table": [row, RELATIVE]}}, width=70)
    first = "".join(line.strip("│").split("│")[0].strip() for line in text.splitlines() if "│" in line)
    assert "semi-elasticity" in first


def test_without_a_table_the_scores_are_a_line() -> None:
    text = shown({"fidelity": FIDELITY, "backtest": {}})
    assert "Response model on weeks 45-48: auc 0.75; beside it frequency (auc 0.5)" in text
    assert shown({}) == ""


def test_policies_are_shown_with_their_pacing_and_differences() -> None:
    policies = [
        {
            "name": "PPO",
            "pacing": "forecast",
            "budget_multiple": 0.5,
            "budget": 100.0,
            "incremental_margin": 71.0,
        },
        {"name": "myopic uplift, even pacing", "pacing": "even", "budget": 100.0, "incremental_margin": 60.0},
    ]
    differences = [
        {"name": "PPO", "baseline": "myopic uplift, even pacing", "budget_multiple": 0.5, "difference": 11.25}
        | {"ci_low": -1.5, "ci_high": 24.0, "relative": 0.1875, "spend_share": 0.971},
        {"name": "PPO", "baseline": "no offer", "budget_multiple": 0.5, "difference": 71.0}
        | {"ci_low": 52.0, "ci_high": 90.0, "relative": None, "spend_share": 0.0},
    ]
    text = shown({"policies": policies, "comparison": differences})
    assert cells(text, " 71 ")[:3] == ["PPO", "forecast", "100"]
    expected = ["× 0.5", "11.25", "-1.5 … 24", "+18.8%", "97.1%", "includes 0"]
    assert cells(text, "11.25") == ["PPO", "myopic uplift, even pacing", *expected]
    assert cells(text, "52 … 90")[2:] == ["× 0.5", "71", "52 … 90", "–", "0.0%", "excludes 0"]


def test_the_full_comparison_is_shown_in_place_of_the_run_s_own() -> None:
    own, full = ([{"name": name, "incremental_margin": 1.0}] for name in ("own", "full"))
    text = shown({"policies": own, "compare": {"policies": full}})
    assert "full" in text
    assert "own" not in text
    assert "pacing" not in text
    assert "own" in shown({"policies": own, "compare": None})
