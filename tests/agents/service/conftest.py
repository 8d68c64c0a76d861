"""Databases and a desk for tests: SQLite always, PostgreSQL where a server is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agents.service import ledger
from agents.service.database import Database
from agents.service.desk import CouponDesk
from agents.service.keys import ServiceKeys
from agents.service.policy_port import Draws, OfferPrice
from agents.service.tables import METADATA
from agents.serving import DecisionInputError
from experiments.benchmarks.scratch_postgres import find_postgres, scratch_postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed")
    with scratch_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service.db'}"
    url: str = request.getfixturevalue("postgres_url")
    emptied = Database.open(url)
    with emptied.write() as connection:
        METADATA.drop_all(connection)
    emptied.close()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database.open(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path / 'service.db'}")
    yield opened
    opened.close()


class ScriptedPolicy:
    """Draws among no offer, a push message and a coupon, with probabilities that a user may bring along."""

    fingerprint = "f" * 64
    offers = (
        OfferPrice("no offer", 0, 0, 0),
        OfferPrice("push only", 200, 0, 0),
        OfferPrice("20% slot 1", 200, 6_000, 2),
    )
    columns = ("visits", "spend")

    def week_of(self, context: Mapping[str, Any]) -> int:
        if "week" not in context:
            raise DecisionInputError("context: give date or week")
        return int(context["week"])

    def draw(
        self,
        users: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        uniform: npt.NDArray[np.float64],
        available: float,
    ) -> Draws:
        for place, user in enumerate(users):
            if user.get("profile") == "unreadable":
                raise DecisionInputError(f"users[{place}]: profile 'unreadable' cannot be read")
        wanted = {"nothing": [1.0, 0, 0], "push": [0, 1.0, 0], "coupon": [0, 0, 1.0]}
        probabilities = np.array([wanted.get(str(user.get("profile")), [0.5, 0.2, 0.3]) for user in users])
        offer = (probabilities.cumsum(axis=1) <= uniform[:, None]).sum(axis=1)
        names = ["no offer", "push only", "20% slot 1"]
        return Draws(
            offer=offer,
            probabilities=probabilities,
            mask=probabilities > 0,
            observation=np.array(
                [[len(user.get("transactions", [])), available] for user in users], dtype=np.float32
            ),
            weeks_left=int(context.get("weeks_left", 4)),
            dual_price=1.5,
            answers=[
                {
                    "offer": names[k],
                    "channel": "push" if k else None,
                    "category": "SOFT DRINKS" if k == 2 else None,
                    "depth": 0.2 if k == 2 else 0.0,
                    "message": "Save 20%" if k == 2 else None,
                    "reasons": [{"code": "drawn", "words": "by chance"}],
                }
                for k in offer
            ],
        )


@dataclass
class Clock:
    """UNIX time that a test sets."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shop:
    """A desk with a campaign ``autumn``, beside what it stands on."""

    desk: CouponDesk
    clock: Clock = field(default_factory=Clock)


OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop() -> OpenShop:
    """Open a desk on a database with a budget in ticks."""

    def opened(database: Database, budget: int = 10**9, *, grace_seconds: int = 0) -> Shop:
        clock = Clock()
        keys = ServiceKeys(b"a secret of the tests")
        desk = CouponDesk(database, ScriptedPolicy(), keys, grace_seconds, clock)
        desk.register_policy()
        with database.write() as connection:
            ledger.open_budget(connection, "autumn", budget)
        return Shop(desk, clock)

    return opened
