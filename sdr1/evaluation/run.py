"""`sdr1 evaluate` and `sdr1 judge`: draw what is missing, judge what is unjudged, write the figures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256
from sdr1.base.plain_data import read_as
from sdr1.base.process import prepare_process, require_device
from sdr1.base.section import SANDBOX
from sdr1.config import evaluation as settings
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.policy import ModelFiles
from sdr1.config.workers import bounds
from sdr1.evaluation import crew, judges, sandbox
from sdr1.evaluation.folder import RESULT, Folder, Records
from sdr1.evaluation.images import check, find
from sdr1.evaluation.judges import Judge
from sdr1.evaluation.painter import Painter, model_sha256
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.protocol import Judged, Protocol, World
from sdr1.evaluation.result import Result
from sdr1.evaluation.rows import Row, batches
from sdr1.evaluation.statistics import paired
from sdr1.models import pipeline_files, schedulers
from sdr1.models.pipeline import load_pipeline, named
from sdr1.prompts.files import PromptFile

Pictures = dict[tuple, list[Path]]
"""Files of the batches that one model has drawn, by all that their bytes follow from."""


@dataclass(frozen=True)
class Place:
    """Where the work is done."""

    local: bool = False
    ray_address: str | None = None
    against: Path | None = None
    """Another model's evaluation of the same rows, for paired tests."""


def evaluate(
    protocol: str,
    model: str | Model,
    out: Path,
    values: dict[str, Any],
    place: Place = Place(),
    pictures: Pictures | None = None,
) -> dict[str, Any]:
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


def prepare(
    protocol: str, model: str | Model, out: Path, values: dict[str, Any], place: Place = Place()
) -> Plan:
    """Look at everything that an evaluation needs, and write nothing.

    Raises:
        UserError: as `evaluate`.
    """
    chosen, config = _protocol(protocol), settings.read(values)
    prepare_process(config.threads)
    _require_devices(config, place)
    drawing = load_model(model, config.model)
    pipeline = drawing.pipeline
    in_sandbox = config.prompts == SANDBOX or (config.prompts is None and sandbox.speaks(pipeline.tokenizer))
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    config = _stand_in(config, in_sandbox)
    rows, source = _rows(chosen, config, in_sandbox, size)
    for sampler in dict.fromkeys(row.sampler for row in rows):
        schedulers.check(sampler.scheduler, sampler.steps, pipeline.scheduler.config)
    facts = {
        "model": drawing.name,
        "model_sha256": drawing.sha256,
        "batch_size": config.batch_size,
        "threads": config.threads,
        "device": config.device,
    }
    request = {"rows_sha256": _digest([row.asdict() for row in rows])}
    painter = partial(Painter, pipeline, config.device)
    return _plan(chosen, config, in_sandbox, rows, Folder(out), facts, request, place, painter, source=source)


def judge(
    protocol: str, images: Path, out: Path, values: dict[str, Any], place: Place = Place()
) -> dict[str, Any]:
    """Judge images that were made elsewhere: of an `sdr1 evaluate` directory, or files named after their rows.

    A row's file is `<row id>.png` (or .webp, .jpg) anywhere under the folder: I2P's case number, GenEval's
    `00000/samples/00000`, the number of the line in a list of prompts as `00012`.

    Raises:
        UserError: an image is missing or cannot be read, or as `evaluate`; nothing was written.
    """
    chosen, config = _protocol(protocol), settings.read(values)
    prepare_process(config.threads)
    _require_devices(config, place)
    if not images.is_dir():
        raise UserError(f"--images: {str(images)!r}: no such folder")
    source: PromptFile | None = None
    found = Folder(images)
    if found.is_evaluation():
        rows = [line.to_row() for line in found.manifest("--images")]
        in_sandbox = any("topic" in row.facts for row in rows)
    else:
        in_sandbox = config.prompts == SANDBOX or protocol == SANDBOX
        rows, source = _rows(chosen, _stand_in(config, in_sandbox), in_sandbox, 512)
    rows, files = find(images, rows)
    facts = {"model": str(images), "model_sha256": None, "batch_size": config.batch_size}
    request = {"images_sha256": _digest({row: file_sha256(file) for row, file in files.items()})}
    config = _stand_in(config, in_sandbox)
    plan = _plan(
        chosen, config, in_sandbox, rows, Folder(out), facts, request, place, files=files, source=source
    )
    plan.folder.open(plan.request)
    return _run(plan, place)


def _rows(
    protocol: Protocol, config: EvaluationConfig, in_sandbox: bool, size: int
) -> tuple[list[Row], PromptFile | None]:
    """The protocol's rows, and the user's file that they are from."""
    if in_sandbox and config.column is not None:
        raise UserError(
            f"column: {config.column!r}: the rows are the sandbox's own, which have no columns; leave it out, or give a file with prompts="
        )
    file = None if in_sandbox else protocol.read_prompts(config)
    return protocol.rows(World(config, in_sandbox, size, file)), file


