"""From the files of one vehicle at one time to its panorama: every command reads through here.

Images are stitched whole: no crop and no resize comes before the table. A table depends on the
cameras' rotations, which in simulated data tremble in the last digits; they are rounded to 0.02
degrees (0.06 pixels) so that one table serves a whole scenario. Positions are rounded to
micrometres: a rig is computed from poses in the world, and its last digits must not tell where the
vehicle stands. Ranges are stored as multiples of 1/65535 of the largest one, so a view is the same
with and without cache.

A panorama that is coarser than its images would show them aliased. Colours are then stitched
`supersample` times finer in both directions and averaged; ranges never are.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import cv2
import numpy as np

from coopcyl.data.depth import DepthSource
from coopcyl.data.errors import DataError
from coopcyl.data.frame_yaml import FrameRecord, read_frame
from coopcyl.data.images import read_png
from coopcyl.data.tree import AgentFrame
from coopcyl.geometry.carla import cords_from_pose, pose_from_cords, to_opencv, to_unreal
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Camera, Rig, mount
from coopcyl.geometry.stitch_table import StitchTable, build_table
from coopcyl.geometry.view import View

RANGE_CODES = 65_535
_ROTATION_STEP_DEG = 0.02
_ORIGIN_DIGITS = 6
_TABLES_KEPT = 32
_WHOLE_BAND = Panorama()
_FLOAT_FILES = DepthSource()
_LARGEST_OFFSET = 0.1  # of the principal point from the middle, as a share of the image


@dataclass(frozen=True, eq=False)
class StitchedFrame:
    """What the files of one vehicle give, in the form in which it is cached.

    Attributes:
        rgb: `(h, w, 3)` uint8.
        range_code: `(h, w)` uint16, range in steps of `max_range_m / 65535`, 0 for none.
        rig: The cameras.
        pose_world_from_rig: 4x4, OpenCV axes on both sides.
    """

    rgb: np.ndarray
    range_code: np.ndarray
    rig: Rig
    pose_world_from_rig: np.ndarray


class PanoramaReader:
    """Reads views; keeps the stitch tables of the rigs that it has met.

    Args:
        panorama: What is stitched.
        depth: Where ranges come from.
        max_range_m: Beyond this a depth counts as none.
        supersample: How many times finer colours are stitched before they are averaged.
    """

    def __init__(
        self,
        panorama: Panorama = _WHOLE_BAND,
        depth: DepthSource = _FLOAT_FILES,
        max_range_m: float = 100.0,
        supersample: int = 1,
    ) -> None:
        if not 0 < max_range_m < np.inf:
            raise ValueError(f"a largest range of {max_range_m:g} m")
        if supersample < 1:
            raise ValueError(f"supersample {supersample}; 1 or more")
        self.panorama = panorama
        self.depth = depth
        self.max_range_m = max_range_m
        self.supersample = supersample
        self._tables: OrderedDict[tuple[str, Panorama], StitchTable] = OrderedDict()
        self._lock = Lock()  # a training reads in one thread and judges in another

    def read(self, frame: AgentFrame) -> View:
        """Read, stitch and return one vehicle's view."""
        return self.view(frame, self.stitch(frame))

    def stitch(self, frame: AgentFrame) -> StitchedFrame:
        """Read a vehicle's files and stitch them.

        Raises:
            DataError: A file is missing, damaged or contradicts another one.
        """
        record = read_frame(frame.yaml)
        images = [read_png(frame.image(name), "RGB") for name in frame.cameras]
        rig = frame_rig(record, frame.cameras, [image.shape[:2] for image in images])
        table = self.table(rig)
        ranges = table.stitch_range(self.depth.read(frame, rig.cameras))
        return StitchedFrame(
            self._colours(rig, images),
            encode_range(ranges, self.max_range_m),
            rig,
            to_opencv(pose_from_cords(record.lidar_cords)),
        )

    def view(self, frame: AgentFrame, stitched: StitchedFrame) -> View:
        """Add the rays and masks to a stitched frame."""
        return View(
            frame.agent,
            stitched.rgb,
            decode_range(stitched.range_code, self.max_range_m),
            self.table(stitched.rig),
            stitched.rig.origins.round(_ORIGIN_DIGITS) + 0.0,  # no minus zero
            stitched.pose_world_from_rig,
            self.max_range_m,
            self.depth.dense,
        )

    def table(self, rig: Rig) -> StitchTable:
        """Return the stitch table of a rig with rounded rotations, building it once."""
        return self._table(rig, self.panorama)

    def _colours(self, rig: Rig, images: Sequence[np.ndarray]) -> np.ndarray:
        """Stitch colours finer than the panorama and average them; black where no camera looks."""
        if self.supersample == 1:
            return self.table(rig).stitch(images)
        size = self.panorama.width, self.panorama.height
        finer = replace(
            self.panorama, width=size[0] * self.supersample, height=size[1] * self.supersample
        )
        averaged = cv2.resize(
            self._table(rig, finer).stitch(images), size, interpolation=cv2.INTER_AREA
        )
        return np.where(self.table(rig).coverage[..., None], averaged, 0).astype(np.uint8)

    def _table(self, rig: Rig, panorama: Panorama) -> StitchTable:
        rounded = rounded_rig(rig)
        key = rounded.digest(), panorama
        with self._lock:
            if key not in self._tables:
                self._tables[key] = build_table(rounded, panorama)
                if len(self._tables) > _TABLES_KEPT:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            return self._tables[key]


