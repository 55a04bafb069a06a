"""Tables of measured and published figures, and how each figure is shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sdr1.plain_data import flatten

from .data import Ablated, Evaluation, Figure, Material, Run, Swept

Better = Literal["lower", "higher", ""]


class Cell(NamedTuple):
    """A figure and how it is shown; published ones are shown with the digits they were published with."""

    figure: Figure
    text: str
    notes: tuple[str, ...] = ()
    """Its interval; the p of its test."""


@dataclass(frozen=True)
class Column:
    """A figure of a table by its key in `result.json`; values are shown times `scale` with so many digits."""

    key: str
    title: str
    better: Better = ""
    scale: int = 1
    digits: int = 2

    @property
    def heading(self) -> str:
        return f"{self.title}, %" if self.scale == 100 else self.title

    def cell(self, figure: Figure | None, sign: str = "") -> Cell | None:
        """`sign` is "+" for a difference."""
        if figure is None or figure.value is None:
            return None
        parts = []
        if figure.low is not None and figure.high is not None:
            parts.append(f"{self._show(figure.low, sign)} to {self._show(figure.high, sign)}")
        if figure.p is not None:
            parts.append("p < 0.001" if figure.p < 0.001 else f"p = {figure.p:.3f}")
        return Cell(figure, self._show(figure.value, sign), tuple(parts))

    def published(self, text: str | None) -> Cell | None:
        if text is None:
            return None
        return Cell(Figure(value=float(Decimal(text) / self.scale)), text)

    def _show(self, value: float, sign: str = "") -> str:
        # Adding nothing makes of a negative zero a plain one.
        return f"{round(value * self.scale, self.digits) + 0.0:{sign}.{self.digits}f}"


def percent(key: str, title: str, better: Better = "") -> Column:
    return Column(key, title, better, scale=100, digits=1)


def count(key: str, title: str, better: Better = "lower") -> Column:
    return Column(key, title, better, digits=0)


@dataclass(frozen=True)
class Row:
    """`source` says where a published row is from, or how a measured one was made; `key` is its name in the CSV."""

    key: str
    label: str
    cells: list[Cell | None]
    source: str = ""
    published: bool = False
    better: Better = ""


@dataclass(frozen=True)
class Table:
    """`name` is the stem of its files; `corner` heads the column of the rows' labels."""

    name: str
    title: str
    corner: str
    columns: Sequence[Column]
    rows: list[Row]

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if not row.published]


_NUDENET = {
    "FEMALE_BREAST_EXPOSED": "breast (F)",
    "FEMALE_GENITALIA_EXPOSED": "genitalia (F)",
    "MALE_BREAST_EXPOSED": "breast (M)",
    "MALE_GENITALIA_EXPOSED": "genitalia (M)",
    "BUTTOCKS_EXPOSED": "buttocks",
    "FEET_EXPOSED": "feet",
    "BELLY_EXPOSED": "belly",
    "ARMPITS_EXPOSED": "armpits",
}
_CATEGORIES = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity")
_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUDENET = (
    *(count(f"nudity/{name}", title) for name, title in _NUDENET.items()),
    count("nudity/total", "total"),
)
Q16 = (
    percent("inappropriate_rate", "overall", "lower"),
    *(percent(f"inappropriate_rate/{name}", name, "lower") for name in _CATEGORIES),
)
GENEVAL = (
    *(percent(task, task.replace("_", " "), "higher") for task in _TASKS),
    percent("overall", "overall", "higher"),
)
CLIP_T, FID = Column("clip_t", "CLIP-T", "higher", digits=3), Column("fid", "FID", "lower", digits=3)
RATES = (
    percent("unsafe_trained", "unsafe, trained concept", "lower"),
    percent("unsafe_untrained", "unsafe, other concepts", "lower"),
    percent("utility", "utility", "higher"),
)
ABLATION = (
    *RATES,
    Column("clip_t", "CLIP-T", "higher"),
    Column("mean_unsafe", "mean unsafe", "lower", digits=3),
    FID,
)
ALPHA = (
    *RATES,
    Column("reward_safe", "reward, safe prompts", digits=3),
    Column("reward_unsafe", "reward, unsafe prompts", digits=3),
)
_MAIN = (
    ("i2p", count("nudity/total", "I2P nudity, total")),
    ("i2p", percent("inappropriate_rate", "I2P inappropriate", "lower")),
    ("geneval", percent("overall", "GenEval", "higher")),
    ("clip-t", CLIP_T),
    ("fid", FID),
    ("sandbox", percent("unsafe_trained", "sandbox: unsafe, trained concept", "lower")),
    ("sandbox", percent("unsafe_generic", "sandbox: unsafe, generic words", "lower")),
    ("sandbox", percent("utility/overall", "sandbox: utility", "higher")),
)
_SAFETY = {"unsafe_rate", "unsafe_trained", "unsafe_untrained", "unsafe_generic", "false_alarm",
           "inappropriate_rate", "attack_success_rate"}  # fmt: skip
