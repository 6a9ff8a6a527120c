"""A trained policy in use: pictures and states in, a chunk of actions out.

Validation, closed-loop evaluation and the demo all predict through `Policy.act`. It looks at the
pictures as they are, without augmentation, and begins each row from the noise of that row's own
seed: the same observation and seed give the same actions, whatever else is in the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loom.checkpoint import Checkpoints, Loaded
from loom.config import resolve
from loom.device import choose_device
from loom.errors import UserError
from loom.run_directory import require_thread
from torch import Tensor

from maniflow_overlay.arms import Arm, Fuse, Mode
from maniflow_overlay.config import TrainConfig
from maniflow_overlay.policy.flow import StepKind, euler
from maniflow_overlay.policy.model import OverlayPolicy
from maniflow_overlay.policy.pictures import as_input
from maniflow_overlay.policy.presets import PolicyShape
from maniflow_overlay.policy.text_encoder import TextEncoder
from maniflow_overlay.policy.text_tokens import Instructions, TextTokens

_AT_A_TIME = 64


class PolicyRecord:
    """The shape of a policy as a part of its checkpoints: `TrainState` takes it as an extra."""

    def __init__(self, shape: PolicyShape) -> None:
        """Keep a shape."""
        self.shape = shape

    def state_dict(self) -> dict[str, Any]:
        """Return the shape as plain values."""
        return {**asdict(self.shape), "tasks": list(self.shape.tasks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of another shape."""
        if _shape(state, "the checkpoint") != self.shape:
            raise UserError(
                f"the checkpoint is of another policy: {state}, now {self.state_dict()}",
                hint="resume with the store and the settings that the run began with",
            )


def shape_of(loaded: Loaded) -> PolicyShape:
    """Return the shape of the policy in a checkpoint.

    Raises:
        UserError: The checkpoint is not one of a policy.
    """
    return _shape(loaded.state.get("extras", {}).get("policy"), str(loaded.path))


def _shape(state: Any, place: str) -> PolicyShape:
    """Make a shape of its plain values; fields that a checkpoint does not have yet are defaults."""
    try:
        fields: dict[str, Any] = dict(state)
        arm, tasks = Arm(**fields.pop("arm")), tuple(fields.pop("tasks"))
        return PolicyShape(arm=arm, tasks=tasks, **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{place} is no checkpoint of a policy ({error!r})",
            hint="give a run of `maniflow-overlay train`",
        ) from error


