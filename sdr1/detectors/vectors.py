"""Arrays out of files in the wild, by readers that can rebuild arrays and tensors and nothing else."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdr1.base.errors import UserError

_NPY = b"\x93NUMPY"


def read_vectors(field: str, path: Path) -> torch.Tensor:
    """The one array in a .npy file, a pickle or a torch file, as float32.

    Raises:
        UserError: it holds anything but an array or tensor; nothing in the file was executed.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_NPY):
            found = np.load(io.BytesIO(content), allow_pickle=False)
        elif zipfile.is_zipfile(io.BytesIO(content)):
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            found = _Restricted(io.BytesIO(content)).load()
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{field}: {str(path)!r}: not a plain array; refused without executing it: {reason}"
        ) from error
    if isinstance(found, dict) and len(found) == 1:
        found = next(iter(found.values()))
    where = f"{field}: {str(path)!r}"
    if not isinstance(found, (np.ndarray, torch.Tensor)):
        raise UserError(f"{where}: holds {type(found).__name__}; an array is needed")
    kind: Any = found.dtype
    if kind.is_complex if isinstance(found, torch.Tensor) else kind.kind not in "fiu":
        raise UserError(f"{where}: holds an array of {kind}; real numbers are needed")
    return (found.detach() if isinstance(found, torch.Tensor) else torch.from_numpy(found)).float()


class _Restricted(pickle.Unpickler):
    """Knows the constructors of numpy arrays and of torch tensors pickled by plain `pickle`; every other name is
    refused before it is even looked up."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _storage(content: bytes) -> Any:
    """What a storage's own pickle holds; torch.load's restricted mode reads it."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _numpy_reconstruct() -> Any:
    return np.empty(0).__reduce__()[0]


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _numpy_reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _numpy_reconstruct(),
    ("numpy._core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}
