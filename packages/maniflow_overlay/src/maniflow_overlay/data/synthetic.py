"""Episodes made up here and written as RoboTwin writes them, in either of its HDF5 layouts.

A gripper, a disc whose colour tells whether it is open, takes a block from a random place to
another one. The end poses are such that their projection is the disc's centre, so that everything
from the file to the drawn path can be checked by looking at the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from maniflow_overlay.data.robotwin import TIP_OFFSET_M, VECTOR
from maniflow_overlay.data.robotwin_writer import Layout, Recording, episode_path, write_recording

TABLE_RGB, BLOCK_RGB = (150, 140, 120), (40, 160, 60)
OPEN_RGB, CLOSED_RGB = (30, 60, 230), (230, 60, 30)


@dataclass(frozen=True)
class Scene:
    """What is made up.

    Attributes:
        width: Of the pictures.
        height: Of the pictures.
        steps: Of an episode; one more than its rows.
        seed: Of everything.
    """

    width: int = 320
    height: int = 240
    steps: int = 40
    seed: int = 0

    def camera(self) -> tuple[np.ndarray, np.ndarray]:
        """Return intrinsics (3, 3) and camera_from_world (3, 4): 37 degrees, 1 m above, down."""
        focal = self.height / 2 / np.tan(np.radians(37) / 2)
        intrinsic = np.array([[focal, 0, self.width / 2], [0, focal, self.height / 2], [0, 0, 1]])
        # World: x right, y away, z up. The camera looks down; its y axis points to us.
        down = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
        return intrinsic, np.concatenate([down, [[0], [0], [1.0]]], axis=1)

    def motion(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tip's positions (steps, 3) and the gripper's opening (steps,)."""
        rng = np.random.default_rng([self.seed, number])
        start, block, goal = (
            np.append(rng.uniform([-0.3, -0.2], [0.3, 0.2]), height) for height in (0.1, 0.02, 0.02)
        )
        way = np.linspace(0, 3, self.steps)
        stations = np.stack([start, block, goal, goal + [0, 0, 0.1]])
        piece = np.minimum(way.astype(int), 2)
        share = (way - piece)[:, None]
        tip = (1 - share) * stations[piece] + share * stations[piece + 1]
        return tip, np.where((way >= 1) & (way < 2), 0.0, 1.0)


def _pictures(scene: Scene, tip: np.ndarray, opening: np.ndarray) -> list[np.ndarray]:
    """Draw every step as RGB."""
    intrinsic, extrinsic = scene.camera()
    grasped = np.flatnonzero(opening == 0)
    rng = np.random.default_rng(scene.seed)
    grain = rng.integers(0, 12, (scene.height, scene.width, 3), dtype=np.uint8)
    pictures = []
    for step in range(scene.steps):
        image = np.full((scene.height, scene.width, 3), TABLE_RGB, np.uint8) + grain
        carried = min(max(step, int(grasped[0])), int(grasped[-1]))
        for point, colour, size in (
            (tip[carried] * [1, 1, 0], BLOCK_RGB, 9),
            (tip[step], OPEN_RGB if opening[step] > 0.5 else CLOSED_RGB, 6),
        ):
            x, y, depth = intrinsic @ (extrinsic @ np.append(point, 1.0))
            centre = (round(x / depth), round(y / depth))
            cv2.circle(image, centre, size, colour, -1, cv2.LINE_AA)
        pictures.append(image)
    return pictures


def write_episode(path: Path, scene: Scene, number: int, layout: Layout = "old") -> None:
    """Write one episode; its folder is made."""
    tip, opening = scene.motion(number)
    rotation = np.tile([1.0, 0, 0, 0], (scene.steps, 1))  # w x y z
    left = np.concatenate([tip - [TIP_OFFSET_M, 0, 0], rotation], axis=1)
    right = np.tile([0.5, 0, 0.3, 1, 0, 0, 0], (scene.steps, 1))
    rng = np.random.default_rng([scene.seed, 1])  # one robot: the same joints in every episode
    mixing = rng.normal(size=(3, 6))
    vector = np.zeros((scene.steps, VECTOR))
    vector[:, :6], vector[:, 6] = tip @ mixing, opening
    vector[:, 7:13], vector[:, 13] = rng.normal(size=6), 1.0
    intrinsic, camera_from_world = scene.camera()
    recording = Recording(
        _pictures(scene, tip, opening),
        vector,
        (left, right),
        intrinsic,
        camera_from_world,
        seen=("move the block",),
        unseen=("carry the green block",),
    )
    write_recording(path, recording, layout)


def write_task(root: Path, task: str, episodes: int, scene: Scene, layout: Layout = "old") -> None:
    """Write the episodes of a task as RoboTwin lays them out below its data folder."""
    for number in range(episodes):
        write_episode(episode_path(root, task, number, layout), scene, number, layout)
