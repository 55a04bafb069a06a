"""Checkpoints of a run: written beside training, whole or not at all, and refused when anything about them is off."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.numpy
from safetensors import SafetensorError

from sdr1.config import Config
from sdr1.errors import TrainingError, UserError
from sdr1.files import file_sha256, sync, write_text
from sdr1.loop import Executor
from sdr1.plain_data import flatten
from sdr1.runtime import raise_if_stopped
from sdr1.types import GroupTask, LearnerState

TENSORS, FACTS, POINTER = "tensors.safetensors", "checkpoint.json", "latest.json"
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
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        try:
            safetensors.numpy.save_file(state.tensors, draft / TENSORS)
        except SafetensorError as error:
            # So it calls a full disk.
            raise OSError(str(error)) from error
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
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts.pop("facts_sha256") != _digest(facts):
            raise UserError(f"checkpoint: {folder}: {FACTS} is not what was written (sha256 differs)")
        if file_sha256(folder / TENSORS) != facts["tensors_sha256"]:
            raise UserError(f"checkpoint: {folder}: {TENSORS} is not what was written (sha256 differs)")
        state = LearnerState(
            iteration=int(facts["iteration"]),
            updates=int(facts["updates"]),
            tensors=safetensors.numpy.load_file(folder / TENSORS),
            variances={label: tuple(values) for label, values in facts["variances"].items()},
        )
        if f"weights/{state.iteration}" not in state.tensors:
            raise UserError(f"checkpoint: {folder}: holds no weights of iteration {state.iteration}")
        return Checkpoint(folder, state, dict(facts["config"]))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise UserError(f"checkpoint: {folder}: cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint: {folder}: {FACTS} was not written by sdr1: {error!r}") from error


def newest(run: Path) -> Checkpoint | None:
    """The newest good checkpoint of a run, None if it has none; a bad one is named and passed over.

    Raises:
        UserError: there are checkpoints, and none of them is good.
    """
    problem: UserError | None = None
    for folder in reversed(_complete(run)):
        try:
            return load(folder)
        except UserError as error:
            problem = error
            _log.warning("%s; trying the one before", error)
    if problem is not None:
        raise UserError(f"{problem}; no earlier one is good: choose another run, or start it anew")
    return None


def _complete(run: Path) -> list[Path]:
    """Checkpoints up to the one that the pointer names, oldest first; without a readable pointer all there are."""
    folders = sorted(path for path in folder_of(run).glob("[0-9]*") if path.is_dir())
    try:
        latest = json.loads((folder_of(run) / POINTER).read_text(encoding="utf-8"))["latest"]
        return [folder for folder in folders if folder.name <= latest]
    except (OSError, ValueError, KeyError, TypeError):
        return folders


class Difference(NamedTuple):
    """A field that differs between a config and the one a checkpoint was made with."""

    field: str
    then: Any
    now: Any
    matters: bool
    """Whether it changes the result."""

    def __str__(self) -> str:
        effect = "changes the result from here" if self.matters else "does not change the result"
        return f"resume: {self.field}: {self.then!r} -> {self.now!r} ({effect})"


def differences(config: Config, checkpoint: Checkpoint) -> list[Difference]:
    """What differs between a config and the one a checkpoint was made with.

    Raises:
        UserError: a difference makes the checkpoint's weights meaningless.
    """
    now, then = flatten(config.model_dump(mode="json")), flatten(checkpoint.config)
    found = []
    for field in sorted(now.keys() | then.keys()):
        old, new = then.get(field), now.get(field)
        if old == new or field.startswith(_UNIMPORTANT):
            continue
        if field.startswith(_IDENTITY):
            raise UserError(
                f"{field}: {new!r}: the checkpoint {checkpoint.folder} was made with {old!r} and its weights do not "
                "fit; set it back, or start a new run"
            )
        found.append(Difference(field, old, new, not field.startswith(_HARMLESS)))
    return found


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
        folders = _complete(self._config.run.directory)
        kept = set(folders[-self._config.checkpoint.keep :])
        if self._config.checkpoint.best is not None:
            name = self._config.checkpoint.best
            sign = -1 if name.startswith("-") else 1
            name = name.lstrip("-")
            evaluated = _evaluations(self._config.run.directory)
            waiting = self._config.evaluation.every if name.startswith("eval/") else 0
            values = {}
            for folder in folders:
                facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
                metrics = {**facts["metrics"], **evaluated.get(facts["iteration"], {})}
                if name in metrics:
                    values[folder] = sign * metrics[name]
                elif (
                    waiting
                    and facts["iteration"] > max(evaluated, default=0)
                    and facts["iteration"] % waiting == 0
                ):
                    # Its evaluation may still be under way.
                    kept.add(folder)
            if values:
                kept.add(max(values, key=lambda folder: values[folder]))
            elif folders and not waiting and not self._warned:
                self._warned = True
                _log.warning(
                    "checkpoint.best: %s: no such metric so far, no best checkpoint is kept; there are %s",
                    name, ", ".join(sorted(facts["metrics"])),
                )  # fmt: skip
        for folder in set(folders) - kept:
            shutil.rmtree(folder, ignore_errors=True)


def _evaluations(run: Path) -> dict[int, dict[str, float]]:
    """The journal's evaluations by the iteration of their weights."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if '"eval/iteration"' in line and line.endswith("}")]
    return {int(row["eval/iteration"]): row for row in rows}


def _tracker_run(run: Path) -> str | None:
    path = run / "run.json"
    return json.loads(path.read_text(encoding="utf-8")).get("mlflow_run_id") if path.exists() else None


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
