"""Plain data out of JSON, YAML and KEY=VALUE arguments that anybody may have written, or the line that says what is wrong."""

from __future__ import annotations

import codecs
import reprlib
import textwrap
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
import yaml
from pydantic import TypeAdapter
from pydantic_core import from_json

from sdr1.base.errors import UserError

T = TypeVar("T")
_BOM = codecs.BOM_UTF8


def parse_json(text: str | bytes, place: str) -> Any:
    """The plain data of a JSON text that anybody may have written; `place` says where it stands.

    Raises:
        UserError: it is no JSON, nests deeper than 200, or has an integer of thousands of digits or half a surrogate
            pair; the message starts with `place`.
    """
    try:
        return from_json(text)
    except ValueError as error:
        raise UserError(f"{place}: not JSON that can be read: {error}") from error


def read_json(path: Path, field: str = "") -> Any:
    """`parse_json` of a file in UTF-8, with or without a byte order mark; `field` is what the user named it by.

    Raises:
        UserError: it is missing, no regular file, or as `parse_json`.
    """
    place = f"{field}: {path}" if field else str(path)
    return parse_json(read_bytes(path, field).removeprefix(_BOM), place)


def read_bytes(path: Path, field: str = "") -> bytes:
    """What is in a regular file; `field` is what the user named it by.

    Raises:
        UserError: it is missing, no regular file, or cannot be read.
    """
    place = f"{field}: {path}" if field else str(path)
    try:
        # Opening a pipe would wait for its writer.
        if not path.is_file():
            raise UserError(f"{place}: no such file; give one that is there")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror}") from error


def read_as(kind: type[T], path: Path, field: str = "") -> T:
    """The content of a JSON file as a dataclass, model or collection of them; `field` is what the user named it by.

    Raises:
        UserError: it is no regular file or no such content; the message names the first wrong key and its value.
    """
    return _parse_as(kind, read_bytes(path, field), f"{field}: {path}" if field else str(path))


def lines_as(kind: type[T], content: bytes, place: str) -> list[T]:
    """The same of every line of JSON Lines, the last one ended or not; `place` says where they stand.

    Raises:
        UserError: a line is no such object.
    """
    lines = enumerate(content.split(b"\n"), 1)
    return [_parse_as(kind, line, f"{place}, line {number}") for number, line in lines if line.strip()]


def _parse_as(kind: type[T], content: bytes, place: str) -> T:
    try:
        return _adapter(cast(Hashable, kind)).validate_json(content.removeprefix(_BOM), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        what = first["msg"].replace("Invalid JSON", "not JSON")
        given = "" if first["type"] in ("missing", "json_invalid") else f"{reprlib.repr(first['input'])}: "
        raise UserError(f"{place}: {key}: {given}{what}: make it again, or leave it out") from error


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def read_yaml(path: Path, field: str) -> Any:
    """An omegaconf container of a YAML file in UTF-8; `field` is what the user named it by.

    Raises:
        UserError: it is missing, no regular file, larger than 1 MB, or no YAML of plain data.
    """
    from omegaconf import OmegaConf

    place = f"{field}: {path}"
    if not path.is_file():
        raise UserError(f"{field}: no file {path}; give a YAML file")
    if path.stat().st_size > _MOST_YAML:
        raise UserError(f"{place}: larger than {_MOST_YAML:,} bytes; give a YAML file of settings")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} cannot be read: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    try:
        _require_plain(text)
        return OmegaConf.create(text)
    except Exception as error:
        # Whatever PyYAML and omegaconf raise at it, the text is what is wrong.
        raise UserError(f"{place} cannot be read: {_told(error)}; write it as YAML") from error


def peek(file: Path, key: str, kind: type[T]) -> T:
    """A value of a JSON object in a file that may be missing, broken or somebody else's; there an empty `kind`."""
    try:
        found = read_json(file)
    except UserError:
        return kind()
    value = found.get(key) if isinstance(found, dict) else None
    return value if type(value) is kind else kind()


def parse_overrides(overrides: Sequence[str]) -> Any:
    """An omegaconf mapping of `section.key=value` arguments.

    Raises:
        UserError: an argument is none.
    """
    from omegaconf import OmegaConf

    for override in overrides:
        key, equals, value = override.partition("=")
        place = f"override: {shown(override)}"
        if not equals:
            raise UserError(f"{place} has no '='; write it as section.key=value")
        if not 0 < len(key) <= 200:
            raise UserError(f"{place} has a key of {len(key):,} letters; write it as section.key=value")
        try:
            _require_plain(value)
            OmegaConf.from_dotlist([override])
        except Exception as error:
            raise UserError(
                f"{place} cannot be read: {_told(error)}; write it as section.key=value"
            ) from error
    return OmegaConf.from_dotlist(list(overrides))


_MOST_YAML = 2**20


def _require_plain(text: str) -> None:
    """Raise an error unless the YAML is shallow and free of aliases."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 50:
            raise ValueError("nested deeper than 50")
        # A few lines of them stand for more values than any memory holds.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"*{event.anchor} is an alias; write the value out")


def _told(error: Exception) -> str:
    # PyYAML says on its later lines what is wrong, and where.
    return textwrap.shorten(str(error) or repr(error), 200, placeholder=" ...")


def shown(value: Any) -> str:
    """A value for the middle of a line: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]} ... ({len(text):,} letters)"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data under dotted keys, as overrides name them."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            rows |= flatten(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value
    return rows
