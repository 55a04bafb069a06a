"""MLflow: parameters, metrics, pictures and the trained model of a run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdr1.config import Config
from sdr1.loop import Executor
from sdr1.metrics import summarize
from sdr1.types import GroupTask, IterationReport


def local_store(config: Config) -> str:
    """The sqlite store beside the run directory, shared by the runs there."""
    return f"sqlite:///{(config.run.directory.parent / 'mlflow.db').resolve()}"


class Tracker:
    """Context manager and observer of one MLflow run; MLFLOW_TRACKING_URI picks a server."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def __enter__(self) -> Tracker:
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        # Remembered now: set_tracking_uri writes the variable too, and the next run would take it for the user's.
        self._server = os.environ.get("MLFLOW_TRACKING_URI")
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._mlflow, config = mlflow, self._config
        artifacts = None
        if not self._server:
            mlflow.set_tracking_uri(local_store(config))
            artifacts = (config.run.directory.parent / "mlartifacts").resolve().as_uri()
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            mlflow.create_experiment(config.tracking.experiment, artifacts)
        mlflow.set_experiment(config.tracking.experiment)
        mlflow.start_run(run_name=config.run.directory.name, log_system_metrics=True)
        values = config.model_dump(mode="json")
        mlflow.log_params(dict(_flatten(values)))
        mlflow.log_text(json.dumps(values, indent=2), "config.json")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)
        self._mlflow.end_run("KILLED" if stopped else "FAILED" if kind else "FINISHED")
        if not self._server:
            self._mlflow.set_tracking_uri("")
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def accumulated(self, task: GroupTask) -> None:
        pass

    def iteration(self, report: IterationReport, tasks: Sequence[GroupTask], executor: Executor) -> None:
        self._mlflow.log_metrics(summarize(report, self._config), step=report.iteration)
        if report.iteration % self._config.tracking.images_every == 0:
            for label in ("safe", "unsafe"):
                task = next((task for task in tasks if task.prompt.label == label), None)
                if task is not None:
                    picture = _grid(executor.images(task), task.prompt.text)
                    self._mlflow.log_image(picture, key=f"samples_{label}", step=report.iteration)

    def finish(self, model: Path, summary: dict[str, Any]) -> None:
        """Log what the run leaves: the diffusers pipeline under `model`, and the summary."""
        self._mlflow.log_dict(summary, "summary.json")
        self._mlflow.log_artifacts(str(model), "model")


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def _grid(images_NHWC: np.ndarray, caption: str) -> Any:
    """The images of a group in one row under their prompt."""
    from PIL import Image, ImageDraw

    scale = max(1, 96 // images_NHWC.shape[1])
    row = Image.fromarray(np.concatenate(list(images_NHWC), axis=1))
    row = row.resize((row.width * scale, row.height * scale), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (row.width, row.height + 16), "white")
    sheet.paste(row, (0, 16))
    ImageDraw.Draw(sheet).text((4, 2), caption, fill="black")
    return sheet
