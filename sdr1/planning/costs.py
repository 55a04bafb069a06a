"""What a module costs, measured without its weights: FLOPs and live bytes of a call on torch's fake tensors."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def count_flops() -> FlopCounterMode:
    """torch's counter, told of the CPU's attention kernel too, which it does not know by itself."""
    ops = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            ops._scaled_dot_product_flash_attention_for_cpu: _attention,
            ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make: bytes alive now, and at most so far.

    With `cuda` a convolution also holds its input a second time: cuDNN lays it out anew. Measured on an H100 and an H200
    (docs/measured.md): of 16 pictures' decoding 17.2 GB, 12.9 GB of them without this copy.
    """

    def __init__(self, cuda: bool = False) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._cuda = cuda
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operation was given is not of its making: a view of a weight, such as a linear layer's transpose.
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._seen.add(leaf.untyped_storage())
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf.untyped_storage())
        if self._cuda and func is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.now + args[0].nbytes)
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size


@contextlib.contextmanager
def cuda_norms(module: torch.nn.Module) -> Iterator[None]:
    """Half precision as CUDA's autocast has it, unlike the CPU's: norms compute in float32 and hold their input so."""
    norms = [part for part in module.modules() if isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, given: (given[0].float(),)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def measure(call: Callable[[], object], cuda: bool = False) -> tuple[int, int]:
    """FLOPs of one call, and the most bytes alive at once of what it makes, weights and inputs not counted."""
    live = LiveBytes(cuda)
    # The counter follows modules by hooks that keep what checkpointing lets go of.
    apart = torch.is_grad_enabled()
    gc.collect()
    with count_flops() as counter, contextlib.nullcontext() if apart else live:
        call()
    if apart:
        gc.collect()
        with live:
            call()
    return counter.get_total_flops(), live.peak


def parameter_bytes(module: torch.nn.Module) -> int:
    """Of all parameters, trained or not; buffers are not counted."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
