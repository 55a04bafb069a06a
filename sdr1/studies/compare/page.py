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
from sdr1.evaluation.protocols.sandbox import TRAINED
from sdr1.evaluation.protocols.sandbox import UNTRAINED as OTHERS
from sdr1.evaluation.result import Better, Figure, Paired, Result
from sdr1.report import page, plots, tables
from sdr1.report.data import Evaluation, Material
from sdr1.report.grids import grid
from sdr1.report.sections import PageSection
from sdr1.report.tables import Column, Table, TableRow, published
from sdr1.studies.compare import markdown, table, work
from sdr1.studies.compare.cells import BASE, Cell
from sdr1.studies.compare.table import UNTRAINED, Correlation
from sdr1.studies.compare.tries import Log
from sdr1.studies.sheets import contact_sheet

_RATES: dict[str, tuple[str, Better]] = {
    "unsafe_trained": ("unsafe: trained concept", "lower"),
    "unsafe_untrained": ("unsafe: other concepts", "lower"),
    "unsafe_beside": ("unsafe: beside a shape", "lower"),
    "utility": ("utility", "higher"),
    "coherent_unsafe": ("coherent on unsafe prompts", "higher"),
    "over_refusal": ("over-refusal", "lower"),
    "shape_kept": ("shape beside it kept", "higher"),
    "false_alarm": ("false alarm", "lower"),
}
_COSTS = (
    Column("unet_evaluations", "training: UNet evaluations", "images", "lower"),
    Column("unet_evaluations_wanted", "the same without a budget", "images"),
    Column("seconds", "training: seconds", "images", "lower"),
    Column("peak_memory_gb", "training: peak memory, GB", "images", "lower", digits=1),
)
_NOTES = (
    "Intervals (95 %) are of a bootstrap over prompts, all seeds' pictures together. They do not hold how one training differs "
    "from the next: table.json has a row for each seed.",
    "Differences were tested in pairs of equal prompt, noise and seed: p is of a two-sided test that flips the signs of the "
    "prompts' differences, for one rate of one method, not corrected for the number of rows.",
    "Published rows are copied from their papers: Stable Diffusion, real prompts, other judges. Their order may be compared with "
    "the measured one, their figures may not.",
    "CLIP-T and FID are of the safe prompts' pictures, in the sandbox's CLIP. FID is the distance from 1,200 drawn pictures of the "
    "same tasks; it has no interval, and grows as pictures get fewer.",
)
_CONCEPTS = (
    tables.percent("unsafe_trained", f"{TRAINED} (trained)", "lower"),
    *(tables.percent(f"{UNTRAINED}/{concept}", concept, "lower") for concept in OTHERS),
    tables.percent("unsafe_generic", "generic words", "lower"),
)
_TASKS = tuple(
    tables.percent("utility" if column.key == "overall" else f"utility/{column.key}", column.title, "higher")
    for column in tables.GENEVAL
)
_PUBLISHED = (
    ("nudenet", "Published: pictures with an exposed class, of 4,703 I2P prompts", tables.NUDENET),
    ("q16", "Published: inappropriate pictures by category, I2P", tables.Q16),
)
_QUALITY = (tables.CLIP_T, tables.FID)


def write(
    reference: str,
    cells: Sequence[Cell],
    folders: Mapping[str, Path],
    rows: Sequence[dict[str, Any]],
    out: Path,
    log: Log | None,
) -> list[str]:
    """Write `summary.json`, `compared.md`, `scatter.png`, `grid.png` and `index.html` with its tables and figures; returns the
    lines to say. Without a finished cell there is nothing to write. `log` is of the tries, None where these are the tries."""
    estimates = table.pooled(cells, folders, out)
    if not estimates:
        return []
    figures = {
        label: {rate: each.figure() for rate, each in mine.items()} for label, mine in estimates.items()
    }
    tests = table.tests(estimates, reference)
    # Orders were published of methods, not of their tries.
    orders = [] if log is None else table.correlations(estimates)
    write_text(out / "summary.json", _summary(reference, figures, tests, orders))
    rates = _rates(figures, rows)
    trainings = {cell.label for cell in cells if cell.train is not None}
    evaluations = _evaluations(cells, folders)
    section = PageSection(
        "compare",
        "Tries of each method" if log is None else "Methods side by side",
        "Every method trained on the same base under one budget of UNet evaluations, judged on prompts that none has seen. "
        "An arrow says what is better.",
        tables=[
            rates,
            *([_differences(reference, tests)] if tests else []),
            _shown("compare-concepts", "Unsafe pictures by concept", _CONCEPTS, figures),
            _shown("compare-tasks", "Utility by task, and GenEval as published", _TASKS, figures, published("geneval", tables.GENEVAL)),
            _shown("compare-quality", "CLIP-T and FID, and as published", _QUALITY, figures, published("quality", _QUALITY)),
            *map(_order, orders),
            *(Table(f"published-{name}", title, "model", columns, published(name, columns)) for name, title, columns in _PUBLISHED),
            *([] if log is None or not log.tries else [_tries(log)]),
        ],
        plots=[plots.trade_off(f"compare-{rate}", _RATES[rate][0], _plane(figures, rate)) for rate in
               ("unsafe_trained", "unsafe_untrained")],
        grids=[made] if len(evaluations) > 1 and (made := grid(evaluations)) else [],
        notes=[*_orders(orders), *_notes(cells), *_cut(cells, figures), *([] if log is None else log.notes(list(figures), trainings, cells[0].versions["weights"]))],
    )  # fmt: skip
    for name, content in page.files(Material(evaluations=evaluations), [section]).items():
        write_bytes(out / name, content)
    write_bytes(out / "scatter.png", section.plots[0].png)
    write_bytes(out / "grid.png", _grid(evaluations))
    pictures = {
        "scatter.png": section.plots[0].title,
        "grid.png": "The same prompts and noise, drawn by each method",
    }
    write_text(out / "compared.md", markdown.text(section, pictures))
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
        told = [{**row, "peak_memory_gb": row["peak_memory_bytes"] / 1e9} for row in own]
        costs = {column.key: fmean(row[column.key] for row in told) for column in _COSTS}
        cells = [column.cell(mine.get(column.key)) for column in columns[: len(measured)]]
        cells += [column.cell(Figure(value=costs[column.key], unit=column.unit)) for column in _COSTS]
        made.append(TableRow(label, label, cells, f"{len(own)} seed{'s' * (len(own) > 1)}"))
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
        rows.append(TableRow(label, label, [column.cell(found.get(column.key), "+") for column in columns]))
    return Table("compare-tests", f"Each method minus {reference}, in points", "method", columns, rows)


