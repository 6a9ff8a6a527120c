"""The task, without physics: what lies where, how the gripper may move, when it is done.

Three blocks lie on three of nine spots of a table, a finger's breadth off at most; one of them is
to be put down on a fourth. In the unmarked task the
blocks look alike and the goal cannot be seen: only a drawn path tells which block, and where to. In
the marked task the block has a colour of its own and the goal is a disc of that colour. In an
occluded episode a curtain slides between camera and table before the block is grasped, and stays.

An episode is a pure function of its seed. The same seed gives the same blocks, goal and start in
every variant, marked or not, occluded or not, and in both scenes, so arms can be compared in pairs.

Vectors are RoboTwin's 14 numbers with a left arm whose first three joints are the tip's position in
metres, three wrist joints that rest, its gripper's opening (0 to 1), and a right arm that rests. An
action is the vector to be reached next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from maniflow_overlay.data.robotwin import VECTOR, Camera
from maniflow_overlay.paths.oracle import project
from maniflow_overlay.sim.camera import TableCamera

BLOCKS = 3
BLOCK_HALF_M = 0.025
SPACING_M, JITTER_M = 0.12, 0.01
SPOTS = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]) * SPACING_M
REACH_M = SPACING_M + JITTER_M  # farthest from the middle, in x and in y
APART_M = SPACING_M - 2 * JITTER_M  # an open gripper around one block touches no other
GOAL_RADIUS_M = 0.05
TIP_LOW_M, TIP_HIGH_M = 0.025, 0.16
HOVER_M = 0.1
STEP_M = 0.25  # farthest that the tip moves in a step: from one station of a way to the next
STEPS = 20  # an episode ends here at the latest; the expert needs about half
CURTAIN_STEPS = (1, 2)  # first step at which a curtain may hide the table, and the last
GRIPPER = 6
TASK, MARKED_TASK = "pick_place", "pick_place_marked"
INSTRUCTIONS = {
    TASK: ("follow the line with the block", "carry the block along the line"),
    MARKED_TASK: ("put the orange block on the disc", "move the orange block to the marked place"),
}
"""What each task is called in words: the text of the demonstrations, and one kept back."""


class Layout(NamedTuple):
    """Where everything is at the beginning of an episode, in metres.

    Attributes:
        blocks: (3, 2) x and y of the blocks.
        target: Which block is to be moved.
        goal: (2,) where to.
        tip: (3,) where the gripper starts.
        curtain_step: From which step on the curtain hides the table, if there is one.
    """

    blocks: np.ndarray
    target: int
    goal: np.ndarray
    tip: np.ndarray
    curtain_step: int


class Observation(NamedTuple):
    """What is seen.

    Attributes:
        rgb: (H, W, 3) uint8.
        state: (14,) float32.
    """

    rgb: np.ndarray
    state: np.ndarray


@dataclass(frozen=True)
class Situation:
    """What an episode asks for.

    Attributes:
        seed: Of the layout.
        occluded: Whether a curtain hides the table.
        marked: Whether block and goal can be recognised.
    """

    seed: int
    occluded: bool = False
    marked: bool = False

    @property
    def task(self) -> str:
        """Name of the task."""
        return MARKED_TASK if self.marked else TASK


def draw_layout(seed: int) -> Layout:
    """Draw blocks and goal on four of the nine spots, and a start above the middle."""
    rng = np.random.default_rng([seed, 0x7AB1E])
    places = rng.permutation(SPOTS)[: BLOCKS + 1]
    places = places + rng.uniform(-JITTER_M, JITTER_M, places.shape)
    tip = rng.uniform([-JITTER_M, -JITTER_M, HOVER_M], [JITTER_M, JITTER_M, TIP_HIGH_M])
    return Layout(
        places[:BLOCKS],
        int(rng.integers(BLOCKS)),
        places[BLOCKS],
        tip,
        int(rng.integers(CURTAIN_STEPS[0], CURTAIN_STEPS[1] + 1)),
    )


def vector_of(tip_m: np.ndarray, opening: float) -> np.ndarray:
    """Return the 14 numbers of a tip's position and a gripper's opening, float32."""
    vector = np.zeros(VECTOR, np.float32)
    vector[:3], vector[GRIPPER] = tip_m, opening
    return vector


class Scene(Protocol):
    """A table that can be reset, acted on and seen; both scenes are one."""

    camera: TableCamera
    situation: Situation
    layout: Layout
    steps: int

    def reset(self, seed: int, *, occluded: bool = False, marked: bool = False) -> Observation:
        """Begin the episode of a seed."""
        ...

    def step(self, action: np.ndarray) -> Observation:
        """Move towards an action, (14,), at most `STEP_M`."""
        ...

    def picture(self) -> np.ndarray:
        """Return what the camera sees, (H, W, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Give the renderer back."""
        ...

    @property
    def tip_m(self) -> np.ndarray:
        """Where the gripper's tip is, (3,)."""
        ...

    @property
    def opening(self) -> float:
        """How far the gripper was told to open, 0 to 1."""
        ...

    @property
    def blocks_m(self) -> np.ndarray:
        """Where the blocks' centres are, (3, 3)."""
        ...


def reachable(action: np.ndarray, tip_m: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the position that a step from `tip_m` ends at, and the opening, that an action means.

    Raises:
        ValueError: The action is not (14,) or not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (VECTOR,) or not np.isfinite(action).all():
        raise ValueError(f"an action of shape {action.shape}: expected {VECTOR} finite numbers")
    edge = REACH_M + 0.03
    wanted = np.clip(action[:3], [-edge, -edge, TIP_LOW_M], [edge, edge, TIP_HIGH_M])
    step = wanted - tip_m
    place = tip_m + step * min(1.0, STEP_M / max(float(np.linalg.norm(step)), 1e-9))
    return place, float(np.clip(action[GRIPPER], 0, 1))


def hidden(scene: Scene) -> bool:
    """Return whether the curtain is between camera and table now."""
    return scene.situation.occluded and scene.steps >= scene.layout.curtain_step


def carried(scene: Scene) -> int | None:
    """Return the block that the closed gripper holds, or None."""
    if scene.opening > 0.5:
        return None
    gap = np.linalg.norm(scene.blocks_m - scene.tip_m, axis=1)
    nearest = int(gap.argmin())
    return nearest if gap[nearest] < 1.6 * BLOCK_HALF_M else None


def success(scene: Scene) -> bool:
    """Return whether the right block lies on the goal and the gripper has let go of it."""
    block = scene.blocks_m[scene.layout.target]
    placed = np.linalg.norm(block[:2] - scene.layout.goal) <= GOAL_RADIUS_M
    return bool(placed and block[2] < 1.5 * BLOCK_HALF_M and scene.opening > 0.5)


def project_relative(points_m: np.ndarray, camera: TableCamera) -> np.ndarray:
    """Project points of the world, (n, 3), to relative picture coordinates, (n, 2)."""
    seen = Camera(camera.intrinsic()[None], camera.camera_from_world()[None])
    return project(np.asarray(points_m, np.float64), seen, 0, (camera.width, camera.height))
