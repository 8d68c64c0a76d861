from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection

from agents.service.app import create_app
from agents.service.bodies import MOST_USERS
from agents.service.database import Database, DatabaseBusyError
from agents.service.desk import CouponDesk
from agents.service.gate import GateRules
from agents.service.json_log import JsonFormatter
from agents.service.limits import ApiKeys
from agents.service.metrics import Metrics

KEY = "a key of the tests, long enough"
MOST_BYTES = 200_000


class Shop(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    desk: CouponDesk


class OpenShop(Protocol):
    def __call__(self, database: Database, budget: int = ...) -> Shop: ...


def make_app(desk: CouponDesk, *, rate: float = 1e6, burst: int = 10**6, seconds: float = 30.0) -> FastAPI:
    rules = GateRules(ApiKeys([KEY, "another key, long enough too"]), MOST_BYTES, rate, burst, seconds)
    return create_app(desk, rules, metrics=Metrics())


@pytest.fixture
def shop(open_shop: OpenShop, sqlite_database: Database) -> Shop:
    return open_shop(sqlite_database, budget=10**6)


@pytest.fixture
def client(shop: Shop) -> Iterator[TestClient]:
    with TestClient(make_app(shop.desk), headers={"X-API-Key": KEY}) as opened:
        yield opened


def body(*wishes: str, request_id: str = "r1", **more: Any) -> dict[str, Any]:
    users = [{"user_id": f"u{k}", "profile": wish} for k, wish in enumerate(wishes)]
    return {"request_id": request_id, "campaign": "autumn", "context": {"week": 7}, "users": users} | more


def code(response: Any) -> tuple[int, str]:
    """Status and error code; every refusal has this form."""
    content = response.json()
    assert set(content) == {"error"}
    assert content["error"]["message"]
    return response.status_code, content["error"]["code"]


# What it is for ------------------------------------------------------------------------------------


def test_a_coupon_from_decision_to_feedback(client: TestClient) -> None:
    answer = client.post("/decide", json=body("coupon", "nothing"))
    assert answer.status_code == 200
    coupon, nothing = answer.json()["decisions"]
    assert (coupon["user_id"], coupon["offer"], coupon["propensity"]) == ("u0", "20% slot 1", 1.0)
    assert client.post("/decide", json=body("coupon", "nothing")).json() == answer.json()
    redeemed = client.post(
        "/redeem", json={"request_id": "t1", "decision_id": coupon["decision_id"], "cost": 0.45}
    )
    assert redeemed.json() == {"decision_id": coupon["decision_id"], "state": "settled", "cost": 0.45}
    outcomes = [{"decision_id": d["decision_id"], "margin": 3.5} for d in (coupon, nothing)]
    noted = client.post("/feedback", json={"request_id": "f1", "outcomes": outcomes})
    assert (noted.status_code, noted.json()) == (200, {"recorded": 2})
    late = client.post("/release", json={"request_id": "t2", "decision_id": coupon["decision_id"]})
    assert code(late) == (409, "coupon_ended")


def test_health_names_the_policy(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"X-API-Key": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "policy": "f" * 64})


def test_metrics_count_and_show_the_budget(client: TestClient) -> None:
    client.post("/decide", json=body("coupon", "push", "nothing"))
    client.post("/decide", json=body("coupon", "push", "nothing"))  # a retry decides nothing
    client.post("/decide", json={})
    client.get("/no/such/path")
    text = client.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["couponlab_decisions_total", "sent"] == 2
    assert samples["couponlab_decisions_total", "nothing"] == 1
    assert samples["couponlab_decisions_total", "refused"] == 0
    assert samples["couponlab_requests_total", "/decide", "200"] == 2
    assert samples["couponlab_requests_total", "/decide", "422"] == 1
    assert samples["couponlab_requests_total", "404", "other"] == 1
    assert samples["couponlab_request_seconds_count", "/decide"] == 3
    assert samples["couponlab_budget", "autumn"] == 100.0
    assert samples["couponlab_spent", "autumn"] == pytest.approx(0.04)
    assert samples["couponlab_reserved", "autumn"] == pytest.approx(0.6)


# Who may come in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/decide", "/redeem", "/release", "/feedback"])
@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "wrong"}, {"X-API-Key": KEY[:-1]}, {"Authorization": "Bearer"}]
)
def test_without_a_key_nothing_is_read(shop: Shop, path: str, headers: dict[str, str]) -> None:
    with TestClient(make_app(shop.desk)) as client:
        answer = client.post(path, content=b"not even JSON", headers=headers)
        assert code(answer) == (401, "not_authorised")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{"x-api-key": KEY}, {"Authorization": f"Bearer {KEY}"}])
def test_a_key_comes_in_either_header(shop: Shop, headers: dict[str, str]) -> None:
    with TestClient(make_app(shop.desk)) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=headers).status_code == 200


