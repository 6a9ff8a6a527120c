"""RoboTwin 2.0 episodes: HDF5 files in the layout up to 2026-08 and in the one after it.

The older layout has `/observation/head_camera/rgb`, `/joint_action/vector`, `/endpose`; the newer
one `/vision/cam_head/colors`, `/state` and `/action`. Both keep JPEG files as fixed-width strings.

RoboTwin hands RGB arrays to `cv2.imencode`, which takes them for BGR. Decoding with OpenCV gives
the RGB array back as it was; any other decoder swaps red and blue.

A policy's row t is the picture and state at t and, as action, the state at t + 1: an episode of T
steps has T - 1 rows. Vectors are left arm (6), left gripper, right arm (6), right gripper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from loom.errors import UserError

VECTOR = 14
TIP_OFFSET_M = -0.146  # from an end effector's pose to its tip, along its x axis
_EPISODE = re.compile(r"episode_?(\d{1,9})\.hdf5")
_OLD_PARTS = ("left_arm", "left_gripper", "right_arm", "right_gripper")
_NEW_PARTS = tuple(
    f"{side}_{part}_joint_states" for side in ("left", "right") for part in ("arm", "ee")
)
_CAMERAS = {
    "head": "cam_head",
    "left": "cam_left_wrist",
    "right": "cam_right_wrist",
    "front": "cam_third_view",
}
_GL_TO_CV = np.diag([1.0, -1.0, -1.0, 1.0])
# What h5py raises for damaged content, depending on where the damage is.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera per row.

    Attributes:
        intrinsic: (T, 3, 3), pixels.
        camera_from_world: (T, 3, 4), x right, y down, z forward, metres.
    """

    intrinsic: np.ndarray
    camera_from_world: np.ndarray


@dataclass(frozen=True, eq=False)
class Arm:
    """Pose of one end effector per row.

    Attributes:
        position_m: (T, 3) in the world.
        quaternion: (T, 4), w x y z.
        opening: (T,) of the gripper, 0 closed to 1 open.
    """

    position_m: np.ndarray
    quaternion: np.ndarray
    opening: np.ndarray


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration.

    Attributes:
        source: The file.
        task: RoboTwin's name of the task.
        number: Of the episode.
        jpegs: Pictures as the file has them, one per row.
        state: (rows, 14) float32 joint positions.
        action: (rows, 14) float32 joint positions one step later.
        instructions: Texts that describe the task.
        camera: None if the file does not tell it.
        arms: Left and right; None if the file does not tell the poses.
    """

    source: Path
    task: str
    number: int
    jpegs: tuple[bytes, ...]
    state: np.ndarray
    action: np.ndarray
    instructions: tuple[str, ...]
    camera: Camera | None
    arms: tuple[Arm, Arm] | None

    def picture_rgb(self, row: int) -> np.ndarray:
        """Decode the picture of a row, (H, W, 3) uint8 RGB."""
        return decode_rgb(self.jpegs[row], f"{self.source}: picture {row}")


@dataclass(frozen=True)
class EpisodeFile:
    """Where an episode is."""

    task: str
    number: int
    path: Path


def find_episodes(root: Path, tasks: Collection[str] = ()) -> list[EpisodeFile]:
    """List the episodes below a folder, in order of task and number.

    Both layouts keep them as `.../TASK/CONFIG/data/episode12.hdf5`.

    Raises:
        UserError: There are none, or a task has one episode twice.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", hint="give RoboTwin's data folder")
    found: dict[tuple[str, int], EpisodeFile] = {}
    for path in sorted(root.absolute().rglob("*.hdf5")):
        name = _EPISODE.fullmatch(path.name)
        if not name or path.parent.name != "data" or len(path.parts) < 5:
            continue
        episode = EpisodeFile(path.parts[-4], int(name[1]), path)
        if tasks and episode.task not in tasks:
            continue
        key = (episode.task, episode.number)
        if key in found:
            raise UserError(
                f"episode {episode.number} of {episode.task} is there twice: "
                f"{found[key].path} and {path}",
                hint="give the folder of one configuration",
            )
        found[key] = episode
    if not found:
        wanted = f" of {', '.join(sorted(tasks))}" if tasks else ""
        raise UserError(
            f"{root}: no episodes{wanted}", hint="expected TASK/CONFIG/data/episode0.hdf5"
        )
    return [found[key] for key in sorted(found)]


