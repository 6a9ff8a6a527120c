"""From the camera's image plane to the bird's-eye view (Philion & Fidler 2020).

Each pixel of a feature map predicts a distribution over depth bins. Its features are lifted to the
bins' points in space, weighted by the probabilities, and splatted into the grid's cells. Pixels and
bins stand for their centres, cells come from `floor`, and since the camera is fixed in the car the
cell of each (pixel, bin) is computed once.

Frames: ego x forward, y left, z up; camera x right, y down, z along the optical axis; the centre of
pixel (i, j) is (i + 0.5, j + 0.5). Depth is measured along the optical axis.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from end2race.models.grid import BevGrid
from end2race.models.splat import splat


class CameraCalibration(Protocol):
    """A pinhole camera in the car."""

    @property
    def intrinsic(self) -> np.ndarray:
        """Focal lengths and principal point, [3, 3], in pixels."""
        ...

    @property
    def rotation(self) -> np.ndarray:
        """Camera directions to ego directions, [3, 3]."""
        ...

    @property
    def translation(self) -> np.ndarray:
        """The camera's centre in the ego frame, [3] m."""
        ...

    @property
    def width(self) -> int:
        """Image width in pixels."""
        ...

    @property
    def height(self) -> int:
        """Image height in pixels."""
        ...


@dataclass(frozen=True)
class DepthBins:
    """Equal steps of depth along the optical axis."""

    start_m: float
    step_m: float
    count: int

    def centres(self) -> np.ndarray:
        """Depth of each bin's centre, [count] m."""
        return self.start_m + (np.arange(self.count) + 0.5) * self.step_m


def frustum_points(camera: CameraCalibration, bins: DepthBins, stride_px: int) -> np.ndarray:
    """Return the ego-frame point of each pixel of a feature map at each depth bin.

    Args:
        camera: The camera, calibrated at the image's size.
        bins: Depths.
        stride_px: Image pixels for one pixel of the feature map, in both directions.

    Returns:
        [rows * columns, bins, 3] float64.
    """
    rows, columns = camera.height // stride_px, camera.width // stride_px
    u, v = np.meshgrid((np.arange(columns) + 0.5) * stride_px, (np.arange(rows) + 0.5) * stride_px)
    pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
    rays = pixels @ np.linalg.inv(np.asarray(camera.intrinsic, np.float64)).T
    in_camera = rays[:, None] * bins.centres()[:, None]  # rays have unit depth
    rotation = np.asarray(camera.rotation, np.float64)
    return in_camera @ rotation.T + np.asarray(camera.translation, np.float64)


def cells_of_points(points: np.ndarray, grid: BevGrid) -> np.ndarray:
    """Return the cell of ego-frame points, [..., 3] to [...] int32; -1 outside of the box."""
    column = np.floor((points[..., 0] - grid.x_m[0]) / grid.cell_m)
    row = np.floor((points[..., 1] - grid.y_m[0]) / grid.cell_m)
    inside = (column >= 0) & (column < grid.columns) & (row >= 0) & (row < grid.rows)
    inside &= (points[..., 2] >= grid.z_m[0]) & (points[..., 2] < grid.z_m[1])
    return np.where(inside, row * grid.columns + column, -1).astype(np.int32)


class LiftSplat(nn.Module):
    """Image features to the grid through a predicted depth.

    Args:
        camera: The camera. Its geometry is computed here and is not among the weights;
            `model.json` keeps the calibration.
        grid: The bird's-eye view.
        bins: Depths.
        stride_px: Image pixels for one pixel of the features.
        in_channels: Of the image features.
        channels: Of the view.
    """

    cell: Tensor

    def __init__(
        self,
        camera: CameraCalibration,
        grid: BevGrid,
        bins: DepthBins,
        *,
        stride_px: int,
        in_channels: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.grid, self.bins = grid, bins
        self.head = nn.Conv2d(in_channels, bins.count + channels, 1)
        cell = cells_of_points(frustum_points(camera, bins, stride_px), grid)
        self.register_buffer("cell", torch.from_numpy(cell), persistent=False)

    def depth_and_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return depth probabilities [n, pixels, bins] and what is lifted [n, pixels, channels]."""
        predicted = self.head(features).permute(0, 2, 3, 1).flatten(1, 2)
        logits = predicted[..., : self.bins.count]
        return logits.softmax(-1), predicted[..., self.bins.count :]

    def forward(self, features: Tensor, *, impl: str = "auto") -> Tensor:
        """Return [n, channels, rows, columns] of image features [n, c, h, w], channels last."""
        depth, lifted = self.depth_and_features(features)
        view = splat(depth, lifted, self.cell, self.grid.cells, impl=impl)
        return view.unflatten(1, (self.grid.rows, self.grid.columns)).permute(0, 3, 1, 2)


class IdentityViewTransform(nn.Module):
    """The notes' placeholder, kept as a baseline: the image resized to the grid, no geometry.

    Image rows become grid rows (y) and image columns grid columns (x), wherever they look.
    """

    def __init__(self, grid: BevGrid, *, in_channels: int, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.head = nn.Conv2d(in_channels, channels, 1)

    def forward(self, features: Tensor, *, impl: str = "auto") -> Tensor:
        """Return [n, channels, rows, columns]; `impl` changes nothing here."""
        size = (self.grid.rows, self.grid.columns)
        return functional.interpolate(self.head(features), size, mode="bilinear")
