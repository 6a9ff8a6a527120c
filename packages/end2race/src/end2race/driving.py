"""The one way in which a model is asked: by training, validation, export and the closed loop."""

from collections.abc import Collection
from dataclasses import replace

import torch

from end2race.data.batches import Batch
from end2race.models.driving_model import Answer
from end2race.models.student import CameraBEVStudent
from end2race.models.teacher import LiDARBEVTeacher

Driving = LiDARBEVTeacher | CameraBEVStudent


def answer(
    model: Driving, batch: Batch, return_aux: bool | Collection[str] = False, *, impl: str = "auto"
) -> Answer:
    """Drive the windows of a batch, each from a state of zero; see `LiDARBEVTeacher.forward`.

    The batch is brought to the model's device, and the answer stays there.
    """
    batch = batch.to(device_of(model))
    windows, frames = batch.speed.shape[:2]
    if isinstance(model, LiDARBEVTeacher):
        return model(
            batch.points,
            batch.point_frame,
            windows,
            frames,
            batch.speed,
            batch.steering_input,
            return_aux=return_aux,
            impl=impl,
        )
    if batch.images is None:
        raise ValueError("a student needs batches with images")
    return model(batch.images, batch.speed, batch.steering_input, return_aux=return_aux, impl=impl)


def device_of(model: Driving) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


def sensor_of(model: Driving) -> str:
    """Return what a model looks at: `lidar` or `camera`."""
    return "lidar" if isinstance(model, LiDARBEVTeacher) else "camera"


def blanked(batch: Batch) -> Batch:
    """Return the batch with nothing to see: no point, black images; speed and steering stay."""
    images = None if batch.images is None else torch.zeros_like(batch.images)
    return replace(batch, points=batch.points[:0], point_frame=batch.point_frame[:0], images=images)