def decode_rgb(jpeg: bytes, place: str) -> np.ndarray:
    """Decode one of RoboTwin's JPEG files to (H, W, 3) uint8 RGB.

    Raises:
        UserError: It is no JPEG file, or its end is missing.
    """
    if jpeg[:2] != b"\xff\xd8":
        raise UserError(f"{place} is no JPEG file ({len(jpeg)} bytes)")
    if jpeg[-2:] != b"\xff\xd9":
        raise UserError(f"{place} is cut short: {len(jpeg)} bytes without an end marker")
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{place} cannot be decoded ({len(jpeg)} bytes)")
    return image  # in OpenCV's order as it was encoded, which is RGB


def read_episode(file: EpisodeFile, camera: str = "head") -> Episode:
    """Read an episode of either layout.

    Args:
        file: Where it is.
        camera: `head`, `left`, `right` or `front`.

    Raises:
        UserError: The file is damaged or incomplete, lengths do not match or a value is not finite;
            the message names file and data set.
    """
    if camera not in _CAMERAS:
        raise UserError(f"no camera is called {camera!r}", hint=f"one of {', '.join(_CAMERAS)}")
    try:
        with h5py.File(file.path, "r") as content:
            if "observation" in content:
                return _read_old(file, content, f"observation/{camera}_camera")
            if "vision" in content:
                return _read_new(file, content, f"vision/{_CAMERAS[camera]}")
            raise UserError(
                f"{file.path}: neither /observation nor /vision is there",
                hint="expected an episode of RoboTwin 2.0",
            )
    except _DAMAGE as error:
        raise UserError(
            f"{file.path} is damaged: {' '.join(str(error).split())}",
            hint="fetch or collect this episode again",
        ) from error


def _dataset(content: Any, name: str, file: EpisodeFile) -> np.ndarray:
    if name not in content or not isinstance(content[name], h5py.Dataset):
        raise UserError(f"{file.path}: the data set /{name} is missing")
    return content[name][()]


def _numbers(content: Any, name: str, shape: tuple[int | None, ...], file: EpisodeFile) -> Any:
    """Read an array of finite numbers of this shape; None leaves a length open."""
    values = np.asarray(_dataset(content, name, file))
    matches = values.ndim == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, values.shape, strict=True)
    )
    if not matches or values.dtype.kind not in "fiu":
        wanted = tuple("any" if n is None else n for n in shape)
        raise UserError(
            f"{file.path}: /{name} is {values.dtype} of shape {values.shape}, expected {wanted}"
        )
    if not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0].tolist()
        raise UserError(f"{file.path}: /{name}{place} is not finite")
    return values


def _jpegs(content: Any, name: str, file: EpisodeFile) -> tuple[bytes, ...]:
    values = _dataset(content, name, file)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "SO":
        raise UserError(f"{file.path}: /{name} is not a list of JPEG files")
    return tuple(map(bytes, values))  # NumPy drops the zeros that fill up the width


def _same_length(file: EpisodeFile, lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"/{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{file.path}: lengths do not match: {said}")


def _read_old(file: EpisodeFile, content: Any, camera: str) -> Episode:
    jpegs = _jpegs(content, f"{camera}/rgb", file)
    if "joint_action/vector" in content:
        vector = _numbers(content, "joint_action/vector", (None, VECTOR), file)
    else:
        vector = _joined(content, "joint_action", _OLD_PARTS, file)
    _same_length(file, {f"{camera}/rgb": len(jpegs), "joint_action/vector": len(vector)})
    if len(vector) < 2:
        raise UserError(f"{file.path}: {len(vector)} steps give no pair of state and action")
    rows = len(vector) - 1
    intrinsic, extrinsic = f"{camera}/intrinsic_cv", f"{camera}/extrinsic_cv"
    seen = None
    if intrinsic in content and extrinsic in content:
        seen = Camera(
            _numbers(content, intrinsic, (rows + 1, 3, 3), file)[:rows].astype(np.float64),
            _numbers(content, extrinsic, (rows + 1, 3, 4), file)[:rows].astype(np.float64),
        )
    arms = None
    if "endpose" in content:
        left, right = (
            _arm(
                _numbers(content, f"endpose/{side}_endpose", (rows + 1, 7), file)[:rows],
                _numbers(content, f"endpose/{side}_gripper", (rows + 1,), file)[:rows],
            )
            for side in ("left", "right")
        )
        arms = (left, right)
    return Episode(
        file.path,
        file.task,
        file.number,
        jpegs[:rows],
        vector[:-1].astype(np.float32),
        vector[1:].astype(np.float32),
        _instructions_beside(file.path),
        seen,
        arms,
    )


