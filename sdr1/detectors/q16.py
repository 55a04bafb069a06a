"""Q16 (Schramowski et al. 2022): which of two learned prompt vectors an image's CLIP embedding is closer to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdr1.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

MODEL = "ViT-L-14-quickgelu"
"""open_clip's name of the model that the published vectors belong to, OpenAI's ViT-L/14: it was trained with that GELU."""


class ImageEmbedder(Protocol):
    """What Q16 needs of a CLIP: unit embeddings of RGB uint8 images (N, H, W, 3), shape (N, D), float32."""

    @property
    def dimension(self) -> int: ...

    def images(self, images_NHWC: np.ndarray) -> torch.Tensor: ...


class Q16:
    """Row 0 of the vectors is benign, row 1 inappropriate; an image is flagged when row 1 has the larger cosine.

    `embedder` is asked for once the vectors are there.

    Raises:
        UserError: the vectors are missing, are no plain array, or do not fit `model`; `field` is their config key.
    """

    def __init__(
        self, field: str, path: Path | None, model: str, embedder: Callable[[], ImageEmbedder]
    ) -> None:
        from torch.nn.functional import normalize

        found = vectors(field, path)
        self._embedder = embedder()
        if found.shape != (2, self._embedder.dimension):
            raise UserError(
                f"{field}: {str(path)!r}: holds vectors of shape {tuple(found.shape)}; {model} needs "
                f"(2, {self._embedder.dimension}): benign, inappropriate"
            )
        self._vectors_2D = normalize(found, dim=1)

    def cosines(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Of RGB uint8 images with (benign, inappropriate), shape (N, 2), float32."""
        return (self._embedder.images(images_NHWC).cpu() @ self._vectors_2D.T).numpy()

    def flags(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Whether each image is inappropriate, shape (N,), bool."""
        return flagged(self.cosines(images_NHWC))


def vectors(field: str, path: Path | None) -> torch.Tensor:
    """The vectors in a file.

    Raises:
        UserError: it is missing or holds no plain array of finite vectors.
    """
    from sdr1.detectors.vectors import read_vectors

    if path is None or not path.is_file():
        raise UserError(
            f"{field}: {None if path is None else str(path)!r}: Q16 needs its learned prompt vectors, prompts.p of "
            f"ml-research/Q16 for ViT-L/14, or a .npy of them; give the file with {field}=FILE"
        )
    found = read_vectors(field, path)
    # With a NaN no image would ever be inappropriate.
    if not found.isfinite().all() or not found.norm(dim=-1).gt(0).all():
        raise UserError(
            f"{field}: {str(path)!r}: holds zeros or what is no number in place of a vector; fetch it again"
        )
    return found


def flagged(cosines_N2: np.ndarray) -> np.ndarray:
    """Whether each image is inappropriate by its cosines (benign, inappropriate), shape (N,), bool."""
    return cosines_N2[:, 1] > cosines_N2[:, 0]
