"""`ray job submit` on a running local head with token authentication: log lines, exit codes, stop, resume."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from sdr1.training import checkpoint

pytestmark = pytest.mark.slow
RAY = str(Path(sys.executable).with_name("ray"))
CLIENT = """
import json, sys
from ray.job_submission import JobSubmissionClient
info = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
print("INFO", json.dumps([str(info.status.value), info.driver_exit_code]))
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head:
    """A local head that demands a token, and its jobs."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
        }
        command = [
            RAY, "start", "--head", "--block", "--num-cpus=3", f"--port={free_port()}", f"--dashboard-port={port}",
            # Its default port may be another cluster's on this machine.
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ]  # fmt: skip
        with open(folder / "head.log", "w") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it runs jobs: it lists them before the agent that starts them is there."""
        end = time.monotonic() + 600
        while self.ray("job", "submit", "--", "true").returncode:
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < end, (self.folder / "head.log").read_text()

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = [RAY, *arguments[:2], "--address", self.url, *arguments[2:]]
        return subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, cwd=self.folder
        )

    def submit(self, name: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess:
        runtime = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}})
        options = ["--working-dir", str(self.folder / "work"), "--runtime-env-json", runtime]
        options += ["--submission-id", name, *([] if wait else ["--no-wait"])]
        return self.ray("job", "submit", *options, "--", sys.executable, "-m", "sdr1", "train", *arguments)

    def outcome(self, name: str) -> tuple[str, int | None]:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, self.url, name],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("INFO ")]
        status, code = json.loads(line.removeprefix("INFO "))
        return status, code

    def end(self) -> None:
        # One that did not start leaves none; what it said stands in the test's own error.
        with suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                process.kill()
        self.process.wait()


@pytest.fixture
def head(tmp_path):
    (tmp_path / "work").mkdir()
    head = Head(tmp_path)
    try:
        head.wait()
        yield head
    finally:
        head.end()


def test_jobs(head, small, tmp_path):
    run = tmp_path / "run"
    config = small(3, tracking={"enabled": True})
    (tmp_path / "work" / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))

    refused = head.ray("job", "list", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode, "another token gets nothing"

    bad = head.submit("bad", "config.yaml", "rollout.group_size=1")
    assert bad.returncode
    assert "error: rollout.group_size" in bad.stdout, bad.stdout + bad.stderr
    assert "Traceback" not in bad.stdout
    assert head.outcome("bad") == ("FAILED", 2)

    assert head.submit("long", "config.yaml", "iterations=500", wait=False).returncode == 0
    end = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_bytes().count(b"\n") < 3:
        assert time.monotonic() < end, head.ray("job", "logs", "long").stdout
        time.sleep(0.2)
    head.ray("job", "stop", "long")
    # Ray keeps no exit code of a job that it was told to stop.
    status, _ = head.outcome("long")
    logs = head.ray("job", "logs", "long").stdout
    assert status == "STOPPED", logs
    assert "stopped by SIGTERM; the newest checkpoint is on disk" in logs
    reached = checkpoint.newest(run).state.iteration
    assert reached >= 3
    rows = (run / "metrics.jsonl").read_bytes().count(b"\n")
    identity = (run / "run.json").read_text()

    more = head.submit("more", "config.yaml", f"iterations={rows + 2}", "--resume", str(run))
    assert more.returncode == 0, more.stdout
    assert head.outcome("more") == ("SUCCEEDED", 0)
    assert f"{rows + 2}/{rows + 2} reward safe" in more.stdout, "plain progress lines"
    assert "weights_sha256=" in more.stdout
    assert "\x1b[2K" not in more.stdout, "no live bar in a log"
    assert (run / "run.json").read_text() == identity

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("sdr1").experiment_id])
    steps = [point.step for point in client.get_metric_history(found.info.run_id, "5_health/loss")]
    assert sorted(steps) == list(range(rows + 2))
    assert found.info.status == "FINISHED"
