"""The loop of SafeDiffusion-R1's released code, written anew from its description, against ours: the same work, paired.

Same pipeline and settings on both sides: 50 steps, guidance 5, a group of 16, 49 trained transitions of each image, one
optimizer step a group. The released code draws and trains in batches of 4, goes through the timesteps one after the other,
writes every image as a JPEG and reads it again, and scores images one at a time with two text encodings each.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

from benchmarks.common import report
from sdr1.base.process import prepare_process
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.method import ddim
from sdr1.method.objective import clipped_loss, group_advantages
from sdr1.method.steering import safety_direction, translate
from sdr1.models.policy import Policy
from sdr1.rewards.scorer import Scorer
from sdr1.sandbox import CLIP
from sdr1.sandbox.captions import SAFE_ANCHORS, UNSAFE_ANCHORS
from sdr1.training.learner import Learner
from sdr1.training.objectives.grpo import Grpo

RUNS, BATCH, ALPHA = 5, 4, 1.5
SETTINGS = [
    "policy.model=sandbox", "policy.size=null", "policy.precision=float32", "policy.gradient_checkpointing=false",
    "prompts.path=sandbox", "prompts.per_iteration=1", "learner.groups_per_update=1", "learner.micro_batch=32",
    "reward.model=sandbox", "reward.anchors=sandbox", f"reward.alpha={ALPHA}",
    "learner.device=cpu", "rollout.device=cpu", "reward.device=cpu", "tracking.enabled=false",
]  # fmt: skip
TASK = GroupTask(0, 0, 0, Prompt("a deadly skull beside a red circle", "unsafe"), 0)


class Reference:
    """The released loop for one group; its optimizer is AdamW with the same settings."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._policy = Policy(config.policy, seed=config.seed)
        self._optimizer = torch.optim.AdamW(self._policy.parameters, lr=config.learner.learning_rate)
        name = f"local-dir:{CLIP}"
        self._clip, _, self._preprocess = open_clip.create_model_and_transforms(name)
        self._tokenizer = open_clip.get_tokenizer(name)
        anchors = (self._texts(list(each)) for each in (SAFE_ANCHORS, UNSAFE_ANCHORS))
        self._direction = safety_direction(*anchors)

    @torch.no_grad()
    def _texts(self, texts: list[str]) -> torch.Tensor:
        return normalize(self._clip.encode_text(self._tokenizer(texts)), dim=-1)

    @torch.no_grad()
    def _reward(self, image_HWC: np.ndarray, text: str) -> float:
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, format="JPEG")
        pixels = self._preprocess(Image.open(file))[None]
        seen = normalize(self._clip.encode_image(pixels), dim=-1)
        self._texts([text])
        return (seen @ translate(self._texts([text]), self._direction, ALPHA)[0]).item()

    @torch.no_grad()
    def _sample(self, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor], np.ndarray]:
        latents = torch.randn(1, 4, 8, 8).expand(count, -1, -1, -1)
        states, log_probs = [latents], []
        for step in range(self._config.policy.steps):
            mean, sigma = self._policy.transition(latents, torch.full((count,), step), TASK.prompt.text)
            latents = mean + sigma * torch.randn_like(latents)
            states.append(latents)
            log_probs.append(ddim.log_prob(latents, mean, sigma))
        return states, log_probs, self._policy.decode(latents, TASK)

    def __call__(self) -> None:
        batches = [self._sample(BATCH) for _ in range(self._config.rollout.group_size // BATCH)]
        rewards = [self._reward(image, TASK.prompt.text) for *_, images in batches for image in images]
        advantages = group_advantages(torch.tensor(rewards), self._config.learner.advantage_clip)
        trained = list(self._config.policy.window)
        total = len(trained) * len(rewards)
        for number, (states, log_probs, _) in enumerate(batches):
            own = advantages[number * BATCH : (number + 1) * BATCH]
            for step in np.random.permutation(trained):
                mean, sigma = self._policy.transition(
                    states[step], torch.full((BATCH,), int(step)), TASK.prompt.text
                )
                found = ddim.log_prob(states[step + 1], mean, sigma)
                loss, _ = clipped_loss(found, log_probs[step], own, self._config.learner.clip_range)
                (loss.sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(self._policy.parameters, self._config.learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Ours:
    """The same group by the parts that training is made of."""

    def __init__(self, config: Config) -> None:
        self._policy = Policy(config.policy, seed=config.seed)
        self._grpo, self._learner = Grpo(config, self._policy), Learner(config, self._policy)
        self._scorer = Scorer(config.reward)

    def __call__(self) -> None:
        rollout = self._grpo.rollout(TASK)
        scores = self._scorer.score(rollout.images, TASK.prompt)
        self._learner.accumulate(TASK, rollout.experience, scores)
        self._learner.step()


def cpu_seconds(call: Callable[[], None]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main() -> None:
    prepare_process(1)
    config = load("configs/sd14-reference.yaml", SETTINGS)
    reference, ours = Reference(config), Ours(config)
    pairs = [(cpu_seconds(reference), cpu_seconds(ours)) for _ in range(RUNS)]
    report(
        "reference_loop",
        "CPU seconds of the released code's loop over CPU seconds of ours, for one group",
        pairs,
    )


if __name__ == "__main__":
    main()
