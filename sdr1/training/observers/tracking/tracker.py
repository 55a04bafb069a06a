"""Sends a run to MLflow while it goes on: parameters, metrics, pictures, and at its end the model."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sdr1.base.errors import UserError, reason
from sdr1.base.files import write_bytes, write_text
from sdr1.base.plain_data import flatten, peek
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.training import Config
from sdr1.training.checkpoint import TRACKER
from sdr1.training.loop import Executor
from sdr1.training.observers.journal import EVALUATED, EVALUATION, Journal, Row
from sdr1.training.observers.tracking.identity import dataset, tags
from sdr1.training.observers.tracking.model import log_adapter, log_pipeline
from sdr1.training.observers.tracking.names import named, tracked
from sdr1.training.observers.tracking.outcome import describe, tell
from sdr1.training.observers.tracking.store import KIND, let_attempts_fail, local_store

_log = logging.getLogger("sdr1")
_REFUSED = (400, 401, 403, 405, 422)
"""HTTP's numbers for what is no use to ask again; a proxy without its server says 404 too."""
_REFUSALS = 3
"""In a row, after which nothing more is asked."""
_WEIGHTS = "sdr1.weights_sha256"
"""Tag of the run: of the model that it has."""
_TOLD = ("unsafe_trained", "unsafe_generic", "utility/overall")
"""Figures of evaluations beside training that say in a line what came of it."""


