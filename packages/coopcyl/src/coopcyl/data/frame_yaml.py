"""One vehicle's YAML file at one time: its poses, cameras and the vehicles round it.

OPV2V writes poses as `[x, y, z, roll, yaw, pitch]` in CARLA's world and, per camera, an `extrinsic`
that its documentation calls camera to LiDAR and that is LiDAR to camera, in Unreal axes. Poses are
taken from `cords` and `lidar_pose`; the extrinsic is kept for the validator to hold against them.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from coopcyl.data.errors import DataError
from coopcyl.data.images import read_bytes
from coopcyl.geometry.carla import pose_from_cords

MAX_BYTES = 8_000_000
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
_CAMERA = re.compile(r"^camera\d+$")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader, in C where it exists, that also takes `1e-05` for a number.

    YAML 1.1, which PyYAML reads, wants a point in it; writers of YAML 1.2 leave it out.
    """


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True, eq=False)
class CameraRecord:
    """A camera as the YAML has it.

    Attributes:
        cords: Its pose in the world.
        intrinsic: 3x3.
        extrinsic: 4x4 from the LiDAR to the camera in Unreal axes, or None where it is not given.
    """

    cords: tuple[float, ...]
    intrinsic: np.ndarray
    extrinsic: np.ndarray | None


@dataclass(frozen=True)
class Vehicle:
    """A vehicle that others see.

    Attributes:
        number: Its id.
        location: Position in the world, on the ground.
        angle: Roll, yaw, pitch in degrees.
        centre: From the location to the middle of the box, in the vehicle's frame.
        extent: Half length, half width, half height.
        speed_kmh: Its speed.
    """

    number: int
    location: tuple[float, ...]
    angle: tuple[float, ...]
    centre: tuple[float, ...]
    extent: tuple[float, ...]
    speed_kmh: float

    def corners(self) -> np.ndarray:
        """Return the box's eight corners in the world, Unreal axes, `(8, 3)`.

        Corner `i` has the sign of bit 2 of i along the length, bit 1 the width, bit 0 the height.
        """
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        pose = pose_from_cords([*self.location, *self.angle])
        own = signs * np.array(self.extent) + np.array(self.centre)
        return own @ pose[:3, :3].T + pose[:3, 3]


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """The content of one YAML file.

    Attributes:
        path: The file.
        lidar_cords: The LiDAR's pose in the world.
        cameras: By name, in order of their numbers.
        true_cords: The vehicle's pose in the world, or None.
        gps_cords: The vehicle's pose as its localisation believes it, or None.
        speed_kmh: The vehicle's speed, or None.
        vehicles: The vehicles round it.
    """

    path: Path
    lidar_cords: tuple[float, ...]
    cameras: dict[str, CameraRecord]
    true_cords: tuple[float, ...] | None
    gps_cords: tuple[float, ...] | None
    speed_kmh: float | None
    vehicles: tuple[Vehicle, ...]


def read_frame(path: Path) -> FrameRecord:
    """Read and check one YAML file.

    Raises:
        DataError: The file is missing, no plain YAML, or a value is missing or impossible.
    """
    return parse_frame(read_bytes(path, "YAML file"), path)


def parse_frame(data: bytes, path: Path) -> FrameRecord:
    """Check the content of one YAML file; `path` is what messages name."""
    content = _Fields(_load(data, path), path, "")
    names = sorted((n for n in content.names() if _CAMERA.match(n)), key=lambda n: int(n[6:]))
    if not names:
        raise DataError(
            f"{path}: there is no camera0, camera1, ...",
            hint="this is not the YAML file of a vehicle with cameras",
        )
    cameras = {}
    for name in names:
        camera = content.section(name)
        cameras[name] = CameraRecord(
            camera.numbers("cords", 6),
            camera.matrix("intrinsic", 3),
            camera.matrix("extrinsic", 4) if camera.has("extrinsic") else None,
        )
    lidar = content.numbers("lidar_pose", 6)
    optional = {
        name: content.numbers(name, 6) if content.has(name) else None
        for name in ("true_ego_pos", "predicted_ego_pos")
    }
    return FrameRecord(
        path,
        lidar,
        cameras,
        optional["true_ego_pos"],
        optional["predicted_ego_pos"],
        content.numbers("ego_speed", 0)[0] if content.has("ego_speed") else None,
        _vehicles(content),
    )