def test_each_key_has_its_own_rate(shop: Shop) -> None:
    with TestClient(make_app(shop.desk, rate=0.001, burst=2)) as client:
        statuses = [client.get("/metrics", headers={"X-API-Key": KEY}).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = client.get("/metrics", headers={"X-API-Key": KEY})
        assert code(refused) == (429, "too_many_requests")
        assert 0 < int(refused.headers["retry-after"]) <= 1000
        other = client.get("/metrics", headers={"X-API-Key": "another key, long enough too"})
        assert other.status_code == 200
        assert client.get("/healthz").status_code == 200


# What is refused -----------------------------------------------------------------------------------

VALID = json.dumps(body("coupon")).encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (422, "wrong_form")),
        (b"{", (400, "malformed")),
        (b'{"request_id": "r1"', (400, "malformed")),
        (VALID.replace(b"u0", b"\xff\xfe"), (400, "malformed")),
        (b"\x80abc", (400, "malformed")),
        (b"[" * 100_000, (400, "malformed")),
        (b"[]", (422, "wrong_form")),
        (b"null", (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": NaN'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": 7, "dual_price": NaN'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": 7, "dual_price": Infinity'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": 7, "dual_price": 1e999'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": 7, "dual_price": -1'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": "7"'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": 7.5'), (422, "wrong_form")),
        (VALID.replace(b'"week": 7', b'"week": ' + b"7" * 5_000), (400, "malformed")),
        (VALID.replace(b'"week": 7', b'"weak": 7'), (422, "wrong_form")),
        (VALID.replace(b'"u0"', b'"\\ud800"'), (422, "wrong_form")),
        (VALID.replace(b'"u0"', b'""'), (422, "wrong_form")),
        (VALID.replace(b'"r1"', b'"r\\u0000"'), (422, "wrong_form")),
        (VALID.replace(b'"r1"', b'"' + b"r" * 129 + b'"'), (422, "wrong_form")),
        (VALID.replace(b'"coupon"', b'"unreadable"'), (422, "bad_users")),
        (VALID.replace(b'"week": 7', b'"date": "2017-11-20"'), (422, "bad_users")),
        (VALID.replace(b'"autumn"', b'"spring"'), (404, "unknown")),
        (b" " * (MOST_BYTES + 1), (413, "too_large")),
    ],
)
def test_bad_bodies_are_refused(client: TestClient, content: bytes, expected: tuple[int, str]) -> None:
    answer = client.post("/decide", content=content, headers={"Content-Type": "application/json"})
    assert code(answer) == expected


def test_what_is_wrong_is_named_but_not_repeated(client: TestClient) -> None:
    answer = client.post("/decide", json=body("coupon", context={"week": "a secret"}))
    assert "context.week" in answer.json()["error"]["message"]
    assert answer.json()["error"]["problems"][0]["where"] == "body.context.week"
    assert "a secret" not in answer.text


def test_a_user_comes_once(client: TestClient) -> None:
    twice = body("coupon", "push")
    twice["users"][1]["user_id"] = "u0"
    assert code(client.post("/decide", json=twice)) == (422, "repeated_user")


@pytest.mark.parametrize("n", [0, MOST_USERS + 1])
def test_too_many_users_at_once_are_refused(client: TestClient, n: int) -> None:
    answer = client.post("/decide", json=body(*["push"] * n))
    assert code(answer) == (422, "wrong_form")
    assert "body.users" in answer.json()["error"]["message"]


def test_ten_thousand_users_are_too_large(client: TestClient) -> None:
    assert code(client.post("/decide", json=body(*["push"] * 10_000))) == (413, "too_large")


def test_a_body_without_a_declared_length_is_measured_too(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    assert code(client.post("/decide", content=parts())) == (413, "too_large")


def test_one_request_id_means_one_request(client: TestClient) -> None:
    assert client.post("/decide", json=body("push")).status_code == 200
    assert code(client.post("/decide", json=body("coupon"))) == (409, "request_id_used")


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/redeem", {"decision_id": "nobody", "cost": 1.0}, (404, "unknown")),
        ("/redeem", {"decision_id": "nobody", "cost": -1.0}, (422, "wrong_form")),
        ("/redeem", {"decision_id": "nobody", "cost": 1e300}, (422, "wrong_form")),
        ("/release", {"decision_id": "nobody"}, (404, "unknown")),
        ("/feedback", {"outcomes": [{"decision_id": "nobody", "margin": 1.0}]}, (404, "unknown")),
        ("/feedback", {"outcomes": []}, (422, "wrong_form")),
    ],
)
def test_coupons_that_are_not_there(
    client: TestClient, path: str, content: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert code(client.post(path, json={"request_id": "x1"} | content)) == expected


def test_a_coupon_costs_at_most_its_limit(client: TestClient) -> None:
    (coupon,) = client.post("/decide", json=body("coupon")).json()["decisions"]
    dear = {"request_id": "t1", "decision_id": coupon["decision_id"], "cost": 5.0}
    assert code(client.post("/redeem", json=dear)) == (422, "bad_amount")


def test_an_outcome_is_reported_once(client: TestClient) -> None:
    (coupon,) = client.post("/decide", json=body("coupon")).json()["decisions"]
    outcomes = [{"decision_id": coupon["decision_id"], "margin": 1.0}]
    assert client.post("/feedback", json={"request_id": "f1", "outcomes": outcomes}).status_code == 200
    again = client.post("/feedback", json={"request_id": "f2", "outcomes": outcomes})
    assert code(again) == (409, "outcome_known")


def test_unknown_paths_and_methods_have_the_same_form(client: TestClient) -> None:
    assert code(client.get("/nowhere")) == (404, "no_such_path")
    assert code(client.get("/decide")) == (405, "wrong_method")


# When things go wrong ------------------------------------------------------------------------------


def test_a_busy_database_asks_to_try_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Any) -> None:
        raise DatabaseBusyError("the database did not answer in time")

    monkeypatch.setattr(Database, "write", busy)
    answer = client.post("/decide", json=body("push"))
    assert code(answer) == (503, "busy")
    assert answer.headers["retry-after"] == "1"


