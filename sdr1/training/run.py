"""One training run from a checked config to a saved model: what `sdr1 train` does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdr1.base.errors import Terminated, UserError
from sdr1.base.extras import require
from sdr1.base.files import disk_errors, full_disk_explained, partial, write_text
from sdr1.base.plain_data import peek
from sdr1.base.process import prepare_process, require_device, stop_requested
from sdr1.base.records import LearnerState, Weights
from sdr1.config.training import Config, RunConfig
from sdr1.models import pipeline_files
from sdr1.models.flat import sha256
from sdr1.models.policy import Policy
from sdr1.models.policy import check as check_policy
from sdr1.prompts import stream as prompts
from sdr1.rewards import scorer
from sdr1.training import loop, run_folder
from sdr1.training.checkpoint import complete
from sdr1.training.loop import Executor
from sdr1.training.mirror import Mirror
from sdr1.training.observers import named
from sdr1.training.observers.checkpointer import Checkpointer
from sdr1.training.observers.drift import Drift
from sdr1.training.observers.journal import Journal, Source
from sdr1.training.observers.progress import Progress

if TYPE_CHECKING:
    from sdr1.training.observers.tracking.tracker import Tracker


@dataclass(frozen=True)
class Trained:
    """What a finished run left behind."""

    weights_sha256: str
    seconds: float
    model: Path
    """Folder of the trained diffusers pipeline."""


def train(config: Config, *, local: bool = False, ray_address: str | None = None) -> Trained:
    """Train, save `model/` and `summary.json` in the run directory, log to MLflow.

    Raises:
        UserError: something in the config cannot work here; nothing was written.
        TrainingError: training had to stop, the disk is full, or not all could be sent to `run.storage`.
        Terminated: SIGTERM; the newest checkpoint, if there is one, is on disk.
    """
    stream = check(
        config, devices_here=local or not (ray_address or os.environ.get("RAY_ADDRESS")), local=local
    )
    cut = prompts.describe_truncated(stream.prompts, pipeline_files.tokenizer(config.policy))
    run_folder.check(config)
    begin = time.perf_counter()
    with ExitStack() as stack, ExitStack() as cluster:
        executor_from = cluster.enter_context(_placed(config, local, ray_address))
        stack.enter_context(full_disk_explained(config.run.directory))
        stack.enter_context(run_folder.held(config))
        state = run_folder.starting_point(config)
        start = state.iteration if state else 0
        for line in stream.describe() + cut:
            print(line, flush=True)
        executor = executor_from(state)
        journal = stack.enter_context(Journal(config, _evaluator(config, start, stack)))
        tracker = _tracker(config, journal, start, stream, stack)
        journal.subscribe(stack.enter_context(Progress(config, start)))
        journal.subscribe(Drift(journal))
        if config.run.storage is not None:
            journal.subscribe(stack.enter_context(Mirror(config)))
        with Checkpointer(config, journal) as checkpointer:
            journal.subscribe(checkpointer)
            with _sigterm(config.run, checkpointer):
                last = loop.run(
                    config, stream, executor, [journal], start, lambda done: bool(journal.stopped_by(done))
                )
            checkpointer.flush(timeout=600)
        cluster.close()
        weights, stopped = _left(config, last, journal, checkpointer)
        model = config.run.directory / "model"
        _save(config, weights, model)
        summary_file = config.run.directory / run_folder.SUMMARY
        # Of a finished run that went on, the whole way.
        seconds = peek(summary_file, "seconds", float) + time.perf_counter() - begin
        result = Trained(sha256(weights), seconds, model)
        summary: dict[str, object] = {
            "seed": config.seed,
            "iterations": last.version,
            **stopped,
            "seconds": round(result.seconds, 1),
            "weights_sha256": result.weights_sha256,
            "safety_checker": "off",
        }
        write_text(summary_file, json.dumps(summary, indent=2) + "\n")
        if tracker is not None:
            tracker.finish(result.model, summary, weights.version)
    return result


def _left(
    config: Config, last: Weights, journal: Journal, checkpointer: Checkpointer
) -> tuple[Weights, dict[str, str | int]]:
    """The weights that a run leaves: its last, or, where a rule stopped it, the best that are known; and what is said
    of them in `summary.json`."""
    rule = journal.stopped_by(last.version)
    if rule is None:
        return last, {}
    weights = checkpointer.best() or last
    print(
        f"stop.when: {rule}: stopped after iteration {last.version} of {config.iterations}; model/ is of iteration "
        f"{weights.version}",
        flush=True,
    )
    return weights, {"stopped_by": str(rule), run_folder.CHOSEN: weights.version}


@contextmanager
def _sigterm(run: RunConfig, checkpointer: Checkpointer) -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, after the newest snapshot is on disk; Ray grants a job 3 s for it by default."""

    # Installed after ray.init, which sets its own; only a main thread can.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    try:
        yield
    except Terminated:
        checkpointer.flush(timeout=2.0)
        if not complete(run.directory):
            raise Terminated("no iteration was saved yet: start again") from None
        how = "the same command goes on" if run.resume == "auto" else f"go on with --resume {run.directory}"
        raise Terminated(f"the newest checkpoint is on disk: {how}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
        stop_requested.clear()


def check(config: Config, *, devices_here: bool = True, local: bool = False) -> prompts.PromptStream:
    """Everything that can be known to be wrong before anything is written or started.

    `devices_here` False leaves GPUs to the cluster: the driver's node may have none. `local` is as `train` has it.
    """
    if local and config.learner.ranks > 1:
        raise UserError(
            f"learner.ranks: {config.learner.ranks}: a local run is one process; leave --local out, or set "
            "learner.ranks=1"
        )
    for section in ("learner", "rollout", "reward") if devices_here else ():
        require_device(f"{section}.device", getattr(config, section).device)
    if config.tracking.enabled:
        require("mlflow", "tracking.enabled: true")
    named.check(config)
    stream = prompts.load(config)
    check_policy(config.policy)
    scorer.check(config.reward)
    if config.evaluation.every:
        from sdr1.training.observers import evaluator as observer

        observer.check(config)
    scorer.check_monitor(config.reward, pipeline_files.pixels(config.policy))
    return stream


@contextmanager
def _placed(
    config: Config, local: bool, ray_address: str | None
) -> Iterator[Callable[[LearnerState | None], Executor]]:
    """Where the run is computed: makes the executor that starts from a state."""
    if local:
        from sdr1.training.local import LocalExecutor

        yield lambda state: LocalExecutor(config, state)
    else:
        from sdr1.training.on_ray.start import ray_executor

        with ray_executor(config, ray_address) as executor_from:
            yield executor_from


def _tracker(
    config: Config, journal: Journal, start: int, stream: prompts.PromptStream, stack: ExitStack
) -> Tracker | None:
    if not config.tracking.enabled:
        return None
    from sdr1.training.observers.tracking.tracker import Tracker

    tracker = stack.enter_context(Tracker(config, journal, start, stream.prompts))
    journal.subscribe(tracker)
    return tracker


def _evaluator(config: Config, start: int, stack: ExitStack) -> Source | None:
    if not config.evaluation.every:
        return None
    from sdr1.training.observers.evaluator import Evaluator, owed

    return stack.enter_context(Evaluator(config, owed(config, start)))


def _save(config: Config, weights: Weights, folder: Path) -> None:
    prepare_process(config.run.threads)
    policy = Policy(config.policy, seed=config.seed)
    policy.flat.load(weights.buffer)
    draft = partial(folder)
    with disk_errors(folder):
        policy.save(draft)
    # File by file: what a person put beside them stays.
    for file in sorted(path for path in draft.rglob("*") if path.is_file()):
        target = folder / file.relative_to(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(draft)
