"""A PostgreSQL server for the length of a block: in a temporary folder, on a socket, no network."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30.0
_INITDB_OPTIONS = ("-U", "couponlab", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
_UNPRIVILEGED = ("postgres", "nobody")


class PostgresError(RuntimeError):
    """The server did not start; the message ends with what it said."""


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's server programs, or None if it is not installed."""
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


@contextmanager
def scratch_postgres(parent: Path | None = None, *, durable: bool = False) -> Iterator[str]:
    """Start a server, yield the URL of an empty database, and stop and delete the server at the end.

    It listens on a socket in its own folder alone, so it needs no password and no port. Run by root, it takes
    an unprivileged account, as PostgreSQL demands.

    Args:
        parent: folder to make its folder in; ``/tmp`` if None. A socket's path has 107 characters at most, so
            it must be near the root.
        durable: wait at each commit until it is on disk, as a server does that is to keep its data.

    Raises:
        PostgresError: it is not installed, or does not start.
    """
    programs = find_postgres()
    if programs is None:
        raise PostgresError("PostgreSQL is not installed: no initdb and postgres on the path")
    account = _account()
    with tempfile.TemporaryDirectory(prefix="couponlab-pg-", dir=parent or "/tmp") as name:
        folder = Path(name)
        if account is not None:
            os.chown(folder, pwd.getpwnam(account).pw_uid, pwd.getpwnam(account).pw_gid)
        data = folder / "data"
        _run([programs / "initdb", "-D", data, *_INITDB_OPTIONS], account)
        options = ["-c", "listen_addresses=", *([] if durable else ["-F"])]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                user=account,
            )
        try:
            _await(programs, folder, server)
            yield f"postgresql://couponlab@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing is to be kept
            server.wait(START_SECONDS)


def _account() -> str | None:
    """Return the account to run as, None for one's own."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise PostgresError(f"PostgreSQL does not run as root, and there is no account {_UNPRIVILEGED[0]!r}")


def _run(command: list[str | Path], account: str | None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", user=account, check=False)
    if done.returncode:
        raise PostgresError(f"{command[0]} failed: {done.stderr.strip()}")


def _await(programs: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        asked = subprocess.run([programs / "pg_isready", "-q", "-h", folder], check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.05)
    raise PostgresError(f"the server did not start: {(folder / 'log').read_text()[-400:].strip()}")
