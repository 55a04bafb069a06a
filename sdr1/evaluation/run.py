"""`sdr1 evaluate` and `sdr1 judge`: draw what is missing, judge what is unjudged, write the figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sdr1.config import SANDBOX, bounds
from sdr1.errors import UserError
from sdr1.evaluation import config as settings
from sdr1.evaluation import crew, judges
from sdr1.evaluation.config import EvaluationConfig
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.judges import Judge
from sdr1.evaluation.painter import Painter, model_sha256, scheduler_class
from sdr1.evaluation.protocols import PROTOCOLS, Judged, Protocol, World
from sdr1.evaluation.rows import Row, Sampler, batches
from sdr1.evaluation.statistics import paired
from sdr1.files import write_text
from sdr1.policy import load_pipeline
from sdr1.runtime import prepare_process, require_device

_IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")

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
    model: str,
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
    chosen, config = _protocol(protocol), settings.read(values)
    prepare_process(config.threads)
    if place.local:
        require_device("device", config.device)
    pipeline = load_pipeline(model)
    in_sandbox = config.prompts == SANDBOX or (config.prompts is None and _speaks_sandbox(pipeline))
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    config = _stand_in(config, in_sandbox)
    rows = chosen.rows(World(config, in_sandbox, size))
    for name in {row.sampler.scheduler for row in rows}:
        scheduler_class(name)
    watching = _judges(chosen, config, in_sandbox)
    facts = {
        "model": model,
        "model_sha256": model_sha256(pipeline),
        "batch_size": config.batch_size,
        "threads": config.threads,
        "device": config.device,
    }
    folder = Folder(out)
    folder.open(
        {"protocol": protocol, "rows_sha256": _digest([row.asdict() for row in rows]), **_identity(facts)}
    )
    painter = partial(Painter, pipeline, config.device)
    shared = {} if pictures is None else pictures
    wanted = {_origin(batch, config): batch for batch in batches(rows, config.batch_size)}
    for origin, batch in wanted.items():
        if origin in shared and not folder.has_images(batch):
            folder.keep_images(batch, [path.read_bytes() for path in shared[origin]])
    result = _run(chosen, config, rows, watching, folder, facts, place, painter, model)
    shared |= {origin: [folder.image(row) for row in batch] for origin, batch in wanted.items()}
    return result


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
    if not images.is_dir():
        raise UserError(f"--images: {str(images)!r}: no such folder")
    rows = _manifest_rows(images)
    in_sandbox = config.prompts == SANDBOX or protocol == SANDBOX
    if rows is None:
        rows = chosen.rows(World(_stand_in(config, in_sandbox), in_sandbox, 512))
    else:
        in_sandbox = "topic" in rows[0].facts
    config = _stand_in(config, in_sandbox)
    rows, files = _found(images, rows)
    watching = _judges(chosen, config, in_sandbox)
    facts = {"model": str(images), "model_sha256": None, "batch_size": config.batch_size}
    folder = Folder(out)
    if out.resolve() != images.resolve():
        digests = {row: hashlib.sha256(file.read_bytes()).hexdigest() for row, file in files.items()}
        folder.open({"protocol": protocol, "images_sha256": _digest(digests), **_identity(facts)})
    return _run(chosen, config, rows, watching, folder, facts, place, None, str(images), files)


def suite(
    entries: Sequence[dict[str, Any]], model: str, out: Path, values: dict[str, Any], place: Place = Place()
) -> dict[str, Any]:
    """Several protocols, each in a folder of its name, and `suite.json` that lists them.

    What two of them draw alike is drawn once.

    Raises:
        UserError: an entry is no mapping with a `protocol`, or as `evaluate`.
    """
    done: list[dict[str, str]] = []
    pictures: Pictures = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("protocol") not in PROTOCOLS:
            raise UserError(f"suite: {entry!r}: an entry is `protocol: NAME` with settings beside it")
        name = str(entry.get("name", entry["protocol"]))
        if name in (other["name"] for other in done) or Path(name).name != name:
            raise UserError(f"suite: name {name!r}: give every entry a name of its own, without slashes")
        done.append({"name": name, "protocol": entry["protocol"], "directory": name})
    with _cluster(place, settings.read(values)):
        for entry, listed in zip(entries, done, strict=True):
            own = {key: value for key, value in entry.items() if key not in ("protocol", "name")}
            print(f"== {listed['name']}", flush=True)
            against = place.against / listed["name"] if place.against is not None else None
            here = replace(place, against=against)
            evaluate(entry["protocol"], model, out / listed["name"], _merged(values, own), here, pictures)
    result = {"model": model, "evaluations": done}
    write_text(out / "suite.json", json.dumps(result, indent=2) + "\n")
    return result


def default_suite() -> list[dict[str, Any]]:
    """Every protocol once."""
    return [{"protocol": name} for name in PROTOCOLS]


def _run(
    protocol: Protocol,
    config: EvaluationConfig,
    rows: list[Row],
    watching: dict[str, Judge],
    folder: Folder,
    facts: dict[str, Any],
    place: Place,
    painter: Callable[[], Painter] | None,
    model: str,
    files: dict[str, Path] | None = None,
) -> dict[str, Any]:
    grouped = batches(rows, config.batch_size)
    # A judge with another threshold or other weights starts anew.
    marks = {name: f"{name}-{_digest(each.provenance)[:12]}" for name, each in watching.items()}
    known = _judged_by(folder)
    unjudged = [name for name in watching if known.get(name) != marks[name] or not folder.has_records(name)]
    jobs = [
        job
        for index, batch in enumerate(grouped)
        if (job := _job(index, batch, unjudged, marks, folder, files)).judges or job.drawn is None
    ]
    done = 0
    with _crew(jobs, painter, watching, config, place, model) as events, _progress(rows, jobs) as advance:
        for event in events:
            if isinstance(event, crew.Drawn):
                folder.keep_images(event.job.rows, event.pngs)
                done = len(event.job.rows)
            else:
                folder.keep_part(marks[event.judge], event.job.index, event.records)
                done = len(event.job.rows) if event.judge == event.job.judges[-1] else 0
            advance(event, done)
    if files is None or not (folder.path / "manifest.jsonl").is_file():
        folder.write_manifest(rows, files)
    names = _files(folder)
    for name in unjudged:
        folder.finish_judge(name, marks[name], rows, grouped, names)
    if unjudged:
        write_text(
            folder.path / "judges.json", json.dumps({**known, **marks}, indent=2, sort_keys=True) + "\n"
        )
    records = {name: folder.records(name) for name in watching}
    judged = Judged(config, rows, records, watching, folder)
    figures = protocol.figures(judged)
    result = {
        "protocol": protocol.name,
        "model": facts["model"],
        "figures": {figure.name: figure.summary() for figure in figures},
        "provenance": {**facts, **_provenance(rows, watching)},
    }
    if place.against is not None:
        result |= _against(place.against, protocol, judged, figures)
    folder.write_result(result)
    return result


def _origin(batch: Sequence[Row], config: EvaluationConfig) -> tuple:
    drawn = ((row.prompt, row.seed, row.sampler, row.width, row.height) for row in batch)
    return config.device, config.threads, *drawn


def _job(
    index: int,
    batch: tuple[Row, ...],
    unjudged: Sequence[str],
    marks: dict[str, str],
    folder: Folder,
    files: dict[str, Path] | None,
) -> crew.Job:
    drawn: Callable[[], list[bytes]] | None = None
    if files is not None:
        drawn = lambda: [files[row.id].read_bytes() for row in batch]  # noqa: E731
    elif folder.has_images(batch):
        drawn = partial(folder.images, batch)
    left = tuple(name for name in unjudged if not folder.part(marks[name], index).is_file())
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
    from sdr1.distributed.crew import work

    with _cluster(place, config):
        yield work(jobs, model, list(watching), config)


@contextmanager
def _cluster(place: Place, config: EvaluationConfig) -> Iterator[None]:
    """The cluster that the work is done on; a suite starts it once for all its evaluations."""
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


def _against(path: Path, protocol: Protocol, judged: Judged, figures: Sequence[Any]) -> dict[str, Any]:
    """`against`, another model's evaluation, and `paired`, the tests of every figure: `difference` is ours minus its."""
    other, rows = Folder(path), _manifest_rows(path)
    result = other.result()
    missing = [name for name in judged.records if not other.has_records(name)]
    if rows is None or missing or result is None:
        raise UserError(
            f"--against: {str(path)!r}: no finished evaluation with records of {', '.join(missing) or 'its images'}"
        )
    if [(row.prompt, row.seed) for row in rows] != [(row.prompt, row.seed) for row in judged.rows]:
        raise UserError(f"--against: {str(path)!r}: was made of other prompts or seeds")
    theirs = Judged(
        judged.config,
        rows,
        {name: other.records(name) for name in judged.records},
        judged.judges,
        judged.folder,
    )
    before = {figure.name: figure for figure in protocol.figures(theirs)}
    tests = {
        figure.name: paired(before[figure.name], figure)
        for figure in figures
        if not figure.fixed and len(figure.values) and figure.name in before
    }
    return {"against": result["model"], "paired": tests}


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"PROTOCOL: {name!r}: no such protocol; use one of {', '.join(PROTOCOLS)}, suite")
    return PROTOCOLS[name]


