"""GenEval's verdict (2310.11513): whether detections fulfil what a prompt's metadata asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdr1.evaluation.rows import Box
from sdr1.prompts.geneval import MAX_PER_CLASS, Metadata

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
OVERLAP_SHARE, AXIS_SHARE = 0.1, 0.5


@dataclass(frozen=True)
class Detection:
    """An object that a detector found."""

    kind: str
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    colour: str | None = None
    """None where nobody has asked for it."""

    def asdict(self) -> Box:
        return Box(kind=self.kind, score=self.score, box=list(self.box), colour=self.colour)

    @classmethod
    def of(cls, found: Box) -> Detection:
        """What `asdict` was made of."""
        left, top, right, bottom = found["box"]
        return cls(found["kind"], found["score"], (left, top, right, bottom), found["colour"])


def verdict(
    detections: Sequence[Detection],
    metadata: Metadata,
    colour_of: Callable[[Detection], str | None] = lambda detection: detection.colour,
    thresholds: tuple[float, float] = (THRESHOLD, COUNTING_THRESHOLD),
) -> bool:
    """Whether an image is what its prompt asks for.

    `metadata` is in GenEval's format: `tag`, `include` with a clause [class, count, color, position] for each thing,
    `exclude` with the classes that must be fewer than `count`. `colour_of` is asked of the best detections of a
    clause that names a colour only. `thresholds` are the scores to pass, else and for counting.
    """
    threshold = thresholds[metadata["tag"] == "counting"]
    best = _best(detections, threshold)
    chosen: list[list[Detection]] = []
    right = True
    for clause in metadata.get("include", ()):
        wanted = clause["count"]
        found = best.get(clause["class"], [])[:wanted]
        if len(found) < wanted:
            right = False
        else:
            if clause.get("color") is not None:
                right &= sum(colour_of(each) == clause["color"] for each in found) >= wanted
            if (position := clause.get("position")) is not None:
                relation, target = position
                targets = chosen[target] if target < len(chosen) else []
                right &= bool(targets) and all(
                    relation in relations(each, other) for each in found for other in targets
                )
        # A clause that is short of things, or wrong in colour, can be no other's target.
        chosen.append(found if right else [])
    return right and all(
        len(best.get(clause["class"], [])) < clause["count"] for clause in metadata.get("exclude", ())
    )


def relations(one: Detection, two: Detection) -> set[str]:
    """Where the first is seen from the second: `left of`, `right of`, `above`, `below`, two of them, or none.

    The difference of the centres is shrunk on each axis by a tenth of both sizes; what is left, as a share of the whole
    distance, has to pass one half.
    """
    shrunk, whole = [], []
    for low, high in ((0, 2), (1, 3)):
        difference = (one.box[low] + one.box[high] - two.box[low] - two.box[high]) / 2
        sizes = one.box[high] - one.box[low] + two.box[high] - two.box[low]
        left = max(0.0, abs(difference) - OVERLAP_SHARE * sizes)
        shrunk.append(left if difference > 0 else -left)
        whole.append(difference)
    if shrunk == [0, 0]:
        return set()
    distance = (whole[0] ** 2 + whole[1] ** 2) ** 0.5
    x, y = shrunk[0] / distance, shrunk[1] / distance
    held = {
        "left of": x < -AXIS_SHARE,
        "right of": x > AXIS_SHARE,
        "above": y < -AXIS_SHARE,
        "below": y > AXIS_SHARE,
    }
    return {name for name, holds in held.items() if holds}


def _best(detections: Sequence[Detection], threshold: float) -> dict[str, list[Detection]]:
    """Up to 16 detections of each class above the threshold, best first; overlapping ones stay."""
    by_class: dict[str, list[Detection]] = {}
    for each in sorted(detections, key=lambda detection: -detection.score):
        mine = by_class.setdefault(each.kind, [])
        if each.score > threshold and len(mine) < MAX_PER_CLASS:
            mine.append(each)
    return by_class
