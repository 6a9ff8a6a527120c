"""Settings of the two losses, without anything that computes."""

from typing import Literal

from loom.config import Config
from pydantic import Field

PosWeight = Literal["auto"] | float
_POS_WEIGHT = "of the mask's positive pixels; auto: negatives over positives"


class MatchingLossOptions(Config):
    """Weights of the compact network's losses."""

    name: Literal["matching"] = "matching"
    range: float = Field(1.0, ge=0, description="cross-entropy and distance of the log range")
    pixels: float = Field(0.5, ge=0, description="distance of each pixel's log range")
    match: float = Field(1.0, ge=0, description="cross-entropy of each token's partner")
    covisible: float = Field(0.3, ge=0, description="whether another view sees a token")
    mask: float = Field(0.2, ge=0, description="non-ambiguous mask")
    scale: float = Field(0.2, ge=0, description="correction of a view's log scale")
    pos_weight: PosWeight = Field(1.0, description=_POS_WEIGHT)
    queries: int = Field(192, ge=1, description="tokens per view that are asked for their partner")
    match_range_m: float = Field(60.0, gt=0, description="tokens further away are not matched")


class OverallLossOptions(Config):
    """Weights of the notes' loss, for MapAnything."""

    name: Literal["overall_loss"] = "overall_loss"
    mask: float = Field(0.3, ge=0, description="non-ambiguous mask")
    conf_alpha: float = Field(0.2, ge=0, description="reward of the confidence of points")
    pos_weight: PosWeight = Field(1.0, description=_POS_WEIGHT)
