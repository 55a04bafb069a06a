"""What every section of a config is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SANDBOX = "sandbox"
"""The name that stands for the models, prompts and oracle shipped with the package."""

Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]


class Section(BaseModel):
    """Frozen, and closed to fields that it does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
