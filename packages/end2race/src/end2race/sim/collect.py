"""Recording the expert: a dataset of short drives with the camera and the LiDAR side by side.

The car is pushed off the expert's line while the labels stay the expert's own (DART, Laskey et al.
2017): an Ornstein-Uhlenbeck process is added to the wheel angle that is executed, and each drive
begins beside the centreline and turned. So the data shows how to come back, which a perfect drive
never does. Drives are short and of one length, so that no track outweighs the others.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from loom.errors import UserError
from loom.files import write_json
from loom.sampling import draw_rng

from end2race.data.calibration import Calibration
from end2race.data.dataset import FILE, DatasetFile, read_info
from end2race.data.writer import SegmentWriter, write_info
from end2race.sim.appearance import PLAIN, Appearance, random_appearance
from end2race.sim.expert import Expert
from end2race.sim.kernels import CONTROL_HZ
from end2race.sim.race import Race
from end2race.sim.sensors import Lidar, camera, lidar, see, sweep
from end2race.sim.track import Track, procedural_track

NOISE_RAD = 0.04
NOISE_TIME_S = 0.5
SCENE_FILE = "meta/scene.json"

_OFFSET_M, _TURN_RAD = 0.45, 0.2  # largest displacement at the beginning
_TRIES = 50
_COLUMNS = (
    "timestamp_ns",
    "velocity",
    "wheel_angle",
    "target_velocity",
    "lidar_filepath",
    "image_filepath",
)


@dataclass(frozen=True)
class Collection:
    """What to record.

    Attributes:
        tracks: procedural tracks of the split, or read ones.
        drives: drives on each track, each with an appearance of its own.
        frames: frames of each drive, at 10 Hz.
        seed: what draws tracks, starts, appearances and noise.
        noise_rad: standard deviation of the noise on the executed wheel angle.
        fixed_look: one appearance for all, instead of a random one for each drive.
        camera: the camera.
        lidar: the LiDAR.
    """

    tracks: int | Sequence[Track] = 12
    drives: int = 2
    frames: int = 40
    seed: int = 0
    noise_rad: float = NOISE_RAD
    fixed_look: bool = False
    camera: Calibration = field(default_factory=camera)
    lidar: Lidar = field(default_factory=lidar)


class Frame(NamedTuple):
    """One moment of a drive: the car's pose (m, m, rad), its speed, the expert's command."""

    pose: tuple[float, float, float]
    speed: float
    wheel_angle_deg: float
    target_speed: float


def collect(
    root: Path, split: str, plan: Collection, say: Callable[[str], None] = lambda _: None
) -> int:
    """Record one split of a dataset; other splits that are there are kept.

    The split gets its name when it is whole: a recording that is stopped leaves none.

    Args:
        root: The dataset's folder.
        split: train, valid or test; its tracks are drawn under its name, so splits share none.
        plan: What to record.
        say: Called with one line after each track.

    Returns:
        The number of frames.

    Raises:
        UserError: the split is there already, or camera or LiDAR differ from those of the dataset.
    """
    if (root / split).exists():
        raise UserError(
            f"{root / split}: is there already", hint="give another folder, or remove the split"
        )
    _begin(root, plan)
    unfinished = root / f".{split}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # what a stopped recording has left
    total = plan.tracks if isinstance(plan.tracks, int) else len(plan.tracks)
    number = 0
    for index in range(total):
        rng = draw_rng(plan.seed, index, f"end2race/{split}")
        track = (
            procedural_track(rng, f"{split}-{index}")
            if isinstance(plan.tracks, int)
            else plan.tracks[index]
        )
        expert = Expert(track)
        for _ in range(plan.drives):
            look = PLAIN if plan.fixed_look else random_appearance(rng)
            frames = record_drive(track, expert, plan.frames, plan.noise_rad, rng)
            writer = SegmentWriter(root, unfinished.name, f"segment_{number:04d}")
            _write(writer, track, look, frames, plan, rng)
            number += 1
        say(f"[{split}] track {index + 1} of {total}: {track.name}, {track.length_m:.0f} m")
    unfinished.rename(root / split)
    return number * plan.frames


def record_drive(
    track: Track, expert: Expert, frames: int, noise_rad: float, rng: np.random.Generator
) -> list[Frame]:
    """Drive until `frames` moments without a collision are there.

    Raises:
        UserError: no such drive comes about, since the noise is too strong for the track.
    """
    keep = math.exp(-1 / (CONTROL_HZ * NOISE_TIME_S))
    for _ in range(_TRIES):
        start = int(rng.integers(len(track.centreline)))
        race = Race(
            track,
            PLAIN,
            start,
            lateral_m=float(rng.uniform(-_OFFSET_M, _OFFSET_M)),
            yaw_rad=float(rng.uniform(-_TURN_RAD, _TURN_RAD)),
            speed=float(expert.speed[start] * rng.uniform(0.3, 1.0)),
        )
        drive, noise = [], 0.0
        while len(drive) < frames and not race.crashed:
            wheel_angle, speed = expert.command(race.state, race.nearest)
            wheel_angle_deg = math.degrees(wheel_angle)
            drive.append(Frame(race.pose, race.state.speed, wheel_angle_deg, speed))
            noise = keep * noise + math.sqrt(1 - keep**2) * noise_rad * rng.standard_normal()
            race.step(wheel_angle_deg + math.degrees(noise), speed)
            race.passed = 0  # a drive is no lap and does not end at the finish
        if len(drive) == frames and not race.crashed:
            return drive
    raise UserError(
        f"track {track.name}: none of {_TRIES} drives of {frames} frames ended without a collision",
        hint=f"use less noise than {noise_rad:g} rad, or shorter drives",
    )


def _begin(root: Path, plan: Collection) -> None:
    """Write `dataset.json`, or hold the plan against the one that is there."""
    if not (root / FILE).is_file():
        info = DatasetFile(
            lidar_num_features=4,
            rate_hz=CONTROL_HZ,
            columns=_COLUMNS,
            source="simulator",
            lidar_beams=plan.lidar.beams,
        )
        write_info(root, info, plan.camera, plan.lidar.pose)
        return
    there = read_info(root)
    same = (
        there.calibration is not None
        and (there.calibration.width, there.calibration.height)
        == (plan.camera.width, plan.camera.height)
        and np.allclose(there.calibration.intrinsic, plan.camera.intrinsic)
        and there.columns == _COLUMNS
    )
    if not same:
        raise UserError(
            f"{root}: was recorded with another camera",
            hint="give the same --camera, or another folder",
        )
    if there.lidar_beams not in (None, plan.lidar.beams):
        raise UserError(
            f"{root}: was recorded with {there.lidar_beams} beams, not {plan.lidar.beams}",
            hint="give the same --beams, or another folder",
        )


def _write(
    writer: SegmentWriter,
    track: Track,
    look: Appearance,
    frames: Sequence[Frame],
    plan: Collection,
    rng: np.random.Generator,
) -> None:
    """Render a drive and write it as a segment."""
    with writer:
        for number, frame in enumerate(frames, 1):
            writer.append(
                number * 1_000_000_000 // CONTROL_HZ,
                frame.speed,
                frame.wheel_angle_deg,
                points=sweep(track.field, plan.lidar, frame.pose, rng),
                image=see(track.field, look, plan.camera, frame.pose, rng),
                target_velocity=frame.target_speed,
            )
        looks = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in look._asdict().items()
        }
        write_json(writer.directory / SCENE_FILE, {"track": track.name, "appearance": looks})
