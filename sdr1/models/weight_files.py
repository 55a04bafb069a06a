"""What a file of weights holds, read from its header: names and shapes, without the weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdr1.base.errors import UserError, reason

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]


def shapes(path: Path, field: str) -> Shapes:
    """Shape of every tensor in a .safetensors file, or in a .pt file as far as `weights_only` reads it.

    Raises:
        UserError: it is missing, truncated, or a pickle under another name; nothing in it was executed.
    """
    where = f"{field}: {str(path)!r}"
    if not path.is_file():
        raise UserError(f"{where}: no such file; give a .safetensors or .pt file")
    if path.suffix == ".safetensors":
        return _safetensors(path, where)
    if path.suffix in (".pt", ".pth", ".bin"):
        return {name: tuple(tensor.shape) for name, tensor in state_dict(path, field, meta=True).items()}
    raise UserError(f"{where}: unknown kind {path.suffix!r}; use .safetensors or .pt")


def _safetensors(path: Path, where: str) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as raw:
            start = raw.read(9)
        # A safetensors file has its header's length in 8 bytes, then JSON.
        if start[8:] != b"{" and start.startswith((b"\x80", b"PK")):
            raise UserError(
                f"{where}: a pickle under the name of a safetensors file; loading it could execute code: get the real "
                ".safetensors file"
            ) from error
        raise UserError(f"{where}: truncated or damaged ({error}); fetch the file again") from error


def state_dict(path: Path, field: str, *, meta: bool = False) -> dict:
    """The tensors of a file written by torch.save or safetensors; `meta` leaves the data on disk.

    Raises:
        UserError: it is damaged, or holds more than tensors.
    """
    import torch

    where = f"{field}: {str(path)!r}"
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        _safetensors(path, where)
        return load_file(path)
    try:
        held = torch.load(
            path, map_location="meta" if meta else "cpu", weights_only=True, mmap=True if meta else None
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{where}: holds more than tensors, which could execute code; convert it to .safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{where}: truncated or damaged ({reason(error)}); fetch the file again") from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise UserError(f"{where}: holds no state dict of tensors; give a model's weights")
    return held


def require_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise UserError for weights of which one is no finite number: what they make says nothing, and no judge flags it."""
    for name, tensor in tensors.items():
        if tensor.numel() and not all(bound.isfinite() for bound in tensor.float().aminmax()):
            raise UserError(
                f"{where}: {name} holds numbers that are not finite; fetch it again, or take an earlier checkpoint"
            )


def require_fit(found: Shapes, expected: Shapes, where: str, what: str) -> None:
    """Raise UserError, naming missing, unexpected and mis-shaped tensors, unless the file fits the model exactly."""
    odd = [name for name in expected if name in found and found[name] != expected[name]]
    parts = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [f"{name} {found[name]} for {expected[name]}" for name in odd],
    }
    told = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in parts.items() if names)
    if told:
        raise UserError(f"{where}: not the weights of {what}: {told}; give the file that belongs to it")


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