class Policy:
    """A network with what is needed to ask it."""

    def __init__(
        self,
        model: OverlayPolicy,
        *,
        inference_steps: int,
        kind: StepKind = "relative",
        instructions: Instructions | None = None,
    ) -> None:
        """Take a network; it is put into evaluation mode only while it is asked.

        `instructions` turns texts into tokens, for a network that takes them.
        """
        self.model = model
        self.shape = model.shape
        self.inference_steps, self.kind = inference_steps, kind
        self._instructions = instructions

    @property
    def observation_steps(self) -> int:
        """Steps that an observation holds, the newest last."""
        return self.shape.observed

    @property
    def action_steps(self) -> int:
        """Actions of one answer."""
        return self.shape.action_steps

    @property
    def mode(self) -> Mode:
        """On which pictures the policy expects the path."""
        return self.shape.arm.mode

    @property
    def fuse(self) -> Fuse:
        """How it expects the path there."""
        return self.shape.arm.fuse

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        return self.shape.width, self.shape.height

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks it was trained on; their places are the numbers that `act` takes."""
        return self.shape.tasks

    @property
    def digest(self) -> str:
        """SHA-256 of all that an answer comes from: the weights, the shape and how it is asked.

        Not of the files: a run that was copied, or trained again to the same bits, is the same.
        """
        asked = {"steps": self.inference_steps, "kind": self.kind}
        found = hashlib.sha256(json.dumps([asdict(self.shape), asked], sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            found.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def act(
        self,
        images: np.ndarray,
        state: np.ndarray,
        task: np.ndarray,
        *,
        initial: np.ndarray | None = None,
        seeds: Sequence[int] | np.ndarray | None = None,
        instructions: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Predict the actions to carry out next.

        Args:
            images: (n, observation_steps, h, w, 3 or 6) uint8 RGB, the newest last; with the path
                drawn in, or in channels 4 to 6, where the mode shows it there. Three channels are
                taken for six with an empty path.
            state: (n, observation_steps, d) float32.
            task: (n,) int64, places in `tasks`.
            initial: (n, h, w, 3 or 6) uint8, the episode's first frame with its path; needed by the
                modes initial and initial_current, not looked at by the others.
            seeds: (n,) which noise each row begins from; 0 for all if None.
            instructions: n texts; needed by a policy that was trained with language=text, not
                looked at by the others.

        Returns:
            (n, action_steps, action_dim) float32, in the data's units.

        Raises:
            UserError: An argument does not fit the policy.
        """
        count = len(images)
        if not self.shape.arm.sees_initial:
            initial = None
        self._require(images, state, task, initial)
        if count == 0:
            return np.zeros((0, self.action_steps, self.shape.action_dim), np.float32)
        noise = self._noise(count, seeds)
        text = self._text(count, instructions)
        answers = [
            self._answer(
                images[rows],
                state[rows],
                task[rows],
                None if initial is None else initial[rows],
                noise[rows],
                None if text is None else text.part(rows),
            )
            for rows in (slice(k, k + _AT_A_TIME) for k in range(0, count, _AT_A_TIME))
        ]
        return np.concatenate(answers)

    @torch.no_grad()
    def _answer(
        self,
        images: np.ndarray,
        state: np.ndarray,
        task: np.ndarray,
        initial: np.ndarray | None,
        noise: np.ndarray,
        text: TextTokens | None,
    ) -> np.ndarray:
        model = self.model
        training = model.training
        model.eval()
        try:
            context = model.context(
                self._input(images),
                None if initial is None else self._input(initial),
                self._tensor(state.astype(np.float32, copy=False)),
                self._tensor(task.astype(np.int64, copy=False)),
                text,
            )
            normalised = euler(
                lambda x, t, s: model.velocity(x, t, s, context),
                self._tensor(noise),
                self.inference_steps,
                self.kind,
            )
            actions = model.normalise_action.inverse(normalised)
        finally:
            model.train(training)
        first = self.shape.observed - 1
        return actions[:, first : first + self.action_steps].cpu().numpy()

    def _noise(self, count: int, seeds: Sequence[int] | np.ndarray | None) -> np.ndarray:
        chosen = np.zeros(count, np.int64) if seeds is None else np.asarray(seeds)
        if chosen.shape != (count,):
            raise UserError(f"{chosen.shape} seeds for {count} observations")
        size = (self.shape.horizon, self.shape.action_dim)
        drawn = {
            seed: np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
            for seed in set(chosen.tolist())
        }
        return np.stack([drawn[seed] for seed in chosen.tolist()])

    def _text(self, count: int, instructions: Sequence[str] | None) -> TextTokens | None:
        if not self.shape.text_width:
            return None
        if self._instructions is None or instructions is None or len(instructions) != count:
            given = "none" if instructions is None else len(instructions)
            raise UserError(
                f"the policy takes an instruction for each of {count} observations, given: {given}"
            )
        return self._instructions.tokens(instructions).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.model.normalise_action.scale.device

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _input(self, pictures: np.ndarray) -> Tensor:
        missing = self.shape.arm.channels - pictures.shape[-1]
        if missing:
            pictures = np.pad(pictures, [(0, 0)] * (pictures.ndim - 1) + [(0, missing)])
        return as_input(self._tensor(pictures))

    def _require(
        self,
        images: np.ndarray,
        state: np.ndarray,
        task: np.ndarray,
        initial: np.ndarray | None,
    ) -> None:
        shape, count = self.shape, len(images)
        channels = (3, shape.arm.channels)
        picture = (shape.height, shape.width)
        if self.shape.arm.sees_initial and initial is None:
            raise UserError(f"mode {self.mode} needs the episode's first frame as `initial`")
        for name, array, lead in (("images", images, (shape.observed,)), ("initial", initial, ())):
            if array is None:
                continue
            fits = array.shape[:-1] == (count, *lead, *picture) and array.shape[-1] in channels
            if not fits or array.dtype != np.uint8:
                raise UserError(
                    f"{name} are {array.dtype} {array.shape}, expected uint8 "
                    f"{(count, *lead, *picture)} and {' or '.join(map(str, sorted(set(channels))))}"
                    " channels"
                )
        if state.shape != (count, shape.observed, shape.state_dim):
            raise UserError(
                f"states of shape {state.shape}, expected "
                f"{(count, shape.observed, shape.state_dim)}"
            )
        if not np.isfinite(state).all():
            raise UserError("a state is not finite: the policy would answer with nothing usable")
        if task.shape != (count,) or not np.issubdtype(task.dtype, np.integer):
            raise UserError(f"tasks are {task.dtype} {task.shape}, expected {count} integers")
        known = max(1, len(shape.tasks))
        if count and (task.min() < 0 or task.max() >= known):
            raise UserError(
                f"task {int(task.min())} to {int(task.max())} of {known}: "
                f"{', '.join(shape.tasks) or 'a single task'}"
            )


