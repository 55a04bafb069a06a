"""Checkpoints on disk: written whole or not at all, and refused when anything about them is off."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict, ValidationError
from safetensors import SafetensorError

from sdr1.base.errors import UserError
from sdr1.base.files import disk_errors, file_sha256, partial, sync, write_text
from sdr1.base.plain_data import parse_json, peek, read_bytes, read_json
from sdr1.base.records import Label, LearnerState, Moments, Weights
from sdr1.config.training import Config
from sdr1.models import flat

TENSORS, FACTS, POINTER = "tensors.safetensors", "checkpoint.json", "latest.json"
TRACKER = "run.json"
"""In a run's folder: which MLflow run is its own."""
_EMA = "ema"
_WEIGHTS = "weights/"
"""What comes before a version in the name of its tensor."""
_PACKAGES = ("sdr1", "torch", "diffusers", "ray", "peft")
_log = logging.getLogger("sdr1")


@dataclass(frozen=True)
class Checkpoint:
    """A state as it lies on disk, and what it belongs to."""

    folder: Path
    state: LearnerState
    config: dict[str, Any]
    """The run's config as plain data."""


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def save(run: Path, state: LearnerState, config: Config, metrics: dict[str, float]) -> Path:
    """Write one checkpoint folder, then point to it: only what the pointer has reached counts.

    A crash at any moment leaves the earlier checkpoints as they were.

    Raises:
        OSError: the disk is full or gone.
    """
    folder = folder_of(run) / f"{state.iteration:06d}"
    draft = partial(folder)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with disk_errors(folder):
            safetensors.numpy.save_file(_tensors(state), draft / TENSORS)
        facts = {
            "iteration": state.iteration,
            "updates": state.updates,
            "variances": {str(label): values for label, values in state.variances.items()},
            "tensors_sha256": file_sha256(draft / TENSORS),
            "metrics": metrics,
            "tracker_run": _tracker_run(run),
            "config": config.model_dump(mode="json"),
            "versions": _versions(),
        }
        write_text(draft / FACTS, json.dumps(facts | {"facts_sha256": _digest(facts)}, indent=2) + "\n")
        sync(draft / TENSORS)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    write_text(folder.parent / POINTER, pointer_to(folder.name))
    return folder


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        UserError: it is truncated, tampered with, or no checkpoint of sdr1.
    """
    facts = facts_of(folder)
    try:
        if file_sha256(folder / TENSORS) != facts.tensors_sha256:
            raise UserError(f"checkpoint: {folder}: {TENSORS} is not what was written (sha256 differs)")
        tensors = safetensors.numpy.load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint: {folder}: cannot be read: {error}") from error
    _check_tensors(tensors, facts, folder)
    return Checkpoint(folder, _state(tensors, facts), facts.config)


def _tensors(state: LearnerState) -> dict[str, np.ndarray]:
    """A state's arrays under their names on disk."""
    weights = {f"{_WEIGHTS}{each.version}": each.buffer for each in state.weights}
    average = {_EMA: state.ema.buffer} if state.ema else {}
    return weights | average | (state.moments._asdict() if state.moments else {})


def _state(tensors: dict[str, np.ndarray], facts: CheckpointFacts) -> LearnerState:
    buffers = {
        int(name.removeprefix(_WEIGHTS)): tensors[name] for name in tensors if name.startswith(_WEIGHTS)
    }
    weights = tuple(
        Weights(version, buffers[version], flat.checksum(buffers[version])) for version in sorted(buffers)
    )
    moments = Moments(*(tensors[name] for name in Moments._fields)) if facts.updates else None
    variances: dict[Label | None, tuple[float, ...]] = {
        None if label == "None" else label: values for label, values in facts.variances.items()
    }
    average = tensors.get(_EMA)
    ema = None if average is None else Weights(facts.iteration, average, flat.checksum(average))
    return LearnerState(facts.updates, weights, moments, variances, ema)


