"""Factories of the user's own, by import path: `module:name`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from sdr1.base.errors import UserError, reason

PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def imported(path: str, where: str) -> Callable[..., Any]:
    """What `path` names; `where` is the field and its value.

    Raises:
        UserError: it cannot be imported, or cannot be called.
    """
    # As Python's -m and Ray's workers have it: a module of the current folder can be imported.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, name = path.partition(":")
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


def check_call(
    factory: Callable[..., Any], failed: Callable[[BaseException], UserError], **given: Any
) -> None:
    """That a factory takes these arguments; it is not called, what it builds may be heavy.

    Raises:
        UserError: what `failed` makes of the TypeError.
    """
    try:
        signature = inspect.signature(factory)
    except ValueError:
        return
    try:
        signature.bind(**given)
    except TypeError as error:
        raise failed(error) from error


def call(factory: Callable[..., Any], failed: Callable[[BaseException], UserError], **given: Any) -> Any:
    """What a factory builds.

    Raises:
        UserError: the factory's own, or what `failed` makes of any other error.
    """
    try:
        return factory(**given)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(error) from error
