"""The comparison's page, its pictures, and its tables as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sdr1.base.files import write_bytes, write_text
from sdr1.base.plain_data import read_as
from sdr1.evaluation.folder import RESULT, Folder
from sdr1.evaluation.images import load
from sdr1.evaluation.result import Better, Figure, Paired, Result
from sdr1.report import page, plots, tables
from sdr1.report.data import Evaluation, Material
from sdr1.report.grids import grid
from sdr1.report.sections import Section
from sdr1.report.tables import Column, Row, Table
from sdr1.studies.compare import table, work
from sdr1.studies.compare.cells import Cell
from sdr1.studies.compare.table import Correlation
from sdr1.studies.sheets import contact_sheet

_RATES: dict[str, tuple[str, Better]] = {
    "unsafe_trained": ("unsafe: trained concept", "lower"),
    "unsafe_untrained": ("unsafe: other concepts", "lower"),
    "utility": ("utility", "higher"),
    "coherent_unsafe": ("coherent on unsafe prompts", "higher"),
    "over_refusal": ("over-refusal", "lower"),
    "shape_kept": ("shape beside it kept", "higher"),
    "false_alarm": ("false alarm", "lower"),
}
_COSTS = (
    Column("unet_evaluations", "UNet evaluations", "images", "lower"),
    Column("unet_evaluations_wanted", "without a budget", "images"),
    Column("seconds", "seconds", "images", "lower"),
    Column("peak_memory_bytes", "peak memory, GB", "images", "lower", digits=1),
)
_NOTES = (
    "One base, one sampler, one judge, the same prompts and noise for all; prompts are of the final split.",
    "Intervals (95 %) are of a bootstrap over prompts, all seeds' pictures together. They do not hold how one training differs "
    "from the next: table.json has a row for each seed.",
    "Differences were tested in pairs of equal prompt, noise and seed: p is of a two-sided test that flips the signs of the "
    "prompts' differences, for one rate of one method, not corrected for the number of rows.",
    "Seconds and memory are of training on one core of this machine, as mean over seeds; a backward pass counts as two UNet "
    "evaluations.",
)


def write(reference: str, cells: Sequence[Cell], folders: Mapping[str, Path], out: Path) -> list[str]:
    """Write `summary.json`, `table.md`, `scatter.png`, `grid.png` and `index.html` with its tables and figures; returns the
    lines to say. Without a finished cell there is nothing to write."""
    estimates = table.pooled(cells, folders)
    if not estimates:
        return []
    figures = {
        label: {rate: each.figure() for rate, each in mine.items()} for label, mine in estimates.items()
    }
    tests = table.tests(estimates, reference)
    orders = table.correlations(estimates)
    write_text(out / "summary.json", _summary(reference, figures, tests, orders))
    rates = _rates(figures, json.loads((out / "table.json").read_text(encoding="utf-8")))
    write_text(out / "table.md", _markdown(rates))
    evaluations = _evaluations(cells, folders)
    section = Section(
        "compare",
        "Methods side by side",
        "Every method trained on the same base under one budget of UNet evaluations, judged on prompts that none has seen.",
        tables=[rates, *([_differences(reference, tests)] if tests else []), *map(_order, orders)],
        plots=[plots.trade_off(f"compare-{rate}", f"Utility against {_RATES[rate][0]}", _plane(figures, rate)) for rate in
               ("unsafe_trained", "unsafe_untrained")],
        grids=[made] if len(evaluations) > 1 and (made := grid(evaluations)) else [],
        notes=[*_NOTES, *_cut(cells, figures), *map(str, orders)],
    )  # fmt: skip
    for name, content in page.files(Material(evaluations=evaluations), [section]).items():
        write_bytes(out / name, content)
    write_bytes(out / "scatter.png", section.plots[0].png)
    write_bytes(out / "grid.png", _grid(evaluations))
    return [*map(str, orders), str(out / "index.html")]


def _summary(
    reference: str,
    figures: Mapping[str, Mapping[str, Figure]],
    tests: Mapping[str, Mapping[str, Paired]],
    orders: Sequence[Correlation],
) -> str:
    told = {
        "reference": reference,
        "methods": {
            label: {
                rate: {
                    **figure.model_dump(include={"value", "low", "high", "n"}),
                    **({"paired": test.model_dump()} if (test := tests.get(label, {}).get(rate)) else {}),
                }
                for rate, figure in mine.items()
            }
            for label, mine in figures.items()
        },
        "rank_correlation": {
            order.title: {"rho": order.rho, "p": order.p, "methods": list(order.pairs)} for order in orders
        },
    }
    return json.dumps(told, indent=2) + "\n"


def _rates(figures: Mapping[str, Mapping[str, Figure]], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rates with intervals, and what each method took."""
    measured = [rate for rate in _RATES if any(rate in mine for mine in figures.values())]
    columns = [*map(_column, measured), *_COSTS]
    made = []
    for label, mine in figures.items():
        own = [row for row in rows if row["method"] == label]
        costs = {column.key: fmean(row[column.key] for row in own) for column in _COSTS}
        costs["peak_memory_bytes"] /= 1e9
        cells = [column.cell(mine.get(column.key)) for column in columns[: len(measured)]]
        cells += [column.cell(Figure(value=costs[column.key], unit=column.unit)) for column in _COSTS]
        made.append(Row(label, label, cells, f"{len(own)} seeds"))
    return Table("compare", "Rates and costs", "method", columns, made)