def _order(order: Correlation) -> Table:
    """Measured and published figures of the methods that both have."""
    theirs = Column("published", f"published: {order.title}", "distance", digits=1)
    columns = [_column(order.rate), theirs]
    rows = [
        TableRow(label, label, [columns[0].cell(Figure(value=ours, unit="share")), theirs.cell(Figure(value=known, unit="distance"))])
        for label, (ours, known) in sorted(order.pairs.items(), key=lambda item: item[1][1])
    ]  # fmt: skip
    name = f"compare-{order.title.split(',')[0].lower()}"
    return Table(name, f"The published order: {order.title}", "method", columns, rows)


def _orders(orders: Sequence[Correlation]) -> list[str]:
    return [f"{text[:1].upper()}{text[1:]}." for text in map(str, orders)]


def _notes(cells: Sequence[Cell]) -> list[str]:
    first = cells[0]
    place = (
        "on one core of this machine"
        if first.device == "cpu"
        else f"on {first.device}, which other cells may have shared"
    )
    return [
        f"One base, one sampler, one judge, {first.images} pictures of a topic and seed, the same prompts and noise for all; "
        f"prompts are of the {first.split} split.",
        f"Seconds and memory are of training {place}, as mean over seeds; a backward pass counts as two UNet evaluations.",
        *_NOTES,
    ]


def _shown(
    name: str,
    title: str,
    columns: Sequence[Column],
    figures: Mapping[str, Mapping[str, Figure]],
    more: Sequence[TableRow] = (),
) -> Table:
    """A row for each method, then published ones."""
    rows = [
        TableRow(label, label, [column.cell(mine.get(column.key)) for column in columns])
        for label, mine in figures.items()
    ]
    return Table(name, title, "method", columns, [*rows, *more])


def _tries(log: Log) -> Table:
    """Every try with its settings; the chosen one of each method says so."""
    columns = [
        *(_column(rate) for rate in _RATES if rate in log.base),
        *(column for column in _COSTS if column.key in log.base),
    ]

    def row(label: str, told: str, found: Mapping[str, float]) -> TableRow:
        cells = [
            column.cell(
                None if column.key not in found else Figure(value=found[column.key], unit=column.unit)
            )
            for column in columns
        ]
        return TableRow(label, label, cells, told)

    rows = [row(BASE, "", log.base)]
    for each in log.tries:
        settings = ", ".join(each.overrides) or "as it is"
        told = f"{settings}; chosen" if each.chosen else settings if each.figures else f"{settings}; failed"
        rows.append(row(f"{each.method}, try {each.number}", told, each.figures))
    return Table("compare-tries", "Tries on the tuning split", "method", columns, rows)


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
    """The first prompt of each topic, a row each, drawn by all methods from the same noise, a column each. The prompt stands
    in the first column."""
    first = {line.facts["topic"]: line for line in reversed(evaluations[0].manifest())}
    lines = list(reversed(first.values()))
    pictures, titles = [], []
    for line in lines:
        for each in evaluations:
            path = Folder(each.folder).image(line.to_row())
            pictures.append(np.asarray(load(path, line.file)))
            titles.append(f"{each.label}\n{line.prompt}" if each is evaluations[0] else each.label)
    return contact_sheet(pictures, titles, columns=len(evaluations), scale=3)
