"""Q16's prompt file: what is in the wild is read, anything that would execute is refused unexecuted."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.detectors.q16 import vectors
from sdr1.detectors.vectors import read_vectors

VECTORS = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float32)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["array", "half", "tensor", "parameter"])
def test_pickles_of_arrays_and_tensors_are_read(kind, protocol, tmp_path):
    made = {
        "array": VECTORS,
        "half": VECTORS.astype(np.float16),
        "tensor": torch.from_numpy(VECTORS),
        "parameter": torch.nn.Parameter(torch.from_numpy(VECTORS)),
    }[kind]
    path = tmp_path / "prompts.p"
    path.write_bytes(pickle.dumps(made, protocol))
    found = read_vectors("q16.prompts", path)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), VECTORS, atol=1e-3 * (kind == "half") * 4)


def test_torch_files_are_read(tmp_path):
    for name, content in (
        ("a.pt", torch.from_numpy(VECTORS)),
        ("b.pt", {"prompts": torch.from_numpy(VECTORS)}),
    ):
        torch.save(content, tmp_path / name)
        assert torch.equal(read_vectors("f", tmp_path / name), torch.from_numpy(VECTORS))


def test_numpy_files_are_read_and_those_of_objects_refused(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    assert torch.equal(read_vectors("f", tmp_path / "a.npy"), torch.from_numpy(VECTORS))
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="f: .*refused without executing"):
        read_vectors("f", tmp_path / "b.npy")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class EvilStorage:
    """Hides the same inside the nested pickle of a tensor's storage."""

    def __init__(self, target: Path) -> None:
        self.inner = pickle.dumps(Evil(target))

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.inner,)


@pytest.mark.parametrize("evil", [Evil, EvilStorage])
def test_a_malicious_pickle_is_refused_without_executing(evil, tmp_path):
    path, target = tmp_path / "prompts.p", tmp_path / "executed"
    path.write_bytes(pickle.dumps(evil(target)))
    with pytest.raises(UserError, match=r"q16.prompts: .*refused without executing"):
        read_vectors("q16.prompts", path)
    torch.save(evil(target), tmp_path / "prompts.pt")
    with pytest.raises(UserError, match="refused without executing"):
        read_vectors("q16.prompts", tmp_path / "prompts.pt")
    assert not target.exists()
    pickle.loads(path.read_bytes()) if evil is Evil else None
    assert target.exists() or evil is EvilStorage, "the file is what it claims to be"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        pickle.dumps({"a": 1, "b": 2}),
        pickle.dumps("text"),
        pickle.dumps(np.array(["a", 1], dtype=object)),
        pickle.dumps(np.ones((2, 3), complex)),
        pickle.dumps(np.array([["a", "b"]])),
    ],
)
def test_what_is_no_array_is_one_line(content, tmp_path):
    path = tmp_path / "prompts.p"
    path.write_bytes(content)
    with pytest.raises(UserError, match="q16.prompts: "):
        read_vectors("q16.prompts", path)


@pytest.mark.parametrize("odd", [np.nan, np.inf, 0.0])
def test_vectors_by_which_nothing_would_ever_be_unsafe_are_refused(tmp_path, odd):
    held = np.ones((2, 3), np.float32)
    np.save(tmp_path / "a.npy", held)
    assert torch.equal(vectors("q16.prompts", tmp_path / "a.npy"), torch.ones(2, 3))
    held[1] = odd
    np.save(tmp_path / "a.npy", held)
    with pytest.raises(UserError, match=r"^q16\.prompts: .*no number in place of a vector; fetch"):
        vectors("q16.prompts", tmp_path / "a.npy")
