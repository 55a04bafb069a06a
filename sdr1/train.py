"""One training run from a checked config to a saved model: what `sdr1 train` does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdr1 import loop, prompts
from sdr1.config import Config
from sdr1.files import write_text
from sdr1.loop import Executor
from sdr1.policy import Policy, load_pipeline
from sdr1.progress import Progress
from sdr1.rewards.embedder import Embedder
from sdr1.runtime import prepare_process, require_device
from sdr1.types import Weights
from sdr1.weights import sha256


@dataclass(frozen=True)
class Result:
    """What a finished run left behind."""

    weights_sha256: str
    seconds: float
    model: Path
    """Folder of the trained diffusers pipeline."""


def train(config: Config, *, local: bool = False, ray_address: str | None = None) -> Result:
    """Train, save `model/` and `summary.json` in the run directory, log to MLflow.

    Raises:
        UserError: something in the config cannot work here; nothing was written.
        TrainingError: training had to stop.
    """
    stream = check(config)
    begin = time.perf_counter()
    config.run.directory.mkdir(parents=True, exist_ok=True)
    with _tracker(config) as tracker, Progress(config) as progress:
        with _executor(config, local, ray_address) as executor:
            weights = loop.run(config, stream, executor, [progress, *tracker])
        model = config.run.directory / "model"
        _save(config, weights, model)
        result = Result(sha256(weights), time.perf_counter() - begin, model)
        summary = {
            "seed": config.seed,
            "iterations": config.iterations,
            "seconds": round(result.seconds, 1),
            "weights_sha256": result.weights_sha256,
        }
        write_text(config.run.directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        for each in tracker:
            each.finish(result.model, summary)
    return result


def check(config: Config) -> prompts.PromptStream:
    """Everything that can be known to be wrong before anything is written or started."""
    for section in ("learner", "rollout", "reward"):
        require_device(f"{section}.device", getattr(config, section).device)
    stream = prompts.PromptStream(prompts.read(config.prompts.path), config)
    load_pipeline(config.policy.model)
    Embedder(config.reward.model, config.reward.checkpoint, "cpu")
    return stream


@contextmanager
def _executor(config: Config, local: bool, ray_address: str | None) -> Iterator[Executor]:
    if local:
        from sdr1.local import LocalExecutor

        yield LocalExecutor(config)
    else:
        from sdr1.distributed.cluster import ray_executor

        with ray_executor(config, ray_address) as executor:
            yield executor


@contextmanager
def _tracker(config: Config) -> Iterator[list]:
    if not config.tracking.enabled:
        yield []
        return
    from sdr1.tracking import Tracker

    with Tracker(config) as tracker:
        yield [tracker]


def _save(config: Config, weights: Weights, folder: Path) -> None:
    prepare_process(config.run.threads)
    policy = Policy(config.policy, seed=config.seed)
    policy.flat.load(weights.buffer)
    policy.save(folder)
