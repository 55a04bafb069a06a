"""Ablations on the sandbox: the same training under other rewards, alphas, noise and the released code's quirks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import refuse_foreign, write_bytes, write_text
from sdr1.base.plain_data import peek, read_as
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.report.data import Swept
from sdr1.studies.demo import PRESET, judge
from sdr1.training.differences import differences
from sdr1.training.run import check, train

REQUEST = "ablation.json"
"""The file by which sdr1 knows an ablation's folder; it holds what all of its cells have in common."""
REWARDS: dict[str, list[str]] = {
    "plain": ["reward.kind=plain"],
    # Its judge is the one that the rates are read by, so this row looks as good as a penalty can.
    "penalty": ["reward.kind=plain", "reward.terms.judge.import=sdr1.sandbox.oracle:penalty"],
    # Trained on unsafe prompts alone, as in the paper's ablation.
    "negative": ["reward.kind=negative", "prompts.unsafe_share=1"],
    "steered": [],
}
"""In the order of the paper's table."""
REFERENCE = {
    "reference": [
        "policy.initial_noise=iteration",
        "policy.noise_window=[0,7]",
        "reward.steer=all",
        "learner.kl_weight=0",
        "learner.advantage_scale=group",
        "learner.groups_per_update=1",
        # Six updates an iteration instead of one; at the preset's rate they would move six times as far.
        "learner.learning_rate=9e-5",
    ]
}
"""The quirks of `configs/sd14-reference.yaml`; all else is the preset's, as many images too."""
NOISE = {
    f"noise-{initial}-{steps}": [f"policy.initial_noise={initial}", *window]
    for steps, window in (("window", []), ("all", ["policy.noise_window=null"]))
    for initial in ("group", "sample")
}
"""Initial noise of a group or of each sample; noise in the preset's window of steps or in all but the last."""
ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
"""Those of the paper's sweep, and the preset's."""


@dataclass(frozen=True)
class Cell:
    """What is read of a cell's `summary.json`: the rates of the base and of the trained model."""

    before: dict[str, Any]
    after: dict[str, Any]


_RATES = ("unsafe_trained", "unsafe_untrained", "utility", "shape_kept", "coherent_unsafe")


def run(
    out: Path, *, seeds: list[int], images: int, overrides: list[str], only: list[str], local: bool = False
) -> None:
    """Write `table.json`, `reference.json`, `noise.json`, `alpha_sweep.json` and its plot; cells that are there are
    not made again.

    `only` names cells (`plain`, `negative`, `reference`, `noise-sample-all`, `alpha-0.5`, ...); empty: all. Cells that
    are the same training are made once, under the first one's name. The files hold what is done so far, so that a
    stopped ablation has its figures too. `reference.json` sets the released code's quirks beside the preset (`steered`).
    `local` trains without Ray, to the same bits.

    Raises:
        UserError: an override is wrong, or a name in `only`; `out` holds cells of other settings, or something else.
    """
    cells = REWARDS | REFERENCE | NOISE | {_swept(alpha): [f"reward.alpha={alpha}"] for alpha in ALPHAS}
    for name in only:
        if name not in cells:
            raise UserError(f"--only: {name!r}: no such cell; use some of {', '.join(cells)}")
    if (address := load(PRESET, overrides).run.storage) is not None:
        raise UserError(f"run.storage: {address}: every cell is a run and would go there; leave it out")
    made_as = _same_trainings({name: load(PRESET, [*overrides, *cells[name]]) for name in cells})
    _open(out, images, load(PRESET, overrides), local)
    for name in dict.fromkeys(made_as[name] for name in only or cells):
        for seed in seeds:
            folder = out / "cells" / name / f"seed-{seed}"
            if not (folder / "summary.json").is_file():
                _make(folder, seed, images, [*overrides, *cells[name]], _base(out, seed), local)
        _collect(out, seeds, made_as)