@dataclass(frozen=True)
class Model:
    """A pipeline that is judged; `name` and `files` say where it was found."""

    name: str
    files: ModelFiles
    pipeline: Any
    sha256: str


def load_model(given: str | Model, files: ModelFiles) -> Model:
    """That model, read unless it is at hand."""
    if isinstance(given, Model) and given.files == files:
        return given
    name = given.name if isinstance(given, Model) else given
    pipeline_files.check(named(name, files))
    pipeline = load_pipeline(name, files)
    return Model(name, files, pipeline, model_sha256(pipeline))


@dataclass(frozen=True)
class Plan:
    """An evaluation whose parts have all been looked at."""

    protocol: Protocol
    config: EvaluationConfig
    rows: list[Row]
    judges: dict[str, Judge]
    folder: Folder
    facts: dict[str, Any]
    """What the result's provenance says of the model and of how it draws."""
    request: dict[str, Any]
    painter: Callable[[], Painter] | None
    """None where the images are in `files`."""
    files: dict[str, Path] | None
    source: PromptFile | None
    """The user's file that the rows are from."""
    opponent: Opponent | None

    @property
    def batches(self) -> list[tuple[Row, ...]]:
        return batches(self.rows, self.config.batch_size)


@dataclass(frozen=True)
class Opponent:
    """Another model's evaluation of the same rows by the same judges."""

    model: str
    rows: list[Row]
    records: dict[str, Records]


def _plan(
    protocol: Protocol,
    config: EvaluationConfig,
    in_sandbox: bool,
    rows: list[Row],
    folder: Folder,
    facts: dict[str, Any],
    request: dict[str, Any],
    place: Place,
    painter: Callable[[], Painter] | None = None,
    files: dict[str, Path] | None = None,
    source: PromptFile | None = None,
) -> Plan:
    """What drawing and judging have in common: the judges, the folder, the opponent."""
    lacking = [name for name in protocol.facts if any(name not in row.facts for row in rows)]
    if not rows or lacking:
        raise UserError(
            f"--images: {facts['model']}: {len(rows)} rows without {', '.join(lacking) or 'any image'}, which "
            f"{protocol.name} judges by: the images were drawn for another protocol"
        )
    watching = _judges(protocol, config, in_sandbox, rows, place)
    asked = {"protocol": protocol.name, **request, **_identity(facts)}
    folder.check(asked)
    protocol.ready(Judged(config, rows, {}, watching, folder))
    opponent = None if place.against is None else _opponent(place.against, rows, watching)
    return Plan(protocol, config, rows, watching, folder, facts, asked, painter, files, source, opponent)


def _opponent(path: Path, rows: Sequence[Row], watching: dict[str, Judge]) -> Opponent:
    """The evaluation that `--against` names.

    Raises:
        UserError: it is not finished, or differs in more than the model.
    """
    other = Folder(path)
    result = read_as(Result, path / RESULT, "--against")
    theirs = [line.to_row() for line in other.manifest("--against")]
    if [_drawn(row) for row in theirs] != [_drawn(row) for row in rows]:
        raise UserError(
            f"--against: {path}: was made of other prompts, seeds or samplers; only the model may differ"
        )
    known = {judge.get("judge"): judge for judge in _dicts(result.provenance.get("judges"))}
    for name, judge in watching.items():
        mine, its = json.loads(json.dumps(judge.provenance)), known.get(name, {})
        differing = [key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key)]
        if differing:
            key = min(differing)
            raise UserError(
                f"--against: {path}: judges: {name}: {key} {its.get(key)!r} there and {mine.get(key)!r} here; judge both "
                "with the same settings"
            )
    records = {name: other.records(name, theirs, "--against") for name in watching}
    return Opponent(result.model, theirs, records)


