"""A crossing of two streets with buildings, poles, parked cars and vehicles that look at it.

Local coordinates have the main street along x and the ground at z = 0. The whole world is then
tilted, as a hillside is: vehicles of different headings get different pitch and roll, so that a
wrong order of the Euler angles cannot go unnoticed. Vehicles have a roll and pitch of their own
besides.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from coopcyl.data.synth.raycast import Boxes
from coopcyl.geometry.carla import pose_from_cords

BUILDING, POLE, CAR, PARKED = range(4)
_STREET_END_M = 70.0


TownKind = Literal["usual", "foreign", "varied"]
TOWN_KINDS: tuple[TownKind, ...] = get_args(TownKind)
"""What towns look like.

`usual` has one size of buildings and saturated colours. `foreign` is there to judge on: buildings
1.2 to 1.5 times as large, streets 2 m wider, pale colours of one hue. `varied` is there to learn
from: sizes from 0.7 to 2, streets and tints of many kinds, but none of those of `foreign`.
"""


@dataclass(frozen=True, eq=False)
class SynthVehicle:
    """A vehicle of the world.

    Attributes:
        number: Its id.
        cords: Local `[x, y, z, roll, yaw, pitch]` of its middle on the ground at time 0.
        halves: Half length, width and height.
        speed_ms: Along its heading.
        box: Index of its box.
    """

    number: int
    cords: tuple[float, ...]
    halves: tuple[float, float, float]
    speed_ms: float
    box: int

    def pose(self, seconds: float) -> np.ndarray:
        """Return the local 4x4 pose of its middle on the ground at a time."""
        pose = pose_from_cords(self.cords)
        pose[:2, 3] += pose[:2, 0] * self.speed_ms * seconds
        return pose


@dataclass(frozen=True, eq=False)
class World:
    """Boxes on the ground, and the vehicles among them.

    Attributes:
        boxes: Everything that stands, as it is at time 0.
        kinds: What each box is.
        seeds: Where each box takes its colours from.
        street_half_m: Half width of the main and of the cross street.
        tilt: 4x4 from local to world coordinates.
        vehicles: Those with cameras first.
        plain: Facades have one colour each.
        seed: Of the ground's colours.
        tint: Gain and lift of every painted colour, per channel; None leaves them as they are.
    """

    boxes: Boxes
    kinds: np.ndarray
    seeds: np.ndarray
    street_half_m: tuple[float, float]
    tilt: np.ndarray
    vehicles: tuple[SynthVehicle, ...]
    plain: bool
    seed: int
    tint: tuple[np.ndarray, np.ndarray] | None = None

    def boxes_at(self, seconds: float) -> Boxes:
        """Return the boxes with the vehicles moved to their places at a time."""
        centres, rotations = self.boxes.centres.copy(), self.boxes.rotations.copy()
        for vehicle in self.vehicles:
            pose = vehicle.pose(seconds)
            centres[vehicle.box] = pose[:3, :3] @ [0, 0, vehicle.halves[2]] + pose[:3, 3]
            rotations[vehicle.box] = pose[:3, :3]
        return Boxes(centres, rotations, self.boxes.halves)


def build_world(
    rng: np.random.Generator,
    agents: int,
    *,
    plain: bool = False,
    slope_deg: float = 2.0,
    kind: TownKind = "usual",
) -> World:
    """Draw a world.

    Args:
        rng: Every draw comes from here.
        agents: Vehicles with cameras.
        plain: One colour per facade.
        slope_deg: Standard deviation of the hillside's pitch and roll.
        kind: Sizes and colours; see `TOWN_KINDS`.
    """
    street = (rng.uniform(5, 8), rng.uniform(4, 7))
    size, wider, tint = _draw_kind(rng, kind)
    street = (street[0] + wider, street[1] + wider)
    boxes: list[tuple[np.ndarray, float, np.ndarray, int]] = []
    _add_buildings(boxes, rng, street, size)
    _add_street_furniture(boxes, rng, street)
    vehicles = _place_vehicles(rng, agents, street, len(boxes))
    boxes += [
        (np.array(v.cords[:3]) + [0, 0, v.halves[2]], v.cords[4], np.array(v.halves), CAR)
        for v in vehicles
    ]
    tilt = pose_from_cords([*rng.uniform(-300, 300, 2), rng.uniform(-2, 2), 0, 0, 0])
    pitch, roll = rng.normal(0, slope_deg, 2)
    tilt = tilt @ pose_from_cords([0, 0, 0, roll, rng.uniform(-180, 180), pitch])
    solid = Boxes(
        np.array([centre for centre, *_ in boxes]),
        np.array([pose_from_cords([0, 0, 0, 0, yaw, 0])[:3, :3] for _, yaw, *_ in boxes]),
        np.array([half for _, _, half, _ in boxes]),
    )
    return World(
        solid,
        np.array([kind for *_, kind in boxes]),
        rng.integers(0, 2**31, len(boxes)),
        street,
        tilt,
        vehicles,
        plain,
        int(rng.integers(0, 2**31)),
        tint,
    )


def _draw_kind(
    rng: np.random.Generator, kind: TownKind
) -> tuple[float, float, tuple[np.ndarray, np.ndarray] | None]:
    """Return the size of the buildings, what half a street is wider by, and the tint."""
    if kind == "usual":
        return 1.0, 0.0, None
    if kind == "foreign":
        size = rng.uniform(1.2, 1.5)
        return size, 1.0, (rng.uniform(0.5, 0.8, 3), rng.uniform(30, 80, 3))
    small = rng.random() < 0.5
    size = rng.uniform(0.7, 1.15) if small else rng.uniform(1.55, 2.0)
    wider = rng.uniform(-0.5, 0.8) if rng.random() < 0.6 else rng.uniform(1.2, 2.5)
    tints = (
        (np.ones(3), np.zeros(3)),
        (rng.uniform(0.85, 1.1, 3), rng.uniform(-20, 25, 3)),
        (rng.uniform(0.25, 0.45, 3), rng.uniform(85, 130, 3)),
    )
    return size, wider, tints[rng.integers(len(tints))]


def _add_buildings(
    boxes: list, rng: np.random.Generator, street: tuple[float, float], size: float
) -> None:
    """Line both sides of the main street, with a gap for the cross street."""
    for side in (-1, 1):
        for direction in (-1, 1):
            x = street[1] + 2.5
            while x < _STREET_END_M:
                half = size * np.array([rng.uniform(4, 9), rng.uniform(4, 8), rng.uniform(2.5, 9)])
                y = side * (street[0] + rng.uniform(2.5, 5) + half[1])
                centre = np.array([direction * (x + half[0]), y, half[2]])
                boxes.append((centre, rng.normal(0, 2), half, BUILDING))
                x += 2 * half[0] + rng.uniform(0.5, 5)


def _add_street_furniture(
    boxes: list, rng: np.random.Generator, street: tuple[float, float]
) -> None:
    """Put poles on the pavements and parked cars at the kerbs."""
    for _ in range(12):
        half = np.array([0.12, 0.12, rng.uniform(1.5, 3.5)])
        y = rng.choice([-1, 1]) * (street[0] + 1.0)
        boxes.append((np.array([rng.uniform(-45, 45), y, half[2]]), 0.0, half, POLE))
    for _ in range(5):
        half = np.array([rng.uniform(1.9, 2.6), rng.uniform(0.85, 1.05), rng.uniform(0.65, 0.95)])
        x = rng.choice([-1, 1]) * rng.uniform(street[1] + 4, 45)
        y = rng.choice([-1, 1]) * (street[0] - 1.2)
        boxes.append((np.array([x, y, half[2]]), rng.normal(0, 2), half, PARKED))


def _place_vehicles(
    rng: np.random.Generator, agents: int, street: tuple[float, float], first_box: int
) -> tuple[SynthVehicle, ...]:
    """Put vehicles on the lanes, 5 to 30 m from another one."""
    numbers = np.sort(rng.choice(np.arange(100, 10_000), agents, replace=False))
    places: list[np.ndarray] = []
    vehicles = []
    while len(vehicles) < agents:
        across = rng.random() < 0.12
        lane = rng.choice([-1, 1])
        along = rng.uniform(-30, 30)
        shift = lane * rng.uniform(1.6, max(1.7, street[int(across)] - 3.3))
        heading = (180.0 if lane < 0 else 0.0) + (90.0 if across else 0.0) + rng.normal(0, 2)
        place = np.array([-shift, along] if across else [along, shift])
        gaps = [np.linalg.norm(place - other) for other in places]
        if gaps and not (min(gaps) > 5 and min(gaps) < 30):
            continue
        places.append(place)
        cords = (*place, 0.0, rng.normal(0, 1), heading, rng.normal(0, 1))
        index = len(vehicles)
        vehicles.append(
            SynthVehicle(
                int(numbers[index]),
                tuple(float(value) for value in cords),
                (rng.uniform(2.2, 2.45), rng.uniform(0.9, 1.05), rng.uniform(0.7, 0.8)),
                rng.uniform(0, 12),
                first_box + index,
            )
        )
    return tuple(vehicles)
