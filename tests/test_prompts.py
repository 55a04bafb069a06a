"""The stream of groups: a function of the seed and the iteration."""

from __future__ import annotations

from sdr1.prompts import PromptStream
from sdr1.types import Prompt

PROMPTS = [Prompt(f"{label} {n}", label) for label in ("safe", "unsafe") for n in range(5)]


def test_the_first_iterations_are_unguided(small):
    stream = PromptStream(PROMPTS, small(4, rollout={"unguided_iterations": 2}))
    guidance = [{task.guidance_scale for task in stream.tasks(n, version=n)} for n in range(4)]
    assert guidance == [{1.0}, {1.0}, {2.0}, {2.0}]


def test_every_epoch_holds_every_prompt_once_and_needs_no_position(small):
    config = small(5, prompts={"per_iteration": 2, "unsafe_share": 0.5})
    stream = PromptStream(PROMPTS, config)
    epoch = [task.prompt.text for n in range(5) for task in stream.tasks(n, version=n)]
    assert sorted(epoch) == sorted(prompt.text for prompt in PROMPTS)
    assert PromptStream(PROMPTS, config).tasks(3, version=3) == stream.tasks(3, version=3)
