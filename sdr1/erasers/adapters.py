"""Small modules beside a UNet's layers: what they make of a layer's input or output is added to its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from sdr1.erasers.patches import fill


class Adapters(torch.nn.Module):
    """A module for each of a UNet's layers, by name. `factors` are of the samples of a call, shape (B,); None is 1 for all."""

    def __init__(
        self, beside: Mapping[str, torch.nn.Module], sees: Literal["input", "output"] = "input"
    ) -> None:
        super().__init__()
        self._names = tuple(beside)
        self._held = torch.nn.ModuleList(beside.values())
        self._sees = sees
        self._on = True
        self.factors: torch.Tensor | None = None

    def items(self) -> Iterator[tuple[str, Any]]:
        return zip(self._names, self._held, strict=True)

    def attach(self, unet: Any) -> list[Any]:
        """Let the UNet's layers go through the modules; returns what removes each of them again."""
        return [
            unet.get_submodule(name).register_forward_hook(
                lambda _, args, output, module=module: self._added(module, args, output)
            )
            for name, module in self.items()
        ]

    @contextmanager
    def trained_on(self, unet: Any) -> Iterator[list[torch.nn.Parameter]]:
        """Context in which they are part of the UNet, so that the meter sees their gradients; their parameters."""
        handles = self.attach(unet)
        unet.add_module("adapters", self)
        try:
            yield list(self.parameters())
        finally:
            del unet.adapters
            for handle in handles:
                handle.remove()

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Context in which the UNet predicts as the base does."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def tensors(self) -> dict[str, torch.Tensor]:
        """Of a patch: every parameter by its layer's name and its own."""
        return {
            f"{layer}.{name}": held.detach()
            for layer, module in self.items()
            for name, held in module.named_parameters()
        }

    def load(self, tensors: Mapping[str, torch.Tensor], method: str) -> None:
        """Take the parameters of a patch, which may hold other tensors too.

        Raises:
            UserError: they are not of this UNet's layers.
        """
        fill(self.tensors(), tensors, method)
        self.requires_grad_(False)

    def _added(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        if not self._on:
            return None
        first = next(module.parameters())
        if (first.device, first.dtype) != (output.device, output.dtype):
            # The pipeline was moved after the patch was installed.
            module.to(output)
        added = module(args[0] if self._sees == "input" else output)
        if self.factors is not None:
            added = added * self.factors.to(added).view(-1, *[1] * (added.ndim - 1))
        return output + added


class LowRank(torch.nn.Module):
    """alpha / rank x up(down(x)) beside a linear or convolution layer; it begins as nothing."""

    def __init__(self, layer: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self._scale = alpha / rank
        if isinstance(layer, torch.nn.Conv2d):
            place = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
            self.down: Any = torch.nn.Conv2d(layer.in_channels, rank, bias=False, **place)
            self.up: Any = torch.nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = torch.nn.Linear(layer.in_features, rank, bias=False)
            self.up = torch.nn.Linear(rank, layer.out_features, bias=False)
        torch.nn.init.kaiming_uniform_(self.down.weight, a=1)
        torch.nn.init.zeros_(self.up.weight)
        self.to(layer.weight)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self._scale * self.up(self.down(given))

    def weight(self) -> torch.Tensor:
        """What it adds to the layer's own weight, in its shape."""
        return self._scale * torch.tensordot(self.up.weight.flatten(1), self.down.weight, 1)
