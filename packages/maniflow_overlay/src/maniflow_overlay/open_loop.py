"""Open-loop validation: predicted actions against those that were recorded, beside trivial answers.

    action_mse   mean squared error over the chunk that would be carried out, in normalised units
                 (-1 to 1 in every dimension), so dimensions count alike
    action_mae   mean absolute error in the data's own units

Two answers need no policy: the mean action of the training episodes, and the state as it is (hold
position), which is hard to beat where an action is the next state. The best score open-loop need
not be the best robot; but a policy that loses to either has not learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.files import read_json, write_json

from maniflow_overlay.arms import as_channels
from maniflow_overlay.data.windows import Batches
from maniflow_overlay.policy.runtime import Policy

_AT_A_TIME = 64
MEASURES = ("action_mse", "action_mae")
SCORES = "evaluation/open_loop.json"


class OpenLoop:
    """Validation windows, asked of any policy of one shape."""

    def __init__(self, batches: Batches, mean_action: np.ndarray) -> None:
        """Take windows with their paths in place, and the mean action (d,) of the training."""
        self._batches, self._mean_action = batches, mean_action

    def evaluate(self, policy: Policy, windows: int | None = None) -> dict[str, float]:
        """Score a policy and the trivial answers.

        Args:
            policy: To be asked; window k begins from the noise of seed k.
            windows: Spread evenly over all; None takes all.

        Returns:
            `metric/action_mse`, `metric/action_mae`, and both as `baseline/NAME/...`.
        """
        total = len(self._batches)
        count = total if windows is None else min(windows, total)
        chosen = np.linspace(0, total - 1, count).round().astype(np.int64)
        sums: dict[str, np.ndarray] = {}
        for begin in range(0, count, _AT_A_TIME):
            part = chosen[begin : begin + _AT_A_TIME]
            for name, (predicted, recorded) in self._answers(policy, part).items():
                errors = _errors(policy, predicted, recorded)
                sums[name] = sums.get(name, np.zeros(2)) + errors * len(part)
        return {
            f"{'metric' if name == 'policy' else f'baseline/{name}'}/{measure}": float(value)
            for name, total_error in sums.items()
            for measure, value in zip(MEASURES, total_error / count, strict=True)
        }

    def _answers(
        self, policy: Policy, windows: np.ndarray
    ) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """Return predicted and recorded actions, (n, action_steps, d) each, by who answers."""
        data = self._batches.samples(windows)
        channels = policy.shape.arm.channels
        first = policy.observation_steps - 1
        recorded = data.action[:, first : first + policy.action_steps]
        predicted = policy.act(
            as_channels(data.current, channels),
            data.state,
            data.task,
            initial=None if data.initial is None else as_channels(data.initial, channels),
            seeds=windows,
            instructions=self._batches.instructions(data.episode),
        )
        answers = {
            "policy": (predicted, recorded),
            "mean_action": (np.broadcast_to(self._mean_action, recorded.shape), recorded),
        }
        if data.state.shape[-1] == recorded.shape[-1]:
            held = np.broadcast_to(data.state[:, -1:], recorded.shape)
            answers["hold_position"] = (held, recorded)
        return answers


def _errors(policy: Policy, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Return both measures of some answers."""
    scale = policy.model.normalise_action.scale.detach().to("cpu", torch.float64).numpy()
    difference = predicted.astype(np.float64) - recorded
    return np.array([((difference * scale) ** 2).mean(), np.abs(difference).mean()])


def write_scores(path: Path, metrics: Mapping[str, float], windows: int, step: int) -> None:
    """Keep the scores of all windows beside the run."""
    write_json(path, {"step": step, "windows": windows, "metrics": dict(metrics)})


def read_scores(path: Path) -> tuple[dict[str, dict[str, float]], str]:
    """Return the scores by who answers, the policy first, and one sentence about them."""
    stored = read_json(path)
    rows: dict[str, dict[str, float]] = {"policy": {}}
    try:
        for key, value in stored["metrics"].items():
            name, _, measure = key.removeprefix("baseline/").removeprefix("metric/").rpartition("/")
            rows.setdefault(name or "policy", {})[measure] = float(value)
        about = f"{stored['windows']} windows of validation after step {stored['step']}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold the scores of a validation ({error!r})",
            hint="resume the run: it validates again at its end",
        ) from error
    return rows, about
