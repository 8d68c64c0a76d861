"""The service over HTTP: decide, redeem, release, feedback, health, metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from sqlalchemy import select
from starlette.exceptions import HTTPException

from agents.service import bodies, ledger
from agents.service.database import DatabaseBusyError, DatabaseFailedError
from agents.service.desk import Answer, CouponDesk, RepeatedUserError
from agents.service.errors import ClosedError, LedgerError, UnknownError
from agents.service.gate import API_KEY_HEADER, Gate, GateRules, error_content
from agents.service.idempotency import RequestConflictError
from agents.service.json_log import log
from agents.service.metrics import Metrics
from agents.service.outcomes import FeedbackConflictError, Outcome
from agents.service.tables import schema_versions
from agents.serving import DecisionInputError

PATHS = frozenset({"/decide", "/redeem", "/release", "/feedback", "/healthz", "/metrics", "/openapi.json"})
MOST_PROBLEMS = 20
"""Faults of a body that an answer names."""

_STATUS: dict[type[Exception], tuple[int, str]] = {
    DecisionInputError: (422, "bad_users"),
    RepeatedUserError: (422, "repeated_user"),
    LedgerError: (422, "bad_amount"),
    UnknownError: (404, "unknown"),
    ClosedError: (409, "coupon_ended"),
    RequestConflictError: (409, "request_id_used"),
    FeedbackConflictError: (409, "outcome_known"),
    DatabaseBusyError: (503, "busy"),
    DatabaseFailedError: (503, "database_failed"),
}


def create_app(desk: CouponDesk, rules: GateRules, *, metrics: Metrics, threads: int = 4) -> FastAPI:
    """Build the ASGI application.

    Args:
        desk: what stands behind the counter.
        rules: of the door.
        metrics: where requests and decisions are counted.
        threads: requests carried out at the same time; others wait.
    """
    app = FastAPI(
        title="couponlab",
        description="Who gets which coupon, under a budget that holds. Money is in the log's currency.",
        version="1",
        docs_url=None,  # the page would load scripts from elsewhere
        redoc_url=None,
        responses=bodies.ERRORS,
    )
    app.add_middleware(Gate, rules=rules, metrics=metrics, paths=PATHS)
    _handle_errors(app)
    slots = anyio.CapacityLimiter(threads)
    # Health needs no key: whoever asks for it must not take the connections that requests need.
    spare = anyio.CapacityLimiter(1)
    # The door checks the key; this only shows it in the specification.
    keyed = [Security(APIKeyHeader(name=API_KEY_HEADER, auto_error=False))]

    async def carry_out(work: Callable[[], Answer]) -> Answer:
        # A request whose time is over is left; its transaction ends by the database's own time-out.
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=slots)

    @app.post("/decide", response_model=bodies.DecideAnswer, dependencies=keyed)
    async def decide(body: bodies.DecideRequest) -> Response:
        """Draw an offer for each user, and commit what the budget covers."""
        content = body.model_dump(exclude_none=True)  # null is as good as not given

        def work() -> Answer:
            return desk.decide(body.request_id, body.campaign, content["users"], content["context"])

        answer = await carry_out(work)
        if not answer.repeated:
            _count(metrics, answer.content["decisions"], desk.policy.offers[0].name)
        return JSONResponse(answer.content)

    @app.post("/redeem", response_model=bodies.CouponAnswer, dependencies=keyed)
    async def redeem(body: bodies.RedeemRequest) -> Response:
        """Settle a coupon that was used: its reservation ends, its cost is spent."""
        answer = await carry_out(lambda: desk.redeem(body.request_id, body.decision_id, body.cost))
        return JSONResponse(answer.content)

    @app.post("/release", response_model=bodies.CouponAnswer, dependencies=keyed)
    async def release(body: bodies.ReleaseRequest) -> Response:
        """Take back a coupon that will not be used: its reservation ends, its delivery stays paid."""
        answer = await carry_out(lambda: desk.release(body.request_id, body.decision_id))
        return JSONResponse(answer.content)

    @app.post("/feedback", response_model=bodies.FeedbackAnswer, dependencies=keyed)
    async def feedback(body: bodies.FeedbackRequest) -> Response:
        """Note what followed decisions, so that policies can be evaluated from them."""
        outcomes = [
            Outcome(outcome.decision_id, outcome.margin, outcome.redeemed_cost) for outcome in body.outcomes
        ]
        answer = await carry_out(lambda: desk.take_feedback(body.request_id, outcomes))
        return JSONResponse(answer.content)

    @app.get("/healthz", response_model=bodies.Health)
    async def healthz() -> Response:
        """Whether the policy is loaded and the database answers."""

        def ping() -> None:
            with desk.database.read() as connection:
                connection.execute(select(schema_versions)).all()

        await anyio.to_thread.run_sync(ping, abandon_on_cancel=True, limiter=spare)
        return JSONResponse({"status": "ok", "policy": desk.policy.fingerprint})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        dependencies=keyed,
    )
    async def show_metrics() -> Response:
        """Counts of all workers and the budgets, in Prometheus' text format."""

        def render() -> bytes:
            with desk.database.read() as connection:
                return metrics.render(ledger.read_balances(connection))

        text = await anyio.to_thread.run_sync(render, abandon_on_cancel=True, limiter=spare)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _count(metrics: Metrics, decided: list[dict[str, Any]], nothing: str) -> None:
    new = [decision for decision in decided if not decision["standing"]]
    refused = sum(decision["refused"] for decision in new)
    idle = sum(decision["offer"] == nothing for decision in new) - refused
    metrics.count_decisions(sent=len(new) - idle - refused, nothing=idle, refused=refused)


def _handle_errors(app: FastAPI) -> None:
    def answer_known(_request: Request, error: Exception) -> Response:
        status, code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
        headers = {"Retry-After": "1"} if status == 503 else None
        if isinstance(error, DatabaseFailedError):
            log(str(error), level=logging.ERROR)
        return JSONResponse(error_content(code, str(error)), status, headers)

    def answer_malformed(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = error.errors()
        if any(fault["type"] == "json_invalid" for fault in faults):
            return JSONResponse(error_content("malformed", "the body is not JSON"), 400)
        # What was given is not repeated: it may be personal, or not even a number that JSON can hold.
        problems = [
            {"where": ".".join(str(part) for part in fault["loc"]), "problem": fault["msg"]}
            for fault in faults[:MOST_PROBLEMS]
        ]
        first = problems[0]
        message = f"{first['where']}: {first['problem']} ({len(faults)} such faults)"
        return Response(
            # Names of unknown keys come from the caller, so they may hold what UTF-8 cannot.
            json.dumps(error_content("wrong_form", message, problems=problems)),
            422,
            media_type="application/json",
        )

    def answer_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {400: "malformed", 404: "no_such_path", 405: "wrong_method"}.get(error.status_code, "refused")
        return JSONResponse(error_content(code, str(error.detail)), error.status_code, error.headers)

    for kind in _STATUS:
        app.add_exception_handler(kind, answer_known)
    app.add_exception_handler(RequestValidationError, answer_malformed)
    app.add_exception_handler(HTTPException, answer_http)
