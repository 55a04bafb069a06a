"""Small evaluations and runs as `sdr1 evaluate`, `sdr1 train` and `make ablation` leave them, with numbers made up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NASTY = 'a <script>alert("&")</script> $x_1$ 100% \\input{a} #1 {~^}|'
FIGURES: dict[str, tuple[str, ...]] = {
    "i2p": (
        "inappropriate_rate",
        "inappropriate_rate/hate",
        "inappropriate_rate/sexual",
        "nudity/FEET_EXPOSED",
        "nudity/skull",
        "nudity/total",
    ),
    "geneval": ("single_object", "counting", "overall"),
    "clip-t": ("clip_t",),
    "fid": ("fid",),
    "sandbox": (
        "unsafe_trained",
        "unsafe_untrained/flame",
        "unsafe_untrained/blade",
        "unsafe_generic",
        "utility/counting",
        "utility/overall",
        "false_alarm",
        "shape_kept",
    ),
    "schedulers": ("DDIMScheduler/unsafe_rate", "PNDMScheduler/unsafe_rate"),
    "steering": ("alpha=1/leans_safe/negation", "alpha=1/reward/safe"),
    "mma": ("attack_success_rate",),
}


def evaluation(
    folder: Path, protocol: str, model: str, seed: int, prompt: str = "a red circle", against: str = ""
) -> Path:
    """One evaluation of six pictures, the odd ones unsafe, the last one not judged; tested against another model."""
    rng = np.random.default_rng((seed, *protocol.encode()))
    figures = {}
    for name in FIGURES[protocol]:
        value = float(rng.uniform(0.2, 0.8))
        unit = {"clip_t": "cosine", "fid": "distance", "alpha=1/reward/safe": "cosine"}.get(name, "share")
        better = "higher" if re.search("utility|shape_kept|leans_safe|clip_t", name) else "lower"
        figures[name] = {"value": value, "low": value - 0.11, "high": value + 0.13, "n": 6}
        figures[name] |= {"unit": unit, "better": better}
        if name.startswith("nudity/"):
            figures[name] = {"value": int(rng.integers(99)), "low": None, "high": None, "n": 6}
            figures[name] |= {"unit": "images", "better": "lower"}
    result: dict[str, Any] = {
        "protocol": protocol,
        "model": model,
        "figures": figures,
        "provenance": {"judge": "oracle", "sampler": "DDIMScheduler", "steps": 8, "guidance": 2.5},
    }
    if against:
        tests = {
            name: {"difference": -0.05 * n, "low": -0.25, "high": 0.125, "p": 0.0002 * n, "n": 6}
            for n, name in enumerate(FIGURES[protocol], 1)
            if name != "fid"
        }
        result |= {"against": against, "paired": tests}
    write(folder / "result.json", result)
    shots, records = [], []
    for row in range(6):
        file = f"images/{row}.png"
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / file)
        shots.append(line(row, prompt=f"{prompt} {row}", file=file))
        if row < 5:
            records.append({"row": str(row), "file": file, "prompt": prompt, "unsafe": row % 2 == 1})
    lines(folder / "manifest.jsonl", shots)
    lines(folder / "records-oracle.jsonl", records)
    return folder


def line(row: int, **changes: Any) -> dict[str, Any]:
    """A line of a manifest."""
    whole = {
        "row": str(row),
        "prompt": "p",
        "seed": 7,
        "sampler": "DDIM",
        "steps": 8,
        "guidance": 2.5,
        "eta": 0.0,
    }
    return {**whole, "size": [32, 32], "file": f"images/{row}.png", "sha256": "0", "facts": {}, **changes}


def suite(folder: Path, model: str, seed: int, **more: Any) -> Path:
    """Every protocol, in a folder of its own."""
    for protocol in FIGURES:
        evaluation(folder / protocol, protocol, model, seed, **more)
    points = [{"x": n % 5, "y": n / 3, "group": ("safe", NASTY)[n % 2], "text": NASTY} for n in range(20)]
    write(folder / "steering" / "points.json", points)
    write(folder / "suite.json", list(FIGURES))
    return folder


def run(folder: Path, held_out: bool = True) -> Path:
    """Six iterations of 50 UNet evaluations; in the second of every two come held-out figures of the weights before it."""
    rows = []
    for n in range(6):
        rows.append({"iteration": n, "unsafe_rate": 0.9 - n / 8, "reward_safe": 0.4, "reward_unsafe": 0.3})
        rows[-1]["unet_evaluations"] = 50.0 * (n + 1)
        if held_out and n % 2:
            rows[-1] |= {
                "eval/iteration": n,
                "eval/unsafe_trained": 0.9 - n / 7,
                "eval/utility/overall": 0.7 + n / 50,
            }
            rows[-1] |= {"eval/unsafe_untrained/flame": 0.8, "eval/unsafe_untrained/blade": 0.4 - n / 20}
    lines(folder / "metrics.jsonl", rows)
    return folder


def ablation(folder: Path) -> Path:
    three = {
        "unsafe_trained": [0.1, 0.2, 0.3],
        "unsafe_untrained": [0.25, 0.5, 0.75],
        "utility": [0.5, 0.7, 0.9],
    }
    write(folder / "table.json", [{"name": "plain & simple", **three}, {"name": "steering", **three}])
    write(folder / "alpha_sweep.json", [{"alpha": 0.5, **three}, {"alpha": 0, **three}])
    return folder


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
