"""A cluster that cannot be joined or started."""

from __future__ import annotations

import os
import time

import pytest
import ray

from sdr1.base.errors import TrainingError, UserError
from sdr1.distributed.cluster import joined
from sdr1.training.run import train


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nohost.invalid:6379", "a:b:c", "x" * 3000],
    ids=lambda address: address[:20],
)
def test_an_address_that_nobody_answers_is_one_line_at_once_and_nothing_is_written(small, tmp_path, address):
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        train(small(), ray_address=address)
    assert time.monotonic() - begin < 200, "Ray alone tries for five minutes"
    assert str(caught.value).startswith(f"--ray-address: '{address[:100]}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "run").exists()


def test_a_temporary_folder_too_long_for_sockets_is_named_and_nothing_is_written(
    small, tmp_path, monkeypatch
):
    long = tmp_path / ("t" * 90)
    long.mkdir()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(UserError, match=f"^TMPDIR: {long}: Ray cannot start there .*short path"):
        train(small())
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_was_started_ends_with_its_block(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cores = 2 + (os.cpu_count() or 1)
    with joined(None, cores), joined(None, 2 * cores):
        assert ray.cluster_resources()["CPU"] == cores
    assert not ray.is_initialized()


def test_a_machine_too_busy_for_ray_is_one_line(monkeypatch):
    told = "The current node timed out during startup."

    def init(**_: object) -> None:
        raise Exception(told)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    with (
        pytest.raises(TrainingError, match=f"did not start on this machine .*{told}.*: end what else"),
        joined(None, 1),
    ):
        pass
