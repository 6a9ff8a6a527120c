"""Settings of the student: a grid of tiny radiance networks inside a box (KiloNeRF, 2021)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class StudentConfig(BaseModel):
    """Size, encoding and marching resolution of a student."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Networks along x, y and z."""
        if isinstance(self.grid_resolution, int):
            return (self.grid_resolution,) * 3
        return self.grid_resolution
