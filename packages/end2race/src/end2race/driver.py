"""A trained model at the wheel of n cars: one observation in, n commands out.

`window` is how the model was trained: the state starts from zero at the first of the last T frames.
The frames' vectors are kept, so only the small recurrent part runs over all of them again. `carry`
takes the state along from step to step, which is cheaper and longer than anything in training.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from loom.errors import UserError
from torch import Tensor

from end2race.data.calibration import Calibration
from end2race.driving import Driving, device_of, sensor_of
from end2race.models.student import CameraBEVStudent
from end2race.models.teacher import LiDARBEVTeacher
from end2race.restore import restore

HiddenMode = Literal["window", "carry"]


class Seen(Protocol):
    """What n cars sense at one moment; `end2race.sim.closed_loop.Observation` is one."""

    @property
    def points(self) -> Sequence[np.ndarray] | None:
        """Clouds [m, 4] in the ego frame, one for each car."""
        ...

    @property
    def images(self) -> np.ndarray | None:
        """uint8 [n, h, w, 3]."""
        ...

    @property
    def speed(self) -> np.ndarray:
        """In m/s, [n]."""
        ...

    @property
    def previous_steering(self) -> np.ndarray:
        """The last commanded wheel angle in degrees, within what the car can turn, [n]."""
        ...


class Driver:
    """Drives with a model; see `end2race.sim.closed_loop.Policy`.

    Args:
        model: Teacher or student.
        seq_len: Frames of the windows that it was trained on.
        hidden_mode: Where the recurrent state comes from.
        impl: auto, torch or cpu.
        beams: LiDAR beams that a teacher learned from, where they are known.

    Attributes:
        sensors: What it looks at: `lidar` or `camera`.
        eye: The camera that a student was calibrated for; None: a teacher.
        beams: As given.
    """

    def __init__(
        self,
        model: Driving,
        seq_len: int,
        hidden_mode: HiddenMode = "window",
        *,
        impl: str = "auto",
        beams: int | None = None,
    ) -> None:
        if hidden_mode not in ("window", "carry"):
            raise UserError(f"hidden mode {hidden_mode!r}", hint="take window or carry")
        self.sensors = frozenset({sensor_of(model)})
        self.eye = _eye_of(model)
        self.beams = beams
        self._model, self._seq_len, self._impl = model.eval(), seq_len, impl
        self._carries = hidden_mode == "carry"
        self.reset(())

    @classmethod
    def load(cls, path: Path, hidden_mode: HiddenMode = "window", *, impl: str = "auto") -> Self:
        """Load a run directory, a checkpoint or a model file."""
        restored = restore(path)
        file = restored.file
        return cls(restored.model, file.seq_len, hidden_mode, impl=impl, beams=file.lidar_beams)

    def reset(self, races: Sized) -> None:
        """Forget everything; as many cars begin as there are races."""
        self._cars = len(races)
        self._hidden: Tensor | None = None
        self._frames: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def act(self, seen: Seen) -> np.ndarray:
        """Return commands [n, 2]: wheel angle (degrees) and speed (m/s)."""
        if len(seen.speed) != self._cars:
            raise ValueError(f"{len(seen.speed)} cars; the driver was reset for {self._cars}")
        vector = self._encode(seen)[:, None]
        speed, steering = (
            torch.from_numpy(np.asarray(each, np.float32)).to(vector.device)[:, None, None]
            for each in (seen.speed, seen.previous_steering)
        )
        policy = self._model.policy
        if self._carries:
            driven = policy(vector, speed, steering, self._hidden)
            self._hidden = driven.last_hidden
        else:
            self._frames = [*self._frames, (vector, speed, steering)][-self._seq_len :]
            driven = policy(*(torch.cat(part, 1) for part in zip(*self._frames, strict=True)))
        return driven.actions[:, -1].double().cpu().numpy()

    def _encode(self, seen: Seen) -> Tensor:
        """Return the vector of each car's frame, [n, D]."""
        device = device_of(self._model)
        if isinstance(self._model, LiDARBEVTeacher):
            if seen.points is None:
                raise ValueError("a teacher needs points")
            frame = np.repeat(np.arange(self._cars), [len(cloud) for cloud in seen.points])
            cloud = np.concatenate([*seen.points, np.empty((0, 4), np.float32)])
            points, point_frame = (torch.from_numpy(each).to(device) for each in (cloud, frame))
            return self._model.encode(points, point_frame, self._cars, impl=self._impl)[1]
        if seen.images is None:
            raise ValueError("a student needs images")
        return self._model.encode(torch.from_numpy(seen.images).to(device), impl=self._impl)[1]


def _eye_of(model: Driving) -> Calibration | None:
    if not isinstance(model, CameraBEVStudent):
        return None
    camera = model.calibration
    return Calibration(
        camera.intrinsic, camera.width, camera.height, camera.rotation, camera.translation
    )
