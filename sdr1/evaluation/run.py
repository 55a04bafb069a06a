"""`sdr1 evaluate` and `sdr1 judge`: draw what is missing, judge what is unjudged, write the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sdr1.base.progress import counted
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation import against, crew
from sdr1.evaluation.images import check
from sdr1.evaluation.judges import Judge
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.place import CLUSTER, Place, cluster
from sdr1.evaluation.plan import Model, Plan, digest, prepare, prepare_judging
from sdr1.evaluation.protocols.protocol import Judged
from sdr1.evaluation.result import Result
from sdr1.evaluation.rows import Row

Pictures = dict[tuple, list[Path]]
"""Files of the batches that one model has drawn, by all that their bytes follow from."""


def evaluate(
    protocol: str,
    model: str | Model,
    out: Path,
    values: dict[str, Any],
    place: Place = CLUSTER,
    pictures: Pictures | None = None,
) -> Result:
    """Draw a protocol's images with a model and judge them; returns what is in `result.json`.

    An evaluation that was killed goes on where it was, to the same bytes. Batches in `pictures` are taken from there,
    and those of this evaluation are added.

    Raises:
        UserError: protocol, model, a prompt file or a judge's weights are wrong or missing; nothing was written.
    """
    plan = prepare(protocol, model, out, values, place)
    plan.folder.open(plan.request)
    shared = {} if pictures is None else pictures
    wanted = {_origin(batch, plan.config): batch for batch in plan.batches}
    for origin, batch in wanted.items():
        if origin in shared and not plan.folder.has_images(batch):
            plan.folder.keep_images(batch, [path.read_bytes() for path in shared[origin]])
    result = _run(plan, place)
    shared |= {origin: [plan.folder.image(row) for row in batch] for origin, batch in wanted.items()}
    return result


def judge(protocol: str, images: Path, out: Path, values: dict[str, Any], place: Place = CLUSTER) -> Result:
    """Judge images that were made elsewhere: of an `sdr1 evaluate` directory, or files named after their rows.

    A row's file is `<row id>.png` (or .webp, .jpg) anywhere under the folder: I2P's case number, GenEval's
    `00000/samples/00000`, the number of the line in a list of prompts as `00012`.

    Raises:
        UserError: an image is missing or cannot be read, or as `evaluate`; nothing was written.
    """
    plan = prepare_judging(protocol, images, out, values, place)
    plan.folder.open(plan.request)
    return _run(plan, place)


def _run(plan: Plan, place: Place) -> Result:
    """Have every image drawn and judged, and write the figures."""
    told: dict[str, Any] = {}
    if plan.source is not None:
        print(plan.source.describe(), flush=True)
        source = plan.source
        told["prompts"] = {"file": source.path, "column": source.column, "skipped": len(source.skipped)}
    _work(plan, place)
    records = {name: plan.folder.records(name, plan.rows) for name in plan.judges}
    judged = Judged(plan.config, plan.rows, records, plan.judges, plan.folder)
    estimates = plan.protocol.figures(judged)
    result = Result(
        protocol=plan.protocol.name,
        model=plan.facts["model"],
        figures={estimate.name: estimate.figure() for estimate in estimates},
        provenance={**plan.facts, **told, **_provenance(plan.rows, plan.judges)},
    )
    if plan.opponent is not None:
        tests = against.tests(plan.opponent, plan.protocol, judged, estimates)
        result = result.model_copy(update={"against": plan.opponent.model, "paired": tests})
    plan.folder.write_result(result)
    return result


def _work(plan: Plan, place: Place) -> None:
    """Draw what is missing, or take it from the plan's files; judge what is unjudged, and leave the records."""
    folder, judges, grouped = plan.folder, plan.judges, plan.batches
    # A judge with another threshold or other weights starts anew.
    marks = {name: f"{name}-{digest(each.provenance)[:12]}" for name, each in judges.items()}
    known = folder.marks()
    unjudged = [name for name in judges if known.get(name) != marks[name] or not folder.has_records(name)]
    for name in judges.keys() - set(unjudged):
        # Torn records are found before the work, not after it.
        folder.records(name, plan.rows)
    jobs = [
        job
        for index, batch in enumerate(grouped)
        if (job := _job(index, batch, unjudged, marks, plan)).judges or job.drawn is None
    ]
    to_draw = sum(len(job.rows) for job in jobs if job.drawn is None)
    to_judge = sum(len(job.rows) for job in jobs if job.judges)
    print(f"{len(plan.rows)} images: {to_draw} to draw, {to_judge} to judge", flush=True)
    with (
        _crew(jobs, plan.painter, judges, plan.config, place, plan.facts["model"]) as events,
        counted({"drawn": to_draw, "judged": to_judge}) as advance,
    ):
        for event in events:
            if isinstance(event, crew.Drawn):
                folder.keep_images(event.job.rows, event.pngs)
                advance("drawn", len(event.job.rows))
            else:
                folder.keep_part(marks[event.judge], event.job.index, event.records)
                if event.judge == event.job.judges[-1]:
                    advance("judged", len(event.job.rows))
    folder.write_manifest(plan.rows, plan.files)
    for name in unjudged:
        folder.finish_judge(name, marks[name], plan.rows, grouped)
    if unjudged:
        folder.write_marks({**known, **marks})


