"""What can end a training loop from inside and from outside: a value that is not finite, a signal.

A non-finite value is named: the first loss term, then the first gradient. The batch that led to it
is kept in a file that `torch.load(path, weights_only=True)` opens, and the run stops before the
next checkpoint, so no checkpoint holds such weights. On the CPU the check comes before the update;
on an accelerator the values travel while the next step is computed and are checked one step later,
because waiting for them would stall it.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

from loom.errors import UserError
from loom.files import explained


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
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
        also = f"; the batch itself is not finite: {', '.join(in_batch[:5])}" if in_batch else ""
        return UserError(
            f"{first} is {value} at step {record.step}{also}",
            hint=f"the batch is in {path}; lower the learning rate, clip, or mend the data",
        )


class StopSignals:
    """Turns SIGTERM, SIGUSR1 and SIGINT into a flag that is read at the step boundary.

    A second signal ends the process at once. Those within the first second count as the same one:
    a terminal's Ctrl-C reaches a worker directly and again through its launcher. Handlers are
    restored on the way out; outside of the main thread, where none can be set, nothing happens.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, same_within_s: float = 1.0) -> None:
        """Take the time within which a repeated signal is the same one."""
        self._same_within_s = same_within_s
        self._received = 0
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> int:
        """Return the number of the first signal that came, or 0."""
        return self._received

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
        elif now - self._received_at > self._same_within_s:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def exit_code(number: int) -> int:
    """Return how a stopped process exits: 0 after SIGUSR1, which asks to be requeued."""
    return 0 if number == signal.SIGUSR1 else 128 + number


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
