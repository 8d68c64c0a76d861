"""The service against its own OpenAPI specification, with generated requests (Schemathesis)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from agents.service.app import create_app
from agents.service.database import Database
from agents.service.desk import CouponDesk
from agents.service.gate import GateRules
from agents.service.limits import ApiKeys
from agents.service.metrics import Metrics

KEY = "a key of the tests, long enough"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    ("post", "/decide"),
    ("post", "/redeem"),
    ("post", "/release"),
    ("post", "/feedback"),
    ("get", "/healthz"),
    ("get", "/metrics"),
]


class Shop(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    desk: CouponDesk


class OpenShop(Protocol):
    def __call__(self, database: Database) -> Shop: ...


@pytest.fixture
def app(open_shop: OpenShop, sqlite_database: Database) -> FastAPI:
    rules = GateRules(ApiKeys([KEY]), 10**6, 1e6, 10**6, 30.0)
    return create_app(open_shop(sqlite_database).desk, rules, metrics=Metrics())


def check_operation(app: FastAPI, method: str, path: str, examples: int) -> Counter[int]:
    """Send generated requests, half of them wrong, and check every answer; count them by status."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operation = schema[path][method.upper()]
    answered: Counter[int] = Counter()
    # Nothing can be wrong with a request that has no parts.
    modes = list(GenerationMode)[: 1 if path == "/healthz" else 2]
    for mode in modes:

        def send(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("campaign"), str):
                case.body["campaign"] = "autumn"  # which nobody would guess
            answered[case.call_and_validate(headers={"X-API-Key": KEY}, checks=CHECKS).status_code] += 1

        strategy = operation.as_strategy(generation_mode=mode)
        run = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        run(given(strategy)(send))()
    return answered


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_specified(app: FastAPI, method: str, path: str) -> None:
    answered = check_operation(app, method, path, 8 if method == "post" else 1)
    expected = {"/decide": 200, "/healthz": 200, "/metrics": 200}.get(path, 404)
    assert answered[expected] > 0
    assert method == "get" or answered[422] > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for method, path in OPERATIONS if method == "post"])
def test_very_many_answers_are_as_specified(app: FastAPI, path: str) -> None:
    assert check_operation(app, "post", path, 400).total() >= 400


def test_all_operations_are_checked(app: FastAPI) -> None:
    found = {(method, path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert found == set(OPERATIONS)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_any_bytes_are_answered(app: FastAPI, content: bytes) -> None:
    from fastapi.testclient import TestClient

    client = TestClient(app, headers={"X-API-Key": KEY, "Content-Type": "application/json"})
    for method, path in OPERATIONS:
        if method == "post":
            answer = client.post(path, content=content)
            assert 400 <= answer.status_code < 500
            assert answer.json()["error"]["message"]
