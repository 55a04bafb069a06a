"""Counts what a method lets the UNet compute, and holds it to a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sdr1.base.errors import UserError

BACKWARD = 2
"""What a backward pass costs, in forward passes."""


class OutOfBudget(UserError):
    """The next evaluation would pass the budget."""


class Meter:
    """UNet evaluations of single samples: one forward pass is 1, one that a gradient will go back through is 3.

    `budget` None is none. `advanced` is called with the cost of each pass, before it.
    """

    def __init__(self, budget: int | None = None, advanced: Callable[[int], None] | None = None) -> None:
        self.budget = budget
        self.spent = 0
        self._advanced = advanced
        self._begun = False

    def affords(self, evaluations: int) -> bool:
        """Whether a piece of work of so many evaluations lies within the budget.

        Raises:
            OutOfBudget: it does not, and is the first one: the method would have done nothing.
        """
        self._begun = self._begun or self._within(evaluations)
        if not self._begun:
            raise self._too_much(evaluations)
        return self._within(evaluations)

    def affordable(self, wanted: int, each: int) -> int:
        """How many of `wanted` pieces of work, of `each` evaluations, lie within the budget.

        Raises:
            OutOfBudget: as `affords`.
        """
        if self.budget is None or each * wanted == 0:
            return wanted
        return min(wanted, (self.budget - self.spent) // each) if self.affords(each) else 0

    @contextmanager
    def watching(self, unet: Any) -> Iterator[None]:
        """Count the calls of a UNet within the block, and those of copies that are made of it there."""
        handle = unet.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        # A copy of the UNet goes on counting here.
        return self

    def _count(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        sample = args[0] if args else kwargs["sample"]
        backward = torch.is_grad_enabled() and (
            any(isinstance(each, torch.Tensor) and each.requires_grad for each in given)
            or any(parameter.requires_grad for parameter in unet.parameters())
        )
        cost = len(sample) * (1 + BACKWARD * backward)
        if not self._within(cost):
            raise self._too_much(cost)
        self.spent += cost
        if self._advanced is not None:
            self._advanced(cost)

    def _within(self, evaluations: int) -> bool:
        return self.budget is None or self.spent + evaluations <= self.budget

    def _too_much(self, evaluations: int) -> OutOfBudget:
        return OutOfBudget(
            f"--budget: {self.budget}: {self.spent} UNet evaluations are spent and the next step takes {evaluations}; give "
            "more, or lower the method's own settings"
        )
