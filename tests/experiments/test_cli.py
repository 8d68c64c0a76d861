from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from envs.log_schema import LogError
from experiments import benchmarks, cli, manifest
from experiments.benchmarks import Row
from experiments.cli import setup
from experiments.config import load_config
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP

COMMANDS = (
    "run",
    *STAGE_HELP,
    "stages",
    "status",
    "config",
    "compare",
    "decide",
    "monitor",
    "doctor",
    "bench",
)


@pytest.fixture(autouse=True)
def _wide_and_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    # The commands set thread counts for good; here they must not leak into other tests.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(setup, "choose_device", lambda wanted, threads: "cpu")
    monkeypatch.setattr(manifest, "hash_source", lambda module: "source")
    monkeypatch.chdir(tmp_path)


class Registry:
    """Two stages in place of the real ones, and what they saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[StageContext] = []
        self.error: BaseException | None = None
        stages = (
            Stage("prepare", "prepared", ("prepare",), (), self.prepare, "Prepare."),
            Stage("evaluate", "evaluation", ("evaluate",), ("prepare",), self.evaluate, "Evaluate."),
        )
        monkeypatch.setattr(setup, "all_stages", lambda: stages)

    def prepare(self, ctx: StageContext) -> dict[str, Any]:
        self.seen.append(ctx)
        if self.error is not None:
            raise self.error
        return {"fidelity": {"split": "45-48", "auc": 0.75, "frequency": {"auc": 0.5}}}

    def evaluate(self, ctx: StageContext) -> dict[str, Any]:
        self.seen.append(ctx)
        policy = {
            **{"name": "ppo", "lambda": 0.5, "spend": 99.0, "budget": 100.0, "utilisation": 0.99},
            **{"incremental_margin": 1234.5, "ci_low": 1200.0, "ci_high": 1300.0, "margin_per_user": 0.25},
        }
        estimate = {
            **{"policy": "ppo", "estimator": "DR", "value": 2.5, "ci_low": 2.0, "ci_high": 3.0},
            **{"truth": 2.4, "ess": 321.0, "verdict": "usable"},
        }
        return {"policies": [policy], "ope": [estimate]}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"couponlab {command}" in result.output or f"{command} [OPTIONS]" in result.output
    if command in ("run", *STAGE_HELP):
        for option in ["preset", "data", "out", "seed", "device", "force", "threads", "config", "set"]:
            assert f"--{option}" in result.output


def test_top_help_lists_every_command() -> None:
    output = invoke("--help").output
    assert all(command in output for command in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, experiments.cli; print(*[m for m in ('torch', 'numpy', 'duckdb') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_run_shows_what_came_of_it(registry: Registry) -> None:
    result = invoke(
        "run", "--preset", "smoke", "--data", "synthetic", "--out", "r", "--seed", "5", "--threads", "1"
    )
    assert result.exit_code == 0, result.output
    for word in (
        "ppo",
        "1,234",
        "1,200 … 1,300",
        "incremental margin",
        "weeks 45-48",
        "usable",
        "2 … 3",
    ):
        assert word in result.output
    assert "r/results.json" in result.output
    ctx = registry.seen[0]
    assert (ctx.seed, ctx.data, ctx.threads, ctx.config.prepare.n_categories) == (5, "synthetic", 1, 60)


def test_default_folder_is_named_after_the_preset(registry: Registry) -> None:
    assert invoke("run", "--preset", "smoke", "--data", "synthetic").exit_code == 0
    assert Path("runs/smoke/results.json").is_file()


def test_stage_command_goes_on_with_what_the_folder_recorded(registry: Registry) -> None:
    first = ["--preset", "smoke", "--data", "synthetic", "--out", "r", "--seed", "5"]
    assert invoke("prepare", *first, "--set", "prepare.n_categories=7").exit_code == 0
    assert len(registry.seen) == 1
    result = invoke("evaluate", "--out", "r")
    assert result.exit_code == 0, result.output
    assert "preset smoke, data synthetic, seed 5" in result.output
    assert [ctx.stage for ctx in registry.seen] == ["prepare", "evaluate"]
    assert invoke("evaluate", "--out", "r", "--set", "evaluate.campaigns=9").exit_code == 0
    assert registry.seen[-1].config.evaluate.campaigns == 9


def test_force_and_config_file(registry: Registry) -> None:
    Path("mine.toml").write_text("[evaluate]\ncampaigns = 3\n")
    words = ["run", "--data", "synthetic", "--out", "r", "--config", "mine.toml"]
    assert invoke(*words).exit_code == 0
    assert registry.seen[-1].config.evaluate.campaigns == 3
    assert invoke(*words, "--force", "evaluate").exit_code == 0
    assert [ctx.stage for ctx in registry.seen] == ["prepare", "evaluate", "evaluate"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LogError("transactions", "negative", column="spend", rows=3, example="-1"), 2),
        (StageError("the encoder has no weights"), 1),
    ],
)
def test_expected_errors_are_one_message(registry: Registry, error: Exception, status: int) -> None:
    registry.error = error
    result = invoke("run", "--data", "synthetic", "--out", "r")
    assert result.exit_code == status
    assert f"Error: {error}" in result.output
    assert "Traceback" not in result.output


def test_unexpected_errors_keep_their_traceback(registry: Registry) -> None:
    registry.error = ZeroDivisionError("surprise")
    result = invoke("run", "--data", "synthetic", "--out", "r")
    assert result.exception is registry.error
    assert result.exit_code == 1


def test_interrupt_says_how_to_resume(registry: Registry) -> None:
    registry.error = KeyboardInterrupt()
    words = ["run", "--preset", "smoke", "--data", "synthetic", "--out", "my run", "--seed", "5"]
    result = invoke(*words, "--force", "prepare", "--set", "ppo.hidden=8", "--threads", "1")
    assert result.exit_code == 130
    expected = (
        "couponlab run --preset smoke --data synthetic --out 'my run' --seed 5 --threads 1 --set ppo.hidden=8"
    )
    assert expected in result.output
    assert "--force" not in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--set", "ppo.hiden=8"], "the nearest valid one is 'ppo.hidden'"),
        (["--data", "synthetic", "--force", "pretrian"], "no stage 'pretrian'"),
        (["--config", "absent.toml"], "absent.toml: cannot be read"),
    ],
)
def test_bad_requests(registry: Registry, words: list[str], message: str) -> None:
    result = invoke("run", "--out", "r", *words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not registry.seen


def test_status(registry: Registry) -> None:
    assert "is not a run folder" in invoke("status", "--out", "r").output
    invoke("prepare", "--data", "synthetic", "--out", "r")
    output = invoke("status", "--out", "r").output
    assert "complete" in output
    assert "missing" in output


def test_stages(registry: Registry) -> None:
    output = invoke("stages").output
    assert "prepared" in output
    assert "Evaluate." in output


def test_config_prints_toml_that_reads_back(tmp_path: Path) -> None:
    result = invoke("config", "--preset", "smoke", "--set", "evaluate.budgets=0.5,2")
    path = tmp_path / "copy.toml"
    path.write_text(result.output)
    expected = load_config("smoke", overrides=["evaluate.budgets=0.5,2"])
    assert load_config("default", [path]) == expected


def test_decide_hands_over_to_serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, object]] = []
    deciding = types.ModuleType("agents.decide")
    deciding.decide_file = lambda **named: calls.append(named)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agents.decide", deciding)
    users, policy, out = tmp_path / "users.parquet", tmp_path / "policy", tmp_path / "out.parquet"
    assert invoke("decide", str(users), "--policy", str(policy), "--out", str(out)).exit_code == 2
    policy.mkdir()
    users.touch()
    assert invoke("decide", str(users), "--policy", str(policy), "--out", str(out)).exit_code == 0
    shown = calls[0].pop("on_users")
    assert callable(shown)
    assert calls == [{"policy": policy, "users": users, "out": out, "seed": None, "dual_price": None}]
    assert (
        invoke(
            "decide",
            str(users),
            "--policy",
            str(policy),
            "--out",
            str(out),
            "--seed",
            "4",
            "--dual-price",
            "2.5",
        ).exit_code
        == 0
    )
    assert (calls[1]["seed"], calls[1]["dual_price"]) == (4, 2.5)


def test_decide_refuses_what_is_no_exported_policy(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    users = tmp_path / "users.parquet"
    users.touch()
    refused = invoke("decide", str(users), "--policy", str(policy), "--out", str(tmp_path / "out.parquet"))
    assert refused.exit_code == 2
    assert "is not an exported policy" in refused.output
    assert not (tmp_path / "out.parquet").exists()


def test_bench_prints_and_writes_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Row.compare("speed", 300.0, "steps/s", peer="p", peer_value=100.0, bar=2.0, hardware="cpu"),
        Row.compare(
            "time", 2.0, "s", peer="p", peer_value=1.0, bar=1.0, higher_is_better=False, hardware="cpu"
        ),
        Row.compare("size", 5.0, "MiB", bar=10.0, higher_is_better=False, hardware="cpu"),
    ]
    monkeypatch.setitem(benchmarks.BENCHMARKS, "fake", lambda _: rows)
    result = invoke("bench", "fake", "--json", "rows.json")
    assert result.exit_code == 0
    written = json.loads(Path("rows.json").read_text())
    assert {"measure", "value", "unit", "peer", "peer_value", "bar", "hardware"} <= written[0].keys()
    assert [(row["ratio"], row["met"]) for row in written] == [(3.0, True), (0.5, False), (None, True)]
    missing = invoke("bench", "markt")
    assert missing.exit_code == 2
    assert "did you mean 'market'?" in missing.output


def test_compare_needs_a_run_whose_policy_is_trained(registry: Registry) -> None:
    result = invoke("compare", "--out", "nowhere")
    assert result.exit_code == 2
    assert "nowhere is not a run folder" in result.output
    assert invoke("prepare", "--preset", "smoke", "--data", "synthetic", "--out", "r").exit_code == 0
    result = invoke("compare", "--out", "r", "--campaigns", "1", "--workers", "1")
    assert result.exit_code == 2
    assert "stage finetune is not complete" in result.output
    assert "couponlab train --out r" in result.output
    assert not Path("r/comparison").exists()


def test_compare_shows_and_writes_what_it_found(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    asked: list[dict[str, Any]] = []

    def compare_run(out: Path, **options: Any) -> dict[str, Any]:
        asked.append({"out": out, **options})
        return {**registry.evaluate(None), "campaigns": 3, "seconds": 1.5}  # type: ignore[arg-type]

    fake = types.SimpleNamespace(compare_run=compare_run)
    monkeypatch.setattr(cli.measure, "import_module", lambda name: fake)
    result = invoke("compare", "--out", "r", "--campaigns", "3", "--workers", "2", "--json", "found.json")
    assert result.exit_code == 0, result.output
    assert (asked[0]["out"], asked[0]["campaigns"], asked[0]["workers"]) == (Path("r"), 3, 2)
    assert "1,200 … 1,300" in result.output
    assert json.loads(Path("found.json").read_text())["campaigns"] == 3


def test_an_interrupted_comparison_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare_run(out: Path, **options: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        cli.measure, "import_module", lambda name: types.SimpleNamespace(compare_run=compare_run)
    )
    result = invoke("compare", "--out", "r", "--campaigns", "3")
    assert result.exit_code == 130
    assert "couponlab compare --out r --campaigns 3" in result.output


def test_doctor_tells_a_usable_log_from_a_useless_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"u{i},{'coupon' if rng.random() < 0.5 else 'no offer'},0.5,{rng.random():.3f}" for i in range(1000)
    ]
    for count, status in ((1000, 0), (12, 3)):
        (tmp_path / "log.csv").write_text("\n".join(["user_id,action,propensity,reward", *rows[:count]]))
        result = invoke("doctor", str(tmp_path / "log.csv"), "--json", str(tmp_path / "found.json"))
        assert result.exit_code == status
        assert json.loads((tmp_path / "found.json").read_text())["usable"] is (status == 0)
    (tmp_path / "log.csv").write_text(
        "user_id,action,propensity,reward\nu1,coupon,1.5,2\nu2,no offer,0.5,2\n"
    )
    result = invoke("doctor", str(tmp_path / "log.csv"))
    assert result.exit_code == 2
    assert "propensity: row 0 is 1.5: must lie in (0, 1]" in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [("market.catalogue", "catalogue mine.toml: expected"), ("export.messages", "message texts mine.toml:")],
)
def test_a_bad_file_of_ones_own_is_refused_before_any_stage_runs(
    registry: Registry, tmp_path: Path, setting: str, message: str
) -> None:
    (tmp_path / "mine.toml").write_text("[offers]\n", encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["run", "--set", f"{setting}=mine.toml"])
    assert result.exit_code == 2
    assert message in result.output
    assert not registry.seen