def _read_new(file: EpisodeFile, content: Any, camera: str) -> Episode:
    state = _joined(content, "state", _NEW_PARTS, file)
    action = _joined(content, "action", _NEW_PARTS, file)
    rows = len(state)
    _same_length(file, {"state": rows, "action": len(action)})
    jpegs = _jpegs(content, f"{camera}/colors", file)
    if len(jpegs) not in (rows, rows + 1) or rows < 1:
        raise UserError(
            f"{file.path}: lengths do not match: /{camera}/colors has {len(jpegs)}, "
            f"/state has {rows}"
        )
    seen = None
    names = [f"{camera}/intrinsic_matrix", f"{camera}/extrinsics_matrix"]
    if all(name in content for name in names):
        intrinsic = _per_row(_numbers_of(content, names[0], (3, 3), file), rows)
        world_from_gl = _per_row(_numbers_of(content, names[1], (4, 4), file), rows)
        seen = Camera(intrinsic, np.linalg.inv(world_from_gl @ _GL_TO_CV)[:, :3])
    arms = None
    if all(f"state/{side}_ee_poses" in content for side in ("left", "right")):
        left, right = (
            _arm(
                _numbers(content, f"state/{side}_ee_poses", (rows, 7), file),
                _numbers_of(content, f"state/{side}_ee_joint_states", (), file, rows),
            )
            for side in ("left", "right")
        )
        arms = (left, right)
    return Episode(
        file.path,
        file.task,
        file.number,
        jpegs[:rows],
        state.astype(np.float32),
        action.astype(np.float32),
        _instructions(_dataset(content, "instructions", file), str(file.path))
        if "instructions" in content
        else (),
        seen,
        arms,
    )


def _numbers_of(
    content: Any, name: str, item: tuple[int, ...], file: EpisodeFile, rows: int | None = None
) -> np.ndarray:
    """Read items of this shape, with or without a length in front, as float64."""
    values = np.asarray(_dataset(content, name, file))
    if item and values.shape == item:
        return _numbers(content, name, item, file).astype(np.float64)
    if not item and values.ndim == 2:
        return _numbers(content, name, (rows, 1), file)[:, 0].astype(np.float64)
    return _numbers(content, name, (rows, *item), file).astype(np.float64)


def _per_row(values: np.ndarray, rows: int) -> np.ndarray:
    """Repeat a single matrix for every row, or take the rows of many."""
    if values.ndim == 2:
        return np.broadcast_to(values, (rows, *values.shape))
    if len(values) < rows:
        raise ValueError(f"{len(values)} matrices for {rows} rows")
    return values[:rows]


def _joined(content: Any, group: str, parts: tuple[str, ...], file: EpisodeFile) -> np.ndarray:
    """Put the parts of a 14-vector side by side."""
    columns = []
    for part in parts:
        values = np.asarray(_dataset(content, f"{group}/{part}", file))
        shape = (None,) if values.ndim == 1 else (None, values.shape[-1])
        values = _numbers(content, f"{group}/{part}", shape, file)
        columns.append(values.reshape(len(values), -1))
    _same_length(
        file,
        {f"{group}/{part}": len(column) for part, column in zip(parts, columns, strict=True)},
    )
    joined = np.concatenate(columns, axis=1)
    if joined.shape[1] != VECTOR:
        raise UserError(f"{file.path}: /{group} has {joined.shape[1]} joints, expected {VECTOR}")
    return joined


def _arm(pose: np.ndarray, opening: np.ndarray) -> Arm:
    pose = pose.astype(np.float64)
    return Arm(pose[:, :3], pose[:, 3:], opening.astype(np.float64))


def _instructions_beside(path: Path) -> tuple[str, ...]:
    """Read `instructions/episode12.json`, which stands beside the folder of the older layout."""
    file = path.parent.parent / "instructions" / f"{path.stem}.json"
    if not file.is_file():
        return ()
    return _instructions(file.read_bytes(), str(file))


def _instructions(content: Any, place: str) -> tuple[str, ...]:
    """Take the texts out of `{"seen": [...], "unseen": [...]}`, a list or a single text.

    RoboTwin keeps its unseen texts back for tests, so they are left out where there are seen ones.
    """
    text = content.decode() if isinstance(content, bytes) else str(content)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise UserError(f"{place}: the instructions are not JSON") from None
    if isinstance(value, dict):
        value = value.get("seen") or value.get("unseen", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: the instructions are not a list of texts")
    return tuple(texts)
