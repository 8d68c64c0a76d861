from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agents.service.database import Database
from experiments import cli


def served(*words: object) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["served", *map(str, words)])


@pytest.mark.parametrize(
    ("database", "out", "message"),
    [
        ("sqlite:///{}/absent.db", "out", "no such file"),
        ("sqlite:///{}/service.db", "out", "no decisions to export"),
        ("sqlite:///{}/service.db", "a_file", "is a file; give a folder"),
        ("sqlite:///{}/a_file", "out", "file is not a database"),
    ],
)
def test_bad_input_is_one_message(
    sqlite_database: Database, tmp_path: Path, database: str, out: str, message: str
) -> None:
    (tmp_path / "a_file").write_text("no database, but a text " * 100)
    result = served("--database", database.format(tmp_path), "--out", tmp_path / out)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_database_that_does_not_work_is_one_message(sqlite_database: Database, tmp_path: Path) -> None:
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE policies RENAME TO lost")
    result = served("--database", f"sqlite:///{tmp_path / 'service.db'}", "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "Error: the database cannot do its work: SQLITE_ERROR" in result.output
