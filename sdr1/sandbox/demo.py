"""The demo: train the sandbox's model, judge it before and after on held-out prompts, show both."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sdr1.config import SANDBOX, load
from sdr1.evaluation.sandbox import colour_distance, evaluate, generate
from sdr1.files import write_text
from sdr1.policy import load_pipeline
from sdr1.sandbox.prompts import prompts
from sdr1.train import train

PRESET = Path(__file__).parents[2] / "configs" / "sandbox.yaml"
_SHEET_TOPICS = (
    "skull",
    "flame",
    "blade",
    "generic",
    "skull_beside",
    "single_object",
    "counting",
    "position",
)


def run(out: Path, *, seeds: list[int], images: int, overrides: list[str]) -> None:
    """Write `summary.json`, `before_after.png` and `curves.png` into `out`, with several seeds into folders of it.

    Raises:
        UserError: an override is wrong.
    """
    tables = []
    for seed in seeds:
        folder = out if len(seeds) == 1 else out / f"seed-{seed}"
        tables.append(_one(folder, seed, images, overrides))
    if len(seeds) > 1:
        rows = {name: [dict(_rows(table))[name] for table in tables] for name, _ in _rows(tables[0])}
        mean = {
            name: (fmean(b for b, _ in pairs), fmean(a for _, a in pairs)) for name, pairs in rows.items()
        }
        _print_table(list(mean.items()), f"mean of seeds {', '.join(map(str, seeds))}")
        write_text(
            out / "seeds.json",
            json.dumps({"seeds": seeds, "before_after": rows, "mean": mean}, indent=2) + "\n",
        )


def _one(out: Path, seed: int, images: int, overrides: list[str]) -> dict[str, Any]:
    config = load(PRESET, [f"run.directory={out / 'run'}", *overrides, f"seed={seed}"])
    result = train(config)
    print("judging both models on held-out prompts ...", flush=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(evaluate, model, split="final", images=images, seed=seed)
            for model in (SANDBOX, str(result.model))
        ]
        before, after = (job.result() for job in jobs)
    table = {
        "seed": seed,
        "iterations": config.iterations,
        "seconds": round(result.seconds, 1),
        "weights_sha256": result.weights_sha256,
        "before": before.asdict(),
        "after": after.asdict(),
        "colour_distance": colour_distance(before, after),
    }
    write_text(out / "summary.json", json.dumps(table, indent=2) + "\n")
    _print_table(_rows(table), f"seed {seed}, {images} images a row")
    _draw_sheet(out / "before_after.png", str(result.model), seed)
    _draw_curves(out / "curves.png", config.run.directory / "metrics.jsonl")
    print(f"pictures: {out / 'before_after.png'}, {out / 'curves.png'}")
    print(f"curves and samples in MLflow: mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}")
    return table


def _rows(table: dict[str, Any]) -> list[tuple[str, tuple[float, float]]]:
    """Name, before and after of every rate."""
    before, after = table["before"], table["after"]
    rows = [("unsafe: skull (trained)", (before["unsafe_trained"], after["unsafe_trained"]))]
    for name in before["unsafe_untrained"]:
        rows.append(
            (
                f"unsafe: {name} (never trained on)",
                tuple(t["unsafe_untrained"][name] for t in (before, after)),
            )
        )
    rows.append(("unsafe: generic words", (before["unsafe_generic"], after["unsafe_generic"])))
    rows += [
        (f"utility: {name}", (before["utility"][name], after["utility"][name])) for name in before["utility"]
    ]
    rows.append(("false alarm", (before["false_alarm"], after["false_alarm"])))
    rows.append(("colours moved from the base's", (0.0, table["colour_distance"])))
    return rows


def _print_table(rows: list[tuple[str, tuple[float, float]]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "before", "after", "change", title=title)
    for name, (before, after) in rows:
        table.add_row(name, f"{before:.1%}", f"{after:.1%}", f"{100 * (after - before):+.1f}")
    Console().print(table)


def _draw_sheet(path: Path, model: str, seed: int, columns: int = 4) -> None:
    """Base and trained pictures of the same held-out prompts and noise, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    asked = [prompt.text for topic in _SHEET_TOPICS for prompt in prompts(topic, "final", columns)]
    pairs = np.stack([generate(load_pipeline(name), asked, seed) for name in (SANDBOX, model)], axis=1)
    figure, axes = plt.subplots(
        len(_SHEET_TOPICS), columns, figsize=(3.4 * columns, 1.95 * len(_SHEET_TOPICS))
    )
    for axis, text, pair in zip(axes.flat, asked, pairs, strict=True):
        gap = np.full((pair.shape[1], 2, 3), 255, np.uint8)
        axis.imshow(np.concatenate([pair[0], gap, pair[1]], axis=1), interpolation="nearest")
        axis.set_title(text, fontsize=8)
        axis.set_axis_off()
    figure.suptitle("left: base, right: trained; same prompt, same noise", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_curves(path: Path, metrics: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    panels = (("reward_safe", "reward_unsafe"), ("unsafe_rate", "clip_fraction"), ("kl",))
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            points = [(row["iteration"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "))
        axis.set_xlabel("iteration")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
