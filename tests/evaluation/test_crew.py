"""An evaluation on Ray: the bytes of a local one, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from sdr1.base.errors import TrainingError
from sdr1.config.evaluation import read
from sdr1.evaluation import on_ray as crew
from sdr1.evaluation import run

pytestmark = pytest.mark.usefixtures("shared_ray")
# Three batches.
SETTINGS = {"images": 1, "batch_size": 8, "sampler": {"steps": 2}, "judges": ["oracle"]}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "out"
    run.evaluate("sandbox", "sandbox", out, SETTINGS, run.Place(local=True))
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mortal(role: type, method: str, deaths: Path, times: int) -> type:
    """A role whose process is killed in the middle of a call, from its second one on, `times` times in all."""

    class Mortal(role):
        calls = 0

    def die(self, *arguments):
        self.calls += 1
        died = len(list(deaths.iterdir()))
        if self.calls > 1 and died < times:
            (deaths / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(role, method)(self, *arguments)

    setattr(Mortal, method, die)
    return Mortal


def test_what_died_with_its_worker_is_made_again_to_the_same_bytes(local, tmp_path, monkeypatch):
    for name, method in (("PainterActor", "draw"), ("JudgeActor", "judge")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(crew, name, mortal(getattr(crew, name), method, tmp_path / name, 1))
    result = run.evaluate("sandbox", "sandbox", tmp_path / "out", {**SETTINGS, "workers": 2})
    assert all(list((tmp_path / name).iterdir()) for name in ("PainterActor", "JudgeActor"))
    assert contents(tmp_path / "out") == local
    assert result.figures["utility/overall"].n == 6
    # A suite goes on with the cluster: nothing of this evaluation holds on to it.
    cpus, deadline = ray.cluster_resources()["CPU"], time.monotonic() + 60
    while ray.available_resources().get("CPU") != cpus and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == cpus


def test_a_batch_that_kills_every_painter_is_named(tmp_path, monkeypatch):
    class Painter(crew.Actor):
        def __init__(self, model, config):
            pass

        def draw(self, rows):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(crew, "PainterActor", Painter)
    with pytest.raises(
        TrainingError, match=r"batch 0 \(from row single_object-0000\) was lost|died in a row"
    ):
        run.evaluate("sandbox", "sandbox", tmp_path / "out", SETTINGS)


def test_a_start_has_a_timeout_of_its_own():
    config = read({"task_timeout": 5, "start_timeout": 60})
    made = crew._Crew([], "sandbox", [], config)
    assert (made._calls._timeout, made._calls._start_timeout) == (5, 60)