def _judges(protocol: Protocol, config: EvaluationConfig, in_sandbox: bool) -> dict[str, Judge]:
    names = config.judges or (protocol.sandbox_judges if in_sandbox else protocol.judges)
    return {name: judges.build(name, config, config.judge_device) for name in names}


def _stand_in(config: EvaluationConfig, in_sandbox: bool) -> EvaluationConfig:
    """In the sandbox its own CLIP is the default."""
    if not in_sandbox or "model" in config.clip.model_fields_set:
        return config
    return config.model_copy(update={"clip": config.clip.model_copy(update={"model": SANDBOX})})


def _speaks_sandbox(pipeline: Any) -> bool:
    from sdr1.sandbox import PIPELINE

    vocabulary = json.loads((PIPELINE / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    return pipeline.tokenizer.get_vocab() == vocabulary


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


def _manifest_rows(folder: Path) -> list[Row] | None:
    """Rows of a manifest that `sdr1 evaluate` wrote; None without one."""
    path = folder / "manifest.jsonl"
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all("facts" in line for line in lines) or not lines:
            return None
        return [
            Row(
                line["row"],
                line["prompt"],
                line["seed"],
                Sampler(line["sampler"], line["steps"], line["guidance"], line["eta"]),
                line["size"][0],
                line["size"][1],
                line["facts"],
            )
            for line in lines
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--images: {path}: not a manifest of sdr1: {error!r}") from error


def _found(folder: Path, rows: Sequence[Row]) -> tuple[list[Row], dict[str, Path]]:
    """The rows with their images' true sizes, and every row's file."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGE_SUFFIXES:
            name = path.relative_to(folder).with_suffix("").as_posix().removeprefix("images/")
            if name in paths:
                raise UserError(f"--images: {path} and {paths[name]} are both row {name}; leave one")
            paths[name] = path
    missing = [row.id for row in rows if row.id not in paths]
    if missing:
        raise UserError(
            f"--images: {str(folder)!r}: {len(missing)} of {len(rows)} rows have no image, the first is "
            f"{missing[0]}.png; name every file after its row"
        )
    sized = []
    for row in rows:
        try:
            with Image.open(paths[row.id]) as image:
                width, height = image.size
        except OSError as error:
            raise UserError(f"--images: {paths[row.id]}: not an image: {error}") from error
        sized.append(Row(row.id, row.prompt, row.seed, row.sampler, width, height, row.facts))
    return sized, {row.id: paths[row.id] for row in rows}


def _judged_by(folder: Folder) -> dict[str, str]:
    path = folder.path / "judges.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _files(folder: Folder) -> dict[str, str]:
    lines = (folder.path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["row"]: line["file"] for line in map(json.loads, lines)}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, `one` before `two`."""
    merged = dict(two)
    for key, value in one.items():
        both = isinstance(value, dict) and isinstance(two.get(key), dict)
        merged[key] = _merged(value, two[key]) if both else value
    return merged
