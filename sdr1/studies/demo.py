"""The demo: train the sandbox's model, judge it before and after on held-out prompts, show both."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from sdr1.base.errors import Terminated, UserError
from sdr1.base.files import refuse_foreign, write_bytes, write_figure, write_text
from sdr1.base.plain_data import flatten, read_json
from sdr1.base.process import end_with_parent
from sdr1.base.section import SANDBOX
from sdr1.config.files import PRESETS, load
from sdr1.config.training import Config
from sdr1.evaluation.folder import Folder, Records
from sdr1.evaluation.judges.oracle import things
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.place import Place
from sdr1.evaluation.protocols.sandbox import TRAINED, UNTRAINED, figures_of
from sdr1.evaluation.rows import Row
from sdr1.evaluation.run import evaluate
from sdr1.evaluation.sandbox_rows import rows_of
from sdr1.models.pipeline import load_pipeline
from sdr1.sandbox.captions import TASKS
from sdr1.sandbox.prompts import CONCEPTS, NEAR
from sdr1.sandbox.world import COLOURS
from sdr1.studies.sheets import contact_sheet
from sdr1.training import run_folder
from sdr1.training.checkpoint import newest
from sdr1.training.differences import differences
from sdr1.training.observers import journal
from sdr1.training.observers.tracking.outcome import attach, conclude
from sdr1.training.observers.tracking.store import local_store
from sdr1.training.run import check, train

PRESET = PRESETS / "sandbox.yaml"
"""The demo's config: a wheel carries a copy of the checkout's."""
_MARKER = "demo.json"
"""The file by which sdr1 knows a demo's folder."""
_SHEET_TOPICS = (*CONCEPTS, "skull_beside", "flame_beside", "single_object", "counting", "position", NEAR)
_NAMES = {
    "unsafe_trained": f"unsafe: {TRAINED} (trained)",
    **{f"unsafe_untrained.{concept}": f"unsafe: {concept} (never trained on)" for concept in UNTRAINED},
    "unsafe_generic": "unsafe: generic words",
    "unsafe_beside": "unsafe: any of them beside a shape",
    "shape_kept": "shape beside an unsafe thing kept",
    **{f"utility.{task}": f"utility: {task}" for task in (*TASKS, "overall")},
    "false_alarm": "false alarm",
    "over_refusal": "over-refusal: safe prompts that sound near",
    "coherent_unsafe": "coherent on unsafe prompts",
    "coherent_safe": "coherent on safe prompts",
}
_RATES = tuple(dict.fromkeys(key.split(".")[0] for key in _NAMES))


class Line(NamedTuple):
    """A rate before and after, the pictures behind it and their different prompts."""

    name: str
    images: int
    prompts: int
    before: float
    after: float


def run(out: Path, *, seeds: list[int], images: int, overrides: list[str]) -> None:
    """Train and judge: `demo.json` (what was asked for), `summary.json`, `before_after.png` and `curves.png` in `out`.

    With several seeds each has a folder of it, and their mean is in `seeds.json`.

    Raises:
        UserError: an override is wrong, or `out` holds something else; nothing was written.
    """
    for override in overrides:
        if override.startswith("seed="):
            raise UserError(f"override: {override!r}: the demo's seed is an option: --{override}")
        if override.startswith(("run.directory=", "run.storage=")) and len(seeds) > 1:
            raise UserError(
                f"override: {override!r}: {len(seeds)} runs would write there; use --out, or one --seed"
            )
    folders = {seed: out if len(seeds) == 1 else out / f"seed-{seed}" for seed in seeds}
    configs = {
        seed: _going_on(load(PRESET, [f"run.directory={folder / 'run'}", *overrides, f"seed={seed}"]))
        for seed, folder in folders.items()
    }
    refuse_foreign(out, _MARKER, "demo", "--out")
    for config in configs.values():
        if config.run.directory.resolve() == out.resolve():
            raise UserError(f"run.directory: {out}: is --out, where the demo's own files go; choose another")
        run_folder.check(config)
    check(config)
    asked = {"seeds": seeds, "images": images, "overrides": overrides}
    write_text(out / _MARKER, json.dumps(asked, indent=2) + "\n")
    tables = []
    for seed, folder in folders.items():
        config = configs[seed]
        try:
            model = train(config).model
        except Terminated:
            raise Terminated(f"the same command goes on in {config.run.directory}") from None
        tables.append(judge(folder, seed, images, model))
        _track(config.run.directory, folder, tables[-1])
        _print_tracking(config)
    if len(seeds) > 1:
        average = mean(tables)
        _print_table(average, f"mean of seeds {', '.join(map(str, seeds))}")
        summary = {"seeds": seeds, "mean": average, "each": tables}
        write_text(out / "seeds.json", json.dumps(summary, indent=2) + "\n")


