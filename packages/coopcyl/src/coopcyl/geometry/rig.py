"""Pinhole cameras mounted on one vehicle.

Pixel coordinates count edges: pixel `i` covers `[i, i + 1)` and its centre is `i + 0.5`, as in
CARLA, where an image of 800 pixels has its principal point at 400. The rig frame is that of the
vehicle's LiDAR in OpenCV axes (x right, y down, z forward).
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from coopcyl.geometry.carla import inverse, is_rigid, pose_from_cords, to_opencv, transform

OPV2V_FOV_DEG = 100.0
OPV2V_LIDAR = (-0.5, 0.0, 1.9, 0.0, 0.0, 0.0)
# The cameras of OpenCDA's data dump in the vehicle's frame, Unreal axes: front, right, left, back.
OPV2V_CAMERAS = {
    "camera0": (2.5, 0.0, 1.0, 0.0, 0.0, 0.0),
    "camera1": (0.0, 0.3, 1.8, 0.0, 100.0, 0.0),
    "camera2": (0.0, -0.3, 1.8, 0.0, -100.0, 0.0),
    "camera3": (-2.0, 0.0, 1.5, 0.0, 180.0, 0.0),
}


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera.

    Attributes:
        name: As in the data, such as `camera0`.
        width: Pixels.
        height: Pixels.
        intrinsic: 3x3 without skew; principal point in edge coordinates.
        pose_rig_from_camera: 4x4, OpenCV axes on both sides.
    """

    name: str
    width: int
    height: int
    intrinsic: np.ndarray
    pose_rig_from_camera: np.ndarray

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.name}: an image of {self.width}x{self.height} pixels")
        k = self.intrinsic
        pinhole = k.shape == (3, 3) and np.isfinite(k).all() and k[0, 0] > 0 and k[1, 1] > 0
        if not pinhole or np.abs([k[0, 1], k[1, 0], *(k[2] - [0, 0, 1])]).max() > 1e-9:
            raise ValueError(f"{self.name}: the intrinsic matrix is not that of a pinhole camera")
        if not is_rigid(self.pose_rig_from_camera):
            raise ValueError(f"{self.name}: the camera's pose is not a finite rigid motion")

    @property
    def origin(self) -> np.ndarray:
        """The camera's centre in the rig frame."""
        return self.pose_rig_from_camera[:3, 3]

    def project_directions(self, directions_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels `(..., 2)` of directions in the camera's own frame, and z.

        Where z is not positive the pixel is NaN: nothing behind a camera has one.
        """
        z = directions_camera[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(z[..., None] > 0, directions_camera[..., :2] / z[..., None], np.nan)
        focal = np.array([self.intrinsic[0, 0], self.intrinsic[1, 1]])
        return scaled * focal + self.intrinsic[:2, 2], z

    def project(self, points_rig: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels `(..., 2)` and z of points in the rig frame."""
        return self.project_directions(transform(inverse(self.pose_rig_from_camera), points_rig))

    def contains(self, pixels: np.ndarray) -> np.ndarray:
        """Tell which pixels lie in the image; NaN does not."""
        u, v = pixels[..., 0], pixels[..., 1]
        return (u >= 0) & (u < self.width) & (v >= 0) & (v < self.height)

    def pixel_rays(self) -> np.ndarray:
        """Return `(height, width, 3)` rays of the pixel centres in the own frame, with z = 1."""
        u = (np.arange(self.width) + 0.5 - self.intrinsic[0, 2]) / self.intrinsic[0, 0]
        v = (np.arange(self.height) + 0.5 - self.intrinsic[1, 2]) / self.intrinsic[1, 1]
        return np.stack([*np.meshgrid(u, v), np.ones((self.height, self.width))], axis=-1)

    def resized_and_cropped(self, width: int, height: int) -> "Camera":
        """Return the camera of an image that was scaled to cover a size and cut to its middle.

        This is what loaders for single pinhole images do. Before stitching it throws most of each
        image away; the validator uses it to recognise data that went through it.
        """
        scale = max(width / self.width, height / self.height)
        intrinsic = self.intrinsic * scale
        intrinsic[2] = [0, 0, 1]
        intrinsic[0, 2] -= (self.width * scale - width) / 2
        intrinsic[1, 2] -= (self.height * scale - height) / 2
        return replace(self, width=width, height=height, intrinsic=intrinsic)


@dataclass(frozen=True)
class Rig:
    """The cameras of one vehicle, in the order in which their images are given."""

    cameras: tuple[Camera, ...]

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a rig needs cameras with different names, not {names}")

    @property
    def origins(self) -> np.ndarray:
        """The cameras' centres in the rig frame, `(cameras, 3)`."""
        return np.stack([camera.origin for camera in self.cameras])

    def digest(self) -> str:
        """Return a hash of every number of the rig."""
        state = hashlib.sha256()
        for camera in self.cameras:
            state.update(f"{camera.name} {camera.width} {camera.height} ".encode())
            state.update(np.asarray(camera.intrinsic, np.float64).tobytes())
            state.update(np.asarray(camera.pose_rig_from_camera, np.float64).tobytes())
        return state.hexdigest()


def intrinsic_of_fov(width: int, height: int, fov_deg: float) -> np.ndarray:
    """Return the intrinsic matrix of a horizontal field of view, square pixels, centred."""
    focal = width / (2 * np.tan(np.radians(fov_deg) / 2))
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def mount(cords_camera: tuple[float, ...], cords_lidar: tuple[float, ...]) -> np.ndarray:
    """Return a camera's pose in the rig frame from two poses in any common Unreal frame."""
    return to_opencv(inverse(pose_from_cords(cords_lidar)) @ pose_from_cords(cords_camera))


def opv2v_rig(width: int = 800, height: int = 600) -> Rig:
    """Return the nominal rig of OPV2V: four cameras of 100 degrees round a LiDAR."""
    intrinsic = intrinsic_of_fov(width, height, OPV2V_FOV_DEG)
    return Rig(
        tuple(
            Camera(name, width, height, intrinsic, mount(cords, OPV2V_LIDAR))
            for name, cords in OPV2V_CAMERAS.items()
        )
    )