def _load(data: bytes, path: Path) -> Any:
    if len(data) > MAX_BYTES:
        raise DataError(
            f"{path}: {len(data)} bytes, more than the {MAX_BYTES} that a frame may have",
            hint="this is not the YAML file of one vehicle at one time",
        )
    try:
        _check_size(data, path)
        return yaml.load(data, Loader=_Loader)  # noqa: S506  a safe loader
    except ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise DataError(
            f"{path}:{line}: {error.problem}; only plain values are read",
            hint="write the file again with yaml.safe_dump after turning numpy values into lists",
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DataError(
            f"{place}: no valid YAML: {error.problem or error.context}",
            hint="the file was cut short or edited: copy it again",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: no valid YAML: {reason}", hint="the file is damaged: copy it again"
        ) from error


def _check_size(data: bytes, path: Path) -> None:
    """Refuse what the loader would not survive: deep nesting, and aliases that multiply.

    It recurses in C. An alias counts as all that it stands for: 30 lines that each name the line
    before twice are a thousand million values for whoever merges or prints them.
    """
    sizes: dict[str, int] = {}  # of what each anchor names
    within: list[tuple[str | None, int]] = []  # anchor, and how many values came before
    values = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, AliasEvent):
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            values += 1
        if isinstance(event, CollectionStartEvent):
            within.append((event.anchor, values))
        elif isinstance(event, CollectionEndEvent):
            anchor, before = within.pop()
            if anchor is not None:
                sizes[anchor] = values - before + 1
        wrong = None
        if len(within) > MAX_DEPTH:
            wrong = f"nested deeper than {MAX_DEPTH} levels"
        elif values > MAX_VALUES:
            wrong = f"more than {MAX_VALUES} values, with what aliases stand for"
        if wrong is not None:
            raise DataError(
                f"{path}:{event.start_mark.line + 1}: {wrong}",
                hint="this is not the YAML file of one vehicle at one time",
            )


def _vehicles(content: "_Fields") -> tuple[Vehicle, ...]:
    if not content.has("vehicles"):
        return ()
    group = content.section("vehicles")
    found = []
    for name in group.names():
        if not re.fullmatch(r"-?\d{1,18}", name):
            raise group.complain(name, "a vehicle's id is an integer")
        each = group.section(name)
        found.append(
            Vehicle(
                int(name),
                each.numbers("location", 3),
                each.numbers("angle", 3),
                each.numbers("center", 3),
                each.numbers("extent", 3),
                each.numbers("speed", 0)[0] if each.has("speed") else 0.0,
            )
        )
    return tuple(found)


class _Fields:
    """A mapping in the file that is read key by key, each with its place in messages."""

    def __init__(self, value: Any, path: Path, place: str) -> None:
        self.path = path
        self.place = place
        if not isinstance(value, dict):
            what = f"`{place}` holds" if place else "it holds"
            raise DataError(
                f"{path}: {what} {_shown(value)} where a mapping was expected",
                hint="compare the file with one that works",
            )
        self.value = {str(key): each for key, each in value.items()}

    def names(self) -> list[str]:
        return list(self.value)

    def has(self, name: str) -> bool:
        return self.value.get(name) is not None

    def section(self, name: str) -> "_Fields":
        return _Fields(self.get(name), self.path, self.join(name))

    def get(self, name: str) -> Any:
        if not self.has(name):
            raise DataError(
                f"{self.path}: the key `{self.join(name)}` is missing",
                hint="copy the file again, or list this frame in the skip file",
            )
        return self.value[name]

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return `count` finite numbers; 0 stands for a single one outside a list."""
        value = self.get(name)
        values = [value] if count == 0 else value
        if not isinstance(values, list) or len(values) != max(1, count):
            raise self.complain(name, f"expected {count or 'a'} number{'s' if count else ''}")
        if not all(_is_finite(each) for each in values):
            raise self.complain(name, "every number must be finite")
        return tuple(float(each) for each in values)

    def matrix(self, name: str, size: int) -> np.ndarray:
        rows = self.get(name)
        whole = isinstance(rows, list) and len(rows) == size
        if not whole or not all(isinstance(row, list) and len(row) == size for row in rows):
            raise self.complain(name, f"expected a {size}x{size} matrix")
        if not all(_is_finite(each) for row in rows for each in row):
            raise self.complain(name, "every number must be finite")
        return np.array(rows, float)

    def complain(self, name: str, expected: str) -> DataError:
        return DataError(
            f"{self.path}: `{self.join(name)}` is {_shown(self.value[name])}; {expected}",
            hint="copy the file again, or list this frame in the skip file",
        )

    def join(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
