"""Checkpoints of a run: written beside training, whole or not at all, and refused when anything about them is off."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import logging
import math
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict, ValidationError
from safetensors import SafetensorError

from sdr1.base.errors import TrainingError, UserError
from sdr1.base.files import disk_errors, file_sha256, partial, sync, write_text
from sdr1.base.plain_data import flatten, peek, read_json
from sdr1.base.process import raise_if_stopped
from sdr1.base.records import MOMENTS, GroupTask, LearnerState
from sdr1.config.training import Config
from sdr1.training import metrics
from sdr1.training.loop import Executor
from sdr1.training.observers import journal

TENSORS, FACTS, POINTER = "tensors.safetensors", "checkpoint.json", "latest.json"
TRACKER = "run.json"
"""In a run's folder: which MLflow run is its own."""
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
        with disk_errors():
            safetensors.numpy.save_file(state.tensors, draft / TENSORS)
        facts = {
            "iteration": state.iteration,
            "updates": state.updates,
            "variances": state.variances,
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
    write_text(folder.parent / POINTER, json.dumps({"latest": folder.name}) + "\n")
    return folder


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        UserError: it is truncated, tampered with, or no checkpoint of sdr1.
    """
    facts = _facts(folder)
    try:
        if file_sha256(folder / TENSORS) != facts.tensors_sha256:
            raise UserError(f"checkpoint: {folder}: {TENSORS} is not what was written (sha256 differs)")
        tensors = safetensors.numpy.load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint: {folder}: cannot be read: {error}") from error
    _check_tensors(tensors, facts, folder)
    state = LearnerState(facts.iteration, facts.updates, tensors, facts.variances)
    return Checkpoint(folder, state, facts.config)


class _Facts(BaseModel):
    """What is read again of `checkpoint.json`."""

    model_config = ConfigDict(strict=True)
    iteration: int = Field(ge=0)
    updates: int = Field(ge=0)
    variances: dict[str, Annotated[tuple[FiniteFloat, ...], Strict(False)]]
    tensors_sha256: str
    metrics: dict[str, float]
    config: dict[str, Any]


def _facts(folder: Path) -> _Facts:
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
        return _Facts.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"checkpoint: {folder}: {FACTS}: {field}: {first['msg']}") from error


def _check_tensors(tensors: dict[str, np.ndarray], facts: _Facts, folder: Path) -> None:
    name = f"weights/{facts.iteration}"
    if name not in tensors:
        raise UserError(f"checkpoint: {folder}: holds no weights of iteration {facts.iteration}")
    size = tensors[name].nbytes
    for each, tensor in tensors.items():
        weights = re.fullmatch(r"weights/\d+", each)
        kind, bytes_there = (np.uint8, tensor.size) if weights else (np.float32, tensor.nbytes)
        if not (weights or each in MOMENTS) or tensor.dtype != kind or bytes_there != size:
            raise UserError(
                f"checkpoint: {folder}: {TENSORS}: {each}: {tensor.dtype} of shape {list(tensor.shape)} does not go "
                f"with weights of {size} bytes"
            )
    if facts.updates and not tensors.keys() >= set(MOMENTS):
        raise UserError(
            f"checkpoint: {folder}: {TENSORS}: no {' and '.join(MOMENTS)} after {facts.updates} updates"
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
    # Not a person's copies of them, such as 000020-best.
    folders = {
        int(path.name): path
        for path in folder_of(run).glob("*")
        if re.fullmatch(r"[0-9]{6,18}", path.name) and path.is_dir()
    }
    try:
        latest = int(read_json(folder_of(run) / POINTER)["latest"])
    except (UserError, ValueError, KeyError, TypeError):
        latest = max(folders, default=0)
    return [folder for number, folder in sorted(folders.items()) if number <= latest]


class Difference(NamedTuple):
    """A field that differs between a config and the one a checkpoint was made with."""

    field: str
    then: Any
    now: Any

    @property
    def fits(self) -> bool:
        """Whether the weights of the one mean anything under the other."""
        return not self.field.startswith(_IDENTITY)

    @property
    def matters(self) -> bool:
        """Whether it changes the result."""
        return not self.field.startswith(_HARMLESS)

    def __str__(self) -> str:
        effect = "changes the result from here" if self.matters else "does not change the result"
        return f"resume: {self.field}: {self.then!r} -> {self.now!r} ({effect})"


def differences(config: Config, made: dict[str, Any]) -> list[Difference]:
    """What differs between a config and that, as plain data, which a run was made with.

    A field that did not exist then had what is its default now.
    """
    now, then = flatten(config.model_dump(mode="json")), flatten(made)
    defaults = flatten(Config().model_dump(mode="json"))
    then = {field: defaults[field] for field in now.keys() & defaults.keys()} | then
    return [
        Difference(field, then.get(field), now.get(field))
        for field in sorted(now.keys() | then.keys())
        if then.get(field) != now.get(field) and not field.startswith(_UNIMPORTANT)
    ]


_IDENTITY = (
    "policy.model",
    "policy.revision",
    "policy.variant",
    "policy.unet",
    "policy.trainable",
    "policy.lora",
    "policy.channels_last",
)
_UNIMPORTANT = ("run.directory", "run.resume")
_HARMLESS = (
    "rollout.workers",
    "reward.workers",
    "policy.gradient_checkpointing",
    "reward.monitor",
    "checkpoint.",
    "evaluation.",
    "tracking.",
    "run.task_timeout",
    "run.start_timeout",
    "run.placement",
)


def check(config: Config) -> None:
    """Raise UserError when `checkpoint.best` names a metric that no iteration of this run has.

    Those of evaluations are known when the first of them is there.
    """
    best = config.checkpoint.best
    known = metrics.names(config)
    if best is None or best.removeprefix("-") in known or best.removeprefix("-").startswith("eval/"):
        return
    near = difflib.get_close_matches(best.removeprefix("-"), known, n=3) or sorted(known)
    raise UserError(f"checkpoint.best: {best!r}: this run has no such metric; use e.g. {', '.join(near)}")


class Checkpointer:
    """Observer that takes a snapshot after an iteration and lets a thread write it; training does not wait."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pending: tuple[Callable[[], LearnerState], dict[str, float]] | None = None
        self._error: OSError | None = None
        self._busy = self._closing = self._warned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def __enter__(self) -> Checkpointer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Long enough for a big set on a slow disk; after SIGTERM the platform's own limit is shorter.
        self._thread.join(timeout=600)

    def accumulated(self, task: GroupTask) -> None:
        raise_if_stopped()

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        self._raise_problem()
        done = iteration + 1
        if done % self._config.checkpoint.every and done != self._config.iterations:
            return
        fetch = executor.snapshot(done)
        with self._changed:
            # The newest wins: on a slow disk checkpoints get rarer, training does not get slower.
            self._pending = fetch, metrics
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything taken is written; False when time runs out."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._pending is None and not self._busy, timeout)
        self._raise_problem()
        return done

    def _raise_problem(self) -> None:
        if self._error is not None:
            raise TrainingError(
                f"run.directory: {self._config.run.directory}: a checkpoint could not be written: {self._error}; the "
                "earlier ones are intact: make room and go on with --resume"
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                if self._pending is None:
                    return
                (fetch, metrics), self._pending, self._busy = self._pending, None, True
            try:
                save(self._config.run.directory, fetch(), self._config, metrics)
                self._prune()
            except OSError as error:
                self._error = error
            except Exception as error:
                # The snapshot died with its learner; the next one will do.
                _log.warning("a checkpoint was skipped: %s", str(error).split("\n")[0])
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _prune(self) -> None:
        # A damaged one is no checkpoint: it takes no other's place, and is left to whoever wants to look at it.
        facts = {}
        for folder in complete(self._config.run.directory):
            with suppress(UserError):
                facts[folder] = _facts(folder)
        folders = list(facts)
        kept = set(folders[-self._config.checkpoint.keep :])
        if self._config.checkpoint.best is not None:
            name = self._config.checkpoint.best
            sign = -1 if name.startswith("-") else 1
            name = name.removeprefix("-")
            evaluated = _evaluations(self._config.run.directory)
            waiting = self._config.evaluation.every if name.startswith("eval/") else 0
            values = {}
            for folder in folders:
                iteration = facts[folder].iteration
                value = {**facts[folder].metrics, **evaluated.get(iteration, {})}.get(name, math.nan)
                if math.isfinite(value):
                    values[folder] = sign * value
                elif waiting and iteration > max(evaluated, default=0) and iteration % waiting == 0:
                    # Its evaluation may still be under way.
                    kept.add(folder)
            if values:
                kept.add(max(values, key=lambda folder: values[folder]))
            elif folders and evaluated and not self._warned:
                self._warned = True
                _log.warning(
                    "checkpoint.best: %s: no such metric so far, no best checkpoint is kept; there are %s",
                    name, ", ".join(sorted(key for key in evaluated[max(evaluated)] if key.startswith("eval/"))),
                )  # fmt: skip
        for folder in set(folders) - kept:
            shutil.rmtree(folder, ignore_errors=True)


def _evaluations(run: Path) -> dict[int, dict[str, float]]:
    """The journal's evaluations by the iteration of their weights."""
    path = run / journal.NAME
    rows = journal.read(path)[0] if path.exists() else []
    return {int(row["eval/iteration"]): row for row in rows if "eval/iteration" in row}


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
