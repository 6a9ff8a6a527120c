"""Settings of the student: a grid of tiny radiance networks inside a box (KiloNeRF, 2021)."""

from __future__ import annotations

from typing import Literal

from loom.config import Config
from pydantic import Field, PositiveInt, model_validator

Corner = tuple[float, float, float]


class StudentConfig(Config):
    """Size, encoding and marching resolution of a student."""

    grid_resolution: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt] = (9, 16, 10)
    """Networks per axis; a single number is used for all three axes."""
    hidden_dim: Literal[32, 48] = 32
    feature_dim: Literal[128] = 128
    """Width of the per-cell training head, the input of the projector."""
    teacher_feature_dim: PositiveInt = 52
    position_frequencies: int = Field(default=4, ge=0, le=10)
    """Octaves 2^0.. on cell-local positions in [-1, 1]. Rule: the shortest period is 2-4 pixels."""
    direction_frequencies: int = Field(default=2, ge=0, le=10)
    steps_per_axis: PositiveInt = 160
    """Samples along the longest axis of the box; their distance is also the unit of density."""
    occupancy_resolution: PositiveInt = 128
    """Occupancy voxels along the longest axis of the box."""
    density_bias: float = -1.0
    """Initial raw density: an opacity of sigmoid(-1) = 0.27 per step, far from a blank image."""

    bbox: tuple[Corner, Corner] | None = None
    """Lowest and highest corner in the world; null: around the teacher's visible gaussians."""

    @model_validator(mode="after")
    def _the_box_has_a_volume(self) -> StudentConfig:
        if self.bbox and any(low >= high for low, high in zip(*self.bbox, strict=True)):
            raise ValueError(
                f"student.bbox has no volume: lowest {self.bbox[0]}, highest {self.bbox[1]}"
            )
        return self

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Networks along x, y and z."""
        if isinstance(self.grid_resolution, int):
            n = self.grid_resolution
            return (n, n, n)
        return self.grid_resolution
