"""A reward of the user's own, by import path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sdr1.base import factories
from sdr1.base.errors import UserError, reason
from sdr1.config.rewards import ImportTerm
from sdr1.rewards.terms.term import TermContext

if TYPE_CHECKING:
    from sdr1.rewards.terms.term import Term


def check(options: ImportTerm, field: str) -> None:
    """Import the factory; it is not called, what it builds may be heavy."""
    failed = partial(_does_not_build, options, field)
    factories.check_call(_import(options, field), failed, device="cpu", **options.options)


def build(options: ImportTerm, context: TermContext) -> Term:
    failed = partial(_does_not_build, options, context.field)
    term = factories.call(_import(options, context.field), failed, device=context.device, **options.options)
    if not callable(term):
        raise UserError(
            f"{context.field}.import: {options.factory!r}: returned {type(term).__name__}; return the function that scores"
        )
    return term


def _import(options: ImportTerm, field: str) -> Callable[..., Any]:
    return factories.imported(options.factory, f"{field}.import: {options.factory!r}")


def _does_not_build(options: ImportTerm, field: str, error: BaseException) -> UserError:
    return UserError(
        f"{field}.options: {options.options}: {options.factory} raised {type(error).__name__}: {reason(error)}; the factory "
        "is called as factory(device=..., **options)"
    )