class Tracker:
    """Context manager and observer of one MLflow run; MLFLOW_TRACKING_URI picks a server.

    A thread sends what the journal and the `samples` folder hold, in order, each step once, and tries again as long
    as the server is away: training never waits for it, and the end of a run at most `tracking.wait_seconds`. What the
    server refuses it would refuse again: nothing more is sent then. `start` is the iteration that training begins with,
    `prompts` what it trains on.
    """

    def __init__(
        self, config: Config, journal: Journal, start: int = 0, prompts: Sequence[Prompt] = ()
    ) -> None:
        self._config, self._journal, self._prompts = config, journal, prompts
        self._whole = min(start, len(journal.rows))
        """Rows whose pictures are there too."""
        self._identity = config.run.directory / TRACKER
        self._samples = config.run.directory / "samples"
        self._last: list[Callable[[], None]] = []
        self._status: str | None = None
        self._refused = ""
        self._abandoned = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def __enter__(self) -> Tracker:
        # The fluent client writes this variable too, and the next run would take it for the user's.
        self._server = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        let_attempts_fail()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread.ident is None:
            if kind is not None and issubclass(kind, UserError):
                # Refused before anything ran: there is nothing to remember.
                return
            self._thread.start()
        stopped = kind is not None and not issubclass(kind, Exception)
        self._status = "KILLED" if stopped else "FAILED" if kind else "FINISHED"
        self._wake.set()
        # A stopped process has seconds left; what is unsent stays on disk.
        self._thread.join(timeout=1.0 if stopped else self._config.tracking.wait_seconds)
        self._abandoned = self._thread.is_alive()
        if self._refused:
            _log.warning(
                "MLflow refuses this run: %s; log in, or change MLFLOW_TRACKING_URI or tracking.experiment (%r); "
                "everything is in %s",
                self._refused, self._config.tracking.experiment, self._journal.path,
            )  # fmt: skip
        elif self._abandoned and not stopped:
            _log.warning(
                "MLflow does not answer; everything is in %s and is sent by `sdr1 train CONFIG --resume %s`",
                self._journal.path, self._config.run.directory,
            )  # fmt: skip
        if not self._server:
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def accumulated(self, task: GroupTask) -> None:
        if self._thread.ident is None:
            self._wake.set()
            self._thread.start()

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        if iteration % self._config.tracking.images_every == 0:
            for label in ("safe", "unsafe"):
                task = next((task for task in tasks if task.prompt.label == label), None)
                path = self._sample(iteration, label)
                if task is None or path.exists():
                    continue
                images = executor.images(task)
                if images is not None:
                    buffer = io.BytesIO()
                    _grid(images, task.prompt.text).save(buffer, "PNG")
                    write_bytes(path, buffer.getvalue())
        self._whole = max(self._whole, iteration + 1)
        self._wake.set()

    def finish(self, model: Path, summary: dict[str, object], iteration: int) -> None:
        """Log what the run leaves: its summary, its outcome by the evaluations beside training, and the diffusers
        pipeline under `model`, which is of the weights after `iteration` iterations."""
        self._last = [
            lambda: self._mlflow.log_dict(summary, "summary.json"),
            lambda: self._tell_outcome(iteration),
            lambda: self._log_model(model, str(summary["weights_sha256"])),
        ]

    def _tell_outcome(self, iteration: int) -> None:
        evaluated = self._journal.evaluations()
        before, after = (
            {
                name.removeprefix(EVALUATION): value
                for name, value in evaluated.get(number, {}).items()
                if name.startswith(EVALUATION) and name != EVALUATED
            }
            for number in (0, iteration)
        )
        if after:
            told = [f"{name} {before[name]:.1%} to {after[name]:.1%}" for name in _TOLD if name in before]
            headline = ", ".join(told) or "no evaluation before training"
            tell(self._mlflow.MlflowClient(), self._run_id, before, after, headline)

    def _log_model(self, model: Path, digest: str) -> None:
        client = self._mlflow.MlflowClient()
        # A finished run that is only resumed leaves no second model.
        if client.get_run(self._run_id).data.tags.get(_WEIGHTS) == digest:
            return
        log_pipeline(self._config, model)
        if (model / "lora").is_dir():
            log_adapter(self._config, model / "lora")
        client.set_tag(self._run_id, _WEIGHTS, digest)

    def _sample(self, iteration: int, label: str) -> Path:
        return self._samples / f"{iteration:06d}-{label}.png"

    def _work(self) -> None:
        sent, pause, refusals = None, 1.0, 0
        # Left behind, it must not wake up and write into the store of the next run in this process.
        while not self._abandoned:
            self._wake.wait()
            self._wake.clear()
            status = self._status
            try:
                sent = self._begin() if sent is None else sent
                for row in self._journal.rows[sent : self._whole]:
                    self._send(row)
                    sent += 1
                if status is not None:
                    while self._last:
                        self._last[0]()
                        self._last.pop(0)
                    self._mlflow.end_run(status)
                    return
                pause, refusals, self._refused = 1.0, 0, ""
            except Exception as error:
                if self._abandoned:
                    return
                self._refused = reason(error) if _refusal(error) else ""
                refusals = refusals + 1 if self._refused else 0
                # More than once: of two runs that start together the slower is refused what the other just made.
                if refusals == _REFUSALS:
                    return
                _log.warning("MLflow: %s; trying again", reason(error))
                time.sleep(pause)
                pause = min(30.0, 2 * pause)
                self._wake.set()

    def _begin(self) -> int:
        """Open the run, or the one it was, and return how many rows the server already has."""
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._mlflow, config = mlflow, self._config
        artifacts = None
        # Said to MLflow in any case: it remembers the store of an earlier run in this process.
        if self._server:
            mlflow.set_tracking_uri(self._server)
        else:
            mlflow.set_tracking_uri(local_store(config.run.directory))
            artifacts = (config.run.directory.parent / "mlartifacts").resolve().as_uri()
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            mlflow.create_experiment(config.tracking.experiment, artifacts, KIND)
        mlflow.set_experiment(config.tracking.experiment)
        if run_id := peek(self._identity, "mlflow_run_id", str):
            if mlflow.search_runs(filter_string=f"attributes.run_id = '{run_id}'", output_format="list"):
                mlflow.start_run(run_id, log_system_metrics=True)
                history = mlflow.MlflowClient().get_metric_history(run_id, named("learning_rate"))
                self._run_id = run_id
                return 1 + max((point.step for point in history), default=-1)
            _log.warning("MLflow does not know run %s; a new one gets the whole record", run_id)
        run = mlflow.start_run(run_name=config.run.name, log_system_metrics=True)
        self._run_id = run.info.run_id
        values = config.model_dump(mode="json")
        mlflow.set_tags(tags(config))
        describe(mlflow.MlflowClient(), self._run_id)
        if self._prompts:
            mlflow.log_input(dataset(config, self._prompts), context="training")
        mlflow.log_params(flatten(values))
        mlflow.log_text(json.dumps(values, indent=2), "config.json")
        write_text(self._identity, json.dumps({"mlflow_run_id": self._run_id}) + "\n")
        return 0

    def _send(self, row: Row) -> None:
        """Pictures first: a step whose metrics are there is complete."""
        step = int(row["iteration"])
        for label in ("safe", "unsafe"):
            path = self._sample(step, label)
            if path.exists():
                self._mlflow.log_image(Image.open(path), key=f"samples_{label}", step=step)
        self._mlflow.log_metrics(tracked(row), step=step, timestamp=int(1000 * row["time"]))


def _refusal(error: Exception) -> bool:
    """Whether MLflow understood what it was asked and will not do it, so that asking again is of no use."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, ImportError):
        # Of the driver of a database.
        return True
    return isinstance(error, MlflowException) and (
        error.get_http_status_code() in _REFUSED or error.error_code == "RESOURCE_DOES_NOT_EXIST"
    )


def _grid(images_NHWC: np.ndarray, caption: str) -> Image.Image:
    """The images of a group in one row under their prompt."""
    scale = max(1, 96 // images_NHWC.shape[1])
    row = Image.fromarray(np.concatenate(list(images_NHWC), axis=1))
    row = row.resize((row.width * scale, row.height * scale), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (row.width, row.height + 16), "white")
    sheet.paste(row, (0, 16))
    ImageDraw.Draw(sheet).text((4, 2), caption, fill="black")
    return sheet
