"""CASteer: while the model draws, the concept's direction is taken out of what cross-attention gives; no weight changes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import normalize

from sdr1.base.errors import UserError
from sdr1.base.section import Section
from sdr1.erasers import layers
from sdr1.erasers.meter import Meter
from sdr1.erasers.patches import Call
from sdr1.erasers.protocol import Eraser, Patch, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step
from sdr1.models import texts


class Constants(Section):
    strength: FiniteFloat = Field(
        2.0,
        ge=0,
        le=100,
        description="b: 1 takes the direction out, 2 turns it round, and then restoring the length changes nothing.",
    )


class CasteerPatch(Patch):
    """At every cross-attention's output, a token v becomes v - b max(<v, s>, 0) s, rescaled to its length; s is of the layer and
    of the nearest timestep that vectors were made for.

    Tensors: `times`, shape (S,), and for each cross-attention by its name vectors of length 1, shape (S, E)."""

    Settings: ClassVar = Constants

    def install(self, pipeline: Any) -> None:
        found = layers.cross_attentions(pipeline.unet)
        if found.keys() != self.tensors.keys() - {"times"}:
            raise UserError("patch: casteer: its layers are not those of this UNet; give its own base")
        self._time = 0.0
        pipeline.unet.register_forward_pre_hook(self._see, with_kwargs=True)
        for name, module in found.items():
            width = module.to_out[0].out_features
            if self.tensors[name].shape[-1] != width:
                raise UserError(
                    f"patch: casteer: {name}: its vectors are not {width} wide; give its own base"
                )
            module.register_forward_hook(
                lambda _, __, output, vectors=self.tensors[name]: self._steered(output, vectors)
            )

    def _see(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._time = Call.of(args, kwargs).timestep

    def _steered(self, output_BNE: torch.Tensor, vectors_SE: torch.Tensor) -> torch.Tensor:
        nearest = int((self.tensors["times"] - self._time).abs().argmin())
        return steer(output_BNE, vectors_SE[nearest].to(output_BNE), self.settings.strength)


def steer(tokens_BNE: torch.Tensor, direction_E: torch.Tensor, strength: float) -> torch.Tensor:
    """v - b max(<v, s>, 0) s, with the length of v; shape (B, N, E)."""
    share = (tokens_BNE @ direction_E).clamp(min=0)[..., None]
    turned = tokens_BNE - strength * share * direction_E
    tiny = torch.finfo(turned.dtype).tiny
    return turned * (
        tokens_BNE.norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True).clamp(min=tiny)
    )


class Casteer(Constants, Eraser):
    """s = the normalised difference of cross-attention's mean output, over pairs of prompts and over tokens, with the concept
    and without it, of the conditional half, for each step and layer. Section 3 of the paper."""

    name = "casteer"
    kind = "steering"
    changes = "nothing; turns cross-attention's outputs"
    needs = "pairs of prompts; draws its own latents"
    source = "CASteer (arXiv 2503.09630); Atmyre/CASteer"
    patch = CasteerPatch
    sandbox: ClassVar = {"pairs": 80, "guidance": 1.5}

    pairs: int = Field(
        104,
        ge=1,
        le=10**6,
        description="Drawings with the concept, and as many without, from the same noise.",
    )
    guidance: FiniteFloat = Field(7.5, ge=1, le=100, description="Of these drawings.")
    batch: int = Field(8, ge=1, le=4096, description="Pairs that are drawn at once.")

    def unet_evaluations(self, task: Task) -> int:
        return self.pairs * self._cost(task)

    def _cost(self, task: Task) -> int:
        return 2 * task.sampler.steps * cost_of_a_step(self.guidance)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch:
        sampling = Sampling(pipeline, task.sampler, self.guidance)
        # As many as the budget pays; the first has to be.
        count = max(1, meter.affordable(self.pairs, 2 * len(sampling.times) * sampling.cost))
        empty = texts.states(pipeline, [""])
        unsafe, neutral = texts.states(pipeline, task.unsafe), texts.states(pipeline, task.neutral)
        random = task.generator(self.name)
        total: dict[str, torch.Tensor] = {}
        for start in range(0, count, self.batch):
            chosen = torch.arange(start, min(start + self.batch, count)) % len(unsafe)
            noise = sampling.noise(len(chosen), random)
            for sign, states in ((1, unsafe), (-1, neutral)):
                with Recorder(pipeline.unet, len(chosen)) as recorder:
                    sampling.draw(pipeline.unet, states[chosen.to(states.device)], empty, noise)
                for name, means in recorder.means().items():
                    total[name] = total.get(name, 0) + sign * means
        vectors = {name: normalize(found, dim=-1).float() for name, found in total.items()}
        return self.with_constants({"times": sampling.times.float(), **vectors})


class Recorder(ExitStack):
    """Within its block, keeps of every call of a UNet's cross-attentions the mean output over the last `size` samples, the
    conditional ones, and over tokens."""

    def __init__(self, unet: Any, size: int) -> None:
        super().__init__()
        self._size = size
        self._found: dict[str, list[torch.Tensor]] = {}
        for name, module in layers.cross_attentions(unet).items():
            kept = self._found[name] = []
            handle = module.register_forward_hook(
                lambda _, __, output, kept=kept: kept.append(output[-self._size :].double().mean(1).sum(0))
            )
            self.callback(handle.remove)

    def means(self) -> dict[str, torch.Tensor]:
        """By layer, sums over samples of each call's means over tokens, shape (S, E), float64."""
        return {name: torch.stack(kept) for name, kept in self._found.items()}
