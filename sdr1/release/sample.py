"""Pictures of prompts x seeds, before and after training, with any of diffusers' schedulers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.files import refuse_foreign, write_bytes, write_figure, write_text
from sdr1.base.progress import counted
from sdr1.config.policy import ModelFiles, PolicyConfig
from sdr1.config.training import validate
from sdr1.erasers import patched
from sdr1.evaluation.painter import Painter, encode
from sdr1.evaluation.rows import Row, Sampler
from sdr1.models import schedulers
from sdr1.models.pipeline import named
from sdr1.training import checkpoint
from sdr1.training.run_folder import unfinished

_MARKER = "sample.json"
"""The file by which sdr1 knows a sample's folder; it holds what was asked for."""


def sample(
    model: str,
    texts: list[str],
    seeds: list[int],
    out: Path,
    sampler: Sampler,
    base: str | None = None,
    files: ModelFiles | None = None,
) -> Path:
    """Write `before/` and `after/PROMPT-SEED.png` and the sheet `grid.png` into `out`; returns the sheet.

    `model` is a run directory, a pipeline folder, a hub id or `sandbox`; `base` is drawn as before, by default what a
    run started from, else nothing is. Each picture is one call of the pipeline with a generator of its seed, so plain
    diffusers makes the same. `files` says how those of `model` are read.

    Raises:
        UserError: no such model or scheduler, or `out` holds something else; nothing was written.
    """
    refuse_foreign(out, _MARKER, "sample", "--out")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"--prompt: {text!r}: is not UTF-8 ({error.reason}); write it anew") from error
    trained, origin = _resolve(model, files)
    before = named(base) if base else origin
    sides = {"before": before, "after": trained} if before else {"after": trained}
    for policy in sides.values():
        patched.check(policy)
    drawn: dict[Path, np.ndarray] = {}
    count = len(texts) * len(seeds)
    with counted(dict.fromkeys(sides, count)) as advance:
        for side, policy in sides.items():
            pipeline = patched.load(policy)
            schedulers.check(
                sampler.scheduler, sampler.steps, pipeline.scheduler.config, ("--scheduler", "--steps")
            )
            patched.check_guidance(pipeline, sampler.guidance_scale, "--guidance-scale")
            size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
            painter = Painter(pipeline)
            print(f"{side}: {count} pictures to draw, {sampler.steps} steps each", flush=True)
            for line, text in enumerate(texts):
                for seed in seeds:
                    row = Row(f"{side}/{line:03d}-{seed}", text, seed, sampler, size, size)
                    (drawn[out / f"{row.id}.png"],) = painter.draw([row])
                    advance(side, 1)
    asked = {"model": model, "base": base, "prompts": texts, "seeds": seeds, "sampler": asdict(sampler)}
    write_text(out / _MARKER, json.dumps(asked, indent=2) + "\n")
    for path, picture in drawn.items():
        write_bytes(path, *encode(picture[None]))
    rows = [
        [drawn[out / side / f"{line:03d}-{seed}.png"] for side in sides for seed in seeds]
        for line in range(len(texts))
    ]
    return _grid(out / "grid.png", rows, texts, list(sides), seeds)


def _resolve(model: str, files: ModelFiles | None = None) -> tuple[PolicyConfig, PolicyConfig | None]:
    """The pipeline of `model`, and of what it was trained from where that is known."""
    run = Path(model)
    if not checkpoint.folder_of(run).is_dir():
        return named(model, files), None
    found = checkpoint.newest(run)
    # The model of a run that was extended, then stopped, is older than its checkpoints.
    if found is None or unfinished(run) or not (run / "model").is_dir():
        raise UserError(f"MODEL: {model!r}: the run has no model yet; use `sdr1 export {model}`")
    return named(str(run / "model"), files), validate(found.config).policy


def _grid(
    path: Path, rows: list[list[np.ndarray]], texts: list[str], sides: list[str], seeds: list[int]
) -> Path:
    from matplotlib.figure import Figure

    columns = len(sides) * len(seeds)
    figure = Figure(figsize=(1.6 * columns + 1, 1.7 * len(rows) + 0.4))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    titles = [f"{side}, {seed}" for side in sides for seed in seeds]
    for line, pictures, text in zip(axes, rows, texts, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        # A dollar in a prompt is no formula.
        line[0].set_ylabel(text[:60].replace("$", r"\$"), fontsize=6, wrap=True)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    figure.tight_layout()
    write_figure(path, figure, dpi=90)
    return path
