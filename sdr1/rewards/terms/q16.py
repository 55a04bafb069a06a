"""Q16 as a penalty: -1 for an image that is closer to the inappropriate prompt vector than to the benign one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdr1.errors import UserError
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    import numpy as np

    from sdr1.rewards.terms.base import Term
    from sdr1.types import Prompt


class Q16Term(TermConfig):
    kind: Literal["q16"]
    prompts: Path = Field(
        description="The two learned prompt vectors, row 0 benign and row 1 inappropriate, float32, as .npy (never "
        "a pickle)."
    )
    model: str = Field("ViT-L-14", description="open_clip model whose space the vectors live in.")
    checkpoint: Path | None = Field(Path("openai"), description="Its weights, as reward.checkpoint.")

    def build(self, place: Place) -> Term:
        import numpy as np
        import torch
        from torch.nn.functional import normalize

        where = f"{place.field}.prompts: {str(self.prompts)!r}"
        if not self.prompts.is_file():
            raise UserError(f"{where}: no such file; give the Q16 prompt vectors as .npy")
        embedder = place.embedders.get(self.model, self.checkpoint, place.field)
        try:
            vectors = np.load(self.prompts, allow_pickle=False)
        except (ValueError, OSError) as error:
            raise UserError(f"{where}: not a .npy array ({error}); save it with numpy.save") from error
        if vectors.shape != (2, embedder.dimension):
            raise UserError(
                f"{where}: shape {vectors.shape}; {self.model} needs (2, {embedder.dimension}): benign, inappropriate"
            )
        benign_unsafe_2D = normalize(torch.from_numpy(vectors).float(), dim=-1)

        def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
            similarity_N2 = embedder.images(images_NHWC).cpu() @ benign_unsafe_2D.T
            return -similarity_N2.argmax(dim=1).numpy().astype(np.float32)

        return term
