"""What a report is made of, read from the folders that the user names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from sdr1.errors import UserError

T = TypeVar("T")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figure(_Record):
    """A measured number, None where there was nothing to measure; `low` and `high` bound its 95 % interval, `n` is
    the number of pictures behind it; a difference may have the `p` of its test."""

    value: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int | None = None
    p: FiniteFloat | None = None


class Paired(_Record):
    """How a figure differs from another model's on the same prompts and seeds, with the bounds of its 95 % interval,
    which one prompt alone does not have; `p` is of a two-sided test."""

    difference: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    p: FiniteFloat
    n: int


class Result(_Record):
    """The content of `result.json`; `paired` are tests against the model `against`."""

    protocol: str
    model: str
    figures: dict[str, Figure]
    against: str = ""
    paired: dict[str, Paired] = {}
    provenance: dict[str, Any] = {}


class Shot(_Record):
    """A line of `manifest.jsonl`: one picture. `file` is relative to the evaluation's folder."""

    row: int | str
    seed: int
    prompt: str
    file: str
    sampler: str = ""
    steps: int | None = None
    guidance: FiniteFloat | None = None
    eta: FiniteFloat | None = None
    size: tuple[int, int] | None = None

    @property
    def origin(self) -> tuple:
        """All that the picture follows from beside its model."""
        return self.prompt, self.seed, self.sampler, self.steps, self.guidance, self.eta, self.size


class Point(_Record):
    """A prompt's place in the two-dimensional map of the embeddings."""

    x: FiniteFloat
    y: FiniteFloat
    group: str
    text: str = ""


class _Seeds(_Record):
    """Rates in [0, 1], one for each seed."""

    unsafe_trained: list[FiniteFloat] = Field(min_length=1)
    unsafe_untrained: list[FiniteFloat] = Field(min_length=1)
    utility: list[FiniteFloat] = Field(min_length=1)


class Ablated(_Seeds):
    """A reward of the ablation."""

    name: str


class Swept(_Seeds):
    """An alpha of the sweep."""

    alpha: FiniteFloat

    @property
    def name(self) -> str:
        return f"alpha = {self.alpha:g}"


@dataclass(frozen=True)
class Evaluation:
    """One model under one protocol. `label` names the model on the page."""

    label: str
    folder: Path
    result: Result

    @property
    def figures(self) -> dict[str, Figure]:
        return self.result.figures

    def change(self, key: str, first: Evaluation) -> Figure | None:
        """This model's figure minus the first one's; with interval and p if the two were tested in pairs."""
        if self.result.against == first.result.model and (found := self.result.paired.get(key)):
            return Figure(value=found.difference, low=found.low, high=found.high, n=found.n, p=found.p)
        mine, other = (each.figures.get(key, Figure(value=None)).value for each in (self, first))
        return None if mine is None or other is None else Figure(value=mine - other)

    def shots(self) -> list[Shot]:
        return _lines(self.folder / "manifest.jsonl", Shot)

    def points(self) -> list[Point]:
        return _file(self.folder / "points.json", list[Point]) or []

    def records(self) -> Iterator[dict[str, Any]]:
        """Every judge's record of every picture."""
        for path in sorted(self.folder.glob("records-*.jsonl")):
            yield from _lines(path, dict[str, Any])


@dataclass(frozen=True)
class Run:
    """A training run; `rows` are the lines of its `metrics.jsonl`."""

    label: str
    folder: Path
    rows: list[dict[str, Any]]


@dataclass
class Material:
    """Everything that was named, in the order in which it was named; the first model is the one compared with."""

    evaluations: list[Evaluation] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    ablation: list[Ablated] = field(default_factory=list)
    alpha_sweep: list[Swept] = field(default_factory=list)

    def of(self, protocol: str) -> list[Evaluation]:
        return [each for each in self.evaluations if each.result.protocol == protocol]


def read(arguments: Sequence[str]) -> Material:
    """Read `DIR` or `NAME=DIR`: evaluations, suites of them, training runs, the ablation's folder.

    Raises:
        UserError: a folder is missing or holds none of these, a file is broken, or two models cannot be told apart.
    """
    material = Material()
    for argument in arguments:
        name, folder = _split(argument)
        found = False
        for path in sorted([*folder.glob("result.json"), *folder.glob("*/result.json")]):
            result = _file(path, Result)
            assert result is not None
            material.evaluations.append(Evaluation(name or result.model, path.parent, result))
            found = True
        if (folder / "metrics.jsonl").is_file():
            rows = _lines(folder / "metrics.jsonl", dict[str, Any])
            material.runs.append(Run(name or str(folder), folder, rows))
            found = True
        for ablated in _file(folder / "table.json", list[Ablated]) or ():
            material.ablation.append(ablated)
            found = True
        for swept in _file(folder / "alpha_sweep.json", list[Swept]) or ():
            material.alpha_sweep.append(swept)
            found = True
        if not found:
            raise UserError(
                f"{folder}: no result.json, metrics.jsonl or ablation table in it: "
                "give an evaluation, a suite, a training run or the ablation's folder"
            )
    seen: dict[tuple[str, str], Path] = {}
    for each in material.evaluations:
        other = seen.setdefault((each.label, each.result.protocol), each.folder)
        if other.resolve() != each.folder.resolve():
            raise UserError(
                f"{each.folder}: {each.label!r} has a {each.result.protocol} evaluation in {other} already: "
                f"name one of them, e.g. other={each.folder}"
            )
    return material


def _split(argument: str) -> tuple[str, Path]:
    if Path(argument).is_dir():
        return "", Path(argument)
    name, equals, folder = argument.partition("=")
    path = Path(folder if equals else argument)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give DIR or NAME=DIR")
    return name if equals else "", path


def _file(path: Path, kind: type[T]) -> T | None:
    """The content of a JSON file, None if there is none."""
    return _parse(path, path.read_bytes(), kind) if path.is_file() else None


def _lines(path: Path, kind: type[T]) -> list[T]:
    """The complete lines of a JSON Lines file; the last one may be under way."""
    if not path.is_file():
        return []
    complete = path.read_bytes().rpartition(b"\n")[0]
    return [_parse(path, line, kind, n) for n, line in enumerate(complete.splitlines(), 1) if line.strip()]


def _parse(path: Path, content: bytes, kind: type[T], line: int = 0) -> T:
    try:
        return TypeAdapter(kind).validate_python(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])) or "content", first["msg"]
    except ValueError as error:
        where, what = "content", f"not JSON: {error}"
    place = f"{path}, line {line}" if line else str(path)
    raise UserError(f"{place}: {where}: {what}: make it again, or leave it out")
