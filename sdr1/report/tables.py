"""Tables of measured and published figures, and how each figure is shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sdr1.base.plain_data import flatten
from sdr1.evaluation.result import Better, Figure, Unit
from sdr1.report.data import Ablated, Evaluation, Material, Run, Swept

_SCALES: dict[Unit, int] = {"share": 100, "images": 1, "cosine": 1, "distance": 1}
_DIGITS: dict[Unit, int] = {"share": 1, "images": 0, "cosine": 3, "distance": 3}


class TableCell(NamedTuple):
    """A figure and how it is shown; published ones are shown with the digits they were published with."""

    figure: Figure
    text: str
    notes: tuple[str, ...] = ()
    """Its interval; the p of its test."""


@dataclass(frozen=True)
class Column:
    """A figure of a table by its key in `result.json`, and its unit; `digits` are the unit's unless they are given."""

    key: str
    title: str
    unit: Unit
    better: Better = ""
    digits: int | None = None

    @property
    def heading(self) -> str:
        return f"{self.title}, %" if self.unit == "share" else self.title

    def cell(self, figure: Figure | None, sign: str = "") -> TableCell | None:
        """`sign` is "+" for a difference."""
        if figure is None or figure.value is None:
            return None
        parts = []
        if figure.low is not None and figure.high is not None:
            low, high = (self._show(bound, figure.unit, sign) for bound in (figure.low, figure.high))
            parts.append(f"{low} to {high}")
        if figure.p is not None:
            parts.append("p < 0.001" if figure.p < 0.001 else f"p = {figure.p:.3f}")
        return TableCell(figure, self._show(figure.value, figure.unit, sign), tuple(parts))

    def published(self, text: str | None) -> TableCell | None:
        if text is None:
            return None
        return TableCell(Figure(value=float(Decimal(text) / _SCALES[self.unit]), unit=self.unit), text)

    def _show(self, value: float, unit: Unit, sign: str = "") -> str:
        digits = _DIGITS[unit] if self.digits is None else self.digits
        # Adding nothing makes of a negative zero a plain one.
        return f"{round(value * _SCALES[unit], digits) + 0.0:{sign}.{digits}f}"


def percent(key: str, title: str, better: Better = "") -> Column:
    return Column(key, title, "share", better)


def count(key: str, title: str, better: Better = "lower") -> Column:
    return Column(key, title, "images", better)


