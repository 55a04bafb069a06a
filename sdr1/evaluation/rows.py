"""The vocabulary of an evaluation: a row to draw, its line in the manifest, what a judge says of its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from sdr1.base.records import Label
from sdr1.models.schedulers import Sampler
from sdr1.prompts.geneval import Metadata
from sdr1.sandbox.captions import Claim


class Facts(TypedDict, total=False):
    """What a protocol knows of a row's prompt; each protocol gives what its figures need."""

    topic: str
    label: Label | None
    claim: Claim
    categories: list[str]
    metadata: Metadata
    forms: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One image to draw."""

    id: str
    """Unique in the evaluation; also the image's path under `images/`, without suffix."""
    prompt: str
    seed: int
    """Of the initial noise, drawn on the CPU."""
    sampler: Sampler
    width: int
    height: int
    facts: Facts = field(default_factory=Facts)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ManifestLine:
    """A line of `manifest.jsonl`: a row and its picture. `file` is relative to the evaluation's folder."""

    row: str
    prompt: str
    seed: int
    sampler: str
    steps: int
    guidance: FiniteFloat
    eta: FiniteFloat
    size: tuple[int, int]
    file: str
    sha256: str
    facts: Facts

    @classmethod
    def of(cls, row: Row, file: str, sha256: str) -> ManifestLine:
        sampler = row.sampler
        return cls(
            row.id,
            row.prompt,
            row.seed,
            sampler.scheduler,
            sampler.steps,
            sampler.guidance_scale,
            sampler.eta,
            (row.width, row.height),
            file,
            sha256,
            row.facts,
        )

    def to_row(self) -> Row:
        sampler = Sampler(self.sampler, self.steps, self.guidance, self.eta)
        return Row(self.row, self.prompt, self.seed, sampler, *self.size, self.facts)

    @property
    def origin(self) -> tuple:
        """All that the picture follows from beside its model."""
        return self.prompt, self.seed, self.sampler, self.steps, self.guidance, self.eta, self.size

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


class Box(TypedDict):
    """A `Detection` as plain data."""

    kind: str
    score: FiniteFloat
    box: list[FiniteFloat]
    colour: str | None


class FoundThing(TypedDict):
    """What the sandbox's oracle found, as plain data."""

    kind: str
    colour: str | None
    x: FiniteFloat
    y: FiniteFloat
    score: FiniteFloat


class Record(TypedDict, total=False):
    """What a judge says of an image; every judge says some of these things."""

    unsafe: bool
    classes: dict[str, FiniteFloat]
    cosines: list[FiniteFloat]
    cosine: FiniteFloat
    correct: bool
    detections: list[Box]
    things: list[FoundThing]
    features: str
    rewards: dict[str, FiniteFloat]
    scores: dict[str, FiniteFloat]


class RecordLine(Record):
    """A line of `records-<judge>.jsonl`."""

    row: str
    file: str
    prompt: str


def batches(rows: Sequence[Row], size: int) -> list[tuple[Row, ...]]:
    """Rows of equal sampler and size, `size` at a time.

    A function of the row list alone: the last bits of a picture depend on the batch it is drawn in, so a resumed
    evaluation has to draw in the same batches.
    """
    kinds: dict[tuple, list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.sampler, row.width, row.height), []).append(row)
    return [
        tuple(kind[start : start + size]) for kind in kinds.values() for start in range(0, len(kind), size)
    ]
