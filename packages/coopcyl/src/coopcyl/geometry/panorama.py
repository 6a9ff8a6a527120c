"""The cylinder of directions that a panorama's pixels look along.

Columns are linear in azimuth, with forward in the middle and the two edges meeting behind the
vehicle. Rows are linear in a function of the elevation:

    equirect_band   el          equal angles
    cylinder        tan el      a true cylinder; verticals and lines of sight stay straight
    mercator        asinh tan el  conformal: small shapes keep their form

Pixel coordinates count edges: the centre of pixel (0, 0) is (0.5, 0.5).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Projection = Literal["equirect_band", "cylinder", "mercator"]
PROJECTIONS: tuple[Projection, ...] = ("equirect_band", "cylinder", "mercator")

_Function = Callable[[np.ndarray], np.ndarray]
_ROW_OF_ELEVATION: dict[str, tuple[_Function, _Function]] = {
    "equirect_band": (lambda el: el, lambda row: row),
    "cylinder": (np.tan, np.arctan),
    "mercator": (lambda el: np.arcsinh(np.tan(el)), lambda row: np.arctan(np.sinh(row))),
}


@dataclass(frozen=True)
class Panorama:
    """Size, projection and vertical field of a full turn.

    Attributes:
        width: Columns over 360 degrees.
        height: Rows from `elevation_max_deg` down to `elevation_min_deg`.
        projection: Which function of the elevation is linear in the row.
        elevation_min_deg: Lower edge of the last row.
        elevation_max_deg: Upper edge of the first row.
    """

    width: int = 1008
    height: int = 252
    projection: Projection = "equirect_band"
    elevation_min_deg: float = -42.0
    elevation_max_deg: float = 42.0

    def __post_init__(self) -> None:
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection {self.projection!r}; there are {', '.join(PROJECTIONS)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a panorama of {self.width}x{self.height} pixels")
        if not -90 < self.elevation_min_deg < self.elevation_max_deg < 90:
            raise ValueError(
                f"elevations from {self.elevation_min_deg:g} to {self.elevation_max_deg:g} degrees;"
                " they must grow and stay between -90 and 90"
            )

    def azimuths_rad(self) -> np.ndarray:
        """Return the azimuth of each column's centre, `(width,)`, positive to the right."""
        return 2 * np.pi * ((np.arange(self.width) + 0.5) / self.width - 0.5)

    def elevations_rad(self) -> np.ndarray:
        """Return the elevation of each row's centre, `(height,)`, falling."""
        top, bottom = self._row_limits()
        _, elevation_of_row = _ROW_OF_ELEVATION[self.projection]
        return elevation_of_row(top + (np.arange(self.height) + 0.5) / self.height * (bottom - top))

    def directions(self) -> np.ndarray:
        """Return the unit direction of each pixel's centre, `(height, width, 3)`, rig frame."""
        azimuth, elevation = np.meshgrid(self.azimuths_rad(), self.elevations_rad())
        return np.stack(
            [
                np.cos(elevation) * np.sin(azimuth),
                -np.sin(elevation),
                np.cos(elevation) * np.cos(azimuth),
            ],
            axis=-1,
        )

    def pixels_of_directions(self, directions: np.ndarray) -> np.ndarray:
        """Return the pixel `(..., 2)` of each direction, of any length.

        Columns wrap and are always in `[0, width)`; rows above or below the band lie outside
        `[0, height)`.
        """
        x, y, z = np.moveaxis(directions, -1, 0)
        top, bottom = self._row_limits()
        row_of_elevation, _ = _ROW_OF_ELEVATION[self.projection]
        row = row_of_elevation(np.arctan2(-y, np.hypot(x, z)))
        u = (np.arctan2(x, z) / (2 * np.pi) + 0.5) % 1.0 * self.width
        return np.stack([u, (row - top) / (bottom - top) * self.height], axis=-1)

    def _row_limits(self) -> np.ndarray:
        """Return the row function at the upper and the lower edge."""
        row_of_elevation, _ = _ROW_OF_ELEVATION[self.projection]
        return row_of_elevation(np.radians([self.elevation_max_deg, self.elevation_min_deg]))
