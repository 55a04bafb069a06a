"""What a method that makes a model safer is: a record of its constants that can be called.

How a method is added
---------------------
1. One file in `sdr1/erasers/methods/`, with a subclass of `Eraser`:

   - its fields are the method's constants. Their defaults are the official ones for Stable Diffusion 1.x, each with its
     source; `sandbox` holds those that are others on the sandbox. Where the released code does another thing than the
     paper, a field says which is done.
   - `erase` gets a copy of the pipeline that is its own, in float32, with nothing that requires a gradient, and changes
     its UNet or its text encoder in place. What weights cannot say it returns as a `Patch`.
   - every draw at random comes from `task.generator(NAME)`, or from torch's own generator, which is seeded.
   - before a piece of work it asks `meter.affords`, so that the budget is never passed.
   - `unet_evaluations` says beforehand what a task will cost, in the meter's unit.

2. One line in `METHODS` of `sdr1/erasers/methods/__init__.py`. The command line, the saved folder, the model card, the
   loader of patches and the tests that hold for every method find it there.
3. One test file in `tests/erasers/methods/`: its loss or closed form against an independent computation.

What methods share stands once beside this file: `layers` (which parameters), `ridge` (closed forms), `trajectories`
(latents that the model itself draws), `adapters` (small modules beside layers), `maps` (what cross-attention looks at),
`patches` (what sees a call of the UNet), and `sdr1.models.texts`, `sdr1.models.lora`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from sdr1.base.errors import TrainingError, UserError
from sdr1.base.section import Section
from sdr1.erasers.meter import Meter
from sdr1.models.schedulers import Sampler


@dataclass(frozen=True)
class Task:
    """What shall be erased, and what kept."""

    words: tuple[str, ...]
    """The concept in words, without articles."""
    unsafe: tuple[str, ...]
    """Prompts of the concept."""
    neutral: tuple[str, ...]
    """Of each of them its twin without the concept; may be the empty prompt."""
    retain: tuple[str, ...]
    """Prompts whose pictures shall stay."""
    sampler: Sampler
    """How the model is deployed."""
    seed: int

    def naming(self, words: Sequence[str]) -> list[int]:
        """Places of the unsafe prompts that name one of these words."""
        return [
            place
            for place, prompt in enumerate(self.unsafe)
            if any(f" {word.lower()} " in f" {prompt.lower()} " for word in words)
        ]

    def kept(self, method: str) -> tuple[str, ...]:
        """The prompts to keep, for a method that cannot do without.

        Raises:
            UserError: there are none.
        """
        if not self.retain:
            raise UserError(
                f"--prompts: {method} draws prompts to keep and there are none; add rows labelled safe"
            )
        return self.retain

    def generator(self, stream: str) -> torch.Generator:
        """Of one stream of the task's randomness; on the CPU, so that every device draws the same."""
        digest = hashlib.blake2b(f"{self.seed}/{stream}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Patch(ABC):
    """What a method changes at inference and weights cannot say: it sees calls of the UNet, or of modules in it.

    It is made anew from `settings` and `tensors`, so both are all that it knows. It sees no more than the UNet is called
    with: `patches.Clock` tells a new image from a step.
    """

    Settings: ClassVar[type[Section]]
    needs_guidance: ClassVar[bool] = False
    """Whether it is a part of classifier-free guidance, and cannot do anything without."""

    def __init__(self, settings: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self.settings = settings
        self.tensors = dict(tensors)

    @abstractmethod
    def install(self, pipeline: Any) -> None:
        """Let every later call of the pipeline's UNet go through the patch; the weights stay as they are.

        Raises:
            UserError: the tensors do not fit this pipeline.
        """


@dataclass(frozen=True)
class Erased:
    """What a method leaves: a pipeline whose UNet or text encoder may have other weights, and a patch or none, which is not
    installed yet."""

    pipeline: Any
    patch: Patch | None


Kind = Literal["closed form", "fine-tuning", "adapter", "guidance", "steering", "preference"]


class Eraser(Section, ABC):
    """A method: its constants are its fields; calling it is pure."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    changes: ClassVar[str]
    """What of the model, in a few words."""
    needs: ClassVar[str]
    """Of the task, in a few words."""
    source: ClassVar[str]
    """Paper and released code."""
    patch: ClassVar[type[Patch] | None] = None
    sandbox: ClassVar[Mapping[str, Any]] = {}
    """The fields that are others on the sandbox."""

    @abstractmethod
    def unet_evaluations(self, task: Task) -> int:
        """What a task is expected to cost on the meter, without a budget."""

    @abstractmethod
    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch | None:
        """Change the pipeline's weights in place, or return what shall be installed; see this module."""

    def with_constants(self, tensors: Mapping[str, torch.Tensor]) -> Patch:
        """The method's patch of these tensors; its settings are the fields that it shares with the method."""
        assert self.patch is not None
        settings = self.patch.Settings
        return self.patch(settings(**{name: getattr(self, name) for name in settings.model_fields}), tensors)

    def __call__(self, base: Any, task: Task, meter: Meter) -> Erased:
        """Erase from a copy of `base`, a StableDiffusionPipeline; same base, task and budget, same result.

        Raises:
            OutOfBudget: the budget does not reach for anything at all.
            UserError: a constant does not suit the model or the task.
            TrainingError: what came out is not finite, or is the base.
        """
        pipeline = _own(base)
        device = pipeline.unet.device
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            meter.watching(pipeline.unet),
        ):
            torch.manual_seed(task.seed)
            patch = self.erase(pipeline, task, meter)
        for part in (pipeline.unet, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        self._require_result(base, pipeline, {} if patch is None else patch.tensors)
        return Erased(pipeline, patch)

    def _require_result(self, base: Any, own: Any, patched: Mapping[str, torch.Tensor]) -> None:
        """Raise TrainingError for what would be judged and says nothing of the method."""
        held = {**_weights(own), **patched}
        if broken := next((name for name, each in held.items() if not each.isfinite().all()), None):
            raise TrainingError(
                f"{self.name}: {broken} is not finite any more; lower the learning rate, or what else scales the change"
            )
        was = _weights(base)
        if not patched and all(name in was and torch.equal(each, was[name]) for name, each in held.items()):
            raise TrainingError(f"{self.name}: no weight has changed; give more updates, or more of --budget")


def _weights(pipeline: Any) -> dict[str, torch.Tensor]:
    """Of the parts that a method may change."""
    parts = ("unet", "text_encoder")
    return {
        f"{part}.{name}": held for part in parts for name, held in getattr(pipeline, part).named_parameters()
    }


def _own(base: Any) -> Any:
    """The pipeline with a UNet and a text encoder of its own; what no method touches is shared."""
    import copy

    own = {part: copy.deepcopy(getattr(base, part)) for part in ("unet", "text_encoder")}
    pipeline = type(base)(**{**base.components, **own}, requires_safety_checker=False)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
