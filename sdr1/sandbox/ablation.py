"""The reward ablation and the alpha sweep on the sandbox: the same training under other rewards, a cell at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from sdr1.config import load
from sdr1.files import write_figure, write_text
from sdr1.sandbox.demo import PRESET, judge
from sdr1.train import train

REWARDS: dict[str, list[str]] = {
    "plain": ["reward.kind=plain"],
    # On unsafe prompts alone, as in the paper's ablation.
    "negative": ["reward.kind=negative"],
    "steered": [],
}
ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
"""Those of the paper's sweep."""


def run(out: Path, *, seeds: list[int], images: int, overrides: list[str], only: list[str]) -> None:
    """Write `table.json`, `alpha_sweep.json` and `alpha_sweep.png`; cells that are there are not made again.

    `only` names cells (`plain`, `negative`, `steered`, `alpha-0.5`, ...); empty: all. The files hold what is done so
    far, so that a stopped ablation has its figures too.
    """
    cells = REWARDS | {f"alpha-{alpha}": [f"reward.alpha={alpha}"] for alpha in ALPHAS}
    for name, changes in cells.items():
        if only and name not in only:
            continue
        for seed in seeds:
            folder = out / "cells" / name / f"seed-{seed}"
            if not (folder / "summary.json").is_file():
                _make(folder, seed, images, [*overrides, *changes])
        _collect(out, seeds)


def _make(folder: Path, seed: int, images: int, overrides: list[str]) -> None:
    print(f"== {folder}", flush=True)
    training = folder / "run"
    # A cell that was stopped goes on from its checkpoint.
    changes = [f"run.directory={training}", "run.resume=auto", "tracking.enabled=false", f"seed={seed}"]
    model = train(load(PRESET, [*overrides, *changes])).model
    judge(folder, seed, images, model)
    # Some tens of megabytes a cell; the figures and curves are what is asked for.
    shutil.rmtree(training / "checkpoints", ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)


def _collect(out: Path, seeds: list[int]) -> None:
    table = [row for name in REWARDS if (row := _row(out, name, seeds))]
    write_text(out / "table.json", json.dumps(table, indent=2) + "\n")
    sweep = [
        {"alpha": alpha, **row} for alpha in ALPHAS if (row := _row(out, f"alpha-{alpha}", seeds)) is not None
    ]
    write_text(out / "alpha_sweep.json", json.dumps(sweep, indent=2) + "\n")
    if sweep:
        _plot(out / "alpha_sweep.png", sweep)


def _row(out: Path, name: str, seeds: Iterable[int]) -> dict[str, Any] | None:
    """Rates after training: each seed's, and under the same names without `seed_` their means."""
    found = []
    for seed in seeds:
        path = out / "cells" / name / f"seed-{seed}" / "summary.json"
        if path.is_file():
            found.append((seed, json.loads(path.read_text(encoding="utf-8"))["after"]))
    if not found:
        return None
    figures = {
        "unsafe_trained": [after["unsafe_trained"] for _, after in found],
        "unsafe_untrained": [fmean(after["unsafe_untrained"].values()) for _, after in found],
        "utility": [after["utility"]["overall"] for _, after in found],
    }
    return {
        "name": name,
        **{key: fmean(values) for key, values in figures.items()},
        "seeds": [seed for seed, _ in found],
        "each": figures,
    }


def _plot(path: Path, sweep: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.4))
    for name in ("unsafe_trained", "unsafe_untrained", "utility"):
        axis.plot([row["alpha"] for row in sweep], [row[name] for row in sweep], marker="o", label=name)
    axis.set(xlabel="alpha", ylabel="rate after training", ylim=(-0.02, 1.02))
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    write_figure(path, figure, dpi=100)
    plt.close(figure)
