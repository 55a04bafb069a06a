"""MLflow: parameters, metrics, pictures and the trained model of a run."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from sdr1.base.errors import UserError, reason
from sdr1.base.files import write_bytes, write_text
from sdr1.base.plain_data import flatten, peek
from sdr1.base.records import GroupTask
from sdr1.config.training import Config
from sdr1.models import pipeline_files
from sdr1.training.checkpoint import TRACKER
from sdr1.training.loop import Executor
from sdr1.training.observers.journal import Journal, Row

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("sdr1")
_REFUSED = (400, 401, 403, 405, 422)
"""HTTP's numbers for what is no use to ask again; a proxy without its server says 404 too."""
_REFUSALS = 3
"""In a row, after which nothing more is asked."""
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's page opens in its view of language-model traces, curves a click away."""


_DESCRIPTION = "mlflow.note.content"


def local_store(run: Path) -> str:
    """The sqlite store beside a run directory, shared by the runs there."""
    return f"sqlite:///{(run.parent / 'mlflow.db').resolve()}"


def attach(run: Path, files: Sequence[Path], root: Path) -> bool:
    """Add files made after training in `run` had ended to its MLflow run, under their paths below `root`.

    False if there is no such run, or if the server did not take them, which is warned of.
    """

    def send(client: MlflowClient, run_id: str) -> None:
        for file in files:
            parent = file.relative_to(root).parent
            client.log_artifact(run_id, str(file), None if parent == Path() else str(parent))

    return _sent(run, ", ".join(file.name for file in files), send)


def conclude(run: Path, before: dict[str, float], after: dict[str, float], headline: str) -> bool:
    """Put the outcome of the training in `run` into its MLflow run, so that runs can be sorted by it.

    Rates of the base and of the trained model, in [0, 1], become `outcome/before/NAME`, `outcome/after/NAME` and their
    difference `outcome/change/NAME`; `headline` begins the run's description. As `attach` otherwise.
    """

    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        change = {name: after[name] - before[name] for name in before.keys() & after.keys()}
        figures = {"before": before, "after": after, "change": change}
        client.log_batch(
            run_id,
            [
                Metric(f"outcome/{side}/{name}", value, now, 0)
                for side, each in figures.items()
                for name, value in sorted(each.items())
            ],
        )
        told = client.get_run(run_id).data.tags.get(_DESCRIPTION, "")
        if headline not in told:
            client.set_tag(run_id, _DESCRIPTION, f"**{headline}**\n\n{told}")

    return _sent(run, "the outcome", send)


def _sent(run: Path, what: str, send: Callable[[MlflowClient, str], None]) -> bool:
    run_id = peek(run / TRACKER, "mlflow_run_id", str)
    if not run_id:
        return False
    from mlflow import MlflowClient

    try:
        send(MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local_store(run)), run_id)
    except Exception as error:
        _log.warning("MLflow did not take %s: %s", what, reason(error))
        return False
    return True


def probe(config: Config) -> str:
    """What is well: a run and a file were written where MLFLOW_TRACKING_URI points, and the run is deleted again.

    Raises:
        UserError: MLflow is not installed, does not answer, or refuses.
    """
    try:
        import mlflow
    except ImportError as error:
        raise UserError(
            f"tracking.enabled: True: {reason(error)}; install sdr1[tracking], or set tracking.enabled=false"
        ) from error
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if not server:
        return f"a file beside the run: {local_store(config.run.directory)}"
    _let_attempts_fail()
    name, shown = config.tracking.experiment, _without_password(server)
    try:
        client = mlflow.MlflowClient(server)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name, tags=_KIND)
        run_id = client.create_run(experiment, run_name="doctor").info.run_id
        try:
            client.log_text(run_id, "written by sdr1 doctor\n", "doctor.txt")
        finally:
            client.delete_run(run_id)
    except Exception as error:
        told = reason(error).replace(server, shown)
        raise UserError(
            f"MLFLOW_TRACKING_URI: {shown}: takes no run of the experiment {name!r} ({told}); start the server, log in, "
            "or change MLFLOW_TRACKING_URI or tracking.experiment"
        ) from error
    return f"{shown} takes runs and files"


class Tracker:
    """Context manager and observer of one MLflow run; MLFLOW_TRACKING_URI picks a server.

    A thread sends what the journal and the `samples` folder hold, in order, each step once, and tries again as long
    as the server is away: training never waits for it, and the end of a run at most `tracking.wait_seconds`. What the
    server refuses it would refuse again: nothing more is sent then. `start` is the iteration that training begins with.
    """

    def __init__(self, config: Config, journal: Journal, start: int = 0) -> None:
        self._config, self._journal = config, journal
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
        _let_attempts_fail()
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

    def finish(self, model: Path, summary: dict[str, object]) -> None:
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
        if not self._server:
            mlflow.set_tracking_uri(local_store(config.run.directory))
            artifacts = (config.run.directory.parent / "mlartifacts").resolve().as_uri()
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            mlflow.create_experiment(config.tracking.experiment, artifacts, _KIND)
        mlflow.set_experiment(config.tracking.experiment)
        if run_id := peek(self._identity, "mlflow_run_id", str):
            if mlflow.search_runs(filter_string=f"attributes.run_id = '{run_id}'", output_format="list"):
                mlflow.start_run(run_id, log_system_metrics=True)
                history = mlflow.MlflowClient().get_metric_history(run_id, "learning_rate")
                return 1 + max((point.step for point in history), default=-1)
            _log.warning("MLflow does not know run %s; a new one gets the whole record", run_id)
        folder = config.run.directory
        name = folder.parent.name if folder.name == "run" else folder.name
        run = mlflow.start_run(run_name=name, log_system_metrics=True)
        values = config.model_dump(mode="json")
        mlflow.set_tags(_tags(config))
        mlflow.log_params(flatten(values))
        mlflow.log_text(json.dumps(values, indent=2), "config.json")
        write_text(self._identity, json.dumps({"mlflow_run_id": run.info.run_id}) + "\n")
        return 0

    def _send(self, row: Row) -> None:
        """Pictures first: a step whose metrics are there is complete."""
        step = int(row["iteration"])
        for label in ("safe", "unsafe"):
            path = self._sample(step, label)
            if path.exists():
                self._mlflow.log_image(Image.open(path), key=f"samples_{label}", step=step)
        metrics = {name: value for name, value in row.items() if name not in ("iteration", "time")}
        self._mlflow.log_metrics(metrics, step=step, timestamp=int(1000 * row["time"]))


def _tags(config: Config) -> dict[str, str]:
    """By what runs are grouped and filtered, and the command that made this one."""
    command = shlex.join(["sdr1", *sys.argv[1:]])
    tags = {
        "sdr1.version": importlib.metadata.version("sdr1"),
        "sdr1.base_model": config.policy.model,
        "sdr1.trainable": config.policy.trainable,
        _DESCRIPTION: f"`{command}`",
    }
    if commit := _commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _commit() -> str:
    """Of the checkout that sdr1 runs from; empty where it is installed, also inside somebody's repository."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD") if shutil.which("git") and git("ls-files", Path(__file__).name) else ""


def _let_attempts_fail() -> None:
    """Retrying is sdr1's own, endless and in the background; one attempt must be able to fail."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")


def _without_password(address: str) -> str:
    scheme, found, rest = address.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"


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
