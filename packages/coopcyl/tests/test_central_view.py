"""The panorama from one centre, against a room known in closed form."""

from pathlib import Path

import numpy as np
import pytest
from coopcyl.data.depth import DepthSource
from coopcyl.data.frame_yaml import read_frame
from coopcyl.data.images import read_png
from coopcyl.data.panoramas import frame_rig
from coopcyl.data.tree import read_tree
from coopcyl.geometry.carla import pose_from_cords
from coopcyl.geometry.central_view import CentralView, central_view
from coopcyl.geometry.panorama import Panorama

PANORAMA = Panorama(360, 84, "equirect_band", -42, 42)
LIDAR = pose_from_cords([-1.0, 1.5, 0.0, 2.0, 130.0, -3.0]) @ pose_from_cords(
    [-0.5, 0, 1.9, 0, 0, 0]
)


@pytest.fixture(scope="module")
def view(room_root: Path) -> CentralView:
    (frame,) = read_tree(room_root, "test").frames
    agent = frame.agents[0]
    record = read_frame(agent.yaml)
    images = [read_png(agent.image(name), "RGB") for name in agent.cameras]
    rig = frame_rig(record, agent.cameras, [image.shape[:2] for image in images])
    depths = DepthSource("npy").read(agent, rig.cameras)
    return central_view(rig, images, depths, PANORAMA)


def true_ranges(panorama: Panorama) -> np.ndarray:
    """Ranges from the LiDAR to floor, walls and screen, by intersecting every plane."""
    x, y, z = np.moveaxis(panorama.directions(), -1, 0)
    rays = np.stack([z, x, -y], axis=-1) @ LIDAR[:3, :3].T
    origin = LIDAR[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.full(rays.shape[:2], np.inf)
        for axis, half in ((0, 14.0), (1, 9.0)):
            wall = (np.sign(rays[..., axis]) * half - origin[axis]) / rays[..., axis]
            distance = np.minimum(distance, wall)
        floor = -origin[2] / rays[..., 2]
        distance = np.where(floor > 0, np.minimum(distance, floor), distance)
        low, high = np.array([5.0, -2.5, 0.0]), np.array([5.4, 2.5, 2.5])
        first, second = (low - origin) / rays, (high - origin) / rays
    entry = np.minimum(first, second).max(axis=-1)
    leave = np.maximum(first, second).min(axis=-1)
    hit = (entry <= leave) & (entry > 0)
    return np.where(hit, np.minimum(distance, entry), distance)


def test_ranges_are_those_that_the_lidar_meets_within_a_pixel(view):
    fine = true_ranges(Panorama(1080, 252, "equirect_band", -42, 42))
    padded = np.pad(np.pad(fine, ((1, 1), (0, 0)), "edge"), ((0, 0), (1, 1)), "wrap")
    around = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))[::3, ::3]
    nearest, furthest = around.min(axis=(2, 3)), around.max(axis=(2, 3))
    known = view.range_m > 0
    within = (view.range_m > 0.995 * nearest) & (view.range_m < 1.005 * furthest)
    assert known.mean() > 0.6
    assert within[known].mean() > 0.99  # the rest lies behind the screen's edge


def test_pixels_have_a_colour_exactly_where_they_have_a_range(view):
    assert not view.rgb[view.range_m == 0].any()
    assert (view.rgb[view.range_m > 0].any(axis=-1)).mean() > 0.99


def test_without_depth_there_is_nothing_to_see(room_root):
    (frame,) = read_tree(room_root, "test").frames
    agent = frame.agents[0]
    images = [read_png(agent.image(name), "RGB") for name in agent.cameras]
    rig = frame_rig(read_frame(agent.yaml), agent.cameras, [i.shape[:2] for i in images])
    empty = central_view(rig, images, [np.zeros((300, 400), np.float32)] * 4, PANORAMA)
    assert not empty.range_m.any()
    assert not empty.rgb.any()