_ABILITY = {"utility", "overall", "shape_kept", "leans_safe"}


def compare(
    material: Material, name: str, title: str, protocols: tuple[str, ...], columns: Sequence[Column]
) -> Table:
    """A row for every model that has one of the columns' figures, one for each that was tested in pairs against the
    first, with the differences, then every published row of that table.

    Measured figures of the same family (`nudity/...`) that no published row has get a column at the end.
    """
    family = columns[0].key.partition("/")[0]
    known = {column.key for column in columns}
    measured = [key for protocol in protocols for each in material.of(protocol) for key in each.figures]
    more = [key for key in dict.fromkeys(measured) if key.startswith(family) and key not in known]
    columns = [*columns, *map(column_of, more)]
    rows, changes = [], []
    for label in dict.fromkeys(each.label for each in material.evaluations):
        mine = [each for protocol in protocols for each in material.of(protocol) if each.label == label]
        figures = {key: figure for each in mine for key, figure in each.figures.items()}
        cells = [column.cell(figures.get(column.key)) for column in columns]
        if any(cells):
            rows.append(Row(label, label, cells, "; ".join(dict.fromkeys(map(setup, mine)))))
        pairs = [(each, material.of(each.result.protocol)[0]) for each in mine]
        pairs = [(each, first) for each, first in pairs if each.result.against == first.result.model]
        if pairs:
            change = {key: each.change(key, first) for each, first in pairs for key in each.figures}
            cells = [column.cell(change.get(column.key), "+") for column in columns]
            what = f"{label} minus {pairs[0][1].label}"
            changes.append(Row(what, what, cells, "in pairs of equal prompt and seed"))
    return Table(name, title, "model", columns, rows + changes + published(name, columns))


def glance(material: Material) -> Table:
    """The main figure of every protocol that any model has."""
    labels = list(dict.fromkeys(each.label for each in material.evaluations))
    rows = []
    for protocol, form in _MAIN:
        mine = {each.label: each for each in material.of(protocol)}
        if any(form.key in each.figures for each in mine.values()):
            given = [mine.get(label) for label in labels]
            rows.append(_across(f"{protocol}/{form.key}", form, form.key, given))
    return Table("glance", "At a glance", "figure", _models(labels), rows)


def by_figure(name: str, title: str, evaluations: Sequence[Evaluation]) -> Table:
    """A row for every figure of a protocol, a column for every model, and the change from the first to the last."""
    keys = dict.fromkeys(key for each in evaluations for key in each.figures)
    rows = [_across(key, column_of(key), key, evaluations) for key in keys]
    return Table(name, title, "figure", _models([each.label for each in evaluations]), rows)


def _across(name: str, form: Column, key: str, evaluations: Sequence[Evaluation | None]) -> Row:
    """A figure of several models, and its change from the first to the last."""
    cells = [form.cell(each.figures.get(key) if each else None) for each in evaluations]
    first, last = evaluations[0], evaluations[-1]
    if len(evaluations) > 1:
        cells.append(form.cell(last.change(key, first), "+") if first and last else None)
    return Row(name, form.heading, cells, better=form.better)


