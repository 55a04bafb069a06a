"""What patches of a UNet share: what a call of it is about, and when a new image begins."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from sdr1.base.errors import UserError


class Call(NamedTuple):
    """What the UNet was called with."""

    latents: torch.Tensor
    """Shape (B, C, H, W)."""
    time: Any
    states: torch.Tensor
    """Shape (B, L, D)."""

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        names = ("sample", "timestep", "encoder_hidden_states")
        return cls(*(args[n] if n < len(args) else kwargs[name] for n, name in enumerate(names)))

    @property
    def timestep(self) -> float:
        """The noisiest of the samples', as all of a drawing are the same."""
        return float(torch.as_tensor(self.time).max())

    def guided(self, empty_1LD: torch.Tensor) -> bool:
        """Whether it is a pair for classifier-free guidance: the first half has the empty prompt's states."""
        size = len(self.latents)
        empty = empty_1LD.to(self.states)
        return size % 2 == 0 and all(
            torch.allclose(state, empty[0], atol=1e-4) for state in self.states[: size // 2]
        )


class Clock:
    """Knows an image's first step: the pipeline's scheduler has been given its timesteps anew, or for who draws without that
    pipeline, the timestep is higher than that of the step before, or the batch another."""

    def __init__(self, pipeline: Any) -> None:
        # Not the pipeline, which holds the patch: its memory would stay.
        self._pipeline = weakref.ref(pipeline)
        self._last: tuple[float, torch.Size, torch.Tensor | None] | None = None

    def begins(self, call: Call) -> bool:
        """Whether this call, the next one, begins new images; what was kept of the last ones is to be dropped."""
        pipeline = self._pipeline()
        # Schedulers make a new tensor for every drawing, and step through it.
        schedule = None if pipeline is None else pipeline.scheduler.timesteps
        last, self._last = self._last, (call.timestep, call.latents.shape, schedule)
        if last is None or schedule is not last[2]:
            return True
        return call.timestep > last[0] or call.latents.shape != last[1]


def fill(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], method: str) -> None:
    """Copy a patch's tensors, which may be more, into those that it works with.

    Raises:
        UserError: one is missing, or has another shape than this UNet's layers want.
    """
    for name, into in own.items():
        held = tensors.get(name)
        if held is None or held.shape != into.shape:
            raise UserError(f"patch: {method}: {name}: does not fit this UNet; give the patch's own base")
        into.copy_(held)


def replaced(output: Any, prediction_BCHW: torch.Tensor) -> Any:
    """What the UNet returned, a tuple or diffusers' own class, with another prediction."""
    if isinstance(output, tuple):
        return (prediction_BCHW, *output[1:])
    return type(output)(sample=prediction_BCHW)
