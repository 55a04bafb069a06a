"""Prompt files of the protocols: I2P's csv, GenEval's jsonl, lists of captions or attacks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sdr1.errors import UserError
from sdr1.evaluation.detections import MAX_PER_CLASS

_SPELLINGS = {
    "seed": ("evaluation_seed", "sd_seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
    "width": ("sd_image_width",),
    "height": ("sd_image_height",),
}
_TEXT_COLUMNS = ("prompt", "caption", "text", "adv_prompt", "adversarial_prompt", "sensitive prompt")


def i2p(path: Path) -> list[dict[str, Any]]:
    """Rows of I2P's csv: `id` (case_number), `prompt`, `categories`, `seed`, `guidance`, `width`, `height`.

    Raises:
        UserError: a column is missing, a number is none, or a case number occurs twice.
    """
    rows: list[dict[str, Any]] = []
    for number, line in _csv(path):
        where = f"prompts: {str(path)!r} row {number}"
        try:
            found = {
                name: next(line[column] for column in spellings if line.get(column))
                for name, spellings in _SPELLINGS.items()
            }
            rows.append(
                {
                    "id": str(int(line["case_number"])),
                    "prompt": line["prompt"],
                    "categories": [part.strip() for part in line["categories"].split(",") if part.strip()],
                    "seed": int(float(found["seed"])),
                    "guidance": float(found["guidance"]),
                    "width": int(float(found["width"])),
                    "height": int(float(found["height"])),
                }
            )
        except StopIteration:
            wanted = " and ".join(" or ".join(spellings) for spellings in _SPELLINGS.values())
            raise UserError(f"{where}: a column is missing or empty; I2P has {wanted}") from None
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{where}: not a row of I2P: {error!r}") from error
    _unique(path, (row["id"] for row in rows), "case_number")
    return rows


def geneval(path: Path) -> list[dict[str, Any]]:
    """GenEval's metadata lines: `tag`, `include`, `exclude`, `prompt`.

    Raises:
        UserError: a line is none.
    """
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            assert isinstance(row["tag"], str)
            assert isinstance(row["prompt"], str)
            assert all("class" in clause and clause["count"] <= MAX_PER_CLASS for clause in row["include"])
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(
                f"prompts: {str(path)!r} line {number}: not GenEval's metadata: a line of JSON with tag, include and "
                "prompt"
            ) from error
        rows.append(row)
    if not rows:
        raise UserError(f"prompts: {str(path)!r}: the file holds no prompt")
    return rows


def texts(path: Path) -> list[str]:
    """Prompts of a .txt (one a line), .jsonl or .csv file; a column named prompt, caption, text or adv_prompt.

    Raises:
        UserError: the file is missing or empty, or has no such column.
    """
    lines: Iterable[dict[str, Any]]
    if path.suffix == ".csv":
        lines = [line for _, line in _csv(path)]
    elif path.suffix == ".jsonl":
        try:
            lines = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
        except ValueError as error:
            raise UserError(f"prompts: {str(path)!r}: not a line of JSON each: {error}") from error
    else:
        lines = [{"prompt": line.strip()} for line in _text(path).splitlines() if line.strip()]
    found = []
    for line in lines:
        column = next((name for name in _TEXT_COLUMNS if line.get(name)), None)
        if column is None:
            raise UserError(f"prompts: {str(path)!r}: no column {', '.join(_TEXT_COLUMNS[:4])}")
        found.append(str(line[column]))
    if not found:
        raise UserError(f"prompts: {str(path)!r}: the file holds no prompt; write one a line")
    return found


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = list(csv.DictReader(_text(path).splitlines(keepends=True)))
    if not rows:
        raise UserError(f"prompts: {str(path)!r}: the file holds no row under its heading")
    return iter(list(enumerate(rows, 2)))


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"prompts: {str(path)!r}: no such file; give the protocol's prompt file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts: {str(path)!r}: not UTF-8 at byte {error.start}") from error


def _unique(path: Path, ids: Iterable[str], column: str) -> None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise UserError(f"prompts: {str(path)!r}: {column} {each} occurs twice")
        seen.add(each)
