"""What a report is made of, read from the folders that the user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sdr1.base.errors import UserError
from sdr1.base.plain_data import lines_as, read_as, read_bytes
from sdr1.evaluation.folder import SUITE
from sdr1.evaluation.result import Figure, Result
from sdr1.evaluation.rows import ManifestLine, RecordLine
from sdr1.training.observers.journal import EVALUATED, EVALUATION

T = TypeVar("T")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


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
    # Ablations of earlier versions lack these.
    shape_kept: list[FiniteFloat] = Field(default_factory=list)
    coherent_unsafe: list[FiniteFloat] = Field(default_factory=list)


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

    @property
    def name(self) -> str:
        """By which `sdr1 evaluate` knows it: of its entry in a suite, else of its protocol."""
        return self.folder.name if (self.folder.parent / SUITE).is_file() else self.result.protocol

    def change(self, key: str, first: Evaluation) -> Figure | None:
        """This model's figure minus the first one's; with interval and p if the two were tested in pairs."""
        mine, other = self.figures.get(key), first.figures.get(key)
        if mine is None:
            return None
        if self.result.against == first.result.model and (found := self.result.paired.get(key)):
            return Figure(
                value=found.difference, low=found.low, high=found.high, n=found.n, p=found.p, unit=mine.unit
            )
        if other is None or mine.value is None or other.value is None:
            return None
        return Figure(value=mine.value - other.value, unit=mine.unit)

    def manifest(self) -> list[ManifestLine]:
        return _lines(self.folder / "manifest.jsonl", ManifestLine)

    def points(self) -> list[Point]:
        return _file(self.folder / "points.json", list[Point]) or []

    def records(self) -> Iterator[RecordLine]:
        """Every judge's record of every picture."""
        for path in sorted(self.folder.glob("records-*.jsonl")):
            yield from _lines(path, RecordLine)


@dataclass(frozen=True)
class Run:
    """A training run; `rows` are the complete lines of its `metrics.jsonl`; `torn` if there is half a line after them."""

    label: str
    folder: Path
    rows: list[dict[str, float]]
    torn: bool = False

    @property
    def held_out(self) -> list[dict[str, float]]:
        """The figures of each evaluation (`eval/...`), the `iteration` that its weights are of, by how many were applied, and
        the `unet_evaluations` until then where the run counted them. They came in while later iterations went on."""
        spent = {
            row["iteration"] + 1: row["unet_evaluations"] for row in self.rows if "unet_evaluations" in row
        }
        spent |= {0.0: 0.0} if spent else {}
        found = []
        for row in self.rows:
            if EVALUATED in row:
                done = row[EVALUATED]
                figures = {
                    key: value
                    for key, value in row.items()
                    if key.startswith(EVALUATION) and key != EVALUATED
                }
                work = {"unet_evaluations": spent[done]} if done in spent else {}
                found.append({"iteration": done, **work, **figures})
        return found


@dataclass
class Material:
    """Everything that was named, in the order in which it was named; the first model is the one compared with."""

    evaluations: list[Evaluation] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    ablation: list[Ablated] = field(default_factory=list)
    alpha_sweep: list[Swept] = field(default_factory=list)

    @property
    def tracked(self) -> set[Path]:
        """Folders that this is about, and that may be those of runs which MLflow knows."""
        models = [Path(each.result.model).parent for each in self.evaluations]
        return {folder.resolve() for folder in [*(run.folder for run in self.runs), *models]}

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
            rows, torn = _journal(folder / "metrics.jsonl")
            material.runs.append(Run(name or str(folder), folder, rows, torn))
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
    if not path.is_dir() or (equals and not folder):
        raise UserError(f"SOURCES: {argument!r}: no such folder: give DIR or NAME=DIR")
    return name if equals else "", path


def _file(path: Path, kind: type[T]) -> T | None:
    """The content of a JSON file, None if there is none."""
    return read_as(kind, path) if path.exists() else None


def _lines(path: Path, kind: type[T]) -> list[T]:
    return lines_as(kind, read_bytes(path), str(path)) if path.exists() else []


def _journal(path: Path) -> tuple[list[dict[str, float]], bool]:
    """The complete lines of a run's metrics, and whether the last one is not: the run is under way, or was killed."""
    complete, _, rest = read_bytes(path).rpartition(b"\n")
    return lines_as(dict[str, float], complete, str(path)), bool(rest)
