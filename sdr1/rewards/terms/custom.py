"""A reward of the user's own, by import path."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from sdr1.base.errors import UserError, reason
from sdr1.config.rewards import ImportTerm
from sdr1.rewards.terms.place import Place

if TYPE_CHECKING:
    from sdr1.rewards.terms.place import Term


def check(options: ImportTerm, field: str) -> None:
    """Import the factory; it is not called, what it builds may be heavy."""
    factory = _import(options, field)
    try:
        signature = inspect.signature(factory)
    except ValueError:
        return
    try:
        signature.bind(device="cpu", **options.options)
    except TypeError as error:
        raise _does_not_build(options, field, error) from error


def build(options: ImportTerm, place: Place) -> Term:
    factory = _import(options, place.field)
    try:
        term = factory(device=place.device, **options.options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _does_not_build(options, place.field, error) from error
    if not callable(term):
        raise UserError(
            f"{place.field}.import: {options.factory!r}: returned {type(term).__name__}; return the function that scores"
        )
    return term


def _import(options: ImportTerm, field: str) -> Any:
    # As Python's -m and Ray's workers have it: a module of the current folder can be imported.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, name = options.factory.partition(":")
    where = f"{field}.import: {options.factory!r}"
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: {reason(error)}; put the module on PYTHONPATH or install it") from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where}: importing raised {type(error).__name__}: {reason(error)}; mend the module"
        ) from error
    if not callable(factory):
        raise UserError(f"{where}: a {type(factory).__name__}; name a function or a class")
    return factory


def _does_not_build(options: ImportTerm, field: str, error: BaseException) -> UserError:
    return UserError(
        f"{field}.options: {options.options}: {options.factory} raised {type(error).__name__}: {reason(error)}; the factory "
        "is called as factory(device=..., **options)"
    )
