"""Cameras on a sphere about what a run has learned, for looking around and for films."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from featdistill.cameras import Cameras, look_at

STEEPEST = 89.0  # degrees: at the pole there is no up


class Orbit(NamedTuple):
    """A place on a sphere: angles in degrees, distance in world units."""

    azimuth: float
    elevation: float
    distance: float


def orbit_of(centre: Tensor, target: Tensor) -> Orbit:
    """Return where a camera at `centre` [3] is on the sphere about `target` [3]."""
    x, y, z = (centre - target).tolist()
    flat = math.hypot(x, y)
    return Orbit(
        math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, flat)), math.hypot(flat, z)
    )


def orbit_camera(orbit: Orbit, target: Tensor, like: Cameras, width: int) -> Cameras:
    """Return the camera at a place of the orbit, looking at `target` with z up.

    Args:
        orbit: Where it is; the elevation is held within 89 degrees.
        target: The point in the middle of the image, [3].
        like: Cameras whose field of view it takes.
        width: Image width in pixels; the proportions are those of `like`.
    """
    azimuth = math.radians(orbit.azimuth)
    elevation = math.radians(min(max(orbit.elevation, -STEEPEST), STEEPEST))
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    position = target + orbit.distance * torch.tensor(direction)
    return Cameras(
        look_at(position[None], target),
        width,
        round(width * like.height / like.width),
        like.focal_px * width / like.width,
        ("orbit",),
    )


def circle(start: Orbit, frames: int) -> list[Orbit]:
    """Return one turn about the target in equal steps; the last frame precedes the first."""
    return [start._replace(azimuth=start.azimuth + 360.0 * i / frames) for i in range(frames)]
