"""Which camera pixel each panorama pixel shows: computed once per rig, applied in one remap.

A panorama of several cameras has no single centre. Pixel p shows what camera c sees along the
direction d of p, so its ray starts in the centre o of that camera and the point at range r is

    P = o_c + r d.

Nothing is reprojected to a common centre: that would need the depth which is to be predicted, and
the displacement that it ignores is 7 degrees at 5 m for a camera 3 m from the LiDAR. The table
depends on rotations and intrinsics only, so it also serves rigs whose cameras are moved.

Where cameras overlap, the one whose axis is nearest wins, for colour and for depth alike: averaged
depth lies on no surface. Colour is interpolated, depth is taken from the nearest pixel, and z-depth
becomes range by division by the cosine between the ray and the camera's axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Rig

NO_CAMERA = -1
_LARGEST_MOSAIC = 32_767  # cv2.remap addresses its source by 16-bit coordinates


@dataclass(frozen=True, eq=False)
class StitchTable:
    """A panorama's source pixels for one rig.

    Attributes:
        panorama: The directions.
        camera: `(h, w)` int8, position in the rig, `NO_CAMERA` where no camera looks.
        coverage: `(h, w)` bool, whether a camera looks there: a constant of the rig.
        directions: `(h, w, 3)` float32 unit directions in the rig frame.
        range_of_z: `(h, w)` float32, range of a point at z-depth 1, 0 where no camera looks.
        pixels: `(h, w, 2)` float32 edge coordinates in the own camera's image, NaN outside.
        sizes: (width, height) of each camera's image.
    """

    panorama: Panorama
    camera: np.ndarray
    coverage: np.ndarray
    directions: np.ndarray
    range_of_z: np.ndarray
    pixels: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    _remap: tuple[np.ndarray, np.ndarray]
    _nearest: np.ndarray
    _origins: dict[bytes, np.ndarray] = field(default_factory=dict, init=False)

    def ray_origins(self, centres: np.ndarray) -> np.ndarray:
        """Return `(h, w, 3)` float32 origins of the rays, read-only; 0 where no camera looks.

        Args:
            centres: `(cameras, 3)` of the cameras. The last result is kept, because vehicles of one
                data set have the same rig.
        """
        key = centres.tobytes()
        found = self._origins.get(key)
        if found is None:
            by_camera = np.concatenate([centres, np.zeros((1, 3))]).astype(np.float32)
            found = by_camera[self.camera]  # NO_CAMERA is -1, the row added last
            found.setflags(write=False)
            self._origins.clear()
            self._origins[key] = found
        return found

    def new_mosaic(self, channels: int = 3) -> np.ndarray:
        """Return an empty uint8 picture with room for all images side by side."""
        width = sum(size[0] for size in self.sizes)
        return np.zeros((max(size[1] for size in self.sizes), width, channels), np.uint8)

    def place(self, images: Sequence[np.ndarray], mosaic: np.ndarray) -> np.ndarray:
        """Copy the cameras' images into a mosaic and return it."""
        if len(images) != len(self.sizes):
            raise ValueError(f"{len(images)} images for {len(self.sizes)} cameras")
        left = 0
        for image, (width, height) in zip(images, self.sizes, strict=True):
            if image.shape[:2] != (height, width):
                raise ValueError(f"an image {image.shape[:2]}, its camera is {(height, width)}")
            mosaic[:height, left : left + width] = image
            left += width
        return mosaic

    def stitch_mosaic(self, mosaic: np.ndarray) -> np.ndarray:
        """Return the panorama `(h, w, channels)` of a mosaic; black where no camera looks."""
        stitched = cv2.remap(
            mosaic, *self._remap, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return cv2.copyTo(stitched, self._covered_bytes())

    def stitch(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the uint8 panorama `(h, w, 3)` of the cameras' images `(height, width, 3)`."""
        return self.stitch_mosaic(self.place(images, self.new_mosaic()))

    def stitch_range(self, z_depths_m: Sequence[np.ndarray]) -> np.ndarray:
        """Return the range along each ray `(h, w)` float32; 0 where there is no depth.

        Args:
            z_depths_m: Each camera's z-depth; 0, negative or not finite where there is none.
        """
        flat = np.concatenate([np.asarray(z, np.float32).ravel() for z in z_depths_m])
        if flat.size != sum(width * height for width, height in self.sizes):
            raise ValueError(f"{flat.size} depth values for cameras of {self.sizes} pixels")
        z = flat[self._nearest]
        known = np.isfinite(z) & (z > 0) & self.coverage
        return np.where(known, z, np.float32(0)) * self.range_of_z

    def _covered_bytes(self) -> np.ndarray:
        return self.coverage.view(np.uint8)


def build_table(rig: Rig, panorama: Panorama) -> StitchTable:
    """Compute the table of a rig."""
    sizes = tuple((camera.width, camera.height) for camera in rig.cameras)
    if max(sum(w for w, _ in sizes), max(h for _, h in sizes)) > _LARGEST_MOSAIC:
        raise ValueError(f"images of {sizes} pixels are together wider than {_LARGEST_MOSAIC}")
    directions = panorama.directions()
    shape = directions.shape[:2]
    best = np.full(shape, NO_CAMERA, np.int8)
    best_cosine = np.zeros(shape)
    best_pixels = np.full((*shape, 2), np.nan)
    for index, camera in enumerate(rig.cameras):
        pixels, cosine = camera.project_directions(directions @ camera.pose_rig_from_camera[:3, :3])
        wins = camera.contains(pixels) & (cosine > best_cosine)
        best[wins] = index
        best_cosine[wins] = cosine[wins]
        best_pixels[wins] = pixels[wins]
    covered = best != NO_CAMERA
    remap, nearest = _source_addresses(best, best_pixels, sizes)
    with np.errstate(divide="ignore"):
        range_of_z = np.where(covered, 1 / best_cosine, 0)
    return StitchTable(
        panorama,
        best,
        covered,
        directions.astype(np.float32),
        range_of_z.astype(np.float32),
        best_pixels.astype(np.float32),
        sizes,
        remap,
        nearest,
    )


def _source_addresses(
    camera: np.ndarray, pixels: np.ndarray, sizes: tuple[tuple[int, int], ...]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the remap's fixed-point maps into the mosaic, and flat nearest-pixel indices.

    Colour coordinates are clamped to the own image's pixel centres, so that interpolation at an
    edge never mixes in the neighbour in the mosaic.
    """
    widths, heights = np.array(sizes).T
    left = np.cumsum([0, *widths[:-1]])
    first = np.cumsum([0, *(widths * heights)[:-1]])
    c = np.maximum(camera, 0)
    inside = np.where((camera != NO_CAMERA)[..., None], pixels, 0.5)
    limits = np.stack([widths[c], heights[c]], axis=-1) - 1
    index = np.clip(
        inside - 0.5, 0, limits
    )  # edge coordinates -> those of cv2, centres at 0, 1, ..
    remap = cv2.convertMaps(
        (index[..., 0] + left[c]).astype(np.float32),
        index[..., 1].astype(np.float32),
        cv2.CV_16SC2,
    )
    column, row = np.moveaxis(np.minimum(np.floor(inside), limits).astype(np.int64), -1, 0)
    return (remap[0], remap[1]), first[c] + row * widths[c] + column
