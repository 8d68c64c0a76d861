"""Checks of JSON against a schema: the part of JSON Schema 2020-12 that ``policy.schema.json`` uses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from agents.serving.errors import shown

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def policy_schema() -> dict[str, Any]:
    """Return the schema of ``policy.json``."""
    text = resources.files("agents.serving").joinpath("policy.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def check(value: Any, schema: Mapping[str, Any], place: str) -> None:
    """Check a value.

    Args:
        value: parsed JSON.
        schema: of the value.
        place: what the value is called in messages.

    Raises:
        ValueError: naming the place and what is wrong there.
    """
    named = schema.get("type", list(_TYPES))
    kinds = [named] if isinstance(named, str) else named
    if not any(_is(value, kind) for kind in kinds):
        raise ValueError(f"{place} must be of type {' or '.join(kinds)}, not {shown(value)}")
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(str(one) for one in schema["enum"])
        raise ValueError(f"{place} must be one of {allowed}, not {shown(value)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, schema, place)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            raise ValueError(f"{place} must have at least {schema['minItems']} items, not {len(value)}")
        for k, item in enumerate(value):
            check(item, schema.get("items", {}), f"{place}[{k}]")
    if isinstance(value, dict):
        _check_object(value, schema, place)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _check_number(value: float, schema: Mapping[str, Any], place: str) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{place} must be finite, not {value}")
    if "minimum" in schema and not value >= schema["minimum"]:
        raise ValueError(f"{place} must be at least {schema['minimum']}, not {value}")
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        raise ValueError(f"{place} must be above {schema['exclusiveMinimum']}, not {value}")
    if "maximum" in schema and not value <= schema["maximum"]:
        raise ValueError(f"{place} must be at most {schema['maximum']}, not {value}")


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], place: str) -> None:
    for name in schema.get("required", ()):
        if name not in value:
            raise ValueError(f"{place} lacks {name!r}")
    known = schema.get("properties", {})
    for name, item in value.items():
        if name in known:
            check(item, known[name], f"{place}.{name}")
        elif not schema.get("additionalProperties", True):
            raise ValueError(f"{place} has an unknown key {name!r}")
