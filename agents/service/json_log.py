"""Logs as JSON lines without personal data.

A line says what happened, never to whom: no user id, no pseudonym, no request id (callers choose those), no
body, no address, no text of an exception (which may quote what it choked on).
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("couponlab.service")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(content, ensure_ascii=False, default=str)


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line about an event."""
    LOGGER.log(level, event, extra={"fields": fields})


def log_failure(event: str, error: BaseException, **fields: Any) -> None:
    """Write a line about an unexpected error: its type and where it was raised, not what it says."""
    frames = [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    log(event, level=logging.ERROR, error=type(error).__name__, frames=frames, **fields)


def write_to_stderr() -> None:
    """Send the service's lines, and warnings of the server beneath it, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in (("couponlab.service", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
