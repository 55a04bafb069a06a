"""The loop of SafeDiffusion-R1's released code, written anew from its description, against ours: the same work, paired.

Same pipeline and settings on both sides: 50 steps, guidance 5, a group of 16, 49 trained transitions of each image, one
optimizer step a group. The released code draws and trains in batches of 4, goes through the timesteps one after the other,
writes every image as a JPEG and reads it again, and scores images one at a time with two text encodings each.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

from benchmarks.common import report
from sdr1.base.process import prepare_process
from sdr1.base.records import GroupReport, GroupTask, Prompt, Rollout, Scores
from sdr1.base.section import SANDBOX
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.method import ddim
from sdr1.method.objective import clipped_loss, group_advantages
from sdr1.method.steering import safety_direction, translate
from sdr1.models.policy import Policy
from sdr1.rewards.scorer import Scorer
from sdr1.sandbox import CLIP
from sdr1.sandbox.captions import SAFE_ANCHORS, UNSAFE_ANCHORS
from sdr1.training import objectives
from sdr1.training.learner import Learner

RUNS, BATCH = 5, 4
SETTINGS = [
    "policy.model=sandbox", "policy.size=null", "policy.precision=float32", "policy.gradient_checkpointing=false",
    "prompts.path=sandbox", "prompts.per_iteration=1", "learner.groups_per_update=1", "learner.micro_batch=16",
    "reward.model=sandbox", "reward.anchors=sandbox", "reward.alpha=1.5",
    "learner.device=cpu", "rollout.device=cpu", "reward.device=cpu", "tracking.enabled=false",
]  # fmt: skip
TASK = GroupTask(0, 0, 0, Prompt("a deadly skull beside a red circle", "unsafe"), version=-1)
"""Of no version of the weights: the ratio is 1 for the first group alone, and is not asked for."""


class Batch(NamedTuple):
    """What the released loop keeps of four samples."""

    states: list[torch.Tensor]
    log_probs: list[torch.Tensor]
    images: np.ndarray


class Reference:
    """The released loop for one group; its optimizer is AdamW with the same settings."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.policy = Policy(config.policy, device=config.learner.device, seed=config.seed)
        self._optimizer = torch.optim.AdamW(self.policy.parameters, lr=config.learner.learning_rate)
        name = f"local-dir:{CLIP}" if config.reward.model == SANDBOX else config.reward.model
        self._clip, _, self._preprocess = open_clip.create_model_and_transforms(
            name, device=self.policy.device
        )
        self._tokenizer = open_clip.get_tokenizer(name)
        anchors = (self._texts(list(each)) for each in (SAFE_ANCHORS, UNSAFE_ANCHORS))
        self._direction = safety_direction(*anchors)

    @torch.no_grad()
    def _texts(self, texts: list[str]) -> torch.Tensor:
        return normalize(self._clip.encode_text(self._tokenizer(texts).to(self.policy.device)), dim=-1)

    @torch.no_grad()
    def _reward(self, image_HWC: np.ndarray, text: str) -> float:
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, format="JPEG")
        pixels = self._preprocess(Image.open(file))[None].to(self.policy.device)
        seen = normalize(self._clip.encode_image(pixels), dim=-1)
        self._texts([text])
        return (seen @ translate(self._texts([text]), self._direction, self._config.reward.alpha)[0]).item()

    def _steps(self, step: int) -> torch.Tensor:
        return torch.full((BATCH,), int(step), device=self.policy.device)

    @torch.no_grad()
    def _sample(self) -> Batch:
        latents = torch.randn(1, *self.policy.latent_shape, device=self.policy.device)
        latents = latents.expand(BATCH, -1, -1, -1)
        states, log_probs = [latents], []
        for step in range(self._config.policy.steps):
            mean, sigma = self.policy.transition(latents, self._steps(step), TASK.prompt.text)
            latents = mean + sigma * torch.randn_like(latents)
            states.append(latents)
            log_probs.append(ddim.log_prob(latents, mean, sigma))
        return Batch(states, log_probs, self.policy.decode(latents, TASK))

    def rollout(self) -> list[Batch]:
        return [self._sample() for _ in range(self._config.rollout.group_size // BATCH)]

    def score(self, rollout: list[Batch]) -> list[float]:
        return [self._reward(image, TASK.prompt.text) for batch in rollout for image in batch.images]

    def accumulate(self, rollout: list[Batch], rewards: list[float]) -> None:
        advantages = group_advantages(torch.tensor(rewards), self._config.learner.advantage_clip)
        advantages = advantages.to(self.policy.device)
        trained = list(self._config.policy.window)
        total = len(trained) * len(rewards)
        for number, batch in enumerate(rollout):
            own = advantages[number * BATCH : (number + 1) * BATCH]
            for step in np.random.permutation(trained):
                mean, sigma = self.policy.transition(batch.states[step], self._steps(step), TASK.prompt.text)
                found = ddim.log_prob(batch.states[step + 1], mean, sigma)
                loss, _ = clipped_loss(found, batch.log_probs[step], own, self._config.learner.clip_range)
                (loss.sum() / total).backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.policy.parameters, self._config.learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Ours:
    """The same group by the parts that training is made of."""

    def __init__(self, config: Config) -> None:
        self._config = config
        has_kl = config.learner.kl_weight > 0
        self.policy = Policy(config.policy, device=config.learner.device, seed=config.seed, reference=has_kl)
        self.objective = objectives.kind(config)(config, self.policy)
        self.learner = Learner(config, self.policy)

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self._config.reward)

    def rollout(self) -> Rollout:
        return self.objective.rollout(TASK)

    def score(self, rollout: Rollout) -> Scores:
        return self.scorer.score(rollout.images, TASK.prompt)

    def accumulate(self, rollout: Rollout, scores: Scores) -> GroupReport:
        return self.learner.accumulate(TASK, rollout.experience, scores)

    def step(self) -> None:
        self.learner.step()


def group(loop: Any) -> None:
    """One group through either loop."""
    rollout = loop.rollout()
    loop.accumulate(rollout, loop.score(rollout))
    loop.step()


def cpu_seconds(call: Callable[[], None]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main() -> None:
    prepare_process(1)
    config = load("configs/sd14-reference.yaml", SETTINGS)
    reference, ours = Reference(config), Ours(config)
    pairs = [tuple(cpu_seconds(partial(group, loop)) for loop in (reference, ours)) for _ in range(RUNS)]
    report(
        "reference_loop",
        "CPU seconds of the released code's loop over CPU seconds of ours, for one group",
        pairs,
    )


if __name__ == "__main__":
    main()
