"""A store that is a real S3 server on loopback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
import s3fs

from sdr1.base.errors import UserError
from sdr1.training.storage import Storage, explained

BUCKET = "bucket"
SMOKE = Path(__file__).parents[2] / "configs" / "sandbox-smoke.yaml"


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


@pytest.fixture(autouse=True)
def _told(server, monkeypatch) -> None:
    """The way to the server, as the environment tells it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_s3_refuses_is_one_line_with_its_cure(monkeypatch):
    store = Storage(f"s3://{BUCKET}/some/run")
    assert store.names() == set()
    store.put(SMOKE, "checkpoints/000001/checkpoint.json")
    assert store.names() == {"checkpoints/000001/checkpoint.json"}
    assert store.read("checkpoints/000001/checkpoint.json") == SMOKE.read_bytes()
    assert store.read("nothing") == b""
    store.remove("checkpoints/000001/checkpoint.json")
    store.remove("checkpoints/000001/checkpoint.json")
    assert store.names() == set()
    told = {"missing": "The specified bucket does not exist; make the bucket, or give another address"}
    with (
        pytest.raises(UserError, match=f"run.storage: s3://missing/run: {told['missing']}"),
        explained("s3://missing/run"),
    ):
        Storage("s3://missing/run").names()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    s3fs.S3FileSystem.clear_instance_cache()
    with (
        pytest.raises(UserError, match="Unable to locate credentials; give credentials that may"),
        explained("s3://a/b"),
    ):
        Storage("s3://bucket/run").names()