def _drawn(row: Row) -> tuple:
    return row.id, row.prompt, row.seed, row.sampler


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _run(plan: Plan, place: Place) -> dict[str, Any]:
    """Draw what is missing, or take it from the plan's files; judge, and write the result."""
    folder, watching, source = plan.folder, plan.judges, plan.source
    told: dict[str, Any] = {}
    if source is not None:
        print(source.describe(), flush=True)
        told["prompts"] = {"file": source.path, "column": source.column, "skipped": len(source.skipped)}
    # A judge with another threshold or other weights starts anew.
    marks = {name: f"{name}-{_digest(each.provenance)[:12]}" for name, each in watching.items()}
    known = folder.marks()
    unjudged = [name for name in watching if known.get(name) != marks[name] or not folder.has_records(name)]
    records = {name: folder.records(name, plan.rows) for name in watching if name not in unjudged}
    grouped = plan.batches
    jobs = [
        job
        for index, batch in enumerate(grouped)
        if (job := _job(index, batch, unjudged, marks, plan)).judges or job.drawn is None
    ]
    done = 0
    with (
        _crew(jobs, plan.painter, watching, plan.config, place, plan.facts["model"]) as events,
        _progress(plan.rows, jobs) as advance,
    ):
        for event in events:
            if isinstance(event, crew.Drawn):
                folder.keep_images(event.job.rows, event.pngs)
                done = len(event.job.rows)
            else:
                folder.keep_part(marks[event.judge], event.job.index, event.records)
                done = len(event.job.rows) if event.judge == event.job.judges[-1] else 0
            advance(event, done)
    folder.write_manifest(plan.rows, plan.files)
    for name in unjudged:
        folder.finish_judge(name, marks[name], plan.rows, grouped)
    if unjudged:
        folder.write_marks({**known, **marks})
    records |= {name: folder.records(name, plan.rows) for name in unjudged}
    judged = Judged(plan.config, plan.rows, records, watching, folder)
    figures = plan.protocol.figures(judged)
    result = {
        "protocol": plan.protocol.name,
        "model": plan.facts["model"],
        "figures": {figure.name: figure.summary() for figure in figures},
        "provenance": {**plan.facts, **told, **_provenance(plan.rows, watching)},
    }
    if plan.opponent is not None:
        result |= _tests(plan.opponent, plan.protocol, judged, figures)
    folder.write_result(result)
    return result


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
) -> Iterator[Iterator[crew.Drawn | crew.Judged]]:
    if place.local or not jobs:
        yield crew.work(jobs, painter or _no_painter, watching)
        return
    from sdr1.evaluation.on_ray import work

    with cluster(place, config):
        yield work(jobs, model, list(watching), config)


@contextmanager
def cluster(place: Place, config: EvaluationConfig) -> Iterator[None]:
    """The cluster that the work is done on; inside another such context that one's."""
    if place.local:
        yield
        return
    from sdr1.distributed.cluster import joined

    with joined(place.ray_address, config.threads * bounds(config.workers).max):
        yield


def _no_painter() -> Painter:
    raise AssertionError("every image was found before")


@contextmanager
def _progress(rows: Sequence[Row], jobs: Sequence[crew.Job]) -> Iterator[Callable[[Any, int], None]]:
    """Counts images as they are drawn, and as their last judge has seen them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    to_draw = sum(len(job.rows) for job in jobs if job.drawn is None)
    to_judge = sum(len(job.rows) for job in jobs if job.judges)
    print(f"{len(rows)} images: {to_draw} to draw, {to_judge} to judge", flush=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {
            crew.Drawn: bar.add_task("drawn", total=to_draw),
            crew.Judged: bar.add_task("judged", total=to_judge),
        }
        yield lambda event, count: bar.advance(tasks[type(event)], count)


def _tests(opponent: Opponent, protocol: Protocol, judged: Judged, figures: Sequence[Any]) -> dict[str, Any]:
    """`against`, another model's evaluation, and `paired`, the tests of every figure: `difference` is ours minus its."""
    theirs = replace(judged, rows=opponent.rows, records=opponent.records)
    before = {figure.name: figure for figure in protocol.figures(theirs)}
    tests = {
        figure.name: paired(before[figure.name], figure)
        for figure in figures
        if not figure.fixed and len(figure.values) and figure.name in before
    }
    return {"against": opponent.model, "paired": tests}


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"PROTOCOL: {name!r}: no such protocol; use one of {', '.join(PROTOCOLS)}, suite")
    return PROTOCOLS[name]


def _judges(
    protocol: Protocol, config: EvaluationConfig, in_sandbox: bool, rows: Sequence[Row], place: Place
) -> dict[str, Judge]:
    """Those that look at the rows; on a cluster its actors have the devices, and these are for figures alone."""
    names = config.judges or (protocol.sandbox_judges if in_sandbox else protocol.judges)
    judges.require(names, protocol.needs, rows, protocol.name)
    device = config.judge_device if place.local else "cpu"
    return {name: judges.build(name, config, device) for name in names}


def _require_devices(config: EvaluationConfig, place: Place) -> None:
    for field in ("device", "judge_device"):
        device = getattr(config, field)
        if not place.local and device not in ("cpu", "cuda", "cuda:0"):
            raise UserError(f"{field}: {device!r}: every actor has one GPU of its own; use {field}=cuda")
        if place.local or not (place.ray_address or os.environ.get("RAY_ADDRESS")):
            require_device(field, device)


def _stand_in(config: EvaluationConfig, in_sandbox: bool) -> EvaluationConfig:
    """In the sandbox its own CLIP is the default."""
    if not in_sandbox or "model" in config.clip.model_fields_set:
        return config
    return config.model_copy(update={"clip": config.clip.model_copy(update={"model": SANDBOX})})


def _identity(facts: dict[str, Any]) -> dict[str, Any]:
    """A model is its weights, wherever they lie."""
    return {key: value for key, value in facts.items() if key != "model" or facts["model_sha256"] is None}


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
        "seeds": {"first": rows[0].seed, "sha256": _digest([row.seed for row in rows])},
        "judge": ", ".join(found["judge"] for found in each),
        "judge_sha256": all_of([found["sha256"] for found in each]),
        "threshold": all_of([found["threshold"] for found in each]),
        "judges": each,
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