def _track(run: Path, folder: Path, table: dict[str, Any]) -> None:
    """Put a run's pictures and rates where its curves are."""
    pictures = ["before_after.png", "curves.png"]
    attach(run, [folder / name for name in pictures], folder)
    before, after = (
        {key.replace(".", "/"): rate for key, rate in flatten(table[side]).items() if key in _NAMES}
        for side in ("before", "after")
    )
    conclude(run, before, after, headline(table["change"]), pictures)


def _going_on(config: Config) -> Config:
    """The config, told to resume when its folder holds a run of the same settings.

    Raises:
        UserError: it holds one of other settings, or without a good checkpoint.
    """
    run = config.run.directory
    found = newest(run)
    if found is None:
        return config
    for each in differences(config, found.config):
        if each.matters:
            raise UserError(
                f"{each.field}: {each.now!r}: {run} holds a run with {each.then!r}; choose another --out, or remove "
                f"{run}"
            )
    return config.model_copy(update={"run": config.run.model_copy(update={"resume": "auto"})})


def judge(
    out: Path, seed: int, images: int, model: Path, *, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Judge a trained pipeline folder against the base: print the table, write `summary.json` and the pictures.

    The folder that `model` lies in is its run's: the training's figures and curves are taken from there. `seed` is
    that of the judged pictures' noise. `before` are the base's rates with the same `seed` and `images`, where they
    are known. Returns what is in `summary.json`.

    Raises:
        UserError: `model` is no pipeline folder.
    """
    print("judging on held-out prompts ...", flush=True)
    if before is None:
        before, after = _measure_both(str(model), images, seed)
    else:
        after = _measure(str(model), images, seed)
    training = model.parent / run_folder.SUMMARY
    table = {
        "seed": seed,
        **(read_json(training) if training.is_file() else {}),
        "before": before,
        "after": after,
        "colour_distance": colour_distance(before["colours"], after["colours"]),
        "change": change(before, after),
    }
    write_text(out / "summary.json", json.dumps(table, indent=2) + "\n")
    _print_table(table, f"seed {seed}")
    pictures = [_draw_sheet(out / "before_after.png", str(model), seed)]
    metrics = model.parent / journal.NAME
    if metrics.is_file():
        pictures.append(_draw_curves(out / "curves.png", metrics))
    print(f"pictures: {', '.join(map(str, pictures))}")
    return table


def change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    """The headline figures of two tables of rates.

    `trained`, `untrained` (mean rate of its concepts) and `untrained_worst` (the concept that dropped least) are
    relative changes, -1 when nothing unsafe is left and None where there was nothing before; `utility_points` is
    the overall utility's difference in percentage points.
    """
    old, new = before["unsafe_untrained"], after["unsafe_untrained"]
    each = [_relative(old[concept], new[concept]) for concept in old]
    return {
        "trained": _relative(before["unsafe_trained"], after["unsafe_trained"]),
        "untrained": _relative(fmean(old.values()), fmean(new.values())),
        "untrained_worst": max((drop for drop in each if drop is not None), default=None),
        "utility_points": 100 * (after["utility"]["overall"] - before["utility"]["overall"]),
    }


def mean(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table of several seeds: mean rates over all their images, and the change from mean to mean."""
    sides: dict[str, Any] = {}
    for side in ("before", "after"):
        each = [table[side] for table in tables]
        sides[side] = {
            **{rate: _fold(fmean, [one[rate] for one in each]) for rate in _RATES},
            "images": _fold(sum, [one["images"] for one in each]),
            # Every seed draws the same prompts.
            "prompts": each[0]["prompts"],
        }
    return {
        **sides,
        "colour_distance": fmean(table["colour_distance"] for table in tables),
        "change": change(**sides),
    }


def rows(table: dict[str, Any]) -> list[Line]:
    """Every rate of a table."""
    before, after = flatten(table["before"]), flatten(table["after"])
    keyed = [
        Line(name, before[f"images.{key}"], before[f"prompts.{key}"], before[key], after[key])
        for key, name in _NAMES.items()
    ]
    moved = (before["images.colours"], before["prompts.colours"], 0.0, table["colour_distance"])
    return [*keyed, Line("colours moved from the base's", *moved)]


def headline(figures: dict[str, float | None]) -> str:
    """`change` in one line of less than 80 characters; untrained: its concepts together, and the worst of them."""

    def percent(figure: float | None) -> str:
        return "from nothing" if figure is None else f"{100 * figure:+.1f} %"

    return (
        f"trained {percent(figures['trained'])}, untrained {percent(figures['untrained'])} "
        f"(worst {percent(figures['untrained_worst'])}), utility {figures['utility_points']:+.1f} points"
    )


def colour_distance(one: dict[str, float], two: dict[str, float]) -> float:
    """Total variation between two spreads of colours, 0 (equal) to 1."""
    return sum(abs(one[colour] - two[colour]) for colour in COLOURS) / 2


def _measure_both(model: str, images: int, seed: int) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        jobs = [pool.submit(_measure, name, images, seed) for name in (SANDBOX, model)]
        return [job.result() for job in jobs]


def _measure(model: str, images: int, seed: int) -> dict[str, Any]:
    """`sdr1 evaluate sandbox --model MODEL images=IMAGES seed=SEED`, as one side of the table."""
    settings = {"images": images, "seed": seed}
    with TemporaryDirectory() as out, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        folder = Folder(Path(out) / "evaluation")
        evaluate("sandbox", model, folder.path, settings, Place(local=True))
        drawn = [line.to_row() for line in folder.manifest()]
        records = folder.records("oracle", drawn)
    return {"split": "final", "seed": seed, "sampler": asdict(drawn[0].sampler), **rates(drawn, records)}


def rates(drawn: Sequence[Row], records: Records) -> dict[str, Any]:
    """Rates in [0, 1]; under `images` and `prompts`, with the rates' own keys, the pictures behind each and their
    different texts: a topic with few texts repeats them with other noise.

    `colours` is the share of each colour among the things in pictures whose prompts name no colour.
    """
    figures = figures_of(drawn, records)
    free = [
        row for row in drawn if row.facts["topic"] in TASKS and not set(row.prompt.split()) & set(COLOURS)
    ]
    seen = Counter(thing.colour for row in free for thing in things(records[row.id]) if thing.colour)
    texts = {**{figure.name: figure.prompts for figure in figures}, "colours": [row.prompt for row in free]}
    return {
        **_nested({figure.name: figure.mean() for figure in figures}),
        "colours": {colour: seen[colour] / max(1, seen.total()) for colour in COLOURS},
        "images": _nested({name: len(each) for name, each in texts.items()}),
        "prompts": _nested({name: len(set(each)) for name, each in texts.items()}),
    }


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, key = name.partition("/")
        if key:
            tree.setdefault(group, {})[key] = value
        else:
            tree[group] = value
    return tree


def _relative(before: float, after: float) -> float | None:
    return None if before == 0 else (after - before) / before


def _fold(figure: Callable[[list], Any], trees: list[Any]) -> Any:
    """The figure of the numbers that stand in the same place of equally built trees."""
    if isinstance(trees[0], dict):
        return {key: _fold(figure, [tree[key] for tree in trees]) for key in trees[0]}
    return figure(trees)


def _print_table(table: dict[str, Any], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{title}: rates over n images of so many texts", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column()
    for heading in ("n", "texts", "before", "after", "change"):
        shown.add_column(heading, justify="right")
    for row in rows(table):
        shown.add_row(
            row.name,
            str(row.images),
            str(row.prompts),
            f"{row.before:.1%}",
            f"{row.after:.1%}",
            f"{100 * (row.after - row.before):+.1f}",
        )
    Console().print(shown)
    print(headline(table["change"]))


def _print_tracking(config: Config) -> None:
    if config.tracking.enabled:
        server = os.environ.get("MLFLOW_TRACKING_URI")
        where = server or f"mlflow ui --backend-store-uri {local_store(config.run.directory)}"
        print(f"curves and samples in MLflow: {where}")


def _draw_sheet(path: Path, model: str, seed: int, columns: int = 4) -> Path:
    """Base and trained pictures of the same held-out prompts and noise, side by side."""
    # Of a topic with a shape beside an unsafe thing there are a quarter as many.
    asked = [row for topic in _SHEET_TOPICS for row in rows_of((topic,), 4 * columns, seed)[:columns]]
    before, after = (Painter(load_pipeline(name)).draw(asked) for name in (SANDBOX, model))
    gap = np.full((*before.shape[:2], 2, 3), 255, np.uint8)
    pairs = np.concatenate([before, gap, after], axis=2)
    heading = "left: base, right: trained; same prompt, same noise"
    write_bytes(path, contact_sheet(pairs, [row.prompt for row in asked], columns, heading=heading))
    return path


def _draw_curves(path: Path, metrics: Path) -> Path:
    from matplotlib.figure import Figure

    rows, _ = journal.read(metrics)
    # A run on unsafe prompts alone has no KL.
    panels = [
        names
        for panel in (("reward_safe", "reward_unsafe"), ("unsafe_rate", "clip_fraction"), ("kl",))
        if (names := [name for name in panel if any(name in row for row in rows)])
    ]
    figure = Figure(figsize=(4 * len(panels), 3.4))
    for axis, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(row["iteration"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "))
        axis.set_xlabel("iteration")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    write_figure(path, figure, dpi=90)
    return path
