"""Ray's own autoscaler with its fake node provider: a node is asked for, comes, is used, and goes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The node id that Ray's fake provider takes for the head's."""

DRIVER = """
import json, sys, time
import ray
from benchmarks.suite.schedule import stubs
from sdr1.config.training import validate
from sdr1.training.on_ray.executor import RayExecutor
from sdr1.prompts.stream import PromptStream
from sdr1.base.records import Prompt

ray.init(address=sys.argv[1], log_to_driver=False)
alive = lambda: sum(node["Alive"] for node in ray.nodes())
config = validate({"iterations": 1, "prompts": {"per_iteration": 500},
                   "rollout": {"workers": {"min": 1, "max": 2}, "group_size": 2}})
makers = {}

class Watched(RayExecutor):
    def _rolled_out(self, task, worker, *rest):
        makers[worker.node] = makers.get(worker.node, 0) + 1
        super()._rolled_out(task, worker, *rest)

seen = [alive()]
executor = Watched(config, roles=stubs(0.2, 0.0))
executor.publish(0)
executor.submit(PromptStream([[Prompt("a red circle", "safe")]], config).tasks(0, version=0))
end = time.monotonic() + 180
while len(makers) < 2 and time.monotonic() < end:
    executor._wait()
seen.append(alive())
ray.shutdown()
ray.init(address=sys.argv[1], log_to_driver=False)
while alive() > 1 and time.monotonic() < end:
    time.sleep(1)
seen.append(alive())
print("RESULT", json.dumps({"nodes": seen, "makers": len(makers)}))
"""


@pytest.fixture
def autoscaled(tmp_path):
    """Address of a head of two cores whose autoscaler may add one node of one core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    config = {
        "cluster_name": "fake",
        "max_workers": 1,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": module,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD,
            # Without it the provider's nodes look for a head at Ray's default port, and never join.
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "rollout": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 1.0,
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = tmp_path / "autoscaling.json"
    path.write_text(json.dumps(config))
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        "--include-dashboard=false", f"--autoscaling-config={path}", "--disable-usage-stats",
    ]  # fmt: skip
    with open(tmp_path / "head.log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        # The driver is of this cluster, not a node of the fake provider.
        yield address, os.environ | {"RAY_AUTH_MODE": "disabled"}
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()


@pytest.mark.slow
def test_a_node_is_asked_for_comes_is_used_and_goes(autoscaled, tmp_path):
    address, environment = autoscaled
    end = time.monotonic() + 120
    while "Ray runtime started" not in (tmp_path / "head.log").read_text():
        assert time.monotonic() < end, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, address], env=environment, capture_output=True, text=True, timeout=400
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stderr
    assert json.loads(results[0].removeprefix("RESULT ")) == {"nodes": [1, 2, 1], "makers": 2}
