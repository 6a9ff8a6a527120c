"""What one vehicle's files say about themselves: the numbers that the validator judges.

Whether a depth file holds z-depth is tested on the road: a plane under the vehicle is flat only if
depth is read the way it was written. Read as z, range bends it into a bowl; another unit puts it at
another distance from the LiDAR.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from coopcyl.data.depth import project_points
from coopcyl.data.frame_yaml import FrameRecord, read_frame
from coopcyl.data.images import read_bytes
from coopcyl.data.panoramas import PanoramaReader, frame_rig, rounded_rig
from coopcyl.data.pcd import read_pcd
from coopcyl.data.tree import AgentFrame
from coopcyl.geometry.carla import (
    CV_FROM_UE,
    cords_from_pose,
    inverse,
    pose_from_cords,
    rotation_angle_deg,
)
from coopcyl.geometry.coverage import expected_coverage
from coopcyl.geometry.covisibility import overlap, relative_pose
from coopcyl.geometry.rig import Camera, Rig
from coopcyl.geometry.view import View

LIDAR_HEIGHT_M = 1.9  # of OPV2V's vehicles
_GROUND_SAMPLES = 800
_GROUND_TRIES = 60
_STEEPEST_DEG = 20.0


@dataclass(frozen=True)
class GroundFit:
    """A plane fitted to the depth below the horizon.

    Attributes:
        scale: The cameras' height above it, over the one they have under OPV2V's LiDAR.
        rms_as_z: Relative distance of the points from the plane, depth taken as z.
        rms_as_range: The same, depth taken as range along the ray.
    """

    scale: float
    rms_as_z: float
    rms_as_range: float


@dataclass(frozen=True)
class LidarFit:
    """Depth against the LiDAR's points in the same pixels.

    Attributes:
        points: That fall on a pixel with depth.
        ratio_as_z: Median of depth over the point's z-depth.
        ratio_as_range: Median of depth over the point's range.
        agreeing: Share within 5 % of the z-depth.
    """

    points: int
    ratio_as_z: float
    ratio_as_range: float
    agreeing: float


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers of one vehicle frame.

    Attributes:
        frame: Whose they are.
        coverage: Share of the panorama that a camera sees.
        depth_valid: Share with a range.
        non_ambiguous: Share that shows a surface; None where depth is sparse.
        sizes: (width, height) of each image.
        expected_coverage: From the rig of the cameras that have images.
        whole_coverage: From all cameras of the YAML file.
        extrinsic_error: Worst (metres, degrees) between `extrinsic` and the cords; None without.
        extrinsic_inverted: Whether its inverse fits instead.
        lidar_mount: `[x, y, z, roll, yaw, pitch]` of the LiDAR in the vehicle's frame, or None.
        gps_error_m: Between believed and true position, or None.
        ground: None where no ground was found or depth is sparse.
        lidar: None without a point cloud or depth.
        digest: Of all images, to find duplicates.
    """

    frame: AgentFrame
    coverage: float
    depth_valid: float
    non_ambiguous: float | None
    sizes: tuple[tuple[int, int], ...]
    expected_coverage: float
    whole_coverage: float
    extrinsic_error: tuple[float, float] | None
    extrinsic_inverted: bool
    lidar_mount: np.ndarray | None
    gps_error_m: float | None
    ground: GroundFit | None
    lidar: LidarFit | None
    digest: str


@dataclass(frozen=True)
class MeasuredPair:
    """The numbers of two vehicles at one time.

    Attributes:
        place: Both of them.
        distance_m: Between their LiDARs.
        overlap: Share of the first one's points that the second one sees; None without depth.
    """

    place: str
    distance_m: float
    overlap: float | None


class Measurer:
    """Measures vehicle frames; remembers the coverage of rigs it has met."""

    def __init__(self, reader: PanoramaReader) -> None:
        self.reader = reader
        self._coverage: dict[str, float] = {}

    def measure(self, frame: AgentFrame) -> tuple[Measured, View]:
        """Read one vehicle frame whole and measure it; return its view besides, for pairs.

        Raises:
            DataError: A file is missing, damaged or contradicts another one.
        """
        record = read_frame(frame.yaml)
        stitched = self.reader.stitch(frame)
        view, rig = self.reader.view(frame, stitched), stitched.rig
        height_width = [(rig.cameras[0].height, rig.cameras[0].width)] * len(record.cameras)
        everything = frame_rig(record, list(record.cameras), height_width)
        depths = self.reader.depth.read(frame, rig.cameras)
        error, inverted = _extrinsic_error(record)
        rng = np.random.default_rng(0)
        ground = fit_ground(rig.cameras, depths, rng) if self.reader.depth.dense else None
        numbers = Measured(
            frame,
            float(view.coverage.mean()),
            float(view.depth_valid.mean()),
            None if view.non_ambiguous is None else float(view.non_ambiguous.mean()),
            tuple((camera.width, camera.height) for camera in rig.cameras),
            self._expected(rig),
            self._expected(everything),
            error,
            inverted,
            _lidar_mount(record),
            _gps_error(record),
            ground,
            self._lidar_fit(frame, rig.cameras, depths),
            _digest(frame),
        )
        return numbers, view

    def _expected(self, rig: Rig) -> float:
        key = rounded_rig(rig).digest()
        if key not in self._coverage:
            self._coverage[key] = expected_coverage(rig, self.reader.panorama)
        return self._coverage[key]

    def _lidar_fit(
        self, frame: AgentFrame, cameras: tuple[Camera, ...], depths: list[np.ndarray]
    ) -> LidarFit | None:
        if not self.reader.depth.dense or not frame.pcd.exists():
            return None
        points = read_pcd(frame.pcd) @ CV_FROM_UE[:3, :3].T
        return fit_lidar(points, cameras, depths)


