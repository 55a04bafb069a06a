"""Trainable parameters as views of one flat buffer, so that publishing and loading them is one copy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import xxhash

from sdr1.base.errors import UserError
from sdr1.base.records import Weights

_CHUNK = 2**20
"""Bytes copied at a time: they are still in the processor's cache when the checksum reads them."""


class FlatParameters:
    """Moves parameters into one flat tensor of their common dtype and device; each parameter becomes a view of it.

    Raises:
        ValueError: there is no parameter, or dtypes or devices differ.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise ValueError(
                f"trainable parameters must share one dtype and device, found {sorted(map(str, kinds))}"
            )
        ((dtype, device),) = kinds
        self.tensor = torch.empty(
            sum(parameter.numel() for parameter in parameters), dtype=dtype, device=device
        )
        offset = 0
        for parameter in parameters:
            # Its own strides, so that a channels-last layout survives.
            view = self.tensor.as_strided(parameter.shape, parameter.stride(), offset)
            view.copy_(parameter.data)
            parameter.data = view
            offset += parameter.numel()

    def copy(self) -> FlatParameters:
        """The same numbers in memory of their own, for an average of them."""
        return FlatParameters([torch.nn.Parameter(self.tensor.clone(), requires_grad=False)])

    def publish(self, version: int) -> Weights:
        """All bytes as they are now; on the CPU in place, so that the next update changes them."""
        buffer = self.tensor.detach().cpu().view(torch.uint8).numpy()
        return Weights(version, buffer, checksum(buffer))

    def snapshot(self, version: int) -> Weights:
        """A copy of all bytes, which later updates do not touch."""
        source = self.tensor.detach().view(torch.uint8)
        buffer = torch.empty(source.shape, dtype=torch.uint8)
        found = _copy(buffer, source)
        return Weights(version, buffer.numpy(), found)

    def load(self, buffer: np.ndarray) -> int:
        """Copy a published buffer in and return the checksum of what is now in place.

        Raises:
            UserError: the buffer has another size.
        """
        expected = self.tensor.numel() * self.tensor.element_size()
        if buffer.nbytes != expected:
            raise UserError(
                f"checkpoint: weights of {buffer.nbytes} bytes do not fit parameters of {expected} bytes: they are of "
                "another model or adapter; choose another checkpoint"
            )
        # from_numpy of a read-only mapping would warn, and a live view would pin the published object: copy at once.
        source = torch.from_numpy(buffer if buffer.flags.writeable else _unlocked(buffer))
        return _copy(self.tensor.detach().view(torch.uint8), source)

    def checksum(self) -> int:
        """Of the bytes in place."""
        return checksum(self.tensor.detach().cpu().view(torch.uint8).numpy())


def _copy(target: torch.Tensor, source: torch.Tensor) -> int:
    """Copy bytes and return the checksum of what is in `target` afterwards."""
    digest = xxhash.xxh3_64()
    for there, here in zip(target.split(_CHUNK), source.split(_CHUNK)):
        there.copy_(here)
        digest.update(there.cpu().numpy())
    return digest.intdigest()


def _unlocked(buffer: np.ndarray) -> np.ndarray:
    """The same memory, marked writable for torch; it is only read."""
    import ctypes

    address, _ = buffer.__array_interface__["data"]
    return np.ctypeslib.as_array((ctypes.c_uint8 * buffer.nbytes).from_address(address))


def checksum(buffer: np.ndarray) -> int:
    """XXH3 (64 bits) of a uint8 buffer: about as fast as memory, so that every load can be confirmed."""
    return xxhash.xxh3_64_intdigest(buffer.data)


def sha256(weights: Weights) -> str:
    """Hexadecimal digest of the trained parameters, the identity of a result."""
    return hashlib.sha256(weights.buffer.data).hexdigest()
