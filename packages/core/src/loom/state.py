"""Everything a run is in the middle of: what a checkpoint holds.

`ema_model` averages the weights with the decay `min(d, (1 + n) / (10 + n))` after `n` updates, so a
short run is not ruled by its initial weights (the warm-up of TensorFlow's moving average).
"""

import copy
import json
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from loom.errors import UserError
from loom.sharded import is_sharded, spread_model, spread_optimizer, whole

Generator = torch.Generator | np.random.Generator


class Stateful(Protocol):
    """Anything that can be put into a checkpoint: a replay buffer, running return scales."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return tensors and plain values."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Take them up again."""
        ...


M = TypeVar("M", bound=nn.Module)


class TrainState(Generic[M]):
    """Model, EMA, optimiser, scaler, step, generators and extras of a run."""

    def __init__(
        self,
        model: M,
        optimizer: torch.optim.Optimizer,
        *,
        ema_decay: float | None = None,
        generators: Mapping[str, Generator] | None = None,
        extras: Mapping[str, Stateful] | None = None,
    ) -> None:
        """Begin at step 0.

        Args:
            model: What learns.
            optimizer: Any `torch.optim.Optimizer`; groups are named by their key `name`.
            ema_decay: Keeps averaged weights in `ema_model` if given.
            generators: Named sources of randomness that the run draws from.
            extras: Whatever else a resume must restore. In a group, rank 0's generators and extras
                are the ones that are saved.
        """
        if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay is {ema_decay}; from 0 to below 1")
        self.model = model
        self.optimizer = optimizer
        self.ema_decay = ema_decay
        self.generators = dict(generators or {})
        self.extras = dict(extras or {})
        self.scaler: torch.amp.GradScaler | None = None
        self.step = 0
        self.ema_model = model
        if ema_decay is not None:
            self.ema_model = copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Return the device of the first parameter."""
        return next(self.model.parameters()).device

    @property
    def sharded(self) -> bool:
        """Tell whether a process holds only its part of the weights."""
        return any(is_sharded(parameter) for parameter in self.model.parameters())

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the averaged weights after update number `step`; buffers are copied."""
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        averages = [parameter.detach() for parameter in self.ema_model.parameters()]
        current = [parameter.detach() for parameter in self.model.parameters()]
        torch._foreach_lerp_(averages, current, 1.0 - decay)
        pairs = zip(self.ema_model.buffers(), self.model.buffers(), strict=True)
        for average, value in pairs:
            average.copy_(value)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the sections of a checkpoint; of sharded weights, every process calls it."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "progress": {"step": self.step},
            "model": whole(self.model.state_dict()),
            "ema": whole(self.ema_model.state_dict()) if self.ema_decay is not None else {},
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": cuda,
                "generators": {n: _generator_state(g) for n, g in self.generators.items()},
            },
            "extras": {name: dict(extra.state_dict()) for name, extra in self.extras.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up a checkpoint of a run with the same parts.

        Raises:
            UserError: The checkpoint has other parts.
        """
        self._require_same_parts(state)
        try:
            self.model.load_state_dict(spread_model(state["model"], self.model.state_dict()))
            if self.ema_decay is not None:
                own = self.ema_model.state_dict()
                self.ema_model.load_state_dict(spread_model(state["ema"], own))
            groups = self.optimizer.param_groups
            self.optimizer.load_state_dict(spread_optimizer(state["optimizer"], groups))
        except (RuntimeError, ValueError) as error:  # torch's words for other shapes and groups
            raise UserError(
                f"the checkpoint is of another model or optimiser: {error}",
                hint="resume with the same configuration, or begin a new run from its weights",
            ) from error
        self.step = state["progress"]["step"]
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))
        for name, extra in self.extras.items():
            extra.load_state_dict(state["extras"][name])
        for name, generator in self.generators.items():
            _restore_generator(generator, state["random"]["generators"][name])
        if self.device.type == "cuda" and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        torch.set_rng_state(state["random"]["torch"])

    def _require_same_parts(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        parts = {
            "extras": (self.extras, state["extras"]),
            "generators": (self.generators, state["random"]["generators"]),
            "model": (self.model.state_dict(), state["model"]),
        }
        if self.ema_decay is not None:
            parts["EMA"] = (self.ema_model.state_dict(), state["ema"])
        for part, (own, saved) in parts.items():
            if own.keys() != saved.keys():
                differing = ", ".join(sorted(own.keys() ^ saved.keys())[:5])
                raise UserError(
                    f"the checkpoint has other {part} than this run: {differing}",
                    hint="resume with the same configuration, or begin a new run from its weights",
                )


def _generator_state(generator: Generator) -> torch.Tensor | str:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return json.dumps(generator.bit_generator.state, default=lambda array: array.tolist())


def _restore_generator(generator: Generator, state: torch.Tensor | str) -> None:
    if isinstance(generator, torch.Generator) and isinstance(state, torch.Tensor):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator) and isinstance(state, str):
        generator.bit_generator.state = json.loads(state)
    else:
        raise UserError(
            f"the checkpoint has the state of another library than {type(generator).__module__}",
            hint="resume with the code that the run began with",
        )
