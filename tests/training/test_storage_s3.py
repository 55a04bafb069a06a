"""The copy of a run in a real S3 server on loopback, whose lines are cut and which is frozen in the middle of writes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import boto3
import fsspec
import pytest
import s3fs

from sdr1.base.errors import UserError
from sdr1.training.checkpoint import complete
from sdr1.training.run_folder import is_stored
from sdr1.training.storage import Storage, explained

BUCKET = "bucket"
SMOKE = Path(__file__).parents[2] / "configs" / "sandbox-smoke.yaml"
COMMAND = [
    "train", str(SMOKE), "--local", "iterations=4", "rollout.group_size=2", "policy.steps=3", "policy.guidance_scale=1",
    "tracking.enabled=false", "run.resume=auto",
]  # fmt: skip
PATIENCE = 900.0
"""Seconds after which a run counts as hanging."""


class Line:
    """A port of loopback that is passed on to another's, byte by byte: `limit` bytes towards the server, then `strike`."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.limit, self.passed, self.strike = float("inf"), 0, lambda: None
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, limit: float, strike: Callable[[], object] = lambda: None) -> None:
        with self._lock:
            self.limit, self.passed, self.strike = limit, 0, strike

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._to))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(*ends, ends[0] is client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError), source, target:
            while block := source.recv(4096):
                if counts:
                    block = self._count(block)
                target.sendall(block)

    def _count(self, block: bytes) -> bytes:
        with self._lock:
            left, self.passed = self.limit - self.passed, self.passed + len(block)
            if left > len(block):
                return block
            self.limit = float("inf")
            self.strike()
            return block[: int(left)]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[subprocess.Popen[bytes]]:
    """moto's S3 server in a process of its own, with a bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = open(tmp_path_factory.mktemp("s3") / "log", "wb")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    process.port = port
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
            aws_access_key_id="key", aws_secret_access_key="secret",
        ).create_bucket(Bucket=BUCKET)  # fmt: skip
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.fixture
def line(server, monkeypatch) -> Line:
    """The way to the server, as every process here is told it."""
    found = Line(server.port)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    return found


def test_what_s3_refuses_is_one_line_with_its_cure(line, monkeypatch):
    store = Storage(f"s3://{BUCKET}/some/run")
    assert store.names() == set()
    store.put(SMOKE, "checkpoints/000001/checkpoint.json")
    assert store.names() == {"checkpoints/000001/checkpoint.json"}
    assert store.read("checkpoints/000001/checkpoint.json") == SMOKE.read_bytes()
    assert store.read("nothing") == b""
    store.remove("checkpoints/000001/checkpoint.json")
    store.remove("checkpoints/000001/checkpoint.json")
    assert store.names() == set()
    assert store.is_empty()
    store.put(SMOKE, "photographs/deep/picture.png")
    assert not store.is_empty()
    with pytest.raises(UserError, match="is not empty and holds no training run"):
        is_stored(f"s3://{BUCKET}/some/run")
    store.remove("photographs/deep/picture.png")
    assert not is_stored(f"s3://{BUCKET}/some/run")
    told = {"missing": "The specified bucket does not exist; make the bucket, or give another address"}
    with pytest.raises(UserError, match=f"run.storage: s3://missing/run: {told['missing']}"):
        is_stored("s3://missing/run")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    s3fs.S3FileSystem.clear_instance_cache()
    with (
        pytest.raises(UserError, match="Unable to locate credentials; give credentials that may"),
        explained("s3://a/b"),
    ):
        Storage("s3://bucket/run").is_empty()


def _train(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    fsspec.config.set_conf_env(fsspec.config.conf)
    from sdr1.cli import main

    code = main(arguments)
    # The store's threads have nothing more to do.
    os._exit(code)


class Runs:
    """Starts runs, each in a process that was forked from one with all libraries."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._processes = get_context("forkserver")
        self._processes.set_forkserver_preload(
            ["sdr1.training.run", "sdr1.training.local", "sdr1.models.policy", "open_clip", "s3fs"]
        )

    def start(self, name: str, *changes: str, fresh: bool = True):
        """In a folder that nothing is in, as on a machine that was just given, unless it is not `fresh`."""
        if fresh:
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.log(name).unlink(missing_ok=True)
        arguments = [*COMMAND, f"run.directory={self.root / name}", *changes]
        process = self._processes.Process(target=_train, args=(arguments, self.log(name), dict(os.environ)))
        process.start()
        return process

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def sha(self, name: str) -> str:
        return [each for each in self.log(name).read_text().splitlines() if "weights_sha256=" in each][-1]


