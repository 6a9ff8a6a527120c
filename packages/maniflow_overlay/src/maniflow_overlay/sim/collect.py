"""Demonstrations: the expert's episodes in RoboTwin 2.0's layout, with their oracle paths.

    FOLDER/pick_place/demo_clean/data/episode0.hdf5     and its instructions beside
    FOLDER/paths/perfect.jsonl, noisy.jsonl, degraded.jsonl
    FOLDER/paths/mixed.jsonl                            each episode in one quality, in turn
    FOLDER/collection.json                              what was asked for

Every second episode is occluded. A policy trained on `mixed` has met every quality, seen and
hidden, and can learn which of two paths to trust.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import explained, read_json, write_atomic

from maniflow_overlay.data.robotwin import TIP_OFFSET_M
from maniflow_overlay.data.robotwin_writer import Recording, episode_path, write_recording
from maniflow_overlay.gripper_path import GripperPath
from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.table import ORACLE, PathRow, write_paths
from maniflow_overlay.sim.choice import SceneName, make_scene
from maniflow_overlay.sim.expert import NEAR_M, expert
from maniflow_overlay.sim.path_source import QUALITIES, PathSource, Quality
from maniflow_overlay.sim.scene import (
    HOVER_M,
    INSTRUCTIONS,
    MARKED_TASK,
    STEPS,
    Scene,
    Situation,
    success,
)

PATHS, COLLECTION, MIXED = "paths", "collection.json", "mixed"
FIRST_TRAINING_SEED = 1_000_000  # evaluation stays below
# The gripper's x axis points up, so that RoboTwin's tip lies below the end effector's pose.
_TURN_WXYZ = np.array([np.sqrt(0.5), 0.0, -np.sqrt(0.5), 0.0])


@dataclass(frozen=True)
class Collection:
    """What is collected.

    Attributes:
        tasks: `pick_place`, `pick_place_marked` or both.
        episodes: Of each task.
        scene: In which scene.
        seed: Chooses the layouts; two collections of different seeds share none.
    """

    tasks: tuple[str, ...]
    episodes: int
    scene: SceneName
    seed: int = 0

    def situation(self, task: str, number: int) -> Situation:
        """Return what an episode asks for."""
        first = FIRST_TRAINING_SEED * (1 + self.seed)
        return Situation(first + number, occluded=number % 2 == 1, marked=task == MARKED_TASK)


def mixed_quality(number: int) -> Quality:
    """Return the quality of an episode's paths in the mixed file; half of each are occluded."""
    return QUALITIES[number // 2 % len(QUALITIES)]


def collect(wanted: Collection, folder: Path, done: Callable[[int], Any]) -> int:
    """Record episodes; those that are there are kept, so an interrupted collection goes on.

    Args:
        wanted: What to collect.
        folder: Where to.
        done: Is told after each episode how many there are.

    Returns:
        How many episodes were recorded now.

    Raises:
        UserError: The folder holds another collection, a task is unknown, or the expert fails.
    """
    for task in wanted.tasks:
        if task not in INSTRUCTIONS:
            raise UserError(f"no task is called {task!r}", hint=", ".join(INSTRUCTIONS))
    _claim(folder, wanted)
    scene = make_scene(wanted.scene)
    rows: dict[str, list[PathRow]] = {quality: [] for quality in (*QUALITIES, MIXED)}
    recorded = count = 0
    try:
        for task in wanted.tasks:
            for number in range(wanted.episodes):
                recording, paths = _demonstrate(scene, wanted.situation(task, number))
                path = episode_path(folder, task, number)
                if not path.is_file():
                    write_recording(path, recording)
                    recorded += 1
                for quality, drawn in paths.items():
                    rows[quality] += _rows(task, number, drawn)
                rows[MIXED] += _rows(task, number, paths[mixed_quality(number)])
                count += 1
                done(count)
    finally:
        scene.close()
    for quality, listed in rows.items():
        write_paths(folder / PATHS / f"{quality}.jsonl", listed)
    return recorded


def _claim(folder: Path, wanted: Collection) -> None:
    marker = folder / COLLECTION
    asked = json.loads(json.dumps(asdict(wanted)))
    if marker.is_file():
        found = read_json(marker)
        if found != asked:
            raise UserError(
                f"{folder} holds another collection: {found}", hint=f"asked for: {asked}"
            )
        return
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty", hint="give a new folder")
    write_atomic(marker, json.dumps(asked, indent=2) + "\n")


def _demonstrate(
    scene: Scene, situation: Situation
) -> tuple[Recording, dict[Quality, list[GripperPath]]]:
    """Play the expert, and go on until its hand has risen from the goal."""
    seen = scene.reset(situation.seed, occluded=situation.occluded, marked=situation.marked)
    sources = {quality: PathSource(scene, quality) for quality in QUALITIES}
    pictures, vectors, tips = [seen.rgb], [seen.state], [scene.tip_m]
    paths: dict[Quality, list[GripperPath]] = {
        quality: [source.ask()] for quality, source in sources.items()
    }
    succeeded = risen = False
    while scene.steps < STEPS and not (succeeded and risen):
        seen = scene.step(expert(scene))
        pictures.append(seen.rgb)
        vectors.append(seen.state)
        tips.append(scene.tip_m)
        for quality, source in sources.items():
            paths[quality].append(source.ask())
        succeeded = success(scene)
        risen = scene.tip_m[2] > HOVER_M - NEAR_M
    if not succeeded:
        raise UserError(
            f"the expert failed in the episode of seed {situation.seed}",
            hint="collect with another --seed",
        )
    return _recording(scene, pictures, np.array(vectors), np.array(tips)), paths


def _recording(
    scene: Scene, pictures: Sequence[np.ndarray], vectors: np.ndarray, tips: np.ndarray
) -> Recording:
    position = tips - TIP_OFFSET_M * np.array([0.0, 0.0, 1.0])
    left = np.column_stack([position, np.tile(_TURN_WXYZ, (len(tips), 1))])
    right = np.tile([0.5, 0, 0.3, 1, 0, 0, 0], (len(tips), 1))
    seen, unseen = INSTRUCTIONS[scene.situation.task]
    return Recording(
        pictures,
        vectors,
        (left, right),
        scene.camera.intrinsic(),
        scene.camera.camera_from_world(),
        seen=(seen,),
        unseen=(unseen,),
    )


def _rows(task: str, number: int, paths: list[GripperPath]) -> list[PathRow]:
    """Return the paths of an episode's rows: its last step has a picture, but no action."""
    return [
        PathRow(FrameKey(task, number, row), ORACLE, path) for row, path in enumerate(paths[:-1])
    ]
