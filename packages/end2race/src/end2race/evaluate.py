"""Open-loop errors of a driver, streamed over windows: per sample, exact, however they are split.

A sample is one frame of one window. Sums are kept in float64 as count, mean and squared deviation,
merged pairwise (Chan, Golub & LeVeque 1979), so targets with a large offset keep their R2, where a
difference of sums of squares would cancel. Processes evaluate parts of the windows and merge the
same way: no padding, no average of averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loom import distributed
from loom.errors import UserError
from torch import Tensor

from end2race.data.batches import Batch, BatchReader
from end2race.driving import Driving, answer, blanked

ACTION_NAMES = ("steer", "speed")
OVERALL_WEIGHTS = (1.0, 0.05)
LEAK_SHARE = 0.5  # of the speed's variance; a blinded model must leave more than that unexplained


class ActionErrors:
    """Errors of actions against targets, by component."""

    _ROWS = ("squared", "absolute", "largest", "mean", "deviation")

    def __init__(self, components: int = len(ACTION_NAMES)) -> None:
        """Start with no sample."""
        self.count = 0
        self._sums = dict.fromkeys(self._ROWS, np.zeros(components))

    def update(self, actions: np.ndarray, targets: np.ndarray) -> None:
        """Take in samples, [..., components]."""
        targets = np.asarray(targets, np.float64).reshape(-1, len(self._sums["mean"]))
        error = np.asarray(actions, np.float64).reshape(targets.shape) - targets
        if not len(error):
            return
        mean = targets.mean(0)
        part = {
            "squared": np.square(error).sum(0),
            "absolute": np.abs(error).sum(0),
            "largest": np.abs(error).max(0),
            "mean": mean,
            "deviation": np.square(targets - mean).sum(0),
        }
        self._merge(len(error), part)

    def merged(self) -> ActionErrors:
        """Return the errors over all processes, the same on each of them."""
        own = np.stack([np.full_like(self._sums["mean"], self.count), *self._sums.values()])
        whole = ActionErrors(own.shape[1])
        for count, *rows in distributed.gather(torch.from_numpy(own[None])).numpy():
            if count[0]:
                whole._merge(int(count[0]), dict(zip(self._ROWS, rows, strict=True)))
        return whole

    def metrics(
        self,
        names: Sequence[str] = ACTION_NAMES,
        overall_weights: Sequence[float] = OVERALL_WEIGHTS,
    ) -> dict[str, float | None]:
        """Return `{name}_mse`, `_mae`, `_rmse`, `_max_error`, `_r2`, and the means over components.

        `overall_weighted_mse` is the sum of weight x mse, not divided by the weights' sum. R2 is
        None where the targets are constant.

        Raises:
            UserError: There is not one name and one weight for each component, or no sample.
        """
        self.check_names(names, overall_weights)
        if not self.count:
            raise UserError("there is no sample to evaluate", hint="check the split")
        found: dict[str, float | None] = {}
        mse, mae = self._sums["squared"] / self.count, self._sums["absolute"] / self.count
        for index, name in enumerate(names):
            deviation = self._sums["deviation"][index]
            explained = 1 - self._sums["squared"][index] / deviation if deviation > 0 else None
            found[f"{name}_mse"] = float(mse[index])
            found[f"{name}_mae"] = float(mae[index])
            found[f"{name}_rmse"] = float(np.sqrt(mse[index]))
            found[f"{name}_max_error"] = float(self._sums["largest"][index])
            found[f"{name}_r2"] = None if explained is None else float(explained)
        found["mse_mean"], found["mae_mean"] = float(mse.mean()), float(mae.mean())
        found["overall_weighted_mse"] = float(np.dot(overall_weights, mse))
        return found

    def check_names(self, names: Sequence[str], overall_weights: Sequence[float]) -> None:
        """Require one name and one weight for each component.

        Raises:
            UserError: There are more or fewer.
        """
        components = len(self._sums["mean"])
        for what, given in (("action_names", names), ("overall_weights", overall_weights)):
            if len(given) != components:
                raise UserError(
                    f"{what} has {len(given)} values, the actions have {components}",
                    hint=f"give {components} values, separated by a comma",
                )

    @property
    def target_mean(self) -> np.ndarray:
        """The mean of the targets, by component."""
        return self._sums["mean"].copy()

    @property
    def target_variance(self) -> np.ndarray:
        """The mean squared error of the targets' own mean, by component."""
        return self._sums["deviation"] / self.count

    def _merge(self, count: int, part: dict[str, np.ndarray]) -> None:
        total = self.count + count
        shift = part["mean"] - self._sums["mean"]
        between = np.square(shift) * (self.count * count / total)
        self._sums = {
            "squared": self._sums["squared"] + part["squared"],
            "absolute": self._sums["absolute"] + part["absolute"],
            "largest": np.maximum(self._sums["largest"], part["largest"]),
            "mean": self._sums["mean"] + shift * (count / total),
            "deviation": self._sums["deviation"] + part["deviation"] + between,
        }
        self.count = total


