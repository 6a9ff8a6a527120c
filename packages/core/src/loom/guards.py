"""A value that is not finite ends a training.

It is named: the first loss term, then the first gradient. The batch that led to it
is kept in a file that `torch.load(path, weights_only=True)` opens, and the run stops before the
next checkpoint, so no checkpoint holds such weights. On the CPU the check comes before the update;
on an accelerator the values travel while the next step is computed and are checked one step later,
because waiting for them would stall it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from loom.errors import UserError


class _Pending(NamedTuple):
    step: int
    names: Callable[[], Sequence[str]]
    values: torch.Tensor
    batches: Sequence[Any]
    arrived: torch.cuda.Event | None


class FiniteGuard:
    """Checks the loss terms and gradient norms of each step."""

    def __init__(self, directory: Path, rank: int = 0) -> None:
        """Name the folder for batches that led to a non-finite value."""
        self._directory = directory
        self._rank = rank
        self._pending: _Pending | None = None
        self._failed: tuple[_Pending, int] | None = None

    def watch(
        self,
        step: int,
        names: Callable[[], Sequence[str]],
        values: torch.Tensor,
        batches: Sequence[Any],
    ) -> bool:
        """Hand over the values of a step.

        Args:
            step: Completed updates.
            names: Returns what each value is; asked only if one is not finite.
            values: One number for each name, on any device.
            batches: The step's batches, to be kept if a value is not finite.

        Returns:
            Whether everything that has arrived so far is finite.
        """
        settled = self.settle()
        arrived = None
        if values.device.type == "cuda":
            arrived = torch.cuda.Event()
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrived.record()
        self._pending = _Pending(step, names, values, batches, arrived)
        return settled and (arrived is not None or self.settle())

    def settle(self) -> bool:
        """Wait for the values of the last step and tell whether all have been finite so far."""
        if self._pending is not None and self._failed is None:
            if self._pending.arrived is not None:
                self._pending.arrived.synchronize()
            finite = torch.isfinite(self._pending.values)
            if not finite.all():
                self._failed = self._pending, int(finite.int().argmin())
        self._pending = None
        return self._failed is None

    def error(self) -> UserError:
        """Keep the batch and return the error that stops the run."""
        if self._failed is None:
            return UserError(
                "a value is not finite in another process", hint="its message names the value"
            )
        record, index = self._failed
        names = record.names()
        first, value = names[index], float(record.values[index])
        path = self._directory / f"step_{record.step:06d}_rank{self._rank}.pt"
        content = {
            "step": record.step,
            "first": first,
            "values": dict(zip(names, record.values.tolist(), strict=True)),
            "batches": [_plain(batch) for batch in record.batches],
        }
        in_batch = _non_finite_in(content["batches"], "batch")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
            kept = f"the batch is in {path}"
        except (OSError, RuntimeError) as error:  # must not hide why the run stops
            kept = f"the batch could not be kept ({error})"
        also = f"; the batch itself is not finite: {', '.join(in_batch[:5])}" if in_batch else ""
        return UserError(
            f"{first} is {value} at step {record.step}{also}",
            hint=f"{kept}; lower the learning rate, clip, or mend the data",
        )


def require_finite(model: nn.Module, step: int) -> None:
    """Refuse to keep a model with a parameter that an update has made non-finite.

    Raises:
        UserError: Names the first such parameter.
    """
    named = [(name, p.detach()) for name, p in model.named_parameters() if p.numel()]
    norms = torch._foreach_norm([parameter for _, parameter in named]) if named else ()
    for (name, parameter), norm in zip(named, norms, strict=True):
        # The norm is the fast test; it may overflow where every element is finite.
        if not torch.isfinite(norm) and not torch.isfinite(parameter).all():
            raise UserError(
                f"the parameter {name} is not finite after {step} updates; "
                "no checkpoint was written",
                hint="lower the learning rate or clip; older checkpoints are intact",
            )


def _plain(value: Any) -> Any:
    """Turn a batch into tensors and plain values; anything else becomes its description."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)


def _non_finite_in(value: Any, place: str) -> list[str]:
    if isinstance(value, torch.Tensor):
        return [] if torch.isfinite(value).all() else [place]
    if isinstance(value, dict):
        parts = [(f"{place}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list):
        parts = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    else:
        return []
    return [found for name, item in parts for found in _non_finite_in(item, name)]