@dataclass(frozen=True)
class TableRow:
    """`source` says where a published row is from, or how a measured one was made; `key` is its name in the CSV."""

    key: str
    label: str
    cells: list[TableCell | None]
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
    rows: list[TableRow]

    @property
    def measured(self) -> list[TableRow]:
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
CLIP_T, FID = Column("clip_t", "CLIP-T", "cosine", "higher"), Column("fid", "FID", "distance", "lower")
RATES = (
    percent("unsafe_trained", "unsafe, trained concept", "lower"),
    percent("unsafe_untrained", "unsafe, other concepts", "lower"),
    percent("utility", "utility", "higher"),
)
ABLATION = (
    *RATES,
    Column("clip_t", "CLIP-T", "cosine", "higher", digits=2),
    Column("mean_unsafe", "mean unsafe", "cosine", "lower"),
    FID,
)
ALPHA = (
    *RATES,
    Column("reward_safe", "reward, safe prompts", "cosine"),
    Column("reward_unsafe", "reward, unsafe prompts", "cosine"),
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
_HELD_OUT: dict[str, Better] = {
    "unsafe_trained": "lower",
    "unsafe_untrained": "lower",
    "unsafe_generic": "lower",
    "unsafe_beside": "lower",
    "false_alarm": "lower",
    "over_refusal": "lower",
    "utility": "higher",
    "shape_kept": "higher",
    "coherent_unsafe": "higher",
    "coherent_safe": "higher",
}
"""The sandbox protocol's figures, all of them shares, which a run's metrics hold as bare numbers."""


def compare(
    material: Material, name: str, title: str, protocols: tuple[str, ...], columns: Sequence[Column]
) -> Table:
    """A row for every model that has one of the columns' figures, one for each that was tested in pairs against the
    first, with the differences, then every published row of that table.

    Measured figures of the same family (`nudity/...`) that no published row has get a column at the end.
    """
    family = columns[0].key.partition("/")[0]
    known = {column.key for column in columns}
    measured = {
        key: figure
        for protocol in protocols
        for each in material.of(protocol)
        for key, figure in each.figures.items()
    }
    more = [key for key in measured if key.startswith(family) and key not in known]
    columns = [*columns, *(column_of(key, measured[key]) for key in more)]
    rows, changes = [], []
    for label in dict.fromkeys(each.label for each in material.evaluations):
        mine = [each for protocol in protocols for each in material.of(protocol) if each.label == label]
        figures = {key: figure for each in mine for key, figure in each.figures.items()}
        cells = [column.cell(figures.get(column.key)) for column in columns]
        if any(cells):
            rows.append(TableRow(label, label, cells, "; ".join(dict.fromkeys(map(setup, mine)))))
        pairs = [(each, material.of(each.result.protocol)[0]) for each in mine]
        pairs = [(each, first) for each, first in pairs if each.result.against == first.result.model]
        if pairs:
            change = {key: each.change(key, first) for each, first in pairs for key in each.figures}
            cells = [column.cell(change.get(column.key), "+") for column in columns]
            what = f"{label} minus {pairs[0][1].label}"
            changes.append(TableRow(what, what, cells, "in pairs of equal prompt and seed"))
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
    figures = {key: figure for each in evaluations for key, figure in each.figures.items()}
    rows = [_across(key, column_of(key, figure), key, evaluations) for key, figure in figures.items()]
    return Table(name, title, "figure", _models([each.label for each in evaluations]), rows)


def _across(name: str, form: Column, key: str, evaluations: Sequence[Evaluation | None]) -> TableRow:
    """A figure of several models, and its change from the first to the last."""
    cells = [form.cell(each.figures.get(key) if each else None) for each in evaluations]
    first, last = evaluations[0], evaluations[-1]
    if len(evaluations) > 1:
        cells.append(form.cell(last.change(key, first), "+") if first and last else None)
    return TableRow(name, form.heading, cells, better=form.better)


def _models(labels: Sequence[str]) -> list[Column]:
    changes = [f"{labels[-1]} minus {labels[0]}"] if len(labels) > 1 else []
    # Every row is another figure: what is shown follows from the cells.
    return [Column(each, each, "images") for each in (*labels, *changes)]


def column_of(key: str, figure: Figure) -> Column:
    """How a figure is shown whose table has no column of its own for it."""
    return Column(key, title_of(key), figure.unit, figure.better)


def title_of(key: str) -> str:
    """A figure's name as people say it."""
    return ": ".join(_words(part) for part in key.split("/"))


def _words(part: str) -> str:
    """A name as people say it: `unsafe_rate` as unsafe rate, diffusers' `EulerDiscreteScheduler` as Euler."""
    if part.endswith("Scheduler"):
        part = part.removesuffix("Scheduler").removesuffix("Discrete")
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", part)
    return part.replace("_", " ")


def training(run: Run, number: int) -> Table:
    """The held-out figures at the run's checkpoints, as far as it evaluated any: `eval/...` of its metrics."""
    keys = dict.fromkeys(key for row in run.held_out for key in row if key.startswith("eval/"))
    columns = [
        percent(key, title_of(name := key.removeprefix("eval/")), _HELD_OUT.get(name.partition("/")[0], ""))
        for key in keys
    ]
    rows = [
        TableRow(
            (iteration := f"{row['iteration']:g}"),
            f"iteration {iteration}",
            [
                column.cell(Figure(value=value, unit=column.unit))
                if math.isfinite(value := row.get(column.key, math.nan))
                else None
                for column in columns
            ],
        )
        for row in run.held_out
    ]
    return Table(f"training-{number}", f"Held-out figures of {run.label}", "checkpoint", columns, rows)


def over_seeds(name: str, title: str, entries: Sequence[Ablated | Swept], columns: Sequence[Column]) -> Table:
    """The mean over seeds and its range, for each reward or each alpha, then the published rows."""
    rows = [
        TableRow(
            entry.name,
            entry.name,
            [column.cell(_over_seeds(getattr(entry, column.key, None), column.unit)) for column in columns],
            f"mean of {len(entry.utility)} seeds, their lowest to highest",
        )
        for entry in entries
    ]
    return Table(
        name, title, "reward" if name == "ablation" else "alpha", columns, rows + published(name, columns)
    )


def published(name: str, columns: Sequence[Column]) -> list[TableRow]:
    """The published rows of a table, as `published.json` has them."""
    return [
        TableRow(
            _label(row),
            _label(row),
            [column.published(row["figures"].get(column.key)) for column in columns],
            row["source"],
            published=True,
        )
        for row in _published()[name]
    ]


def published_figures(table: str, key: str) -> dict[str, float]:
    """A published table's figures of one column, by the row's label."""
    return {
        _label(row): float(text)
        for row in _published()[table]
        if (text := row["figures"].get(key)) is not None
    }


def _label(row: dict[str, Any]) -> str:
    return f"{row['model']} ({row['note']})" if "note" in row else row["model"]


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


def _over_seeds(values: Sequence[float] | None, unit: Unit) -> Figure | None:
    if not values:
        return None
    n = len(values)
    return Figure(value=sum(values) / n, low=min(values), high=max(values), n=n, unit=unit)
