"""A small data set for the tests, and a room whose geometry is known in closed form."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.samples import sample_of
from coopcyl.data.synth.raycast import Boxes
from coopcyl.data.synth.world import BUILDING, CAR, SynthVehicle, World
from coopcyl.data.synth.write import SynthOptions, write_scenario, write_tree
from coopcyl.data.tree import read_tree
from coopcyl.geometry.carla import pose_from_cords
from coopcyl.geometry.panorama import Panorama

if TYPE_CHECKING:
    from coopcyl.batches import SetBatch

ROOM_HALF_M = (14.0, 9.0)
SCREEN_X_M = (5.0, 5.4)
SCREEN_HALF_Y_M = 2.5
TILT_CORDS = [120.0, -40.0, 3.0, -5.0, 25.0, 6.0]  # roll and pitch that no flat road has
VEHICLE_CORDS = [-1.0, 1.5, 0.0, 2.0, 130.0, -3.0]

SMALL = SynthOptions(
    scenarios=2,
    frames=2,
    vehicles=(2, 3),
    width=80,
    depth=("npy", "carla_rgb24", "opv2v_h"),
    lidar=(16, 180),
    seed=4,
)


def room() -> World:
    """Four walls with inner faces at +-14 and +-9 m, and a screen that stands free in between."""
    a, b = ROOM_HALF_M
    low, high = SCREEN_X_M
    solid = [
        ([a + 1, 0, 10], [1, b + 2, 10]),
        ([-a - 1, 0, 10], [1, b + 2, 10]),
        ([0, b + 1, 10], [a + 2, 1, 10]),
        ([0, -b - 1, 10], [a + 2, 1, 10]),
        ([(low + high) / 2, 0, 1.25], [(high - low) / 2, SCREEN_HALF_Y_M, 1.25]),
        ([VEHICLE_CORDS[0], VEHICLE_CORDS[1], 0.75], [2.3, 1.0, 0.75]),
    ]
    boxes = Boxes(
        np.array([centre for centre, _ in solid], float),
        np.broadcast_to(np.eye(3), (len(solid), 3, 3)).copy(),
        np.array([half for _, half in solid], float),
    )
    vehicle = SynthVehicle(641, tuple(VEHICLE_CORDS), (2.3, 1.0, 0.75), 0.0, 5)
    return World(
        boxes,
        np.array([BUILDING] * 5 + [CAR]),
        np.arange(6),
        (5.0, 5.0),
        pose_from_cords(TILT_CORDS),
        (vehicle,),
        False,
        1,
    )


@pytest.fixture(scope="session")
def room_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The room as files: one scenario, one vehicle, images of 400x300."""
    root = tmp_path_factory.mktemp("room")
    options = replace(SMALL, frames=1, width=400, depth=("npy", "carla_rgb24", "opv2v_h"))
    write_scenario(root / "test" / "room", room(), options, np.random.default_rng(0))
    return root


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenarios of two times with two or three vehicles each; tests must not change it."""
    root = tmp_path_factory.mktemp("small")
    write_tree(root, SMALL)
    return root


@pytest.fixture(scope="session")
def pairs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crossings with two vehicles each, images of 160x120; tests must not change it."""
    root = tmp_path_factory.mktemp("pairs")
    options = SynthOptions(
        scenarios=4, vehicles=(2, 2), width=160, depth=("npy",), lidar=(2, 4), seed=21
    )
    write_tree(root, options)
    return root


@pytest.fixture(scope="session")
def two_sets(small_root: Path) -> "Callable[[Panorama], SetBatch]":
    """Return what makes a batch of two sets of two views on a panorama."""
    from coopcyl.batches import collate

    def of(panorama: Panorama) -> "SetBatch":
        reader = PanoramaReader(panorama, DepthSource("npy"), 90.0)
        frames = read_tree(small_root, "train").frames[:2]
        return collate(
            [
                sample_of([reader.read(a) for a in frame.agents[:2]], np.random.default_rng(0))
                for frame in frames
            ]
        )

    return of
