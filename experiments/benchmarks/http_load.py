"""A bounded load on the service, from a process of its own, over loopback connections that are kept open."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

CAMPAIGN = "load"
WEEKS_BACK = 30
DUAL_PRICE = 0.05
"""So low that most users get a coupon, which has to be booked."""
FEEDBACK_EVERY = 4
"""One decision in four is followed by feedback, one coupon in four by its redemption."""


@dataclass(frozen=True)
class LoadPlan:
    """What is sent.

    Attributes:
        port: of the service, on this machine.
        api_key: to send along.
        connections: clients, each sending one request after the other.
        seconds: for how long.
        first_day: Monday of the week that is decided for.
        weeks_left: of the campaign.
        categories: that users buy.
        users: how the names of users and requests begin.
        lines: receipt lines of a user.
    """

    port: int
    api_key: str
    connections: int
    seconds: float
    first_day: date
    weeks_left: int
    categories: tuple[str, ...]
    users: str = "user"
    lines: int = 150


def send_load(plan: LoadPlan, results: Path) -> None:
    """Send until the time is over, and write the durations and errors as JSON."""
    deadline = time.monotonic() + plan.seconds
    clients = [_Client(plan, number, deadline) for number in range(plan.connections)]
    threads = [threading.Thread(target=client.run) for client in clients]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = {
        "seconds": time.monotonic() - started,
        "durations": {path: [s for c in clients for s in c.durations[path]] for path in clients[0].durations},
        "errors": [error for client in clients for error in client.errors],
        "decisions": sum(client.decided for client in clients),
    }
    results.write_text(json.dumps(content), encoding="utf-8")


class _Client:
    """One connection and what it saw."""

    def __init__(self, plan: LoadPlan, number: int, deadline: float) -> None:
        self.plan, self.number, self.deadline = plan, number, deadline
        self.chance = random.Random(number)
        self.durations: dict[str, list[float]] = {"/decide": [], "/redeem": [], "/feedback": []}
        self.errors: list[str] = []
        self.sent = self.decided = 0
        self.connection = http.client.HTTPConnection("127.0.0.1", plan.port, timeout=30)

    def run(self) -> None:
        """Decide for one new user after another."""
        while time.monotonic() < self.deadline:
            name = f"{self.plan.users}-{self.number}-{self.sent}"
            self.sent += 1
            answer = self.post("/decide", make_request(self.plan, name, self.chance))
            if answer is None:
                continue
            self.decided += 1
            decision = answer["decisions"][0]
            if self.decided % FEEDBACK_EVERY:
                continue
            if decision["expires_at"] is not None:
                redeemed = {"request_id": f"{name}-till", "decision_id": decision["decision_id"], "cost": 0.1}
                self.post("/redeem", redeemed)
            outcome = {"decision_id": decision["decision_id"], "margin": self.chance.uniform(0, 20)}
            self.post("/feedback", {"request_id": f"{name}-outcome", "outcomes": [outcome]})
        self.connection.close()

    def post(self, path: str, content: dict[str, Any]) -> Any | None:
        """Return the answer, or None after noting what went wrong."""
        headers = {"Content-Type": "application/json", "X-API-Key": self.plan.api_key}
        body = json.dumps(content)
        started = time.perf_counter()
        try:
            self.connection.request("POST", path, body, headers)
            response = self.connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"{path}: {type(error).__name__}")
            self.connection.close()
            return None
        self.durations[path].append(time.perf_counter() - started)
        if response.status != 200:
            self.errors.append(f"{path}: {response.status} {answer[:200].decode(errors='replace')}")
            return None
        return json.loads(answer)


def make_request(plan: LoadPlan, name: str, chance: random.Random) -> dict[str, Any]:
    """Return a /decide request for one user with a past of his own."""
    lines = []
    for _ in range(plan.lines):
        day = plan.first_day - timedelta(days=chance.randint(1, 7 * WEEKS_BACK))
        lines.append(
            {
                "timestamp": f"{day.isoformat()}T{chance.randint(8, 20):02}:00:00",
                "basket_id": f"{name}-{day.isoformat()}",
                "category": chance.choice(plan.categories),
                "spend": round(chance.uniform(0.5, 12.0), 2),
            }
        )
    lines.sort(key=lambda line: str(line["timestamp"]))
    return {
        "request_id": name,
        "campaign": CAMPAIGN,
        "context": {
            "date": plan.first_day.isoformat(),
            "weeks_left": plan.weeks_left,
            "dual_price": DUAL_PRICE,
        },
        "users": [{"user_id": name, "transactions": lines}],
    }
