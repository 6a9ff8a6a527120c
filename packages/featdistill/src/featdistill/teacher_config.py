"""The configuration of a teacher fit; defaults measured on the LEGO scene at 200x200."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from loom.config import Config
from loom.gates import Gate
from loom.schedule import Schedule
from pydantic import Field, model_validator

from featdistill.config import Fraction, NonNegative, Positive


class TeacherData(Config):
    """The scene to fit."""

    scene: Path | None = Field(None, description="NeRF-synthetic folder with transforms_*.json")
    width: int | None = Field(None, ge=8, description="image width in pixels; null: as stored")


class StartConfig(Config):
    """What the gaussians start from: the visual hull of the silhouettes, or another model."""

    model: Path | None = Field(
        None,
        description="point_cloud.ply or teacher run to go on from; null: the visual hull. "
        "Gaussians beyond its own are placed by relocation",
    )
    resolution: int = Field(100, ge=4, description="voxels along the longest edge of the hull")
    alpha: Fraction = Field(0.02, description="alpha above which a pixel belongs to the silhouette")
    margin_px: int = Field(1, ge=0, description="pixels by which silhouettes are widened")
    interior: Fraction = Field(
        0.0, description="share of the gaussians inside the hull, for what it cannot carve"
    )
    opacity: Fraction = 0.5
    share: Fraction = Field(
        1.0, gt=0, description="share of the gaussians that are there from the start"
    )
    scale: Positive = Field(0.6, description="standard deviation in units of the spacing")


class LearningRates(Config):
    """Adam's learning rate per kind of parameter, at the first step."""

    scale: Positive = Field(1.0, description="factor on all of them; below 1 to go on gently")
    means: Positive = 6e-3
    log_scales: Positive = 6e-2
    rotations: Positive = 1.2e-2
    opacity_logits: Positive = 0.3
    sh_constant: Positive = 0.15
    sh_rest: Positive = 7.5e-3
    final: Fraction = Field(0.03, description="rate at the last step as a share of the first")


class CoarseStage(Config):
    """A part of the steps on smaller images, where a step costs less and reaches further."""

    divisor: int = Field(ge=2, description="pixels of the final image per pixel, along one edge")
    until: Fraction = Field(description="share of the steps at which it ends")


class TeacherTrain(Config):
    """Steps and the optimiser."""

    max_steps: int = Field(5_000, ge=1)
    coarse: tuple[CoarseStage, ...] = Field(
        (), description="stages before the final resolution, in their order"
    )
    lr: LearningRates = LearningRates()
    sh_from: Fraction = Field(0.08, description="share of the steps without view dependence")

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> TeacherTrain:
        ends = [stage.until for stage in self.coarse]
        if any(after <= before for before, after in itertools.pairwise(ends)):
            raise ValueError(f"train.coarse: the stages end at {ends}, which does not rise")
        return self

    def divisor_at(self, step: int) -> int:
        """Pixels of the final image per pixel of the update after `step` completed ones."""
        for stage in self.coarse:
            if step < stage.until * self.max_steps:
                return stage.divisor
        return 1

    def lr_at(self, step: int) -> dict[str, float]:
        """Learning rate per group of the update after `step` completed ones."""
        decay = self.lr.final ** (step / self.max_steps)
        rates = {name: rate * decay * self.lr.scale for name, rate in self.lr.model_dump().items()}
        del rates["final"], rates["scale"]
        if step < self.sh_from * self.max_steps:
            rates["sh_rest"] = 0.0
        return rates


@dataclass(frozen=True)
class GroupRate:
    """The learning rate of one parameter group as a schedule."""

    train: TeacherTrain
    group: str

    def at(self, step: int) -> float:
        """The rate of the update after `step` completed ones."""
        return self.train.lr_at(step)[self.group]


class TeacherLossConfig(Config):
    """Weights of the terms; each image stands on random backgrounds."""

    l1: NonNegative = 0.8
    l2: NonNegative = Field(2.0, description="in closed-form expectation over backgrounds")
    dssim: NonNegative = Field(0.0, description="1 - SSIM over the padded 11x11 window")
    opacity: NonNegative = Field(0.0, description="mean opacity: what is not needed dies")
    scale: NonNegative = Field(0.0, description="mean size")


class RelocationConfig(Config):
    """When gaussians that are not seen move to where they are needed."""

    interval: int = Field(100, ge=1)
    begin: Fraction = 0.05
    end: Fraction = 0.8
    opacity: Fraction = Field(0.005, description="opacity below which a gaussian counts as dead")
    grown: Fraction = Field(
        0.6, description="share of the steps at which all gaussians take part (start.share < 1)"
    )


class TeacherEvaluation(Config):
    """How often and on how many test frames a fit looks at itself."""

    interval: int = Field(1_000, ge=1)
    frames: int = Field(20, ge=1, description="frames spread evenly over the test views")


class TeacherConfig(Config):
    """Everything that `featdistill teacher fit` depends on."""

    name: str = "teacher"
    seed: int = Field(0, ge=0)
    data: TeacherData = TeacherData()
    gaussians: int = Field(20_000, ge=16, description="their number, constant over the run")
    start: StartConfig = StartConfig()
    train: TeacherTrain = TeacherTrain()
    loss: TeacherLossConfig = TeacherLossConfig()
    relocation: RelocationConfig = RelocationConfig()
    evaluation: TeacherEvaluation = TeacherEvaluation()
    gates: tuple[Gate, ...] = ()
    log_interval: int = Field(50, ge=1)
    checkpoint_interval: int = Field(1_000, ge=1)

    def waiting_at(self, step: int) -> int:
        """How many gaussians have not been placed yet after `step` updates."""
        waiting = self.gaussians - max(1, round(self.start.share * self.gaussians))
        begin, grown = self.relocation.begin, max(self.relocation.grown, self.relocation.begin)
        done = step / self.train.max_steps - begin
        left = 1.0 if done < 0 else max(0.0, 1 - done / (grown - begin)) if grown > begin else 0.0
        return math.ceil(waiting * left)

    def schedules(self) -> dict[str, Schedule]:
        """Every value of the configuration that changes with the step."""
        return {f"lr.{name}": GroupRate(self.train, name) for name in self.train.lr_at(0)}
