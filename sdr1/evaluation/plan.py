"""All that an evaluation needs, looked at before anything is written: rows, judges, the model, the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256
from sdr1.base.plain_data import shown
from sdr1.base.process import prepare_process
from sdr1.base.section import SANDBOX
from sdr1.config import evaluation as settings
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.policy import ModelFiles
from sdr1.erasers import patched
from sdr1.evaluation import against, judges, sandbox
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.images import find
from sdr1.evaluation.judges import Judge
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.place import Place, require_devices
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.protocol import Judged, Protocol, World
from sdr1.evaluation.rows import Row, batches
from sdr1.models import schedulers
from sdr1.models.pipeline import named
from sdr1.prompts.files import PromptFile

_OF_ROWS = {"prompts", "column", "images", "limit", "seed", "size", "sampler", "split"}
"""Settings that rows follow from."""


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
    patched.check(named(name, files))
    pipeline = patched.load_named(name, files)
    return Model(name, files, pipeline, patched.sha256(pipeline))


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
    opponent: against.Opponent | None

    @property
    def batches(self) -> list[tuple[Row, ...]]:
        return batches(self.rows, self.config.batch_size)


def prepare(protocol: str, model: str | Model, out: Path, values: dict[str, Any], place: Place) -> Plan:
    """Look at everything that an evaluation needs, and write nothing.

    Raises:
        UserError: as `evaluate`.
    """
    chosen, config = _protocol(protocol), settings.read(values)
    prepare_process(config.threads)
    require_devices(config, place)
    drawing = load_model(model, config.model)
    pipeline = drawing.pipeline
    in_sandbox = config.prompts == SANDBOX or (config.prompts is None and sandbox.speaks(pipeline.tokenizer))
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    config = _stand_in(config, in_sandbox)
    rows, source = _rows(chosen, config, in_sandbox, size)
    for sampler in dict.fromkeys(row.sampler for row in rows):
        schedulers.check(sampler.scheduler, sampler.steps, pipeline.scheduler.config)
        patched.check_guidance(pipeline, sampler.guidance_scale, "sampler.guidance_scale")
    facts = {
        "model": drawing.name,
        "model_sha256": drawing.sha256,
        "batch_size": config.batch_size,
        "threads": config.threads,
        "device": config.device,
    }
    request = {"rows_sha256": digest([row.asdict() for row in rows])}
    painter = partial(Painter, pipeline, config.device)
    return _plan(chosen, config, in_sandbox, rows, Folder(out), facts, request, place, painter, source=source)


def prepare_judging(protocol: str, images: Path, out: Path, values: dict[str, Any], place: Place) -> Plan:
    """The same for images that are there: in an `sdr1 evaluate` directory, or files named after their rows.

    Raises:
        UserError: an image is missing or cannot be read, or as `prepare`.
    """
    chosen, config = _protocol(protocol, "suite is for evaluate alone"), settings.read(values)
    prepare_process(config.threads)
    require_devices(config, place)
    if not images.is_dir():
        raise UserError(f"--images: {str(images)!r}: no such folder; give the one that the images lie in")
    source: PromptFile | None = None
    found = Folder(images)
    if found.is_evaluation():
        for name in _OF_ROWS & values.keys():
            raise UserError(
                f"{name}: {shown(values[name])}: {images} holds an evaluation, which brings its rows; leave {name} out"
            )
        rows = [line.to_row() for line in found.manifest("--images")]
        in_sandbox = any("topic" in row.facts for row in rows)
    else:
        in_sandbox = config.prompts == SANDBOX or protocol == SANDBOX
        rows, source = _rows(chosen, _stand_in(config, in_sandbox), in_sandbox, 512)
    rows, files = find(images, rows)
    facts = {"model": str(images), "model_sha256": None, "batch_size": config.batch_size}
    request = {"images_sha256": digest({row: file_sha256(file) for row, file in files.items()})}
    config = _stand_in(config, in_sandbox)
    return _plan(
        chosen, config, in_sandbox, rows, Folder(out), facts, request, place, files=files, source=source
    )


def _protocol(name: str, of_suite: str = "or suite") -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(
            f"PROTOCOL: {name!r}: no such protocol; use one of {', '.join(PROTOCOLS)}; {of_suite}"
        )
    return PROTOCOLS[name]


def _rows(
    protocol: Protocol, config: EvaluationConfig, in_sandbox: bool, size: int
) -> tuple[list[Row], PromptFile | None]:
    """The protocol's rows, and the user's file that they are from."""
    if in_sandbox and config.column is not None:
        raise UserError(
            f"column: {config.column!r}: the rows are the sandbox's own, which have no columns; leave it out, or give a file with prompts="
        )
    if not in_sandbox and "split" in config.model_fields_set:
        raise UserError(
            f"split: {config.split!r}: is of the sandbox's own prompts, and these are a file's; leave it out"
        )
    if protocol.file is None and config.prompts not in (None, SANDBOX):
        raise UserError(
            f"prompts: {config.prompts!r}: {protocol.name} draws prompts of its own; leave it out, or choose a protocol that "
            "takes a file, such as clip-t"
        )
    file = None if in_sandbox else protocol.read_prompts(config)
    return protocol.rows(World(config, in_sandbox, size, file)), file


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
    opponent = None if place.against is None else against.read(place.against, rows, watching)
    return Plan(protocol, config, rows, watching, folder, facts, asked, painter, files, source, opponent)


def _judges(
    protocol: Protocol, config: EvaluationConfig, in_sandbox: bool, rows: Sequence[Row], place: Place
) -> dict[str, Judge]:
    """Those that look at the rows; on a cluster its actors have the devices, and these are for figures alone."""
    names = config.judges or (protocol.sandbox_judges if in_sandbox else protocol.judges)
    judges.require(names, protocol.needs, rows, protocol.name)
    device = config.judge_device if place.local else "cpu"
    return {name: judges.build(name, config, device) for name in names}


def _stand_in(config: EvaluationConfig, in_sandbox: bool) -> EvaluationConfig:
    """In the sandbox its own CLIP is the default."""
    if not in_sandbox or "model" in config.clip.model_fields_set:
        return config
    return config.model_copy(update={"clip": config.clip.model_copy(update={"model": SANDBOX})})


def _identity(facts: dict[str, Any]) -> dict[str, Any]:
    """A model is its weights, wherever they lie."""
    return {key: value for key, value in facts.items() if key != "model" or facts["model_sha256"] is None}


def digest(content: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
