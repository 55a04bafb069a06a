"""`sdr1 doctor` on what is really here: parts that are broken on purpose, and clusters of one and two nodes."""

from __future__ import annotations

import json
import logging
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdr1 import cli
from sdr1.base.errors import UserError
from sdr1.config.policy import PolicyConfig
from sdr1.config.training import validate
from sdr1.doctor import ground as surveyed
from sdr1.doctor import machine
from sdr1.doctor.findings import examine

pytestmark = pytest.mark.usefixtures("planned_once")


@pytest.fixture
def file(small: Any, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small().model_dump(mode="json")))
    return path


@pytest.fixture
def without_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveyed, "_with_nodes", lambda ground, address, folder: ground)


def wrong(path: Path | None, *overrides: str) -> list[tuple[str, str]]:
    return [(each.check, each.found) for each in examine(path, overrides) if not each.fit]


@pytest.mark.usefixtures("without_cluster")
def test_mistakes_of_the_config_are_findings_and_nothing_is_written(file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert wrong(file) == []
    (check, found) = wrong(file, "learner.ranks=0")[0]
    assert (check, found.split(":")[0]) == ("config", "learner.ranks")
    assert ("config", "learner.device: 'cuda': no CUDA device is visible here") in wrong(
        file, "learner.device=cuda"
    )
    assert wrong(tmp_path / "none.yaml")[0][0] == "config"
    assert wrong(file, f"run.directory={file}")[0][0] == "config"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("without_cluster")
def test_a_folder_that_cannot_be_written_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(surveyed.tempfile, "TemporaryDirectory", refuse)
    ((check, found),) = wrong(file)
    assert check == "folder"
    assert "cannot be written (Permission denied)" in found


@pytest.mark.usefixtures("without_cluster")
def test_an_mlflow_that_does_not_answer_is_one_line_without_its_password(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As a terminal's process has it, whatever ran before in this one.
    monkeypatch.setattr(logging.getLogger("urllib3"), "level", logging.NOTSET)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}")
        assert cli.main(["doctor", str(file), "tracking.enabled=true", "--json"]) == 1
    printed = capsys.readouterr()
    (wrong,) = (each for each in json.loads(printed.out)["findings"] if not each["fit"])
    assert wrong["check"] == "mlflow"
    assert wrong["found"].startswith("MLFLOW_TRACKING_URI: http://127.0.0.1:")
    assert "secret" not in wrong["found"]
    # urllib3 warns of each attempt that it makes again.
    assert (printed.err, caplog.messages) == ("", [])


@pytest.mark.usefixtures("without_cluster")
def test_an_mlflow_that_answers_keeps_no_run_of_the_look(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store := f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.chdir(tmp_path)
    found = {each.check: each for each in examine(file, ["tracking.enabled=true"])}
    assert found["mlflow"].fit
    assert found["mlflow"].found == f"{store} takes runs and files"
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("sdr1")
    assert experiment is not None
    assert client.search_runs([experiment.experiment_id]) == []


def test_weights_neither_cached_nor_reachable_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    (tmp_path / "unet").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))

    def away(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", away)
    with pytest.raises(
        UserError, match=r"policy.model: 'a/b': its weights are not cached here .*no route to the hub"
    ):
        machine._require_weights("a/b", None)
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "weights.safetensors").touch()
    machine._require_weights("a/b", None)


def test_models_that_are_not_on_this_machine_are_named() -> None:
    config = validate({"policy": {"model": "/nowhere/sd", "steps": 2}})
    assert machine.problem_of_models(config).startswith("policy.model: '/nowhere/sd': no such file or folder")
    assert machine.problem_of_models(validate({"policy": PolicyConfig().model_dump()})) == ""


def test_limits_are_those_of_the_process() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)); "
        "from sdr1.doctor.machine import look; print(look().open_files)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["300"]
    assert machine.look().open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_an_address_without_a_cluster_is_a_finding(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(file), "--ray-address", "127.0.0.1:1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fit"] is False
    (told,) = [each for each in found["findings"] if not each["fit"]]
    assert told["check"] == "ray"
    assert told["found"].startswith("--ray-address: '127.0.0.1:1': no Ray cluster answers there")
    assert told["fix"].startswith("start one")