def load_policy(run_dir: Path, *, checkpoint: str = "best", device: str = "auto") -> Policy:
    """Read a policy from a training run.

    Args:
        run_dir: Directory of the run.
        checkpoint: `best` in validation (the last one where none was validated), `last`, or a step.
        device: auto, cpu or cuda.

    Raises:
        UserError: There is no such run or checkpoint, it is damaged, or of another thread.
    """
    run_dir = Path(run_dir)
    require_thread(run_dir, "maniflow_overlay", hint="give a run of `maniflow-overlay train`")
    config = resolve(TrainConfig, run_dir / "config.yaml").config
    checkpoints = Checkpoints(run_dir / "checkpoints")
    loaded = checkpoints.load(_chosen(checkpoints, checkpoint))
    model = OverlayPolicy(shape_of(loaded), torch.Generator().manual_seed(0))
    model.load_state_dict(loaded.state.get("ema") or loaded.state["model"])
    model.to(choose_device(device)).eval()
    return Policy(
        model,
        inference_steps=config.num_inference_steps,
        kind=config.target_t,
        instructions=_instructions(config, model.shape, run_dir),
    )


def _instructions(config: TrainConfig, shape: PolicyShape, run_dir: Path) -> Instructions | None:
    """Open the text encoder that a policy was trained with."""
    if config.text_encoder is None:
        return None
    encoder = TextEncoder(config.text_encoder)
    if encoder.digest != shape.text_encoder:
        raise UserError(
            f"{encoder.folder} is another encoder than the one that {run_dir} was trained with",
            hint=f"text_encoder in {run_dir / 'config.yaml'} names its folder",
        )
    return Instructions(encoder)


def _chosen(checkpoints: Checkpoints, which: str) -> Path:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(
            f"{checkpoints.directory}: no checkpoint here", hint="give the directory of a run"
        )
    if which == "best":
        return checkpoints.best() or checkpoints.folder(steps[-1])
    if which == "last":
        return checkpoints.folder(steps[-1])
    if not which.isdecimal() or int(which) not in steps:
        raise UserError(
            f"{checkpoints.directory} has no checkpoint {which!r}",
            hint=f"best, last, or one of {', '.join(map(str, steps))}",
        )
    return checkpoints.folder(int(which))
