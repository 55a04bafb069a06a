"""A reward of the user's own, by import path."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from sdr1.base.errors import UserError, reason
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

    def check(self, field: str) -> None:
        """Import the factory; it is not called, what it builds may be heavy."""
        factory = self._import(field)
        try:
            signature = inspect.signature(factory)
        except ValueError:
            return
        try:
            signature.bind(device="cpu", **self.options)
        except TypeError as error:
            raise self._does_not_build(field, error) from error

    def build(self, place: Place) -> Term:
        factory = self._import(place.field)
        try:
            term = factory(device=place.device, **self.options)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self._does_not_build(place.field, error) from error
        if not callable(term):
            raise UserError(
                f"{place.field}.import: {self.factory!r}: returned {type(term).__name__}; return the function that scores"
            )
        return term

    def _import(self, field: str) -> Any:
        # As Python's -m and Ray's workers have it: a module of the current folder can be imported.
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        module, _, name = self.factory.partition(":")
        where = f"{field}.import: {self.factory!r}"
        try:
            factory = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{where}: {reason(error)}; put the module on PYTHONPATH or install it"
            ) from error
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{where}: importing raised {type(error).__name__}: {reason(error)}; mend the module"
            ) from error
        if not callable(factory):
            raise UserError(f"{where}: a {type(factory).__name__}; name a function or a class")
        return factory

    def _does_not_build(self, field: str, error: BaseException) -> UserError:
        return UserError(
            f"{field}.options: {self.options}: {self.factory} raised {type(error).__name__}: {reason(error)}; the factory "
            "is called as factory(device=..., **options)"
        )
