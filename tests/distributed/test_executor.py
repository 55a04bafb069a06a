"""The Ray executor against the one-process one."""

from __future__ import annotations

import json

import pytest

from sdr1.train import train


@pytest.mark.parametrize("workers", [1, 3])
def test_ray_and_one_process_train_the_same_bits(small, tmp_path, workers):
    local = train(small(iterations=2, run={"directory": str(tmp_path / "local")}), local=True)
    config = small(iterations=2, run={"directory": str(tmp_path / "ray")}, rollout={"workers": workers})
    ray = train(config)
    assert ray.weights_sha256 == local.weights_sha256
    assert json.loads((tmp_path / "ray" / "summary.json").read_text())["weights_sha256"] == ray.weights_sha256
    untrained = train(small(iterations=1, learner={"learning_rate": 1e-12}), local=True)
    assert untrained.weights_sha256 != local.weights_sha256
