"""The door: every request is known, of bearable size and rate, and done in time, before anything reads it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from agents.service.json_log import log, log_failure
from agents.service.limits import ApiKeys, TokenBucket
from agents.service.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

API_KEY_HEADER = "X-API-Key"
OPEN_PATHS = frozenset({"/healthz", "/openapi.json"})
"""What may be read without a key: nothing of the shop is in it."""


@dataclass(frozen=True)
class Refusal(Exception):
    """A request that is answered at the door.

    Attributes:
        status: HTTP status.
        code: the same for machines, in a word.
        message: and for people.
        headers: to be sent along.
    """

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class GateRules:
    """What the door lets in.

    Attributes:
        api_keys: whose requests.
        most_bytes: of a body.
        requests_per_second: of one key, in the long run.
        burst: of one key, at once.
        request_seconds: longest time for a body to arrive, and then for its answer.
    """

    api_keys: ApiKeys
    most_bytes: int
    requests_per_second: float
    burst: int
    request_seconds: float


class Gate:
    """ASGI middleware: API key, rate, size and time of each request; counts it and logs it.

    Args:
        app: what stands behind the door.
        rules: what it lets in.
        metrics: where requests are counted.
        paths: that are counted by name; all others count as ``other``.
    """

    def __init__(self, app: AsgiApp, *, rules: GateRules, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._rules, self._metrics, self._paths = app, rules, metrics, paths
        self._buckets = [
            TokenBucket(rules.requests_per_second, rules.burst) for _ in range(len(rules.api_keys))
        ]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, watched)
        except Refusal as refusal:
            await _answer(watched, refusal)
        except TimeoutError:
            if not status:
                await _answer(watched, TOO_SLOW)
        except Exception as error:
            log_failure("unexpected error", error, path=self._name(scope["path"]))
            if not status:
                await _answer(watched, Refusal(500, "internal_error", "an unexpected error; it was logged"))
        finally:
            seconds = time.perf_counter() - started
            path = self._name(scope["path"])
            self._metrics.count_request(path, status, seconds)
            level = logging.WARNING if status >= 500 else logging.INFO
            log(
                "request",
                level=level,
                path=path,
                method=scope["method"],
                status=status,
                seconds=round(seconds, 6),
            )

    def _name(self, path: str) -> str:
        return path if path in self._paths else "other"

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS:
            self._let_in(headers)
        try:
            async with asyncio.timeout(self._rules.request_seconds):
                body = await self._body(headers, receive)
        except TimeoutError:
            raise Refusal(408, "too_slow", "the body did not arrive in time") from None
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()  # waits until the client leaves
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async with asyncio.timeout(self._rules.request_seconds):
            await self._app(scope, replay, send)

    def _let_in(self, headers: dict[bytes, bytes]) -> None:
        given = headers.get(API_KEY_HEADER.lower().encode())
        if given is None:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            given = token.strip() if scheme.lower() == b"bearer" else b""
        place = self._rules.api_keys.find(given)
        if place is None:
            raise Refusal(
                401,
                "not_authorised",
                f"send an API key in the header {API_KEY_HEADER}",
                (("WWW-Authenticate", "Bearer"),),
            )
        wait = self._buckets[place].take()
        if wait:
            raise Refusal(
                429,
                "too_many_requests",
                f"more than {self._rules.requests_per_second:g} requests a second; try again later",
                (("Retry-After", str(math.ceil(wait))),),
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        too_large = Refusal(
            413,
            "too_large",
            f"the body is larger than {self._rules.most_bytes} bytes; send fewer users at once",
        )
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._rules.most_bytes:
            raise too_large
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "incomplete", "the request ended before its body")
            part = message.get("body", b"")
            size += len(part)
            if size > self._rules.most_bytes:
                raise too_large
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)


TOO_SLOW = Refusal(
    504,
    "too_slow",
    "the request took too long; send it again with the same request_id to learn what became of it",
)


async def _answer(send: Send, refusal: Refusal) -> None:
    body = json.dumps(error_content(refusal.code, refusal.message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in refusal.headers),
    ]
    await send(
        {"type": "http.response.start", "status": HTTPStatus(refusal.status).value, "headers": headers}
    )
    await send({"type": "http.response.body", "body": body})


def error_content(code: str, message: str, **more: Any) -> dict[str, Any]:
    """Return the body of every answer that is not a success."""
    return {"error": {"code": code, "message": message, **more}}
