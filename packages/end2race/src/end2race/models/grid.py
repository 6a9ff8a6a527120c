"""The bird's-eye-view grid that teacher and student share, in the ego frame.

Rows run along y (left), columns along x (forward); the value of a cell belongs to its centre.
Indices come from `floor`, so a point just outside the lower edge is outside: truncation toward zero
would put everything within one cell of it into cell 0.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BevGrid:
    """A box of the ego frame in metres and its square cells seen from above."""

    x_m: tuple[float, float]
    y_m: tuple[float, float]
    z_m: tuple[float, float]
    cell_m: float

    def __post_init__(self) -> None:
        for name, (low, high) in {"x": self.x_m, "y": self.y_m, "z": self.z_m}.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"the grid's {name} range is {low} .. {high}")
        if self.cell_m <= 0:
            raise ValueError(f"a grid of {self.cell_m} m cells")
        for low, high in (self.x_m, self.y_m):
            cells = (high - low) / self.cell_m
            if abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"{low} .. {high} m is not a whole number of {self.cell_m} m cells"
                )

    @property
    def columns(self) -> int:
        """Cells along x."""
        return round((self.x_m[1] - self.x_m[0]) / self.cell_m)

    @property
    def rows(self) -> int:
        """Cells along y."""
        return round((self.y_m[1] - self.y_m[0]) / self.cell_m)

    @property
    def cells(self) -> int:
        """Cells in all."""
        return self.rows * self.columns
