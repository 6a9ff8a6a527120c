"""Settings of the network."""

from typing import Literal

from loom.config import Config
from pydantic import Field

PATCH = 14  # pixels of MapAnything's patches


class CylNetOptions(Config):
    """Size of `CylNet`."""

    name: Literal["cylnet"] = "cylnet"
    widths: tuple[int, int, int] = Field(
        (24, 48, 96), description="channels at stride 2, 4 and 8, multiples of 8"
    )
    token_width: int = Field(64, ge=8, multiple_of=8, description="channels before the heads")
    descriptor: int = Field(48, ge=4, description="numbers that a token is matched by")
    attention: int = Field(
        0, ge=0, description="rounds of attention within and across views; 0: views are independent"
    )
    range_bins: int = Field(48, ge=4)
    range_m: tuple[float, float] = Field((0.5, 90.0), description="first and last range bin")
    precision: Literal["bf16", "fp32", "fp64"] = Field(
        "bf16",
        description="of the convolutions; weights, heads and losses are fp32 with bf16. fp64 tells "
        "rounding from differences between two runs",
    )


class MapAnythingOptions(Config):
    """The real MapAnything, where it is installed."""

    name: Literal["mapanything"] = "mapanything"
    weights: str = Field(
        "facebook/map-anything-apache",
        description="folder or name; this one is Apache-2.0, facebook/map-anything CC-BY-NC-4.0",
    )


ModelOptions = CylNetOptions | MapAnythingOptions
