"""Settings of the commands that read a data set."""

from pathlib import Path
from typing import Annotated, Self

from loom.config import Config
from pydantic import Field, model_validator

from coopcyl.data.depth import DepthFormat, DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.geometry.panorama import Panorama, Projection

Elevation = Annotated[float, Field(gt=-90, lt=90)]


class PanoramaSection(Config):
    """The panorama that images are stitched to."""

    width: int = Field(1008, ge=8, le=8192)
    height: int = Field(252, ge=8, le=4096)
    projection: Projection = Field(
        "equirect_band",
        description="equirect_band: rows linear in the elevation; cylinder: in its tangent; "
        "mercator: conformal",
    )
    elevation_min_deg: Elevation = -42.0
    elevation_max_deg: Elevation = 42.0
    supersample: int = Field(
        1, ge=1, le=8, description="colours are stitched so many times finer and then averaged"
    )

    @model_validator(mode="after")
    def _upwards(self) -> Self:
        self.build()
        return self

    def build(self) -> Panorama:
        """Return the panorama."""
        return Panorama(
            self.width,
            self.height,
            self.projection,
            self.elevation_min_deg,
            self.elevation_max_deg,
        )


class DatasetSection(Config):
    """An OPV2V data set, or any tree of the same layout."""

    root: Path | None = Field(
        None, description="folder of train, validate, ...; null: a small synthetic data set"
    )
    split: str = "train"
    depth_format: DepthFormat = Field("npy", description="OPV2V itself has no depth files")
    depth_root: Path | None = Field(None, description="root of the depth tree; null: that of data")
    max_range_m: float = Field(100.0, gt=0, le=1000, description="depth beyond counts as none")
    strict: bool = Field(
        True, description="refuse a split with missing files; false: leave them out and count them"
    )
    skip: Path | None = Field(
        None, description="file of what to leave out: scenario[/agent[/time]], one per line"
    )

    def depth(self) -> DepthSource:
        """Return where depth comes from."""
        return DepthSource(self.depth_format, self.depth_root)


class ViewConfig(Config):
    """What the commands that look at data need."""

    dataset: DatasetSection = DatasetSection()
    panorama: PanoramaSection = PanoramaSection()

    def reader(self) -> PanoramaReader:
        """Return the reader of these settings."""
        return PanoramaReader(
            self.panorama.build(),
            self.dataset.depth(),
            self.dataset.max_range_m,
            self.panorama.supersample,
        )
