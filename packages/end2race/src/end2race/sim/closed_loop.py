"""Driving in closed loop: sensors in, commands out, until the lap is done, the wall, or the limit.

Every driver has the same interface. Those to compare with are here: the expert, which knows where
the car is; a constant command; and the copycat, which repeats the last command and the present
speed. A copycat looks good in open loop, since a wheel angle resembles the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from loom.sampling import draw_rng

from end2race.data.calibration import Calibration
from end2race.sim.appearance import PLAIN, random_appearance
from end2race.sim.expert import Expert
from end2race.sim.kernels import CONTROL_HZ, LARGEST_WHEEL_ANGLE_RAD
from end2race.sim.race import Race
from end2race.sim.sensors import Lidar, camera, lidar, require_level, see, sweep
from end2race.sim.track import Track, procedural_track

LIMIT_S = 40.0

_LARGEST_WHEEL_ANGLE_DEG = math.degrees(LARGEST_WHEEL_ANGLE_RAD)


class Observation(NamedTuple):
    """What n cars sense at one moment.

    Attributes:
        points: n clouds float32 [m, 4] in the ego frame, or None where nobody asked for them.
        images: uint8 [n, height, width, 3], or None.
        speed: float64 [n], m/s.
        previous_steering: float64 [n], the last commanded wheel angle (degrees), clamped as the car
            clamps it, like those of the expert in every recording; 0 at the start.
    """

    points: list[np.ndarray] | None
    images: np.ndarray | None
    speed: np.ndarray
    previous_steering: np.ndarray


class Policy(Protocol):
    """Drives n cars at once."""

    @property
    def sensors(self) -> frozenset[str]:
        """Which of `lidar` and `camera` it looks at."""
        ...

    @property
    def eye(self) -> Calibration | None:
        """The camera that it looks through; None: the car's own."""
        ...

    @property
    def beams(self) -> int | None:
        """Beams of the LiDAR that it knows; None: those of the car's own."""
        ...

    def reset(self, races: Sequence[Race]) -> None:
        """Begin with these races; only the expert looks at more than their number."""
        ...

    def act(self, seen: Observation) -> np.ndarray:
        """Return commands [n, 2]: wheel angle (degrees) and speed (m/s)."""
        ...


class ExpertDriver:
    """Pure pursuit with full knowledge of car and track."""

    sensors: frozenset[str] = frozenset()
    eye: Calibration | None = None
    beams: int | None = None

    def reset(self, races: Sequence[Race]) -> None:
        """Plan each race."""
        self._races = [(race, Expert(race.track)) for race in races]

    def act(self, seen: Observation) -> np.ndarray:
        """Return the expert's commands."""
        commands = [expert.command(race.state, race.nearest) for race, expert in self._races]
        return np.array(commands) * (180 / np.pi, 1.0)


@dataclass(frozen=True)
class ConstantDriver:
    """Gives one command for ever: wheel angle (degrees) and speed (m/s)."""

    wheel_angle_deg: float
    speed_m_s: float
    sensors: frozenset[str] = frozenset()
    eye: Calibration | None = None
    beams: int | None = None

    def reset(self, races: Sequence[Race]) -> None:
        """Keep nothing."""

    def act(self, seen: Observation) -> np.ndarray:
        """Return the command."""
        return np.tile((self.wheel_angle_deg, self.speed_m_s), (len(seen.speed), 1))


class CopycatDriver:
    """Repeats the last wheel angle and the present speed."""

    sensors: frozenset[str] = frozenset()
    eye: Calibration | None = None
    beams: int | None = None

    def reset(self, races: Sequence[Race]) -> None:
        """Keep nothing."""

    def act(self, seen: Observation) -> np.ndarray:
        """Return what is anyway."""
        return np.stack([seen.previous_steering, seen.speed], axis=1)


@dataclass(frozen=True)
class LapResult:
    """How one race ended.

    Attributes:
        track: name of the track.
        seed: what drew start and appearance.
        completed: whether the lap was done.
        progress: share of the lap, by gates in order.
        collisions: 0 or 1; a race ends at the wall.
        lap_s: time of a completed lap.
        expert_lap_s: what the expert needs from the same start.
        distance_m: driven length.
        mean_abs_lateral_m: mean distance from the centreline.
        steering_jerk_deg_s2: mean absolute second difference of the commanded angle.
    """

    track: str
    seed: int
    completed: bool
    progress: float
    collisions: int
    lap_s: float | None
    expert_lap_s: float | None
    distance_m: float
    mean_abs_lateral_m: float
    steering_jerk_deg_s2: float


class Entry(NamedTuple):
    """One start: a race before its first step, and the seed of its sensors' noise."""

    race: Race
    seed: int


def unseen_tracks(count: int, seed: int = 0) -> list[Track]:
    """Draw procedural tracks that no training split of `sim-collect` has."""
    return [
        procedural_track(draw_rng(seed, number, "end2race/drive"), f"unseen-{number}")
        for number in range(count)
    ]


