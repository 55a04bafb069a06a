"""The check for a GPU, on the CPU with a tiny UNet: its figures mean what they say, and time that runs out is said."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.suite.reference_loop import TASK, Ours
from sdr1.config.files import load
from sdr1.models.policy import Policy
from sdr1.planning.counts import count
from sdr1.planning.plan import plan

PARTS = ["sandbox", "ratio", "bits", "memory/sd14-main", "speed/reference", "adamw"]


@pytest.mark.slow
def test_the_figures_mean_what_they_say(tmp_path, monkeypatch):
    # A plan takes seconds, and one is enough here.
    plans = []

    def once(config):
        plans.append(plans[0] if plans else plan(config))
        return plans[0]

    monkeypatch.setattr(gpu_check, "plan", once)
    out = tmp_path / "gpu_check.json"
    found = gpu_check.run(gpu_check.TINY, out, limit=math.inf, only=PARTS)
    assert json.loads(out.read_text()) == found
    parts = found["parts"]
    assert not [part for part in parts.values() if "failed" in part or "skipped" in part], parts
    assert 0 <= parts["sandbox"]["largest_gap"] <= 1e-5
    assert parts["ratio/float32"]["largest_gap"] <= parts["ratio/float32"]["tolerance"] == 1e-5
    assert parts["ratio/bfloat16"]["is_one"]
    assert parts["bits"]["same_bits"]
    for role in ("rollout", "reward", "learner"):
        memory = parts["memory/sd14-main"][role]
        assert memory["ratio"] == memory["measured"] / memory["planned"]
        # Of a tiny encoder what its weights are read into counts too.
        assert memory["ratio"] == pytest.approx(1, abs=0.4 if role == "reward" else 0.2), role
    speed = parts["speed/reference"]
    assert speed["images_per_second"] == pytest.approx(1 / sum(speed["seconds_per_image"].values()))
    spent = speed["images_per_second"] * speed["flops_per_image"]
    assert speed["share_of_bf16_peak"] == pytest.approx(spent / parts["peak"]["bf16_flops_per_second"])
    assert parts["adamw"]["fused_seconds"] > 0


def test_bits_that_differ_are_named_from_where_they_part(tmp_path, monkeypatch):
    check = gpu_check.Check(gpu_check.TINY, tmp_path)
    check.models()
    draws = iter([0, 1, 0, 0])
    whole = Ours.step

    def step(ours):
        ours.policy.parameters[0].grad += next(draws)
        whole(ours)

    monkeypatch.setattr(Ours, "step", step)
    found = check.bits()
    assert (found["same_bits"], found["different"]) == (False, ["weights"])
    assert found["same_bits_with_deterministic_algorithms"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_ratio_that_is_not_one_is_seen(tmp_path, monkeypatch):
    check = gpu_check.Check(gpu_check.TINY, tmp_path)
    check.models()
    chain = Policy.chain

    def rounded(*args, **options):
        latents, trajectory = chain(*args, **options)
        return latents, replace(trajectory, states=trajectory.states.astype("float16").astype("float32"))

    monkeypatch.setattr(Policy, "chain", rounded)
    assert not check.ratio("float32")["is_one"]


def test_seconds_of_a_whole_run_follow_from_its_evaluations():
    short = load("configs/sd14-main.yaml", ["prompts.per_iteration=1", "learner.groups_per_update=1"])
    whole = load("configs/sd14-main.yaml")
    counts = count(short)
    times = {"decode": 16, "score": 32, "step": 256, "accumulate": counts.learner * 3}
    times["rollout"] = counts.rollout + counts.reference + times["decode"]
    found = gpu_check.seconds_per_image(times, short, counts, count(whole))
    # An evaluation takes 1 s, 3 s with backward; 100 and 98 evaluations an image, 98 with backward; 256 images an update.
    assert found == {"rollout": 198 + 1, "reward": 2, "learner": 3 * 98 + 1}


def test_a_part_that_does_not_fit_is_skipped_and_says_so():
    assert gpu_check.attempt(60, 30, dict) == {"skipped": "it may take 60 s, and 30 s are left"}
    stopped = gpu_check.attempt(0.05, 1, lambda: time.sleep(90) or {})
    assert stopped["skipped"] == "its 0 s were not enough"
    assert stopped["took_seconds"] < 60

    def broken():
        raise RuntimeError("CUDA out of memory\nmore")

    assert gpu_check.attempt(1, 1, broken)["failed"] == "RuntimeError: CUDA out of memory"


def test_the_models_are_of_the_size_of_stable_diffusion(tmp_path):
    """Of the full check, what needs no GPU: its configs are valid and its counts those of the presets."""
    check = gpu_check.Check(gpu_check.FULL, tmp_path)
    for preset in ("sd14-main", "sd14-lora", "sd14-forward", "sd14-reference"):
        whole, short = count(check.config(preset, short=False)), count(check.config(preset))
        assert whole.total / whole.images == pytest.approx(
            count(load(f"configs/{preset}.yaml")).total / whole.images
        )
        assert short.groups == short.updates == 1
    assert TASK.version == -1
