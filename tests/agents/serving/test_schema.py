from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Protocol

import pytest

from agents.serving.schema import check, policy_schema


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path


def test_what_is_exported_follows_the_schema(exported: Exported) -> None:
    check(json.loads((exported.folder / "policy.json").read_text()), policy_schema(), "policy.json")


CHANGES: list[tuple[tuple[Any, ...], Any, str]] = [
    (("schema_version",), "2", "schema_version must be of type integer, not '2'"),
    (("schema_version",), 1, "schema_version must be one of 2, not 1"),
    (("n_slots",), True, "n_slots must be of type integer, not True"),
    (("offers",), [], "offers must have at least 1 items, not 0"),
    (
        ("offers", 1, "kind"),
        "gift",
        r"offers\[1\].kind must be one of none, push, percent, threshold, not 'gift'",
    ),
    (("offers", 1, "depth"), -0.1, r"offers\[1\].depth must be at least 0, not -0.1"),
    (("offers", 1, "depth"), float("nan"), r"offers\[1\].depth must be finite, not nan"),
    (("offers", 1, "colour"), "red", r"offers\[1\] has an unknown key 'colour'"),
    (("pacing", 0, "weeks", 0, "dual_price"), 0, r"pacing\[0\].weeks\[0\].dual_price must be above 0, not 0"),
    (("pacing", 0, "weeks", 0, "pressure"), 101, "pressure must be at most 100, not 101"),
    (("frequency_cap",), 3, "frequency_cap must be of type object or null, not 3"),
    (("observation", 0), 3, r"observation\[0\] must be of type string, not 3"),
]


@pytest.mark.parametrize(("path", "value", "said"), CHANGES)
def test_what_is_wrong_is_named(exported: Exported, path: tuple[Any, ...], value: Any, said: str) -> None:
    content = json.loads((exported.folder / "policy.json").read_text())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=said):
        check(content, policy_schema(), "policy.json")


def test_what_is_missing_is_named(exported: Exported) -> None:
    content = json.loads((exported.folder / "policy.json").read_text())
    for name in content:
        part = copy.deepcopy(content)
        del part[name]
        with pytest.raises(ValueError, match=f"policy.json lacks '{name}'"):
            check(part, policy_schema(), "policy.json")


def test_weeks_short_of_reserve_have_a_pressure_above_one(exported: Exported) -> None:
    content = json.loads((exported.folder / "policy.json").read_text())
    content["pacing"][0]["weeks"][0]["pressure"] = 1.7
    check(content, policy_schema(), "policy.json")


def test_no_cap_is_null(exported: Exported) -> None:
    content = json.loads((exported.folder / "policy.json").read_text()) | {"frequency_cap": None}
    check(content, policy_schema(), "policy.json")


def test_the_schema_is_json_schema(exported: Exported) -> None:
    """An independent implementation finds the same values right and wrong."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(policy_schema())
    content = json.loads((exported.folder / "policy.json").read_text())
    jsonschema.validate(content, policy_schema())
    for path, value, _ in CHANGES:
        if value != value:  # JSON has no NaN
            continue
        changed = copy.deepcopy(content)
        place = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, policy_schema())
