from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.service.database import Database
from agents.service.idempotency import RequestConflictError, claim, find_answer, hash_body, store_answer

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_bodies_have_one_hash_each(one: object, other: object) -> None:
    # bool and int are equal in Python but not in JSON.
    assert (hash_body(one) == hash_body(other)) == (repr_sorted(one) == repr_sorted(other))


def repr_sorted(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_sorted(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_sorted, value)) + "]"
    return repr(value)


def test_the_answer_is_given_again(database: Database) -> None:
    with database.write() as connection:
        assert claim(connection, "r1", "decide", "abc", now=1) is None
        store_answer(connection, "r1", {"offer": [1, 2.5, None]})
    with database.write() as connection:
        assert claim(connection, "r1", "decide", "abc", now=2) == {"offer": [1, 2.5, None]}
    with database.read() as connection:
        assert find_answer(connection, "r1", "decide", "abc") == {"offer": [1, 2.5, None]}
        assert find_answer(connection, "r2", "decide", "abc") is None


@pytest.mark.parametrize(("kind", "body"), [("decide", "other"), ("redeem", "abc")])
def test_another_request_under_the_same_id_is_refused(database: Database, kind: str, body: str) -> None:
    with database.write() as connection:
        claim(connection, "r1", "decide", "abc", now=1)
        store_answer(connection, "r1", {})
    with pytest.raises(RequestConflictError, match="'r1' was used before"), database.write() as connection:
        claim(connection, "r1", kind, body, now=2)
    with pytest.raises(RequestConflictError), database.read() as connection:
        find_answer(connection, "r1", kind, body)


def test_what_fails_leaves_the_id_free(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            claim(connection, "r1", "decide", "abc", now=1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.write() as connection:
        assert claim(connection, "r1", "decide", "another body", now=2) is None
        store_answer(connection, "r1", {})


def test_of_many_at_once_one_does_the_work(database: Database) -> None:
    n = 6
    together = threading.Barrier(n)

    def send(worker: int) -> tuple[bool, object]:
        together.wait()
        with database.write() as connection:
            found = claim(connection, "r1", "decide", "abc", now=1)
            if found is not None:
                return False, found
            store_answer(connection, "r1", {"by": worker})
            return True, {"by": worker}

    with ThreadPoolExecutor(n) as pool:
        results = list(pool.map(send, range(n)))
    assert sum(worked for worked, _ in results) == 1
    assert len({str(answer) for _, answer in results}) == 1