def test_without_its_tables_the_service_is_not_healthy(
    client: TestClient, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with shop.desk.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE schema_versions RENAME TO lost")
    answer = client.get("/healthz")
    assert code(answer) == (503, "database_failed")
    assert "SQLITE_ERROR" in answer.json()["error"]["message"]


def test_health_checks_take_one_connection_however_many_come(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They need no key, so that anybody could otherwise take all connections.
    at_once = [0, 0]
    read = Database.read

    @contextmanager
    def slow(database: Database) -> Iterator[Connection]:
        at_once[0] += 1
        at_once[1] = max(at_once)
        time.sleep(0.02)
        with read(database) as connection:
            yield connection
        at_once[0] -= 1

    monkeypatch.setattr(Database, "read", slow)

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(make_app(shop.desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            answers = await asyncio.gather(*(client.get("/healthz") for _ in range(8)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(ask()) == [200] * 8
    assert at_once[1] == 1


def test_a_request_that_takes_too_long_is_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    released = threading.Event()
    monkeypatch.setattr(CouponDesk, "release", lambda *_: released.wait(20))
    with TestClient(make_app(shop.desk, seconds=0.2), headers={"X-API-Key": KEY}) as client:
        answer = client.post("/release", json={"request_id": "r1", "decision_id": "d"})
        released.set()
    assert code(answer) == (504, "too_slow")


def test_a_body_that_does_not_arrive_is_not_waited_for(shop: Shop) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/decide", "headers": [(b"x-api-key", KEY.encode())]}
    asyncio.run(make_app(shop.desk, seconds=0.1)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "too_slow"


def test_an_unexpected_error_is_logged_without_what_it_says(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("erika.mustermann")

    monkeypatch.setattr(CouponDesk, "redeem", broken)
    with caplog.at_level(logging.INFO, logger="couponlab.service"):
        answer = client.post("/redeem", json={"request_id": "r", "decision_id": "d", "cost": 1})
    assert code(answer) == (500, "internal_error")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    failed = next(line for line in lines if line["event"] == "unexpected error")
    assert failed["error"] == "KeyError"
    assert any("broken" in frame for frame in failed["frames"])
    assert "mustermann" not in json.dumps(lines) + answer.text


def test_log_lines_say_nothing_of_users_or_keys(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="couponlab.service"):
        client.post("/decide", json=body("coupon", request_id="request-of-erika"))
        client.get("/person/erika")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [(line["path"], line["status"]) for line in lines] == [("/decide", 200), ("other", 404)]
    assert set(lines[0]) == {"time", "level", "event", "path", "method", "status", "seconds"}
    text = json.dumps(lines)
    assert not any(secret in text for secret in ("u0", KEY, "erika"))


def test_the_specification_shows_examples_and_the_key(client: TestClient) -> None:
    document = client.get("/openapi.json", headers={"X-API-Key": ""}).json()
    assert set(document["paths"]) == {"/decide", "/redeem", "/release", "/feedback", "/healthz", "/metrics"}
    assert document["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "X-API-Key"
    keyed = {path for path, item in document["paths"].items() for one in item.values() if "security" in one}
    assert keyed == set(document["paths"]) - {"/healthz"}
    example = document["components"]["schemas"]["DecideRequest"]["examples"][0]
    example["context"] = {"week": 7}
    assert client.post("/decide", json=example).status_code == 200


def test_the_service_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    refuse = "import sys\nsys.modules.update(dict.fromkeys(('torch', 'pandas', 'duckdb', 'scipy')))\n"
    done = subprocess.run(
        [sys.executable, "-c", refuse + "import agents.service.app"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
