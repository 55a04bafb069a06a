"""How MLflow draws with a logged pipeline: a script that it keeps beside the weights and runs where sdr1 is not."""

from __future__ import annotations

import io
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import set_model


class Pipeline(mlflow.pyfunc.PythonModel):
    """A diffusers text-to-image pipeline; one picture a prompt."""

    def load_context(self, context: Any) -> None:
        """Read the pipeline; onto a GPU where there is one."""
        import torch
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(context.artifacts["pipeline"])
        self._pipeline = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self._pipeline.set_progress_bar_config(disable=True)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[bytes]:
        """A PNG file for each row's `prompt`; the n-th from the noise of `seed` + n."""
        import torch

        given = dict(params or {})
        seed = given.pop("seed", 0)
        prompts = list(model_input["prompt"])
        noise = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
        files = [io.BytesIO() for _ in prompts]
        for image, file in zip(self._pipeline(prompts, generator=noise, **given).images, files, strict=True):
            image.save(file, "PNG")
        return [file.getvalue() for file in files]


set_model(Pipeline())
