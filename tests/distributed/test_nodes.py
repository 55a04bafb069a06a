"""What is asked of every node of a cluster, and `sdr1 doctor` on one that is healthy and one that is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from sdr1 import cli
from sdr1.distributed import nodes
from sdr1.doctor.findings import examine


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, and a node that announces GPUs that are not there and has a small object store."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=1, num_gpus=2, object_store_memory=100 * 2**20)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def file(small: Any, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small().model_dump(mode="json")))
    return path


@pytest.mark.usefixtures("cluster")
def test_every_node_answers_for_itself() -> None:
    with nodes.visited() as found:
        assert len({node.name for node in found}) == 2
        assert [node.is_drivers for node in found].count(True) == 1
        (other,) = [node for node in found if not node.is_drivers]

        # Defined here it travels whole: the nodes have no module of this name.
        def refuse_on_the_other() -> str:
            if not ray.get_runtime_context().get_node_id() == head:
                raise ValueError("not here")
            return "here"

        head = ray.get_runtime_context().get_node_id()
        answers = nodes.ask(found, refuse_on_the_other, timeout=60)
        assert isinstance(answers[other.name], ValueError)
        assert sum(isinstance(each, str) for each in answers.values()) == 1
        assert abs(nodes.clock_offset(other, 60)) < 1
        pulled = nodes.pull_seconds(found, 2**24, 60)
        assert list(pulled) == [other.name]
        assert 0 < pulled[other.name] < 60
        late = nodes.ask([other], time.sleep, 60, timeout=1)
        assert str(late[other.name]) == "no answer for 1 s"
    assert ray.available_resources()["CPU"] == 3


@pytest.mark.usefixtures("cluster")
def test_a_clock_that_is_ahead_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The driver's is put back: the nodes keep theirs.
    behind = SimpleNamespace(time=lambda: time.time() - 100)
    with nodes.visited() as found:
        monkeypatch.setattr(nodes, "time", behind)
        assert nodes.clock_offset(found[0], 60) == pytest.approx(100, abs=1)


@pytest.mark.usefixtures("cluster", "planned_once")
def test_what_is_wrong_with_a_cluster_is_named_and_nothing_stays(file: Path, tmp_path: Path) -> None:
    found = examine(file)
    wrong = [each for each in found if not each.fit]
    # A cluster of this kind asks for no token.
    assert [each.check for each in wrong] == ["token", "processors"]
    assert wrong[1].found.endswith("Ray offers 2 GPUs, torch sees 0")
    told = {each.check: each.found for each in found}
    assert told["ray"] == "2 nodes answered, started here for the look"
    assert told["broadcast"].split(" to 1 node at ")[1].endswith("/s or more")
    assert not (tmp_path / "run").exists()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "planned_once")
def test_a_healthy_cluster_is_fit(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = ray.nodes
    monkeypatch.setattr(nodes, "has_token", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [node for node in alive() if not node["Resources"].get("GPU")])
    assert cli.main(["doctor", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fit"
