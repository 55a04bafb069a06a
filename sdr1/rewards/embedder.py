"""Any open_clip model as an embedder of texts and of uint8 image batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from torchvision.transforms import v2

from sdr1.config import SANDBOX
from sdr1.errors import UserError


class Embedder:
    """L2-normalised embeddings of an open_clip model; texts are embedded once.

    Raises:
        UserError: `reward.model` or `reward.checkpoint` does not load.
    """

    def __init__(self, model: str, checkpoint: Path | None, device: str) -> None:
        import open_clip

        if model == SANDBOX:
            from sdr1.sandbox import CLIP

            model = f"local-dir:{CLIP}"
        if checkpoint is not None and not checkpoint.is_file():
            raise UserError(
                f"reward.checkpoint: {str(checkpoint)!r}: no such file; give a weights file or leave it out"
            )
        try:
            self._model, _, _ = open_clip.create_model_and_transforms(
                model, pretrained=None if checkpoint is None else str(checkpoint), device=device
            )
            self._tokenizer = open_clip.get_tokenizer(model)
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            raise UserError(
                f"reward.model: {model!r}: {reason}; give `sandbox`, an open_clip name or local-dir:FOLDER"
            ) from error
        self._model.eval().requires_grad_(False)
        self._device = torch.device(device)
        self._texts: dict[str, torch.Tensor] = {}
        self._preprocess = _batch_preprocess(open_clip.get_model_preprocess_cfg(self._model))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """Embeddings, shape (B, D), float32."""
        new = list(dict.fromkeys(text for text in texts if text not in self._texts))
        if new:
            embedded = self._model.encode_text(self._tokenizer(new).to(self._device)).float()
            self._texts.update(zip(new, normalize(embedded, dim=-1), strict=True))
        return torch.stack([self._texts[text] for text in texts])

    @torch.no_grad()
    def images(self, images_NHWC: np.ndarray) -> torch.Tensor:
        """Embeddings of RGB uint8 images (N, H, W, 3), shape (N, D), float32; uint8 until the device."""
        batch = torch.tensor(images_NHWC, device=self._device).permute(0, 3, 1, 2)
        return normalize(self._model.encode_image(self._preprocess(batch)).float(), dim=-1)


def _batch_preprocess(settings: dict) -> v2.Compose:
    """open_clip's own preprocessing of PIL images (resize shortest side, centre crop, normalise), for tensors."""
    size = settings["size"]
    size = [size, size] if isinstance(size, int) else list(size)
    return v2.Compose(
        [
            v2.Resize(size[0], interpolation=v2.InterpolationMode(settings["interpolation"]), antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(settings["mean"], settings["std"]),
        ]
    )
