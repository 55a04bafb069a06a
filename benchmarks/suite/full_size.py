"""A UNet of Stable Diffusion 1.x's size through rollout, reward, update and publication: peak memory over the plan's.

Random weights in diffusers' format, on the CPU. LoRA in float32 with the KL on; full training with bf16 autocast and
gradient checkpointing. An actor ends before the next starts where both would not fit into 24 GB.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.common import report, seconds
from benchmarks.models import pipeline
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.training import Config, validate
from sdr1.distributed.actor import Handle, Ref
from sdr1.distributed.placement import H, Placement
from sdr1.planning.plan import plan
from sdr1.planning.shapes import SD_1
from sdr1.sandbox import PIPELINE
from sdr1.training.on_ray.actors import LearnerActor, RewardActor, RolloutActor
from sdr1.training.on_ray.handles import LearnerHandle, RewardHandle, RolloutHandle

GROUP, SIZE = 2, 32
"""Images of a group, and their side in pixels: 8 latents, as small as this UNet allows."""
MODES: dict[str, dict[str, Any]] = {
    "lora": {"policy": {"trainable": "lora"}, "learner": {"kl_weight": 0.1}},
    "full": {
        "policy": {
            "trainable": "full",
            "precision": "bfloat16",
            "gradient_checkpointing": True,
        }
    },
}


class Measured:
    """An actor that knows its peak."""

    def memory(self) -> dict[str, int]:
        """VmHWM, and what is resident now by kind, in bytes."""
        wanted = ("VmHWM", "RssAnon", "RssFile", "RssShmem")
        rows = [line.split(":") for line in Path("/proc/self/status").read_text().splitlines()]
        return {row[0]: 1024 * int(row[1].split()[0]) for row in rows if row[0] in wanted}


class MeasuredHandle(Handle):
    def memory(self) -> Ref[dict[str, int]]:
        return self._actor.memory.remote()


class Rollout(Measured, RolloutActor):
    pass


class Reward(Measured, RewardActor):
    pass


class Learner(Measured, LearnerActor):
    pass


class RolloutWorker(MeasuredHandle, RolloutHandle):
    pass


class RewardWorker(MeasuredHandle, RewardHandle):
    pass


class LearnerRank(MeasuredHandle, LearnerHandle):
    pass


def main(modes: list[str]) -> None:
    place = Path("outputs/bench").resolve()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        size = make(Path(folder) / "model")
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=round(1.25 * size),
            log_to_driver=False,
        )
        found = {mode: measure(config_of(mode, folder)) for mode in modes or MODES}
        ray.shutdown()
    processes = {f"{mode} {role}": each for mode in found for role, each in found[mode]["memory"].items()}
    more = {mode: {k: v for k, v in one.items() if k != "memory"} for mode, one in found.items()}
    if "lora" in found:
        more["lora_bytes_published_over_full"] = found["lora"]["published"] / size
    report(
        "full_size",
        "a process's peak memory over `sdr1 plan`'s, median of all processes",
        [(each["VmHWM"], each["planned"]) for each in processes.values()],
        processes=processes,
        worst=max((each["VmHWM"] / each["planned"] for each in processes.values()), key=lambda r: abs(r - 1)),
        **more,
    )


def make(folder: Path) -> int:
    """A pipeline folder with such a UNet in float32 beside the sandbox's other parts; bytes of the UNet."""
    text = json.loads((PIPELINE / "text_encoder" / "config.json").read_text())
    text |= {
        "hidden_size": SD_1["unet"]["cross_attention_dim"],
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    return pipeline(folder, {"unet": SD_1["unet"], "text_encoder": text})


def config_of(mode: str, folder: str) -> Config:
    values: dict[str, dict[str, Any]] = {
        "policy": {"model": f"{folder}/model", "steps": 2, "size": SIZE},
        "prompts": {"per_iteration": 1},
        "rollout": {"workers": 2, "group_size": GROUP},
        "learner": {"micro_batch": GROUP},
        "reward": {"anchors": "sandbox"},
    }
    for section, fields in MODES[mode].items():
        values[section] |= fields
    return validate({"run": {"directory": f"{folder}/run"}, **values})


def measure(config: Config) -> dict[str, Any]:
    """Peaks by process beside the plan's, seconds of each step, and the bytes published."""
    planned = plan(config)["memory"]
    took: dict[str, float] = {}
    memory: dict[str, dict[str, int]] = {}

    def start(handle: Callable[[Any], H], role: type, *more: Any) -> H:
        return Placement.on("cpu", 1, handle, role, config, *more)()

    def wait(what: str, *refs: Ref[Any]) -> None:
        took[what] = round(seconds(lambda: ray.get(list(refs))), 1)
        print(f"{config.policy.trainable}: {what}: {took[what]} s", flush=True)

    def end(actor: MeasuredHandle, name: str) -> None:
        role = name.split()[0]
        memory[name] = {**ray.get(actor.memory()), "planned": planned[role]["total"]}
        line = ", ".join(f"{key} {value / 1e9:.2f}" for key, value in memory[name].items())
        print(
            f"{config.policy.trainable}: {name}: {line} GB, {memory[name]['VmHWM'] / memory[name]['planned']:.2f}"
        )
        actor.kill()

    task = GroupTask(0, 0, 0, Prompt("a red circle", "safe"), version=0)
    rollout, reward = start(RolloutWorker, Rollout), start(RewardWorker, Reward)
    wait("start of rollout and reward", rollout.node(), reward.node())
    group = rollout.rollout(task)
    wait("rollout", group.seconds)
    scores = reward.score(group.images, task.prompt)
    wait("reward", scores)
    rollout.kill()
    end(reward, "reward")
    learner = start(LearnerRank, Learner, None)
    wait("start of the learner", learner.node())
    wait("accumulate", learner.accumulate(task, group.experience, scores))
    wait("step", learner.step())
    weights, checksum = learner.publish(1)
    wait("publish", checksum)
    end(learner, "learner")
    workers = [start(RolloutWorker, Rollout) for _ in range(2)]
    wait("start of two workers", *[worker.node() for worker in workers])
    loaded = [worker.load(weights) for worker in workers]
    wait("load in two workers", *loaded)
    assert set(ray.get(loaded)) == {ray.get(checksum)}
    task = replace(task, iteration=1, version=1)
    made = [worker.rollout(task) for worker in workers]
    wait("rollouts in both", *[each.seconds for each in made])
    assert np.array_equal(*[ray.get(each.images) for each in made])
    for number, worker in enumerate(workers, 1):
        end(worker, f"rollout worker {number}")
    return {"memory": memory, "seconds": took, "published": ray.get(weights).buffer.nbytes}


if __name__ == "__main__":
    main(sys.argv[1:])
