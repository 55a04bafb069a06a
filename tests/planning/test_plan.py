"""The plan against what a run really does: FLOPs, bytes, and counts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sdr1 import cli
from sdr1.base.errors import UserError
from sdr1.base.records import GroupTask, Prompt, Rollout, Scores
from sdr1.config.training import Config, validate
from sdr1.models.policy import Policy
from sdr1.planning.costs import count_flops
from sdr1.planning.plan import lines, plan
from sdr1.planning.shapes import fake_modules
from sdr1.training.learner import Learner
from sdr1.training.objectives.forward import Forward
from sdr1.training.objectives.grpo import Grpo
from sdr1.training.objectives.objective import Objective
from tests import tiny


def does_the_planned_flops(
    config: Config, found: dict[str, Any], objective: type[Objective]
) -> tuple[Rollout, Learner]:
    """Draws a group of three and learns from it; what was drawn, and the learner."""
    policy = Policy(config.policy, seed=0, reference=True)
    task = GroupTask(0, 0, 0, Prompt("a red circle", "safe"), 0)
    with count_flops() as rollout:
        made = objective(config, policy).rollout(task)
    learner = Learner(config, policy)
    with count_flops() as learning:
        learner.accumulate(task, made.experience, Scores(np.array([0.1, 0.2, 0.6], np.float32), None, 0.0))
    necessary = found["flops"]["per_image"]
    assert necessary["rollout"] > 0
    assert 0.95 <= rollout.get_total_flops() / (3 * necessary["rollout"]) <= 1.05
    assert 0.95 <= learning.get_total_flops() / (3 * necessary["learner"]) <= 1.05
    return made, learner


@pytest.mark.parametrize(
    ("trainable", "noise", "evaluations"),
    [
        ("lora", "sample", (6, 4, 4)),
        pytest.param("full", "sample", (6, 4, 4), marks=pytest.mark.slow),
        ("full", "group", (14 / 3, 8 / 3, 8 / 3)),
    ],
)
def test_a_run_executes_the_necessary_flops_and_moves_the_planned_bytes(small, trainable, noise, evaluations):
    config = small(
        policy={"trainable": trainable, "initial_noise": noise},
        prompts={"per_iteration": 1, "unsafe_share": None},
        learner={"kl_on": "all", "kl_weight": 1.0},
    )
    found = plan(config)
    made, learner = does_the_planned_flops(config, found, Grpo)
    moved, held = found["bytes_per_iteration"], made.experience
    assert moved["weights_published"] == learner.weights(0).buffer.nbytes
    assert moved["images"] == made.images.nbytes
    assert moved["trajectories"] == held.states.nbytes + held.log_probs.nbytes
    assert moved["reference_means"] == held.reference_means.nbytes
    rollout, reference, learner = evaluations
    every = (*evaluations, rollout + reference + 3 * learner)
    assert tuple(found["unet_evaluations_per_image"].values()) == pytest.approx(every)
    assert any(line.startswith("bottleneck") for line in lines(found))


def test_a_run_on_the_forward_process_does_what_is_planned(small):
    config = small(
        policy={"trainable": "full", "solver": "DPMSolverMultistepScheduler", "noise_window": None},
        learner={"objective": "forward", "groups_per_update": 1, "kl_on": "all"},
    )
    found = plan(config)
    made, _ = does_the_planned_flops(config, found, Forward)
    # Of two groups.
    moved, held = found["bytes_per_iteration"], made.experience
    assert moved["final_latents"] == 2 * held.latents.nbytes
    assert moved["reference_predictions"] == 2 * held.reference.nbytes
    assert moved["old_predictions"] == 2 * held.old.nbytes
    # Three guided steps, and four timesteps by the weights that drew; four of the base; four with backward.
    assert tuple(found["unet_evaluations_per_image"].values()) == (10, 4, 4, 26)


def test_prompts_of_a_mix_are_counted_source_by_source(tmp_path, monkeypatch):
    # Passes through fake models take twenty seconds, and say nothing of prompts.
    monkeypatch.setattr("sdr1.planning.plan.measure", lambda *_: (1, 1))
    for name, label, count in (("a", "safe", 40), ("b", "unsafe", 2), ("c", "unsafe", 8)):
        rows = [f'{{"prompt": "{name} {n}", "label": "{label}"}}\n' for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows) + '{"prompt": null}\n' * (name == "b"))
    mix = [
        {"path": str(tmp_path / f"{name}.jsonl"), "weight": weight}
        for name, weight in (("a", 2), ("b", 1), ("c", 3))
    ]
    values = {"iterations": 10, "prompts": {"mix": mix, "per_iteration": 8, "unsafe_share": 0.5}}
    found = plan(validate(values))
    assert any("1 rows without a prompt skipped" in line for line in lines(found))
    assert {key: found["prompts"][key] for key in ("count", "safe", "unsafe", "unlabelled")} == {
        "count": 50, "safe": 40, "unsafe": 10, "unlabelled": 0,
    }  # fmt: skip
    # Of 4 unsafe groups a quarter and three quarters, of 4 safe groups all.
    assert [list(pool.values()) for pool in found["prompts"]["pools"]] == [
        [2, 1, 5],
        [8, 3, 3.75],
        [40, 4, 1],
    ]
    assert any("8 of them in 3 groups an iteration, 3.8 epochs" in line for line in lines(found))
    mix[1]["path"] = str(tmp_path / "none.jsonl")
    assert "none.jsonl" in plan(validate(values))["prompts"]["missing"]


@pytest.mark.slow
def test_memory_is_counted_on_the_device(small):
    options = {"trainable": "full", "steps": 3, "noise_window": [0, 2]}
    here = plan(small(policy=options))["memory"]
    there = plan(
        small(policy=options, learner={"device": "cuda", "kl_weight": 1.0}, rollout={"device": "cuda"})
    )["memory"]
    shared = plan(small(policy=options, run={"placement": "shared"}, learner={"device": "cuda"}))
    (on_gpu,) = (each["total"] for each in shared["memory"].values() if each["device"] == "cuda")
    assert shared["memory_on_the_one_gpu"] == on_gpu
    assert any("share the one GPU" in line for line in lines(shared))
    trained = here["learner"]["gradients"]
    assert here["learner"]["optimizer"] == 2 * trained
    # Ray's store is the host's memory; a GPU's step and start need one more set of parameters at most.
    assert here["learner"]["published"] == here["rollout"]["published"] == trained
    assert there["learner"]["published"] == there["rollout"]["published"] == 0
    assert there["learner"]["activations"] >= trained
    rollout = there["rollout"]
    assert rollout["activations"] + rollout["start"] == max(rollout["activations"], trained)
    for memory in (here, there):
        for sizes in memory.values():
            parts = [size for name, size in sizes.items() if name not in ("device", "actors", "total")]
            assert sum(parts) == sizes["total"]


def test_a_plan_refuses_what_training_would_refuse(tmp_path):
    folder = tiny.pipeline(tmp_path / "xl")
    tiny.edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(UserError, match="a StableDiffusionXLPipeline; only Stable Diffusion 1.x"):
        plan(validate({"policy": {"model": str(folder)}}))


def test_a_plan_of_a_hub_id_out_of_reach_says_what_it_assumed(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    made = fake_modules(validate({"policy": {"model": "someone/model", "trainable": "lora"}}))
    assert "someone/model cannot be read here" in made.assumed
    assert made.latent == (4, 64, 64)


def test_without_its_prompts_a_plan_is_printed_and_ends_with_2(monkeypatch, capsys):
    missing = "prompts.path: 'none.txt': no such file; give one"
    made = {"prompts": {"count": None, "missing": missing}}
    monkeypatch.setattr("sdr1.planning.plan.plan", lambda config: made)
    assert cli.main(["plan", "configs/sandbox.yaml", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == made
    assert said.err == f"error: {missing}\n"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{", "[]", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": "x"}}']
)
def test_an_encoder_that_its_folder_does_not_describe_is_one_line(small, tmp_path, content):
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match=r"^reward\.model: "):
        plan(small(reward={"model": f"local-dir:{tmp_path}"}))