def entries(
    tracks: Sequence[Track], seeds: Sequence[int], *, fixed_look: bool = False
) -> list[Entry]:
    """Put one car on each track for each seed, which draws its start and its appearance."""
    found = []
    for number, track in enumerate(tracks):
        for seed in seeds:
            rng = draw_rng(seed, number, "end2race/start")
            start = int(rng.integers(len(track.centreline)))
            look = PLAIN if fixed_look else random_appearance(rng)
            found.append(Entry(Race(track, look, start), seed))
    return found


def drive(
    driver: Policy,
    entries: Sequence[Entry],
    *,
    limit_s: float = LIMIT_S,
    eye: Calibration | None = None,
    scanner: Lidar | None = None,
    blank: bool = False,
    watch: Callable[[Sequence[Race], Observation], None] | None = None,
) -> list[LapResult]:
    """Let a driver drive every entry, all cars in step.

    Args:
        driver: Whom to let drive.
        entries: The starts; their races are driven to the end.
        limit_s: When a car that is still on its way is stopped.
        eye: The camera; the driver's, or else the car's own, if None.
        scanner: The LiDAR; one with the driver's beams, or else the car's own, if None.
        blank: Give black images and empty clouds, to see whether the driver looks at all.
        watch: Called before each step with the races and what was sensed.

    Raises:
        UserError: The simulator has no such camera.
    """
    races = [entry.race for entry in entries]
    rngs = [np.random.default_rng((entry.seed, 0xD21E)) for entry in entries]
    eye, scanner = eye or driver.eye or camera(), scanner or scanner_of(driver)
    require_level(eye)
    previous = np.zeros(len(races))
    seen = Observation(None, None, previous, previous)
    driver.reset(races)
    for _ in range(round(limit_s * CONTROL_HZ)):
        if all(race.over for race in races):
            break
        seen = observe(races, rngs, driver.sensors, previous, eye, scanner, blank, seen)
        if watch is not None:
            watch(races, seen)
        commands = np.asarray(driver.act(seen), np.float64)
        for race, (wheel_angle_deg, speed) in zip(races, commands, strict=True):
            race.step(float(wheel_angle_deg), float(speed))
        previous = np.clip(commands[:, 0], -_LARGEST_WHEEL_ANGLE_DEG, _LARGEST_WHEEL_ANGLE_DEG)
    return [_result(entry) for entry in entries]


def scanner_of(driver: Policy) -> Lidar:
    """Return a LiDAR with the beams that a driver knows; the car's own if it knows none."""
    return lidar() if driver.beams is None else lidar(driver.beams)


def observe(
    races: Sequence[Race],
    rngs: Sequence[np.random.Generator],
    sensors: frozenset[str],
    previous_steering: np.ndarray,
    eye: Calibration,
    scanner: Lidar,
    blank: bool = False,
    last: Observation | None = None,
) -> Observation:
    """Read the sensors of all cars; one that stands keeps what it saw last."""
    points: list[np.ndarray] | None = [] if "lidar" in sensors else None
    images: list[np.ndarray] | None = [] if "camera" in sensors else None
    for number, (race, rng) in enumerate(zip(races, rngs, strict=True)):
        if points is not None:
            if blank:
                cloud = np.empty((0, 4), np.float32)
            elif race.over and last is not None and last.points is not None:
                cloud = last.points[number]
            else:
                cloud = sweep(race.track.field, scanner, race.pose, rng)
                cloud[:, :3] = scanner.pose.to_ego(cloud[:, :3])
            points.append(cloud)
        if images is not None:
            if blank:
                image = np.zeros((eye.height, eye.width, 3), np.uint8)
            elif race.over and last is not None and last.images is not None:
                image = last.images[number]
            else:
                image = see(race.track.field, race.look, eye, race.pose, rng)
            images.append(image)
    return Observation(
        points,
        None if images is None else np.stack(images),
        np.array([race.state.speed for race in races]),
        previous_steering,
    )


def _result(entry: Entry) -> LapResult:
    race, seed = entry
    path = np.array(race.path)
    change = np.diff(race.wheel_angles_deg, n=2)
    return LapResult(
        track=race.track.name,
        seed=seed,
        completed=race.completed,
        progress=race.progress,
        collisions=int(race.crashed),
        lap_s=race.seconds if race.completed else None,
        expert_lap_s=expert_lap_s(race),
        distance_m=float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()),
        mean_abs_lateral_m=float(np.abs(race.lateral_m).mean()) if race.lateral_m else 0.0,
        steering_jerk_deg_s2=float(np.abs(change).mean()) * CONTROL_HZ**2 if len(change) else 0.0,
    )


def expert_lap_s(race: Race) -> float | None:
    """Return the expert's time for a lap from the same start, None if it fails."""
    lap = Race(race.track, race.look, race.start)
    expert = Expert(race.track)
    while not lap.over and lap.seconds < LIMIT_S * 10:
        wheel_angle, speed = expert.command(lap.state, lap.nearest)
        lap.step(math.degrees(wheel_angle), speed)
    return lap.seconds if lap.completed else None
