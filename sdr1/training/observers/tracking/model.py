"""The trained pipeline as a model that MLflow keeps, finds by name, and loads without sdr1."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sdr1.config.training import Config
from sdr1.models import pipeline_files

_NEEDS = ["diffusers", "torch", "transformers"]
"""Given, not inferred: inference would load the model in another process."""


def log_pipeline(config: Config, pipeline: Path) -> None:
    """A diffusers pipeline folder as the logged model `model` of the active MLflow run, for `mlflow.pyfunc`.

    It is registered under `tracking.register` where that is given.
    """
    import mlflow.pyfunc

    # It would be drawn once more, and the signature says it all.
    warnings.filterwarnings("ignore", ".*An input example was not provided", module="mlflow")
    mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("pyfunc_code.py")),
        artifacts={"pipeline": str(pipeline)},
        signature=_signature(),
        pip_requirements=_NEEDS,
        registered_model_name=config.tracking.register,
    )


def log_adapter(config: Config, adapter: Path) -> None:
    """A LoRA adapter folder as the logged model `lora`, for `mlflow.diffusers`; it needs the base to be where it was."""
    import mlflow.diffusers

    mlflow.diffusers.log_model(
        str(adapter),
        base_model=str(pipeline_files.locate(config.policy) or config.policy.model),
        name="lora",
        pip_requirements=[*_NEEDS, "peft"],
    )


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("num_inference_steps", DataType.integer, 30),
                ParamSpec("guidance_scale", DataType.double, 7.5),
                ParamSpec("seed", DataType.long, 0),
            ]
        ),
    )
