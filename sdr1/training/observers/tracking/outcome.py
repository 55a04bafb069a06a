"""What is found about a run once it has trained, added to its MLflow run: outcome, evaluations, files."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from sdr1.base.errors import reason
from sdr1.base.plain_data import peek
from sdr1.evaluation.result import Result
from sdr1.training.checkpoint import TRACKER
from sdr1.training.observers.tracking.identity import COMMAND
from sdr1.training.observers.tracking.store import client_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("sdr1")
_DESCRIPTION, _DESCRIBED = "mlflow.note.content", "sdr1.description_sha256"


def attach(run: Path, files: Sequence[Path], root: Path) -> bool:
    """Add files made after training in `run` had ended to its MLflow run, under their paths below `root`.

    False if there is no such run, or if the server did not take them, which is warned of.
    """

    def send(client: MlflowClient, run_id: str) -> None:
        for file in files:
            parent = file.relative_to(root).parent
            client.log_artifact(run_id, str(file), None if parent == Path() else str(parent))

    return _sent(run, ", ".join(file.name for file in files), send)


def conclude(
    run: Path, before: Mapping[str, float], after: Mapping[str, float], headline: str, pictures: Sequence[str]
) -> bool:
    """Add the outcome of the training in `run` to its MLflow run, as `tell`; returns as `attach`."""
    return _sent(
        run, "the outcome", lambda client, run_id: tell(client, run_id, before, after, headline, pictures)
    )


def measured(model: str, name: str, result: Result) -> bool:
    """Add an evaluation, its figures as `evaluation/NAME/FIGURE`, to the MLflow run of the run directory that the folder
    `model` lies in; returns as `attach`."""

    def send(client: MlflowClient, run_id: str) -> None:
        figures = {each: figure.value for each, figure in result.figures.items() if figure.value is not None}
        _log_figures(client, run_id, f"evaluation/{name}", figures)
        client.log_dict(run_id, result.model_dump(mode="json"), f"evaluation/{name}.json")

    return _sent(Path(model).parent, f"the evaluation {name}", send)


def tell(
    client: MlflowClient,
    run_id: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    headline: str,
    pictures: Sequence[str] = (),
) -> None:
    """Put the outcome of a training into its MLflow run, so that runs can be sorted by it.

    Rates of the base and of the trained model, in [0, 1], become `outcome/before/NAME`, `outcome/after/NAME` and their
    difference `outcome/change/NAME`. The run's description gets the headline, `pictures` among its artifacts, and the
    command that made it.
    """
    change = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    for side, figures in (("before", before), ("after", after), ("change", change)):
        _log_figures(client, run_id, f"outcome/{side}", figures)
    addresses = (urlencode({"path": name, "run_uuid": run_id}) for name in pictures)
    shown = [f"![{name}](get-artifact?{address})" for name, address in zip(pictures, addresses, strict=True)]
    describe(client, run_id, f"**{headline}**", *shown)


def describe(client: MlflowClient, run_id: str, *paragraphs: str) -> None:
    """Set the run's description to these and the command that made it; what a person wrote there stays."""
    tags = client.get_run(run_id).data.tags
    there = tags.get(_DESCRIPTION, "")
    if there and _digest(there) != tags.get(_DESCRIBED):
        return
    text = "\n\n".join([*paragraphs, f"`{tags.get(COMMAND, '')}`"])
    client.set_tag(run_id, _DESCRIBED, _digest(text))
    client.set_tag(run_id, _DESCRIPTION, text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _log_figures(client: MlflowClient, run_id: str, group: str, figures: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    # Letters that MLflow's names have not.
    names = {name: re.sub(r"[^\w\-. :/]", "_", f"{group}/{name}") for name in sorted(figures)}
    now = int(1000 * time.time())
    client.log_batch(run_id, [Metric(full, figures[name], now, 0) for name, full in names.items()])


def _sent(run: Path, what: str, send: Callable[[MlflowClient, str], None]) -> bool:
    run_id = peek(run / TRACKER, "mlflow_run_id", str)
    if not run_id:
        return False
    try:
        send(client_of(run), run_id)
    except Exception as error:
        _log.warning("MLflow did not take %s: %s", what, reason(error))
        return False
    return True