def _copied(address: str) -> tuple[list[str], str]:
    store = Storage(address)
    return store.complete(), json.loads(store.read("summary.json"))["weights_sha256"]


@pytest.mark.slow
def test_twenty_kills_in_the_middle_of_writes_and_twenty_good_resumes(line, tmp_path):
    runs, rng = Runs(tmp_path), random.Random(0)
    kills = resumes = copies = runs_done = 0
    process = runs.start("whole")
    process.join(PATIENCE)
    whole = runs.sha("whole")
    line.set(float("inf"))
    process = runs.start("measured", f"run.storage=s3://{BUCKET}/measured")
    process.join(PATIENCE)
    assert runs.sha("measured") == whole
    total = line.passed
    was_killed = False
    while kills < 20 or was_killed:
        address = f"s3://{BUCKET}/run-{runs_done}"
        before = len(Storage(address).complete())
        struck = threading.Event()
        limit = rng.uniform(0, total) if kills < 20 else float("inf")
        name = "attempt"

        process = runs.start(name, f"run.storage={address}")

        def strike(pid=process.pid, struck=struck):
            struck.set()
            os.kill(pid, signal.SIGKILL)

        line.set(limit, strike)
        process.join(PATIENCE)
        told = runs.log(name).read_text()
        if was_killed:
            assert (f"the run at {address} is copied" in told) == (before > 0) or struck.is_set(), told
            copies += before > 0
            resumes += 1
        if struck.is_set():
            assert process.exitcode == -signal.SIGKILL
            kills, was_killed = kills + 1, True
            continue
        assert process.exitcode == 0, told
        assert runs.sha(name) == whole
        # The newest was sent first: where a kill came before the one before it, the new machine has only that.
        here = [folder.name for folder in complete(tmp_path / name)]
        assert here in (["000003", "000004"], ["000004"])
        assert _copied(address) == (here, whole.removeprefix("weights_sha256="))
        runs_done, was_killed = runs_done + 1, False
    print(
        f"{kills} kills, {resumes} resumes, {copies} of them from a copy; {runs_done} runs to the same bits"
    )
    assert resumes == 20


@pytest.mark.slow
def test_a_server_that_freezes_in_the_middle_of_writes(line, server, tmp_path, monkeypatch):
    """It wakes up while the run goes on, or after its end: then the same command sends what is left."""
    monkeypatch.setenv(
        "FSSPEC_S3",
        '{"config_kwargs": {"read_timeout": 1, "connect_timeout": 1, "retries": {"max_attempts": 1}}}',
    )
    runs, rng = Runs(tmp_path), random.Random(0)
    runs.start("whole").join(PATIENCE)
    whole = runs.sha("whole")
    line.set(float("inf"))
    runs.start("measured", f"run.storage=s3://{BUCKET}/calm").join(PATIENCE)
    total = line.passed
    for number in range(3):
        address = f"s3://{BUCKET}/frozen-{number}"
        line.set(rng.uniform(0.1, 0.9) * total, lambda: server.send_signal(signal.SIGSTOP))
        process = runs.start("frozen", f"run.storage={address}")
        process.join(20 if number else PATIENCE)
        server.send_signal(signal.SIGCONT)
        process.join(PATIENCE)
        print(process.exitcode, runs.log("frozen").read_text())
        if process.exitcode == 1:
            assert "all of it is in" in runs.log("frozen").read_text()
            process = runs.start("frozen", f"run.storage={address}", fresh=False)
            process.join(PATIENCE)
        assert process.exitcode == 0
        assert runs.sha("frozen") == whole
        assert _copied(address) == (["000003", "000004"], whole.removeprefix("weights_sha256="))