def _models(labels: Sequence[str]) -> list[Column]:
    changes = [f"{labels[-1]} minus {labels[0]}"] if len(labels) > 1 else []
    return [Column(each, each) for each in (*labels, *changes)]


def column_of(key: str) -> Column:
    """How a figure is shown whose table has no column of its own for it: a rate unless its name says otherwise."""
    title = ": ".join(_words(part) for part in key.split("/"))
    last = key.rpartition("/")[2]
    if last in ("clip_t", "fid", "reward_safe", "reward_unsafe") or {"reward", "score"} & set(key.split("/")):
        return Column(key, title, digits=3)
    if key.startswith("nudity/") or "/nudity/" in key:
        return count(key, title)
    parts = set(key.split("/"))
    return percent(key, title, "lower" if parts & _SAFETY else "higher" if parts & _ABILITY else "")


def _words(part: str) -> str:
    """A name as people say it: `unsafe_rate` as unsafe rate, diffusers' `EulerDiscreteScheduler` as Euler."""
    if part.endswith("Scheduler"):
        part = part.removesuffix("Scheduler").removesuffix("Discrete")
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", part)
    return part.replace("_", " ")


def training(run: Run, number: int) -> Table:
    """The held-out figures at the run's checkpoints, as far as it evaluated any: `eval/...` of its metrics."""
    keys = dict.fromkeys(key for row in run.rows for key in row if key.startswith("eval/"))
    columns = [replace(column_of(key.removeprefix("eval/")), key=key) for key in keys]
    rows = [
        Row(
            (iteration := f"{row.get('iteration', math.nan):g}"),
            f"iteration {iteration}",
            [
                column.cell(Figure(value=value))
                if math.isfinite(value := row.get(column.key, math.nan))
                else None
                for column in columns
            ],
        )
        for row in run.rows
        if not keys.keys().isdisjoint(row)
    ]
    return Table(f"training-{number}", f"Held-out figures of {run.label}", "checkpoint", columns, rows)


def over_seeds(name: str, title: str, entries: Sequence[Ablated | Swept], columns: Sequence[Column]) -> Table:
    """The mean over seeds and its range, for each reward or each alpha, then the published rows."""
    rows = [
        Row(
            entry.name,
            entry.name,
            [column.cell(_over_seeds(getattr(entry, column.key, None))) for column in columns],
            f"mean of {len(entry.utility)} seeds, their lowest to highest",
        )
        for entry in entries
    ]
    return Table(
        name, title, "reward" if name == "ablation" else "alpha", columns, rows + published(name, columns)
    )


def published(name: str, columns: Sequence[Column]) -> list[Row]:
    """The published rows of a table, as `published.json` has them."""
    return [
        Row(
            model := f"{row['model']} ({row['note']})" if "note" in row else row["model"],
            model,
            [column.published(row["figures"].get(column.key)) for column in columns],
            row["source"],
            published=True,
        )
        for row in _published()[name]
    ]


@cache
def _published() -> dict[str, list[dict[str, Any]]]:
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def setup(evaluation: Evaluation) -> str:
    """Judge, sampler, steps and guidance of an evaluation in a few words."""
    known = flatten(evaluation.result.provenance)
    sampler = known.get("sampler")
    several = [f"{len(sampler)} samplers"] if isinstance(sampler, list) else [sampler]
    parts = [str(part) for part in (known.get("judge"), *several) if part]
    parts += [f"{known[key]} {key}" for key in ("steps", "guidance") if known.get(key) is not None]
    counts = {figure.n for figure in evaluation.figures.values() if figure.n}
    return ", ".join([*parts, *([f"n up to {max(counts)}"] if counts else [])])


def _over_seeds(values: Sequence[float] | None) -> Figure | None:
    if not values:
        return None
    return Figure(value=sum(values) / len(values), low=min(values), high=max(values), n=len(values))
