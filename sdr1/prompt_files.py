"""Reading prompts: txt, csv, jsonl, I2P's csv and hub datasets, and how each prompt gets its label."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sdr1.config import PromptSource
from sdr1.errors import UserError, reason
from sdr1.section import SANDBOX
from sdr1.types import Label, Prompt

HUB = "hub:"
_TEXT_COLUMNS = ("prompt", "text", "caption")
_I2P = "categories"
Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for error lines, and its cells by column."""


def read(source: PromptSource | str) -> list[Prompt]:
    """The prompts of one source, labelled as far as its file and options say.

    Raises:
        UserError: it is missing, empty, not UTF-8, or a line, a column or a label of it is wrong.
    """
    source = PromptSource(path=source) if isinstance(source, str) else source
    path = source.path
    if path == SANDBOX:
        from sdr1.sandbox.prompts import training_prompts

        return [Prompt(prompt.text, prompt.label) for prompt in training_prompts(safe=600, unsafe=200)]
    rows = _hub(path) if path.startswith(HUB) else _file(Path(path), path)
    if not rows:
        raise UserError(f"prompts.path: {path!r}: the file holds no prompt; write one a line")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    text_column = _column("prompts.column", source.column, _TEXT_COLUMNS, columns, path)
    assert text_column is not None
    label_column = _label_column(source, columns)
    return [
        Prompt(_text(row, text_column, where), _label(row, label_column, source, where))
        for where, row in rows
    ]


def _file(file: Path, path: str) -> list[Row]:
    if not file.is_file():
        raise UserError(
            f"prompts.path: {path!r}: no such file; give `sandbox`, a .txt, .csv or .jsonl file or hub:DATASET"
        )
    if file.suffix not in (".jsonl", ".txt", ".csv"):
        raise UserError(f"prompts.path: {path!r}: unknown kind {file.suffix!r}; use .txt, .csv or .jsonl")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompts.path: {path!r}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    if file.suffix == ".csv":
        return _csv(text, path)
    where = "prompts.path: {!r} line {}"
    lines = [
        (where.format(path, n), line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    if file.suffix == ".txt":
        return [(place, {"text": line}) for place, line in lines]
    return [(place, _json(line, place)) for place, line in lines]


def _csv(text: str, path: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"prompts.path: {path!r} line {reader.line_num}: not as many cells as the header has; put texts "
                    "with commas in quotes"
                )
            rows.append((f"prompts.path: {path!r} line {reader.line_num}", row))
    except csv.Error as error:
        raise UserError(
            f"prompts.path: {path!r} line {reader.line_num}: no csv ({error}); save it again"
        ) from error
    return rows


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f'{where}: not JSON ({error.msg}); write {{"text": "...", "label": "safe"}}'
        ) from error
    if not isinstance(row, dict):
        raise UserError(f'{where}: no object; write {{"text": "...", "label": "safe"}}')
    return row


def _hub(path: str) -> list[Row]:
    name, _, split = path.removeprefix(HUB).partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"prompts.path: {path!r}: needs the datasets package; pip install 'sdr1[hub]'"
        ) from error
    try:
        rows = load_dataset(name, split=split or "train")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"prompts.path: {path!r}: cannot be loaded: {reason(error)}; check the name and the split, or give a file"
        ) from error
    return [(f"prompts.path: {path!r} row {n}", row) for n, row in enumerate(rows)]


def _column(
    field: str,
    wanted: str | None,
    usual: Sequence[str],
    columns: list[str],
    path: str,
    *,
    needed: bool = True,
) -> str | None:
    if wanted is not None and wanted not in columns:
        raise UserError(
            f"{field}: {wanted!r}: {path!r} has the columns {', '.join(columns)}; name one of them"
        )
    found = wanted or next((name for name in usual if name in columns), None)
    if found is None and needed:
        raise UserError(
            f"{field}: none of {', '.join(usual)} in {path!r}, which has the columns {', '.join(columns)}; name the "
            "one that holds the prompts"
        )
    return found


def _label_column(source: PromptSource, columns: list[str]) -> str | None:
    if source.label is not None:
        return None
    usual = ("label", _I2P)
    return _column("prompts.label_column", source.label_column, usual, columns, source.path, needed=False)


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: no {column!r}; every row needs a prompt")
    return text.strip()


def _label(row: Mapping[str, Any], column: str | None, source: PromptSource, where: str) -> Label | None:
    if source.label == "score":
        return None
    if source.label is not None:
        return source.label
    if column is None or row.get(column) is None:
        return None
    value = row[column]
    if source.unsafe_categories is not None:
        cells = value if isinstance(value, list) else str(value).split(",")
        named = {str(cell).strip() for cell in cells}
        return "unsafe" if named & set(source.unsafe_categories) else "safe"
    if column == _I2P and source.label_column is None:
        # I2P lists inappropriate prompts only.
        return "unsafe"
    if value not in get_args(Label):
        raise UserError(
            f"{where}: label {value!r}: use safe or unsafe, or say in prompts.unsafe_categories what is unsafe"
        )
    return value
