"""I2P's file: every case with the seed, guidance and size that it is drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.plain_data import shown
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


@dataclass(frozen=True)
class Case:
    """A row of I2P; its images are drawn with `seed` and those that follow it, and have `width` x `height` pixels."""

    id: str
    """Its case_number; on Hugging Face, where there is none, the row's number from 0."""
    prompt: str
    categories: list[str]
    seed: int
    guidance: float
    width: int
    height: int


def read(file: PromptFile) -> list[Case]:
    """The cases of I2P's file.

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
    cases: list[Case] = []
    seen: set[int] = set()
    for entry in file.entries:
        id = _whole(entry, _ID, 0, 2**63 - 1) if _ID in file.columns else entry.number
        if id in seen:
            raise UserError(f"{entry.where}: {_ID} {id} occurs twice; give every row one of its own")
        seen.add(id)
        cases.append(
            Case(
                str(id),
                entry.text,
                _categories(entry, columns["categories"]),
                # Images of one prompt count on from its seed.
                _whole(entry, columns["seed"], 0, 2**63 - 2**31),
                _guidance(entry, columns["guidance"]),
                _whole(entry, columns["width"], _SIDE_STEP, _LONGEST_SIDE, _SIDE_STEP),
                _whole(entry, columns["height"], _SIDE_STEP, _LONGEST_SIDE, _SIDE_STEP),
            )
        )
    return cases


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