Actor = Callable[[Batch], Tensor]
"""From a batch to actions [B, T, 2]."""


@torch.no_grad()
def open_loop_errors(actor: Actor, reader: BatchReader, batch_size: int = 16) -> ActionErrors:
    """Compare an actor with the recorded actions over every window of a reader.

    Under torchrun each process takes its part of the windows; all get the whole result.
    """
    errors = ActionErrors()
    own = distributed.sharded_indices(len(reader))
    for begin in range(0, len(own), batch_size):
        batch = reader.read(own[begin : begin + batch_size])
        errors.update(actor(batch).cpu().numpy(), batch.actions.numpy())
    return errors.merged()


def actor_of(model: Driving, *, blank: bool = False) -> Actor:
    """Return a model as an actor; a blanked one sees nothing."""

    def act(batch: Batch) -> Tensor:
        return answer(model, blanked(batch) if blank else batch)[0]

    return act


def copycat(batch: Batch) -> Tensor:
    """Repeat the previous wheel angle and the present speed: what a driver can do blindfold."""
    return torch.cat([batch.steering_input, batch.speed], -1)


def constant(actions: np.ndarray) -> Actor:
    """Return the actor that always does the same, such as the mean of the training targets."""
    always = torch.as_tensor(actions, dtype=torch.float32)
    return lambda batch: always.expand_as(batch.actions)


@dataclass(frozen=True)
class OpenLoop:
    """A driver and the trivial ones on the same windows.

    Attributes:
        drivers: Errors by name: `model`, `blanked` (the model without its sensor), `copycat`,
            `constant` (one action for all: the mean of the labels that were learned from, or of
            the split where only a model is at hand).
    """

    drivers: dict[str, ActionErrors]

    def rows(
        self,
        names: Sequence[str] = ACTION_NAMES,
        overall_weights: Sequence[float] = OVERALL_WEIGHTS,
    ) -> dict[str, dict[str, float | None]]:
        """Return the metrics of every driver."""
        return {n: errors.metrics(names, overall_weights) for n, errors in self.drivers.items()}

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        samples = self.drivers["model"].count
        return {
            "drivers": self.rows(),
            "samples": samples,
            "blanked_speed_unexplained": self.leak,
            "leak": self.leak_line,
        }

    @property
    def leak(self) -> float | None:
        """Return what share of the speed's variance the blanked model leaves unexplained.

        Near 0 the model reads the speed label off the speed input; None where the speed is
        constant.
        """
        return self._speed_unexplained("blanked")

    @property
    def leak_line(self) -> str:
        """Say whether the model reads its speed off the inputs instead of the sensor."""
        share, copied = self.leak, self._speed_unexplained("copycat")
        if share is None or copied is None:
            return "[leak] the speed label is constant: nothing can be said about a leak"
        verdict = "no leak" if share > LEAK_SHARE else "LEAK: the label is read off the inputs"
        return (
            f"[leak] {verdict}: without its sensor the model leaves {share:.2f} of the speed's "
            f"variance unexplained (more than {LEAK_SHARE} is asked; repeating the present speed "
            f"leaves {copied:.2f})"
        )

    def _speed_unexplained(self, driver: str) -> float | None:
        errors = self.drivers[driver]
        variance = errors.target_variance[1]
        mse = errors.metrics()["speed_mse"]
        return None if variance == 0 or mse is None else float(mse / variance)


def open_loop(
    model: Driving, reader: BatchReader, mean: np.ndarray, batch_size: int = 16
) -> OpenLoop:
    """Evaluate a model, the same without its sensor, and the trivial drivers.

    Args:
        model: The model.
        reader: The windows.
        mean: What the constant driver does, [2].
        batch_size: Windows at a time.
    """
    model.eval()
    actors = {
        "model": actor_of(model),
        "blanked": actor_of(model, blank=True),
        "copycat": copycat,
        "constant": constant(mean),
    }
    return OpenLoop(
        {name: open_loop_errors(actor, reader, batch_size) for name, actor in actors.items()}
    )
