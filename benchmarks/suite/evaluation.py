"""Seconds of drawing in an evaluation over those of the bare pipeline at the same batch size: alone, and on Ray."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.common import report, seconds
from sdr1.base.process import prepare_process
from sdr1.config.evaluation import read
from sdr1.distributed.cluster import joined
from sdr1.evaluation import on_ray as crew
from sdr1.evaluation.crew import Drawn, Job
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.rows import Row, batches
from sdr1.evaluation.run import Place, evaluate
from sdr1.evaluation.sandbox_rows import TASKS, rows_of
from sdr1.models.pipeline import load_pipeline

IMAGES, BATCH, PAIRS = 24, 16, 5
SETTINGS = {"images": IMAGES, "batch_size": BATCH}


def main() -> None:
    prepare_process(1)
    drawn = [tuple(batch) for batch in batches(rows_of(TASKS, IMAGES, 0), BATCH)]
    pipeline = load_pipeline("sandbox")
    bare(pipeline, drawn[:1])
    local, ray, overlaps = [], [], []
    with tempfile.TemporaryDirectory() as folder, joined(None, 2):
        for number in range(PAIRS):
            out = Path(folder) / f"local-{number}"
            whole = seconds(lambda out=out: geneval(out))
            # What an evaluation costs before its first image: the same with all of them there.
            start = seconds(lambda out=out: geneval(out))
            local.append((whole - start, seconds(lambda: bare(pipeline, drawn))))
        for number in range(PAIRS):
            took, overlap = on_ray(drawn, Folder(Path(folder) / f"ray-{number}"))
            # From the first batch's end to the last one's.
            ray.append((took, seconds(lambda: bare(pipeline, drawn[1:]))))
            overlaps.append(overlap)
    report(
        "evaluation",
        "an evaluation's seconds in one process, its start taken off, over the bare pipeline's",
        local,
    )
    report("evaluation_ray", "seconds of drawing on Ray while the judge looks, over the bare pipeline's", ray,
           judged_while_drawing=overlaps)  # fmt: skip


def bare(pipeline: Any, drawn: list[tuple[Row, ...]]) -> None:
    for batch in drawn:
        sampler = batch[0].sampler
        pipeline(
            [row.prompt for row in batch],
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            generator=[torch.Generator().manual_seed(row.seed) for row in batch],
            output_type="np",
        )


def geneval(out: Path) -> None:
    evaluate("geneval", "sandbox", out, SETTINGS, Place(local=True))


def on_ray(drawn: list[tuple[Row, ...]], folder: Folder) -> tuple[float, float]:
    """Seconds between the first and the last batch drawn, and the share of batches judged until then."""
    jobs = [Job(n, batch, None, ("oracle",)) for n, batch in enumerate(drawn)]
    times, judged = [], 0
    for event in crew.work(jobs, "sandbox", ["oracle"], read(SETTINGS)):
        if isinstance(event, Drawn):
            times.append(perf_counter())
            folder.keep_images(event.job.rows, event.pngs)
        else:
            folder.keep_part(event.judge, event.job.index, event.records)
            judged += len(times) < len(jobs)
    return times[-1] - times[0], judged / len(jobs)


if __name__ == "__main__":
    main()