class CheckpointFacts(BaseModel):
    """What is read again of `checkpoint.json`."""

    model_config = ConfigDict(strict=True)
    iteration: int = Field(ge=0)
    updates: int = Field(ge=0)
    variances: dict[Literal["safe", "unsafe", "None"], Annotated[tuple[FiniteFloat, ...], Strict(False)]]
    tensors_sha256: str
    metrics: dict[str, float]
    config: dict[str, Any]


def facts_of(folder: Path) -> CheckpointFacts:
    """The checked content of a checkpoint's `checkpoint.json`.

    Raises:
        UserError: it is not there, was changed, or was not written by sdr1.
    """
    found = read_json(folder / FACTS, "checkpoint")
    if not isinstance(found, dict) or "facts_sha256" not in found:
        raise UserError(f"checkpoint: {folder}: {FACTS} was not written by sdr1")
    if found.pop("facts_sha256") != _digest(found):
        raise UserError(f"checkpoint: {folder}: {FACTS} is not what was written (sha256 differs)")
    try:
        return CheckpointFacts.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"checkpoint: {folder}: {FACTS}: {field}: {first['msg']}") from error


def _check_tensors(tensors: dict[str, np.ndarray], facts: CheckpointFacts, folder: Path) -> None:
    versions = {
        name: int(name.removeprefix(_WEIGHTS)) for name in tensors if re.fullmatch(_WEIGHTS + r"\d+", name)
    }
    if max(versions.values(), default=None) != facts.iteration:
        raise UserError(f"checkpoint: {folder}: its weights are not those of iteration {facts.iteration}")
    size = tensors[f"{_WEIGHTS}{facts.iteration}"].nbytes
    for name, tensor in tensors.items():
        of_weights = name in versions or name == _EMA
        kind, bytes_there = (np.uint8, tensor.size) if of_weights else (np.float32, tensor.nbytes)
        if not (of_weights or name in Moments._fields) or tensor.dtype != kind or bytes_there != size:
            raise UserError(
                f"checkpoint: {folder}: {TENSORS}: {name}: {tensor.dtype} of shape {list(tensor.shape)} does not go "
                f"with weights of {size} bytes"
            )
    if facts.updates and not tensors.keys() >= set(Moments._fields):
        raise UserError(
            f"checkpoint: {folder}: {TENSORS}: no {' and '.join(Moments._fields)} after {facts.updates} updates"
        )


def newest(run: Path) -> Checkpoint | None:
    """The newest good checkpoint of a run, None if it has none; a bad one is named and passed over.

    Raises:
        UserError: there are checkpoints, and none of them is good.
    """
    problem: UserError | None = None
    for folder in reversed(complete(run)):
        try:
            return load(folder)
        except UserError as error:
            problem = error
            _log.warning("%s; trying the one before", error)
    if problem is not None:
        raise UserError(f"{problem}; no earlier one is good: choose another run, or start it anew")
    return None


def complete(run: Path) -> list[Path]:
    """Checkpoints up to the one that the pointer names, oldest first; without a readable pointer all there are."""
    folders = {path.name: path for path in folder_of(run).glob("*") if path.is_dir()}
    try:
        pointer = read_bytes(folder_of(run) / POINTER)
    except UserError:
        pointer = b""
    return [folders[name] for name in reached(folders, pointer)]


def reached(names: Iterable[str], pointer: bytes) -> list[str]:
    """Of the names in a folder those of checkpoints up to the one that the content of the pointer names, oldest first;
    with none that can be read, of all."""
    # Not a person's copies of them, such as 000020-best.
    numbers = {int(name): name for name in names if re.fullmatch(r"[0-9]{6,18}", name)}
    try:
        latest = int(parse_json(pointer, POINTER)["latest"])
    except (UserError, ValueError, KeyError, TypeError):
        latest = max(numbers, default=0)
    return [name for number, name in sorted(numbers.items()) if number <= latest]


def pointer_to(name: str) -> str:
    """The content of the pointer to a checkpoint."""
    return json.dumps({"latest": name}) + "\n"


def _tracker_run(run: Path) -> str | None:
    return peek(run / TRACKER, "mlflow_run_id", str) or None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