def _column(rate: str) -> Column:
    return tables.percent(rate, *_RATES[rate])


def _differences(reference: str, tests: Mapping[str, Mapping[str, Paired]]) -> Table:
    measured = [rate for rate in _RATES if any(rate in mine for mine in tests.values())]
    columns = [_column(rate) for rate in measured]
    rows = []
    for label, mine in tests.items():
        found = {
            rate: Figure(
                value=test.difference, low=test.low, high=test.high, p=test.p, n=test.n, unit="share"
            )
            for rate, test in mine.items()
        }
        rows.append(Row(label, label, [column.cell(found.get(column.key), "+") for column in columns]))
    return Table("compare-tests", f"Each method minus {reference}, in points", "method", columns, rows)


def _order(order: Correlation) -> Table:
    """Measured and published figures of the methods that both have."""
    theirs = Column("published", f"published: {order.title}", "distance", digits=1)
    columns = [_column(order.rate), theirs]
    rows = [
        Row(label, label, [columns[0].cell(Figure(value=ours, unit="share")), theirs.cell(Figure(value=known, unit="distance"))])
        for label, (ours, known) in sorted(order.pairs.items(), key=lambda item: item[1][1])
    ]  # fmt: skip
    name = f"compare-{order.title.split(',')[0].lower()}"
    return Table(name, f"The published order: {order.title}", "method", columns, rows)


def _plane(figures: Mapping[str, Mapping[str, Figure]], rate: str) -> dict[str, tuple[Figure, Figure]]:
    return {
        label: (mine[rate], mine["utility"])
        for label, mine in figures.items()
        if {rate, "utility"} <= mine.keys()
    }


def _cut(cells: Sequence[Cell], figures: Mapping[str, Any]) -> list[str]:
    """Which methods the budget has cut, and by how much."""
    found = {
        cell.label: cell
        for cell in cells
        if cell.label in figures and cell.wanted > (cell.budget or cell.wanted)
    }
    return [
        f"{label}: wants {cell.wanted:,} UNet evaluations, had {cell.budget:,}."
        for label, cell in found.items()
    ]


def _evaluations(cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[Evaluation]:
    """Of each method with a finished cell its first seed that all of them have, or its first one."""
    made = [cell for cell in cells if work.done(folders[cell.key]) is not None]
    labels = dict.fromkeys(cell.label for cell in made)
    seeds = dict.fromkeys(cell.seed for cell in made)
    whole = next((s for s in seeds if sum(cell.seed == s for cell in made) == len(labels)), None)
    chosen = {
        label: next(cell for cell in made if cell.label == label and whole in (None, cell.seed))
        for label in labels
    }
    return [
        Evaluation(label, folder, read_as(Result, folder / RESULT))
        for label, cell in chosen.items()
        if (folder := folders[cell.key] / work.EVALUATION)
    ]


def _grid(evaluations: Sequence[Evaluation]) -> bytes:
    """The first prompt of each topic, a row each, drawn by all methods from the same noise, a column each."""
    first = {line.facts["topic"]: line for line in reversed(evaluations[0].manifest())}
    lines = list(reversed(first.values()))
    pictures, titles = [], []
    for line in lines:
        for each in evaluations:
            path = Folder(each.folder).image(line.to_row())
            pictures.append(np.asarray(load(path, line.file)))
            titles.append(f"{each.label}\n{line.prompt}")
    return contact_sheet(pictures, titles, columns=len(evaluations), scale=3)


def _markdown(shown: Table) -> str:
    """A table with its intervals, for a page of the documentation."""
    lines = [[shown.corner, *(column.heading for column in shown.columns)]]
    lines.append(["---", *("---:" for _ in shown.columns)])
    for row in shown.rows:
        cells = [
            "" if cell is None else f"{cell.text} ({cell.notes[0]})" if cell.notes else cell.text
            for cell in row.cells
        ]
        lines.append([row.label, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
