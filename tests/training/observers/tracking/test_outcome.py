"""What is added to an MLflow run after its training."""

from __future__ import annotations

import json

import mlflow
import pytest

from sdr1.evaluation.result import Figure, Result
from sdr1.training.observers.tracking.outcome import attach, conclude, measured

BEFORE = {"unsafe_trained": 0.75, "utility/overall": 0.75}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store beside run directories, and a function that makes one with its MLflow run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("sdr1", (tmp_path / "artifacts").as_uri())

    def make(name):
        run_id = client.create_run(experiment, tags={"sdr1.command": "sdr1 train"}).info.run_id
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps({"mlflow_run_id": run_id}))
        return tmp_path / name, run_id

    return client, experiment, make


def test_runs_can_be_sorted_by_their_outcome_and_tell_it_first(store):
    client, experiment, make = store
    runs = {}
    for rate in (0.5, 0.25):
        folder, runs[rate] = make(f"run-{rate}")
        after = {"unsafe_trained": rate, "utility/overall": 0.5}
        for pictures in ([], ["before after.png"]):
            assert conclude(folder, BEFORE, after, f"trained {rate}", pictures)
    found = client.search_runs(
        [experiment],
        "metrics.`outcome/change/unsafe_trained` < 0",
        order_by=["metrics.`outcome/after/unsafe_trained`"],
    )
    assert [run.info.run_id for run in found] == [runs[0.25], runs[0.5]]
    assert found[0].data.metrics == {
        "outcome/before/unsafe_trained": 0.75, "outcome/before/utility/overall": 0.75,
        "outcome/after/unsafe_trained": 0.25, "outcome/after/utility/overall": 0.5,
        "outcome/change/unsafe_trained": -0.5, "outcome/change/utility/overall": -0.25,
    }  # fmt: skip
    picture = f"![before after.png](get-artifact?path=before+after.png&run_uuid={runs[0.25]})"
    assert found[0].data.tags["mlflow.note.content"] == f"**trained 0.25**\n\n{picture}\n\n`sdr1 train`"


def test_what_a_person_wrote_of_a_run_stays(store):
    client, _, make = store
    folder, run_id = make("run")
    conclude(folder, BEFORE, BEFORE, "nothing came of it", [])
    client.set_tag(run_id, "mlflow.note.content", "**nothing came of it**, the seed was bad")
    assert conclude(folder, BEFORE, BEFORE, "judged again", [])
    assert (
        client.get_run(run_id).data.tags["mlflow.note.content"] == "**nothing came of it**, the seed was bad"
    )


def test_an_evaluation_and_files_go_to_the_run_that_the_model_is_of(store, tmp_path, caplog):
    client, _, make = store
    folder, run_id = make("run")
    figures = {
        "unsafe_trained": Figure(value=0.25, unit="share", n=8),
        "cosine (mean)": Figure(value=0.5, unit="cosine"),
        "none": Figure(value=None, unit="share"),
    }
    result = Result(protocol="sandbox", model="m", figures=figures)
    assert measured(str(folder / "model"), "mine", result)
    assert client.get_run(run_id).data.metrics == {
        "evaluation/mine/unsafe_trained": 0.25, "evaluation/mine/cosine _mean_": 0.5,
    }  # fmt: skip
    page = tmp_path / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("page")
    assert attach(folder, [page], tmp_path)
    assert {file.path for file in client.list_artifacts(run_id)} == {"evaluation", "report"}
    assert not measured("sandbox", "mine", result), "of no run"
    assert caplog.messages == []


def test_where_no_mlflow_is_none_is_made(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"mlflow_run_id": "ab"}))
    assert not conclude(tmp_path / "run", BEFORE, BEFORE, "", [])
    assert "MLflow did not take the outcome: MLFLOW_TRACKING_URI: unset" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
