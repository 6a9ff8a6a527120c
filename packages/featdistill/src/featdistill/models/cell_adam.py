"""Adam for a grid of networks of which a batch of rays meets only some.

A cell that no live sample fell into has a gradient of exact zeros. Plain Adam would still move it,
by old momentum, and would count a step that it did not learn in. Here each row of a parameter keeps
its own step counter t, and rows with an all-zero gradient are left as they are:

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
    x -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)

Untouched rows are recognised by the gradient itself, so clipping, accumulation and averaging over
processes need no mask beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from loom import native
from loom.optimizer import GroupOptimizer
from torch import Tensor

CSRC = Path(__file__).parent.parent / "csrc"


def library() -> native.Library | native.Unavailable:
    """Return the compiled update."""
    return native.library("featdistill_cell_adam", sources=[CSRC / "cell_adam.cpp"])


class CellAdam(GroupOptimizer):
    """Adam with a step counter per row of each parameter.

    Groups may set `per_cell=False` for ordinary parameters: they have one counter and are updated
    at every step that they have a gradient in, as by `torch.optim.Adam`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-12,
        *,
        per_cell: bool = True,
        impl: str = "auto",
    ) -> None:
        """Take parameters or groups of them, as every torch optimiser.

        Args:
            params: Parameters, or dicts with `params` and any of the settings below.
            lr: Learning rate.
            betas: Decay of the two moments.
            eps: Added to the denominator.
            per_cell: Count steps per row and skip rows whose gradient is exactly zero.
            impl: "auto", "cpu" or "torch".
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "per_cell": per_cell})
        self.impl = impl

    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        """Update parameters one by one; each keeps its counters."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            self._update(parameter, gradient, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        rows = len(parameter) if group["per_cell"] else 1
        if not state:
            state["step"] = torch.zeros(rows, dtype=torch.int32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        found = library()
        if isinstance(found, native.Library) and (
            native.choose(self.impl, found, parameter.device) == "cpu"
        ):
            _native_update(found, parameter, gradient.contiguous(), state, group)
        else:
            native.choose(self.impl, found, parameter.device)
            _torch_update(parameter, gradient, state, group)


def _native_update(
    found: native.Library,
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
) -> None:
    pointers, doubles = [c_void_p] * 4, [c_double] * 4
    update = found.function(
        "cell_adam", [c_int64, c_int64, *pointers, c_void_p, *doubles, c_int, c_int]
    )
    rows = len(state["step"])
    floats = [gradient, parameter, state["exp_avg"], state["exp_avg_sq"]]
    update(
        rows, parameter.numel() // max(rows, 1),
        *(native.pointer(tensor, torch.float32) for tensor in floats),
        native.pointer(state["step"], torch.int32),
        group["lr"], *group["betas"], group["eps"], int(group["per_cell"]), native.threads(),
    )  # fmt: skip


def _torch_update(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    """Update all rows at once; the twin of csrc/cell_adam.cpp."""
    rows = len(state["step"])
    g = gradient.reshape(rows, -1)
    chosen = torch.ones(rows, dtype=torch.bool)
    if group["per_cell"]:
        chosen = (g != 0).any(dim=1)
    g = g[chosen]
    state["step"] += chosen.int()
    t = state["step"][chosen].double()[:, None]
    beta1, beta2 = group["betas"]
    step_size = (group["lr"] / (1 - beta1**t)).to(g.dtype)
    scale = (1 - beta2**t).rsqrt().to(g.dtype)
    mean, square = (state[key].view(rows, -1) for key in ("exp_avg", "exp_avg_sq"))
    mean[chosen] = torch.lerp(mean[chosen], g, 1 - beta1)
    square[chosen] = beta2 * square[chosen] + (1 - beta2) * g * g
    denominator = square[chosen].sqrt() * scale + group["eps"]
    value = parameter.view(rows, -1)
    value[chosen] = value[chosen] - step_size * mean[chosen] / denominator
