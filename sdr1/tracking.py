"""MLflow: parameters, metrics, pictures and the trained model of a run."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sdr1 import pipeline_files
from sdr1.config import Config
from sdr1.files import write_text
from sdr1.journal import Journal
from sdr1.loop import Executor
from sdr1.plain_data import flatten
from sdr1.types import GroupTask

_log = logging.getLogger("sdr1")
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's page opens in its view of language-model traces, curves a click away."""


def local_store(run: Path) -> str:
    """The sqlite store beside a run directory, shared by the runs there."""
    return f"sqlite:///{(run.parent / 'mlflow.db').resolve()}"


def attach(run: Path, files: Sequence[Path], root: Path) -> bool:
    """Add files made after training in `run` had ended to its MLflow run, under their paths below `root`.

    False if there is no such run, or if the server did not take them, which is warned of.
    """
    identity = run / "run.json"
    if not identity.is_file():
        return False
    from mlflow import MlflowClient

    run_id = json.loads(identity.read_text(encoding="utf-8"))["mlflow_run_id"]
    try:
        client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local_store(run))
        for file in files:
            parent = file.relative_to(root).parent
            client.log_artifact(run_id, str(file), None if parent == Path() else str(parent))
    except Exception as error:
        reason = (str(error) or repr(error)).split("\n")[0][:200]
        _log.warning("MLflow did not take %s: %s", file, reason)
        return False
    return True


class Tracker:
    """Context manager and observer of one MLflow run; MLFLOW_TRACKING_URI picks a server.

    A thread sends what the journal and the `samples` folder hold, in order, each step once, and tries again as long
    as the server is away: training never waits for it, and the end of a run at most `tracking.wait_seconds`.
    """

    def __init__(self, config: Config, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._identity = config.run.directory / "run.json"
        self._samples = config.run.directory / "samples"
        self._last: list[Callable[[], None]] = []
        self._status: str | None = None
        self._abandoned = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def __enter__(self) -> Tracker:
        # The fluent client writes this variable too, and the next run would take it for the user's.
        self._server = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        # Retrying is this class's own, endless and in the background; one attempt must be able to fail.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        self._thread.start()
        self._wake.set()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)
        self._status = "KILLED" if stopped else "FAILED" if kind else "FINISHED"
        self._wake.set()
        # A stopped process has seconds left; what is unsent stays on disk.
        self._thread.join(timeout=1.0 if stopped else self._config.tracking.wait_seconds)
        self._abandoned = self._thread.is_alive()
        if self._abandoned and not stopped:
            _log.warning(
                "MLflow does not answer; everything is in %s and is sent by `sdr1 train CONFIG --resume %s`",
                self._journal.path, self._config.run.directory,
            )  # fmt: skip
        if not self._server:
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def accumulated(self, task: GroupTask) -> None:
        pass

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        if iteration % self._config.tracking.images_every == 0:
            self._samples.mkdir(exist_ok=True)
            for label in ("safe", "unsafe"):
                task = next((task for task in tasks if task.prompt.label == label), None)
                path = self._sample(iteration, label)
                if task is None or path.exists():
                    continue
                images = executor.images(task)
                if images is not None:
                    _grid(images, task.prompt.text).save(path)
        self._wake.set()

    def finish(self, model: Path, summary: dict[str, Any]) -> None:
        """Log what the run leaves: the diffusers pipeline under `model`, a LoRA adapter as a model, and the summary."""
        self._last = [
            lambda: self._mlflow.log_dict(summary, "summary.json"),
            lambda: self._mlflow.log_artifacts(str(model), "model"),
        ]
        adapter = model / "lora"
        if adapter.is_dir():
            self._last.append(lambda: self._log_adapter(adapter))

    def _log_adapter(self, adapter: Path) -> None:
        import mlflow.diffusers

        mlflow.diffusers.log_model(
            str(adapter),
            base_model=str(pipeline_files.locate(self._config.policy) or self._config.policy.model),
            name="lora",
            # Given, not inferred: inference would load the base in another process.
            pip_requirements=["diffusers", "peft", "torch", "transformers"],
        )

    def _sample(self, iteration: int, label: str) -> Path:
        return self._samples / f"{iteration:06d}-{label}.png"

    def _work(self) -> None:
        sent, pause = None, 1.0
        # Left behind, it must not wake up and write into the store of the next run in this process.
        while not self._abandoned:
            self._wake.wait()
            self._wake.clear()
            status = self._status
            try:
                sent = self._begin() if sent is None else sent
                for row in self._journal.rows[sent:]:
                    self._send(row)
                    sent += 1
                if status is not None:
                    while self._last:
                        self._last[0]()
                        self._last.pop(0)
                    self._mlflow.end_run(status)
                    return
                pause = 1.0
            except Exception as error:
                if self._abandoned:
                    return
                _log.warning(
                    "MLflow: %s; trying again", (str(error).strip() or repr(error)).split("\n")[0][:200]
                )
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
        if not self._server:
            mlflow.set_tracking_uri(local_store(config.run.directory))
            artifacts = (config.run.directory.parent / "mlartifacts").resolve().as_uri()
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            mlflow.create_experiment(config.tracking.experiment, artifacts, _KIND)
        mlflow.set_experiment(config.tracking.experiment)
        if self._identity.exists():
            run_id = json.loads(self._identity.read_text(encoding="utf-8"))["mlflow_run_id"]
            if mlflow.search_runs(filter_string=f"attributes.run_id = '{run_id}'", output_format="list"):
                mlflow.start_run(run_id, log_system_metrics=True)
                history = mlflow.MlflowClient().get_metric_history(run_id, "learning_rate")
                return 1 + max((point.step for point in history), default=-1)
            _log.warning("MLflow does not know run %s; a new one gets the whole record", run_id)
        folder = config.run.directory
        name = folder.parent.name if folder.name == "run" else folder.name
        run = mlflow.start_run(run_name=name, log_system_metrics=True)
        values = config.model_dump(mode="json")
        mlflow.log_params(flatten(values))
        mlflow.log_text(json.dumps(values, indent=2), "config.json")
        write_text(self._identity, json.dumps({"mlflow_run_id": run.info.run_id}) + "\n")
        return 0

    def _send(self, row: dict[str, Any]) -> None:
        """Pictures first: a step whose metrics are there is complete."""
        step = row["iteration"]
        for label in ("safe", "unsafe"):
            path = self._sample(step, label)
            if path.exists():
                self._mlflow.log_image(Image.open(path), key=f"samples_{label}", step=step)
        metrics = {name: value for name, value in row.items() if name not in ("iteration", "time")}
        self._mlflow.log_metrics(metrics, step=step, timestamp=int(1000 * row["time"]))


def _grid(images_NHWC: np.ndarray, caption: str) -> Any:
    """The images of a group in one row under their prompt."""
    scale = max(1, 96 // images_NHWC.shape[1])
    row = Image.fromarray(np.concatenate(list(images_NHWC), axis=1))
    row = row.resize((row.width * scale, row.height * scale), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (row.width, row.height + 16), "white")
    sheet.paste(row, (0, 16))
    ImageDraw.Draw(sheet).text((4, 2), caption, fill="black")
    return sheet