def frame_rig(record: FrameRecord, names: Sequence[str], sizes: Sequence[tuple[int, ...]]) -> Rig:
    """Return the rig of one YAML file.

    Args:
        record: The file's content.
        names: The cameras that have images.
        sizes: (height, width) of each image.

    Raises:
        DataError: A camera is missing in the file, or its intrinsic belongs to another image size.
    """
    cameras = []
    for name, (height, width) in zip(names, sizes, strict=True):
        if name not in record.cameras:
            raise DataError(
                f"{record.path}: the key `{name}` is missing, but there is an image of it",
                hint="copy the YAML file again, or remove the images of this camera",
            )
        camera = record.cameras[name]
        offset = camera.intrinsic[:2, 2] / [width, height] - 0.5
        if np.abs(offset).max() > _LARGEST_OFFSET:
            cx, cy = camera.intrinsic[:2, 2]
            raise DataError(
                f"{record.path}: `{name}.intrinsic` has its principal point at ({cx:g}, {cy:g}), "
                f"but the image has {width}x{height} pixels",
                hint="the images were scaled or cropped: use the originals, or scale the "
                "intrinsics with them",
            )
        pose = mount(camera.cords, record.lidar_cords)
        try:
            cameras.append(Camera(name, width, height, camera.intrinsic, pose))
        except ValueError as error:
            raise DataError(f"{record.path}: {error}", hint="copy the YAML file again") from error
    return Rig(tuple(cameras))


def rounded_rig(rig: Rig) -> Rig:
    """Return a rig that looks the same way, of the grid of rotations that share stitch tables."""
    return Rig(tuple(_rounded(camera) for camera in rig.cameras))


def encode_range(range_m: np.ndarray, max_range_m: float) -> np.ndarray:
    """Return ranges as uint16 codes; 0 for none and for those beyond the largest one."""
    known = (range_m > 0) & (range_m <= max_range_m)
    code = np.rint(np.where(known, range_m, 0) * (RANGE_CODES / max_range_m))
    return np.where(known, np.maximum(code, 1), 0).astype(np.uint16)


def decode_range(code: np.ndarray, max_range_m: float) -> np.ndarray:
    """Return the range in metres, float32, of `encode_range`'s codes."""
    return code.astype(np.float32) * np.float32(max_range_m / RANGE_CODES)


def _rounded(camera: Camera) -> Camera:
    """Return a camera turned to the nearest grid angle and moved to the origin."""
    angles = cords_from_pose(to_unreal(camera.pose_rig_from_camera))[3:]
    grid = np.round(angles / _ROTATION_STEP_DEG) * _ROTATION_STEP_DEG
    grid = np.where(grid == -180.0, 180.0, grid) + 0.0  # one name for each angle, no minus zero
    return replace(camera, pose_rig_from_camera=to_opencv(pose_from_cords([0, 0, 0, *grid])))
