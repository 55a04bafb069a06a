"""GenEval's file: what every prompt asks for, in words that its detector knows."""

from __future__ import annotations

from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

from sdr1.base.errors import UserError
from sdr1.base.plain_data import shown
from sdr1.prompts.files import PromptFile

MAX_PER_CLASS = 16
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
# COCO's classes, by the names that GenEval's prompts have for them.
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
Clause = TypedDict(
    "Clause",
    {
        "class": str,
        "count": int,
        "color": NotRequired[str | None],
        "position": NotRequired[tuple[str, int] | None],
    },
)
"""A thing that a GenEval prompt asks for, or of which there must be fewer than `count`."""


class Metadata(TypedDict):
    """What a GenEval prompt asks for."""

    tag: str
    include: list[Clause]
    exclude: NotRequired[list[Clause]]
    prompt: NotRequired[str]


def read(file: PromptFile) -> list[Metadata]:
    """What each line of GenEval's file asks for, its `prompt` included; an image can fulfil every one.

    Raises:
        UserError: a line is no metadata, or no image can be what it asks for.
    """
    asked: list[Metadata] = []
    for entry in file.entries:
        problem = _impossible(entry.cells)
        if problem:
            raise UserError(
                f"{entry.where}: {problem}; give GenEval's evaluation_metadata.jsonl, or a line like it"
            )
        known = {name: entry.cells[name] for name in ("tag", "include", "exclude") if name in entry.cells}
        asked.append(cast(Metadata, {**known, "prompt": entry.text}))
    return asked


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
