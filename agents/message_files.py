"""Message texts from and to files; every error names the entry and what is wrong with it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from agents.message_templates import Audience, Template, TemplateCatalogue, TemplateError


def built_in_templates() -> TemplateCatalogue:
    """Return the texts that come with the package."""
    text = resources.files("agents").joinpath("messages.toml").read_text(encoding="utf-8")
    return templates_from_mapping(tomllib.loads(text))


def read_templates(path: Path) -> TemplateCatalogue:
    """Read a TOML file of the form of the built-in ``messages.toml``.

    Raises:
        TemplateError: naming the file, the template and what is wrong with it.
    """
    try:
        return templates_from_mapping(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TemplateError) as error:
        raise TemplateError(f"message texts {path}: {error}") from error


def templates_from_mapping(content: Mapping[str, Any]) -> TemplateCatalogue:
    """Build the catalogue from parsed TOML or JSON.

    Raises:
        TemplateError: naming the entry and what is wrong with it.
    """
    _check_keys("the file", content, {"template"}, {"audience", "terms", "names", "currency"})
    rows = content["template"]
    if not isinstance(rows, list):
        raise TemplateError(f"expected [[template]] tables, got {rows!r}")
    audiences = _table("audience", content.get("audience", {}))
    return TemplateCatalogue(
        templates=tuple(_template(row, place) for place, row in enumerate(rows, start=1)),
        audiences=tuple(_audience(name, row) for name, row in audiences.items()),
        terms=_texts("terms", content.get("terms", {})),
        names=_texts("names", content.get("names", {})),
        currency=_text("currency", content.get("currency", "$")),
    )


def templates_to_mapping(catalogue: TemplateCatalogue) -> dict[str, Any]:
    """Return what :func:`templates_from_mapping` reads, as plain JSON."""
    return {
        "currency": catalogue.currency,
        "terms": dict(catalogue.terms),
        "audience": {one.name: {"like": one.like, "unlike": one.unlike} for one in catalogue.audiences},
        "template": [_row(template) for template in catalogue.templates],
        "names": dict(catalogue.names),
    }


def _row(template: Template) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": template.name,
        "text": template.text,
        "kinds": list(template.kinds),
        "tone": template.tone,
        "seasons": list(template.seasons),
        "channels": list(template.channels),
        "told": list(template.told),
    }
    return row if template.audience is None else row | {"audience": template.audience}


def _template(row: object, place: int) -> Template:
    table = _table(f"template number {place}", row)
    where = f"template {table.get('name', f'number {place}')!r}"
    _check_keys(where, table, {"name", "text", "kinds", "tone"}, {*_TEXT_KEYS, *_LIST_KEYS})
    texts = {key: _text(f"{where}: {key}", table[key]) for key in _TEXT_KEYS if key in table}
    lists = {key: _words(f"{where}: {key}", table[key]) for key in _LIST_KEYS if key in table}
    return Template(**texts, **lists)  # type: ignore[arg-type]


_TEXT_KEYS = ("name", "text", "tone", "audience")
_LIST_KEYS = ("kinds", "seasons", "channels", "told")


def _audience(name: str, row: object) -> Audience:
    where = f"audience {name!r}"
    table = _table(where, row)
    _check_keys(where, table, {"like", "unlike"}, set())
    return Audience(name, _text(f"{where}: like", table["like"]), _text(f"{where}: unlike", table["unlike"]))


def _check_keys(where: str, table: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    for key in sorted(required - set(table)):
        raise TemplateError(f"{where}: {key} is missing")
    for key in sorted(set(table) - required - optional):
        raise TemplateError(f"{where}: unknown key {key!r}")


def _table(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TemplateError(f"{where} must be a table, got {value!r}")
    return value


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"{where} must be a text, got {value!r}")
    return value


def _texts(where: str, value: object) -> dict[str, str]:
    return {name: _text(f"{where}.{name}", one) for name, one in _table(where, value).items()}


def _words(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TemplateError(f"{where} must be a list, got {value!r}")
    return tuple(_text(where, one) for one in value)
