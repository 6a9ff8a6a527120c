"""What every optimiser of ours begins with: groups, a closure, parameters that have a gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class GroupOptimizer(Optimizer, ABC):
    """An optimiser that updates a group's parameters at once; those without a gradient stand still.

    A child says how in `update`.
    """

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; return what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if parameters:
                self.update(parameters, [each.grad for each in parameters], group)
        return loss

    @abstractmethod
    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        """Update parameters of one group.

        Args:
            parameters: Those that have a gradient.
            gradients: Theirs, in the same order.
            group: The settings.
        """