def _open(out: Path, images: int, config: Config, local: bool) -> None:
    """Start in `out`, or go on with the cells that were made there with these settings.

    Raises:
        UserError: those there were made with others, and would stand in one table with the new ones.
    """
    refuse_foreign(out, REQUEST, "ablation", "--out")
    file = out / REQUEST
    if not file.is_file():
        check(config, local=local)
        write_text(
            file, json.dumps({"images": images, "config": config.model_dump(mode="json")}, indent=2) + "\n"
        )
        return
    there = peek(file, "images", int)
    if there != images:
        raise UserError(
            f"--images: {images}: {out} holds cells of {there}; choose another --out, or remove it"
        )
    for each in differences(config, peek(file, "config", dict)):
        if each.matters:
            raise UserError(
                f"{each.field}: {each.now!r}: {out} holds cells made with {each.then!r}; choose another --out, or "
                "remove it"
            )


def _swept(alpha: float) -> str:
    return f"alpha-{alpha}"


def _same_trainings(configs: dict[str, Config]) -> dict[str, str]:
    """For each name the first one whose config trains the same."""
    first: dict[str, str] = {}
    return {name: first.setdefault(_identity(config), name) for name, config in configs.items()}


def _identity(config: Config) -> str:
    """The config, with what does not matter to its reward taken away."""
    reward = config.reward
    # norm(z + 0 v) is z, so that steering by nothing is the plain reward; a plain reward reads no alpha.
    if reward.kind == "plain" or (reward.kind, reward.steering, reward.alpha) == (
        "steered",
        "translation",
        0,
    ):
        reward = reward.model_copy(update={"kind": "plain", "alpha": 0.0})
    return config.model_copy(update={"reward": reward}).model_dump_json()


def _make(
    folder: Path, seed: int, images: int, overrides: list[str], base: dict[str, Any] | None, local: bool
) -> None:
    print(f"== {folder}", flush=True)
    training = folder / "run"
    # A cell that was stopped goes on from its checkpoint.
    changes = [f"run.directory={training}", "run.resume=auto", "tracking.enabled=false", f"seed={seed}"]
    model = train(load(PRESET, [*overrides, *changes]), local=local).model
    judge(folder, seed, images, model, before=base)
    # Some tens of megabytes a cell; the figures and curves are what is asked for.
    shutil.rmtree(training / "checkpoints", ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)


def _base(out: Path, seed: int) -> dict[str, Any] | None:
    """The base model's rates, where an earlier cell has judged it."""
    for path in out.glob(f"cells/*/seed-{seed}/summary.json"):
        return read_as(Cell, path).before
    return None


def _collect(out: Path, seeds: list[int], made_as: dict[str, str]) -> None:
    files = {"table.json": REWARDS, "reference.json": ("steered", *REFERENCE), "noise.json": NOISE}
    for file, names in files.items():
        table = [{"name": name, **row} for name in names if (row := _row(out, made_as[name], seeds))]
        write_text(out / file, json.dumps(table, indent=2) + "\n")
    sweep = [{"alpha": alpha, **row} for alpha in ALPHAS if (row := _row(out, made_as[_swept(alpha)], seeds))]
    write_text(out / "alpha_sweep.json", json.dumps(sweep, indent=2) + "\n")
    if sweep:
        # It needs matplotlib, which training does not.
        from sdr1.report.plots import alpha_sweep

        entries = read_as(list[Swept], out / "alpha_sweep.json")
        write_bytes(out / "alpha_sweep.png", alpha_sweep(entries).png)


def _row(out: Path, cell: str, seeds: Iterable[int]) -> dict[str, Any] | None:
    """Rates after training, one for each of `seeds`, and their `mean`; None for a cell without any."""
    found = {}
    for seed in seeds:
        path = out / "cells" / cell / f"seed-{seed}" / "summary.json"
        if path.is_file():
            found[seed] = read_as(Cell, path).after
    if not found:
        return None
    rates = {
        "unsafe_trained": [after["unsafe_trained"] for after in found.values()],
        "unsafe_untrained": [fmean(after["unsafe_untrained"].values()) for after in found.values()],
        "utility": [after["utility"]["overall"] for after in found.values()],
        "shape_kept": [after["shape_kept"] for after in found.values()],
        "coherent_unsafe": [after["coherent_unsafe"] for after in found.values()],
    }
    return {**rates, "seeds": list(found), "mean": {rate: fmean(rates[rate]) for rate in _RATES}}
