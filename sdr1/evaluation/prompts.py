"""What the protocols know of their prompt files: I2P's seeds and sizes, GenEval's metadata."""

from __future__ import annotations

import math
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.plain_data import shown
from sdr1.evaluation.detections import COLOURS, MAX_PER_CLASS, OBJECTS, RELATIONS
from sdr1.prompts.files import Entry, PromptFile, is_empty

_SPELLINGS = {
    "seed": ("evaluation_seed", "sd_seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
    "width": ("sd_image_width", "width"),
    "height": ("sd_image_height", "height"),
    "categories": ("categories",),
}
_ID = "case_number"
# Of an image's sides: what Stable Diffusion's VAE can make, and what nobody means.
_SIDE_STEP, _LONGEST_SIDE = 8, 4096


def i2p(file: PromptFile) -> list[dict[str, Any]]:
    """Rows of I2P: `id` (case_number; on Hugging Face, where there is none, the row's number from 0), `prompt`,
    `categories`, `seed`, `guidance`, `width`, `height`.

    Raises:
        UserError: a column is missing, a number is none or cannot be drawn with, or a case number occurs twice.
    """
    columns = {
        name: next(each for each in spellings if each in file.columns)
        for name, spellings in _SPELLINGS.items()
        if not set(spellings).isdisjoint(file.columns)
    }
    missing = [" or ".join(spellings) for name, spellings in _SPELLINGS.items() if name not in columns]
    if missing:
        raise UserError(
            f"{file.field}: {file.path!r}: no column {' and no '.join(missing)}; give I2P's file, or judge these prompts "
            "by another protocol, such as mma"
        )
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for entry in file.entries:
        id = _whole(entry, _ID, 0, 2**63 - 1) if _ID in file.columns else entry.number
        if id in seen:
            raise UserError(f"{entry.where}: {_ID} {id} occurs twice; give every row one of its own")
        seen.add(id)
        rows.append(
            {
                "id": str(id),
                "prompt": entry.text,
                "categories": _categories(entry, columns["categories"]),
                # Images of one prompt count on from its seed.
                "seed": _whole(entry, columns["seed"], 0, 2**63 - 2**31),
                "guidance": _guidance(entry, columns["guidance"]),
                "width": _whole(entry, columns["width"], _SIDE_STEP, _LONGEST_SIDE, _SIDE_STEP),
                "height": _whole(entry, columns["height"], _SIDE_STEP, _LONGEST_SIDE, _SIDE_STEP),
            }
        )
    return rows


def geneval(file: PromptFile) -> list[dict[str, Any]]:
    """GenEval's metadata: `tag`, `include`, `exclude`, `prompt`, in every row one that an image can fulfil.

    Raises:
        UserError: a row is no metadata, or no image can be what it asks for.
    """
    for entry in file.entries:
        problem = _impossible(entry.cells)
        if problem:
            raise UserError(
                f"{entry.where}: {problem}; give GenEval's evaluation_metadata.jsonl, or a line like it"
            )
    names = ("tag", "include", "exclude")
    return [
        {**{name: entry.cells[name] for name in names if name in entry.cells}, "prompt": entry.text}
        for entry in file.entries
    ]


def _whole(entry: Entry, column: str, low: int, high: int, step: int = 1) -> int:
    """A cell's whole number; 512.0, as pandas writes 512 beside an empty cell, is one too."""
    value = entry.cells.get(column)
    number: float | int | None = None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = int(value) if isinstance(value, str | int) else value
        except ValueError:
            number = _float(value)
    if number is None or not low <= number <= high or number % step:
        multiples = f"multiple of {step}" if step > 1 else "whole number"
        raise UserError(f"{entry.where}: {column} {shown(value)}: use a {multiples} from {low} to {high}")
    return int(number)


def _guidance(entry: Entry, column: str) -> float:
    value = entry.cells.get(column)
    number = None if isinstance(value, bool) else _float(value)
    if number is None or not (math.isfinite(number) and number >= 0):
        raise UserError(f"{entry.where}: {column} {shown(value)}: use a number from 0 on, such as 7.5")
    return number


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _categories(entry: Entry, column: str) -> list[str]:
    value = entry.cells.get(column)
    if is_empty(value):
        return []
    parts = value if isinstance(value, list) else str(value).split(",")
    return list(dict.fromkeys(str(part).strip() for part in parts if not is_empty(part)))


def _impossible(row: Any) -> str | None:
    """Why no image is right by a row of metadata, or the row is none."""
    if not isinstance(row.get("tag"), str) or not row["tag"].strip():
        return f"tag {shown(row.get('tag'))} is no name"
    if row["tag"] == "overall":
        return "tag 'overall' is the name of the mean over tags"
    include, exclude = row.get("include"), row.get("exclude") or []
    if not isinstance(include, list) or not include:
        return f"include {shown(include)} asks for nothing"
    if not isinstance(exclude, list):
        return f"exclude {shown(exclude)} is no list"
    wanted: dict[str, int] = {}
    for place, clause in enumerate(include):
        problem = _wrong_clause(clause) or _wrong_position(clause.get("position"), place)
        if problem:
            return f"include {shown(clause)}: {problem}"
        wanted[clause["class"]] = max(wanted.get(clause["class"], 0), clause["count"])
    for clause in exclude:
        problem = _wrong_clause(clause)
        if problem:
            return f"exclude {shown(clause)}: {problem}"
        if clause["count"] <= wanted.get(clause["class"], 0):
            return f"exclude {shown(clause)}: as many are asked for"
    return None


def _wrong_clause(clause: Any) -> str | None:
    if not isinstance(clause, dict):
        return "is no object"
    if clause.get("class") not in OBJECTS:
        return f"class {shown(clause.get('class'))} is none of COCO's that GenEval's detector finds"
    count = clause.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_PER_CLASS:
        return f"count {shown(count)} is no number from 1 to {MAX_PER_CLASS}"
    if clause.get("color") is not None and clause["color"] not in COLOURS:
        return f"color {shown(clause['color'])} is none of {', '.join(COLOURS)}"
    return None


def _wrong_position(position: Any, place: int) -> str | None:
    """`position` names where from which earlier clause's things those of the clause at `place` are."""
    if position is None:
        return None
    pair = position if isinstance(position, list) and len(position) == 2 else [None, None]
    earlier = isinstance(pair[1], int) and not isinstance(pair[1], bool) and 0 <= pair[1] < place
    if pair[0] not in RELATIONS or not earlier:
        return (
            f"position {shown(position)} is no [{' or '.join(RELATIONS)}, number of an earlier clause from 0]"
        )
    return None
