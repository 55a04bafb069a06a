"""A reward of the user's own, by import path."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from sdr1.errors import UserError
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    from sdr1.rewards.terms.base import Term


class ImportTerm(TermConfig):
    """`factory(device=..., **options)` returns a function (images uint8 (N, H, W, 3) RGB, prompt) -> (N,) float32."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    kind: Literal["import"]
    factory: str = Field(
        alias="import",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`module:factory`, importable wherever a reward worker runs.",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the factory.")

    def build(self, place: Place) -> Term:
        module, _, name = self.factory.partition(":")
        try:
            factory = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{place.field}.import: {self.factory!r}: {error}; put the module on PYTHONPATH or install it"
            ) from error
        try:
            return factory(device=place.device, **self.options)
        except TypeError as error:
            raise UserError(
                f"{place.field}.options: {self.options}: {error}; the factory is called as factory(device=..., **options)"
            ) from error