def _origin(batch: Sequence[Row], config: EvaluationConfig) -> tuple:
    drawn = ((row.prompt, row.seed, row.sampler, row.width, row.height) for row in batch)
    return config.model, config.device, config.threads, *drawn


def _job(
    index: int, batch: tuple[Row, ...], unjudged: Sequence[str], marks: dict[str, str], plan: Plan
) -> crew.Job:
    folder, files = plan.folder, plan.files
    left = tuple(name for name in unjudged if not folder.part(marks[name], index).is_file())
    drawn: Callable[[], list[bytes]] | None = None
    if files is not None:
        drawn = lambda: [files[row.id].read_bytes() for row in batch]  # noqa: E731
    elif folder.has_images(batch):
        drawn = partial(folder.images, batch)
        if left:
            for row in batch:
                check(folder.image(row), row, "--out")
    return crew.Job(index, batch, drawn, left)


@contextmanager
def _crew(
    jobs: list[crew.Job],
    painter: Callable[[], Painter] | None,
    watching: dict[str, Judge],
    config: EvaluationConfig,
    place: Place,
    model: str,
) -> Iterator[Iterator[crew.Drawn | crew.Judgement]]:
    if place.local or not jobs:
        yield crew.work(jobs, painter or _no_painter, watching)
        return
    from sdr1.evaluation.on_ray import work

    with cluster(place, config):
        yield work(jobs, model, list(watching), config)


def _no_painter() -> Painter:
    raise AssertionError("every image was found before")


def _provenance(rows: Sequence[Row], watching: dict[str, Judge]) -> dict[str, Any]:
    def all_of(values: Sequence[Any]) -> Any:
        found = list(dict.fromkeys(values))
        return found[0] if len(found) == 1 else found

    each = [judge.provenance for judge in watching.values()]
    return {
        "sampler": all_of([row.sampler.scheduler for row in rows]),
        "steps": all_of([row.sampler.steps for row in rows]),
        "guidance": all_of([row.sampler.guidance_scale for row in rows]),
        "eta": all_of([row.sampler.eta for row in rows]),
        "size": all_of([f"{row.width}x{row.height}" for row in rows]),
        "seeds": {"first": rows[0].seed, "sha256": digest([row.seed for row in rows])},
        "judge": ", ".join(found["judge"] for found in each),
        "judge_sha256": all_of([found["sha256"] for found in each]),
        "threshold": all_of([found["threshold"] for found in each]),
        "judges": each,
    }
