"""The whole pipeline on small synthetic logs: same seed same results, resumption, locked weeks, bad logs.

Each test runs the real command in a process of its own, as a user would.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from encoders.weeks import LOCKED_WEEKS
from envs.synthetic import SyntheticConfig, generate
from experiments.comparison.campaigns import Arena
from experiments.comparison.lineup import Pacing, core_lineup
from experiments.comparison.play import Block, play_season
from experiments.config import build_config

N_WEEKS = 40
SMALL = (
    "prepare.n_categories=10",
    "encoder.width=32",
    "encoder.embedding=8",
    "text.max_tokens=48",
    "pretrain.max_texts=300",
    "backtest.lightgbm_rows=5000",
    "backtest.n_bootstrap=50",
    "simulators.n_judge=1",
    "market.n_users=0",
    "market.horizon_weeks=4",
    "ppo.total_steps=4096",
    "ppo.n_envs=64",
    "ppo.hidden=16",
    "evaluate.log_users=80",
    "evaluate.n_bootstrap=50",
)


def command(data: Path, out: Path, *more: str) -> list[str]:
    settings = [part for item in SMALL for part in ("--set", item)]
    base = [sys.executable, "-m", "experiments.cli", "run", "--preset", "smoke"]
    return [*base, "--data", str(data), "--out", str(out), "--seed", "3", "--threads", "1", *settings, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "COUPONLAB_PSEUDONYM_KEY": "a key for tests only"}


def run(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(data, out, *more), capture_output=True, text=True, env=environment(), check=False
    )


def results(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    content.pop("timing")
    return content


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    generate(SyntheticConfig(n_users=160, n_weeks=N_WEEKS, n_categories=10), 5, folder)
    return folder


@pytest.fixture(scope="module")
def finished(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    done = run(logs, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_run_leaves_everything_that_it_promises(finished: Path) -> None:
    for name in (
        "prepared",
        "encoder",
        "response",
        "backtest",
        "policy",
        "evaluation",
        "export/policy.onnx",
        "export/manifest.json",
        "report/index.html",
        "manifest.json",
        "results.json",
    ):
        assert (finished / name).exists(), name
    content = results(finished)
    assert {"fidelity", "backtest", "policies", "ope", "export", "data", "training"} <= set(content)
    assert {"comparison", "frontier", "who", "exposure", "parity", "sensitivity"} <= set(content)
    # The report reads what its inputs say: a stage that it does not name would be missing from it.
    assert "stages have not run" not in (finished / "report/index.html").read_text("utf-8")
    assert content["export"]["parity_max_abs_diff"] <= 1e-5
    for row in content["policies"]:
        assert row["spend"] <= row["budget"]
        assert row["peak_commitment_share"] <= 1.0
    assert {row["overspent"] for row in content["frontier"]} == {0}
    assert {"DM", "IPS", "SNIPS", "DR"} <= {row["estimator"] for row in content["ope"]}
    nothing = next(row for row in content["policies"] if row["name"] == "no offer")
    assert nothing["incremental_margin"] == 0.0
    assert nothing["spend"] == 0.0


def test_who_plays_and_when_does_not_matter(finished: Path, tmp_path: Path) -> None:
    """One process, two, or two of which the first attempt left half undone: the same to the last bit."""
    recorded = json.loads((finished / "manifest.json").read_text("utf-8"))
    config = build_config([("manifest.json", recorded["config"])])
    arena = Arena(
        finished / "prepared", finished / "response", finished / "policy", config.market, "cpu", 3, 3
    )
    opened = arena.open()
    # More campaigns than judges: no two share a world, and the first stay what they were.
    names = [setting.world.name for setting in opened.settings]
    assert len(set(names)) == 3
    fewer = replace(arena, campaigns=1).open().settings[0]
    assert (fewer.seed, fewer.world.assumed) == (opened.settings[0].seed, opened.settings[0].world.assumed)
    lineup = core_lineup(opened.parts.market, opened.trained)
    blocks = [Block(one, 1.0, 3) for one in lineup if one.pacing is Pacing.EVEN]
    ppo = next(one for one in lineup if one.name == "PPO")
    blocks += [Block(ppo, 1.0, 2, without_lifts=True), Block(ppo, 1.0, 3, plans=2)]

    def season(folder: Path, workers: int) -> list[Any]:
        folder.mkdir(exist_ok=True)
        counted: list[int] = []
        found = play_season(arena, blocks, workers=workers, folder=folder, on_campaigns=counted.append)
        assert sum(counted) == 3 + 3 * 2 + 4 + 3
        return [vars(found.idle), *(vars(found.played[block]) for block in blocks)]

    alone, together = season(tmp_path / "one", 1), season(tmp_path / "two", 2)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    undone = tmp_path / "two" / blocks[0].file
    undone.unlink()
    again = season(tmp_path / "two", 2)
    assert {path for path, when in kept.items() if path.stat().st_mtime_ns != when} == {undone}
    for one in (together, again):
        for left, right in zip(alone, one, strict=True):
            for name, values in left.items():
                np.testing.assert_array_equal(values, right[name], err_msg=name)
    nothing = next(found for block, found in zip(blocks, alone[1:], strict=True) if block is blocks[0])
    np.testing.assert_array_equal(nothing["margin"], alone[0]["margin"])
    assert nothing["offers"].sum() == nothing["cost"].sum() == 0
    # The first campaign follows the first plan, the second one of its own.
    once, twice = alone[-2:]
    np.testing.assert_array_equal(twice["dual_price"][0], once["dual_price"][0])
    assert (twice["dual_price"][1] != once["dual_price"][1]).any()
    assert (twice["planned"] != once["planned"]).any()


@pytest.mark.slow
def test_a_comparison_is_kept_and_belongs_to_its_policy(finished: Path, logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    words = [sys.executable, "-m", "experiments.cli", "compare", "--out", str(out), "--campaigns", "1"]
    done = subprocess.run(
        [*words, "--workers", "2"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(out)["compare"]
    assert found == json.loads((out / "comparison" / "results.json").read_text("utf-8"))
    assert not (out / "comparison" / "checkpoint").exists()
    names = [row["name"] for row in found["policies"]]
    assert names[0] == "no offer"
    assert names[-1] == "PPO"
    assert {"welcome gift", "S-learner", "T-learner", "X-learner", "LinUCB", "LinTS"} <= set(names)
    for row in found["policies"]:
        assert row["spend"] <= row["budget"]
    assert "S-learner" in (out / "report" / "index.html").read_text("utf-8")
    # A later run finds nothing to do, and keeps the comparison; another market has none.
    later = run(logs, out)
    assert later.stdout.count("unchanged") == 8, later.stdout
    assert results(out)["compare"] == found
    other = ["--out", str(out), "--set", "market.margin_rate=0.3", "--threads", "1"]
    subprocess.run([*words[:3], "train", *other], check=True, env=environment(), capture_output=True)
    assert "compare" not in results(out)


def test_the_same_seed_gives_the_same_results(finished: Path, logs: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert run(logs, again).returncode == 0
    assert results(again) == results(finished)


def test_an_unchanged_run_is_skipped_and_a_forced_stage_is_redone(finished: Path, logs: Path) -> None:
    before = results(finished)
    policy = finished / "policy" / "policy.safetensors"
    written = policy.stat().st_mtime_ns
    skipped = run(logs, finished)
    assert skipped.returncode == 0
    assert skipped.stdout.count("unchanged") == 8
    forced = run(logs, finished, "--force", "train")
    assert forced.returncode == 0
    assert policy.stat().st_mtime_ns > written
    assert results(finished) == before


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    finished: Path, logs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    # Kill in whatever stage is under way; every process gets a little further than a cold start takes.
    for patience in (9.0, 13.0, 11.0):
        process = subprocess.Popen(
            command(logs, out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert run(logs, out).returncode == 0
    assert results(out) == results(finished)


def test_nothing_in_the_locked_weeks_changes_any_result(finished: Path, logs: Path, tmp_path: Path) -> None:
    """Rewrite purchases, promotions and redemptions of the locked weeks: only the data's hash may differ."""
    altered = tmp_path / "altered"
    shutil.copytree(logs, altered)
    path = altered / "transactions.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t AS SELECT * FROM read_parquet('{path}')")
        (first,) = connection.execute("SELECT date_trunc('week', min(timestamp)) FROM t").fetchall()[0]
        boundary = f"TIMESTAMP '{first}' + INTERVAL {7 * (N_WEEKS - LOCKED_WEEKS)} DAY"
        (touched,) = connection.execute(f"SELECT count(*) FROM t WHERE timestamp >= {boundary}").fetchall()[0]
        assert touched > 100
        connection.execute(
            f"UPDATE t SET spend = spend * 7 + 1, discount = 0, coupon_discount = 0, quantity = 9"
            f" WHERE timestamp >= {boundary}"
        )
        connection.execute(f"DELETE FROM t WHERE timestamp >= {boundary} AND hash(basket_id) % 3 = 0")
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
        for table, change in (
            ("promotions", f"UPDATE x SET display = NOT display WHERE week > {N_WEEKS - LOCKED_WEEKS}"),
            ("redemptions", f"DELETE FROM x WHERE timestamp >= {boundary}"),
        ):
            file = altered / f"{table}.parquet"
            connection.execute(f"CREATE OR REPLACE TABLE x AS SELECT * FROM read_parquet('{file}')")
            connection.execute(change)
            connection.execute(f"COPY x TO '{file}' (FORMAT parquet)")
    out = tmp_path / "run"
    done = run(altered, out)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = results(out), results(finished)
    for content in (ours, theirs):
        content["data"].pop("content_hash")
        content["data"].pop("origin")
        content["export"].pop("bytes")  # the model card names the folder
    assert ours == theirs
    # What decides is the same to the last byte; card and settings hold the hash of the logs.
    ours, theirs = (
        json.loads((run / "export" / "manifest.json").read_text())["sha256"] for run in (out, finished)
    )
    assert {name for name in ours if ours[name] != theirs[name]} == {"MODEL_CARD.md", "policy.json"}


def test_bad_logs_are_refused_with_one_message_and_nothing_half_written(logs: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(logs, bad)
    path = bad / "transactions.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t AS SELECT * FROM read_parquet('{path}')")
        connection.execute("UPDATE t SET spend = -1.25 WHERE rowid < 2")
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    out = tmp_path / "run"
    refused = run(bad, out)
    assert refused.returncode == 2
    message = refused.stdout + refused.stderr
    assert "transactions.spend" in message
    assert "-1.25" in message
    assert "Traceback" not in message
    assert not list((out / "prepared").glob("*.npz"))


@pytest.mark.slow
def test_smoke_on_complete_journey_is_reproducible(tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("one", "two")]
    for out in outs:
        base = [sys.executable, "-m", "experiments.cli", "run", "--preset", "smoke", "--out", str(out)]
        assert subprocess.run(base, env=environment(), check=False).returncode == 0
    assert results(outs[0]) == results(outs[1])