def measure_pair(first: tuple[Measured, View], second: tuple[Measured, View]) -> MeasuredPair:
    """Measure two vehicles of one time."""
    (one, view), (other, other_view) = first, second
    return MeasuredPair(
        f"{one.frame} and {other.frame.agent}",
        float(np.linalg.norm(relative_pose(view, other_view)[:3, 3])),
        overlap(view, other_view) if one.depth_valid and other.depth_valid else None,
    )


def fit_ground(
    cameras: tuple[Camera, ...], depths: list[np.ndarray], rng: np.random.Generator
) -> GroundFit | None:
    """Fit the plane under a vehicle to the z-depths of each camera by itself.

    Args:
        cameras: Of the rig.
        depths: z-depth of each camera.
        rng: Chooses pixels and triples of points.

    Returns:
        The median over the cameras that see the road; None if none does.
    """
    fits = [
        _camera_ground(camera, depth, rng) for camera, depth in zip(cameras, depths, strict=True)
    ]
    known = [fit for fit in fits if fit is not None]
    return GroundFit(*np.median(known, axis=0).tolist()) if known else None


def _camera_ground(
    camera: Camera, depth: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """Return one camera's `GroundFit` values, None where it sees no plane below the horizon."""
    rotation = camera.pose_rig_from_camera[:3, :3]
    rays = camera.pixel_rays() @ rotation.T
    length = np.linalg.norm(rays, axis=-1)
    rows, columns = np.nonzero((depth > 0) & (rays[..., 1] > 0.15 * length))
    if len(rows) < 100:
        return None
    chosen = rng.permutation(len(rows))[:_GROUND_SAMPLES]
    here = rows[chosen], columns[chosen]
    z = depth[here][:, None].astype(np.float64)
    as_z = _fit_plane(rays[here] * z, z[:, 0], rng)
    as_range = _fit_plane(rays[here] / length[here][:, None] * z, z[:, 0], rng)
    height, share, _ = min(as_z, as_range, key=lambda fit: fit[2])
    if share < 1 / 3:
        return None
    return height / (LIDAR_HEIGHT_M - camera.origin[1]), as_z[2], as_range[2]


def _fit_plane(
    points: np.ndarray, reach: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return the camera's height, the share of points on the plane and their relative distance.

    The plane is the one of many triples with the most points within 2 % of their reach. The
    relative distance is the median over the nearer half of the points, so walls do not count.
    """
    best_count, best = -1, (0.0, 0.0, np.inf)
    for _ in range(_GROUND_TRIES):
        a, b, c = points[rng.choice(len(points), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        size = np.linalg.norm(normal)
        if size == 0 or abs(normal[1]) < size * np.cos(np.radians(_STEEPEST_DEG)):
            continue
        normal /= size
        away = np.abs((points - a) @ normal) / reach
        count = int((away < 0.02).sum())
        if count > best_count:
            nearer = np.sort(away)[: len(away) // 2]
            height = float(abs(a @ normal))
            best_count, best = count, (height, count / len(points), float(np.median(nearer)))
    return best


def fit_lidar(
    points: np.ndarray, cameras: tuple[Camera, ...], depths: list[np.ndarray]
) -> LidarFit | None:
    """Compare z-depths with LiDAR points `(n, 3)` of the rig frame in the same pixels."""
    as_z, as_range = [], []
    for camera, depth in zip(cameras, depths, strict=True):
        sparse = project_points(points, camera)
        rows, columns = np.nonzero((sparse > 0) & (depth > 0))
        found, z = depth[rows, columns], sparse[rows, columns]
        secant = np.linalg.norm(camera.pixel_rays()[rows, columns], axis=-1)
        as_z.append(found / z)
        as_range.append(found / (z * secant))
    ratio = np.concatenate(as_z)
    if not len(ratio):
        return None
    return LidarFit(
        len(ratio),
        float(np.median(ratio)),
        float(np.median(np.concatenate(as_range))),
        float((np.abs(ratio - 1) < 0.05).mean()),
    )


def _extrinsic_error(record: FrameRecord) -> tuple[tuple[float, float] | None, bool]:
    """Hold each `extrinsic` (LiDAR to camera) against the cords; also its inverse."""
    forward, backward = [], []
    lidar = pose_from_cords(record.lidar_cords)
    for camera in record.cameras.values():
        if camera.extrinsic is not None:
            expected = inverse(pose_from_cords(camera.cords)) @ lidar
            forward.append(_difference(camera.extrinsic, expected))
            backward.append(_difference(camera.extrinsic, inverse(expected)))
    if not forward:
        return None, False
    worst, worst_inverse = max(forward), max(backward)
    return worst, worst_inverse < worst


def _difference(pose: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    return (
        float(np.linalg.norm(pose[:3, 3] - expected[:3, 3])),
        rotation_angle_deg(pose[:3, :3] @ expected[:3, :3].T),
    )


def _lidar_mount(record: FrameRecord) -> np.ndarray | None:
    if record.true_cords is None:
        return None
    vehicle = pose_from_cords(record.true_cords)
    return cords_from_pose(inverse(vehicle) @ pose_from_cords(record.lidar_cords))


def _gps_error(record: FrameRecord) -> float | None:
    if record.true_cords is None or record.gps_cords is None:
        return None
    return float(np.linalg.norm(np.subtract(record.gps_cords[:2], record.true_cords[:2])))


def _digest(frame: AgentFrame) -> str:
    state = hashlib.sha256()
    for camera in frame.cameras:
        state.update(read_bytes(frame.image(camera), "image"))
    return state.hexdigest()
