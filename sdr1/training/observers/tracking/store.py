"""The MLflow that runs are tracked in: where it is, whether it answers, and a client of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sdr1.base.errors import UserError, reason
from sdr1.config.training import Config

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's page opens in its view of language-model traces, curves a click away."""


def local_store(run: Path) -> str:
    """The sqlite store beside a run directory, shared by the runs there."""
    return f"sqlite:///{_database(run)}"


def _database(run: Path) -> Path:
    return (run.parent / "mlflow.db").resolve()


def client_of(run: Path) -> MlflowClient:
    """A client of the MLflow that MLFLOW_TRACKING_URI names, else of the store beside a run directory.

    Raises:
        UserError: there is neither.
    """
    from mlflow import MlflowClient

    server = os.environ.get("MLFLOW_TRACKING_URI")
    # A client of a file that is not there would make it.
    if not server and not _database(run).is_file():
        raise UserError(
            f"MLFLOW_TRACKING_URI: unset, and there is no {_database(run)}; set it to the run's server"
        )
    let_attempts_fail()
    return MlflowClient(server or local_store(run))


def let_attempts_fail() -> None:
    """Retrying is sdr1's own, endless and in the background; one attempt must be able to fail."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")


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
    let_attempts_fail()
    name, shown = config.tracking.experiment, _without_password(server)
    try:
        client = mlflow.MlflowClient(server)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name, tags=KIND)
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


def _without_password(address: str) -> str:
    scheme, found, rest = address.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
