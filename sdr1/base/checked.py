"""From plain data to a checked section, or to the one line that says what is wrong with it: field, value, fix."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel

from sdr1.base.errors import UserError
from sdr1.base.plain_data import flatten, shown
from sdr1.base.section import Section

S = TypeVar("S", bound=Section)

_PLAIN = {
    "dict_type": "is no mapping; give {name: ...}",
    "list_type": "is no list; give [...]",
    "model_attributes_type": "is no mapping; give {kind: ...}",
    "tuple_type": "is no list; give [...]",
    "union_tag_not_found": "says no kind; give {kind: ...}",
}
"""What pydantic says in the words of Python, in those of YAML."""


def checked(model: type[S], values: Any) -> S:
    """Build a section from plain data.

    Raises:
        UserError: a value is wrong; the message names field, value and fix.
    """
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(_one_line(error, model)) from error


def _one_line(error: pydantic.ValidationError, model: type[BaseModel]) -> str:
    """The first mistake in plain data for `model`, as one line with field, value and fix."""
    first = error.errors()[0]
    # Members of a union appear in `loc` under their type's name.
    hidden = ("literal", "AnchorsConfig", "Elastic", "constrained-int", "function-after", "int")
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(hidden))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return (message if not field or message.startswith(field) else f"{field}: {message}") + more
    if first["type"] == "extra_forbidden":
        inner = next(iter(flatten(first["input"])), None) if isinstance(first["input"], dict) else None
        field = f"{field}.{inner}" if inner else field
        close = _close_keys(field, model)
        fix = f"close to it: {', '.join(close)}" if close else "leave it out"
        return f"{shown(field)[1:-1]}: unknown key; {fix}{more}"
    if first["type"] == "odd_value":
        name, problem = first["ctx"]["name"], first["ctx"]["problem"]
        return f"{'.'.join(filter(None, (field, name)))}: {shown(first['input'][name])}: {problem}{more}"
    if first["type"] == "missing":
        return f"{field}: required; give a value{more}"
    if first["type"] == "string_pattern_mismatch" and field.endswith("device"):
        return f"{field}: {shown(first['input'])}: no such device; use cpu, cuda or cuda:N{more}"
    if first["type"] == "union_tag_invalid":
        name, tag, kinds = (
            first["ctx"][each].replace("'", "") for each in ("discriminator", "tag", "expected_tags")
        )
        return f"{field}.{name}: {shown(tag)}: no such {name}; use one of {kinds}{more}"
    message = _PLAIN.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
    return f"{field}: {shown(first['input'])}: {message}{more}"


def _close_keys(field: str, model: type[BaseModel]) -> list[str]:
    keys = [key for key, _ in describe(model)]
    return difflib.get_close_matches(field[:200], keys, n=3, cutoff=0.4)


def describe(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and description of every field."""
    rows: list[tuple[str, str]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += describe(annotation, f"{key}.")
        else:
            rows.append((key, field.description or ""))
    return rows
