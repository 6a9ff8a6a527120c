"""The training configuration: the notes' keys, strictly checked, with defaults that learn.

A file written for the notes' pipeline loads unchanged once `data` names a teacher; keys that were
removed on the way say so. Every default was chosen by measurement on the LEGO scene at 200x200.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from loom.config import Config
from loom.gates import Gate
from loom.schedule import Constant, Ramp, Schedule, WarmupCosine
from pydantic import Field, model_validator

from featdistill.student_config import StudentConfig

PROGRESS_NAME = "特徴蒸留_教師52d"
FEATURE_DIM = 52

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]
ParameterSet = Literal["student", "projector"]


class ProjectorConfig(Config):
    """The linear map from the student's feature space to the teacher's."""

    in_dim: int = Field(128, ge=1)
    out_dim: int = Field(FEATURE_DIM, ge=1)


class FeaturePipelineConfig(Config):
    """What is distilled besides colour, and in which space it is compared."""

    enabled: bool = True
    teacher_mode: Literal["gaussian_sh_opacity_logscale"] = "gaussian_sh_opacity_logscale"
    compare_space: Literal["teacher", "student"] = Field(
        "teacher",
        description="teacher: project the student's features to the teacher's 52; "
        "student: lift the teacher's 52 by a fixed orthonormal map to the student's space",
    )
    projector: ProjectorConfig = ProjectorConfig()
    feature_source: Literal["per_pixel", "per_sample"] = Field(
        "per_pixel",
        description="per_pixel: features blended along a ray, as colours are; per_sample: those "
        "of the teacher's field at points in space",
    )
    rays: int = Field(
        128, ge=1, description="rays, or points, of each batch that carry the feature loss"
    )
    alpha_threshold: Fraction = Field(
        0.6,
        description="teacher opacity, of a ray or of one step about a point, above which there is "
        "a feature target",
    )

    @model_validator(mode="after")
    def _projector_ends_at_the_teacher(self) -> "FeaturePipelineConfig":
        if self.projector.out_dim != FEATURE_DIM:
            raise ValueError(
                f"projector.out_dim is {self.projector.out_dim}, but teacher_mode "
                f"{self.teacher_mode} has {FEATURE_DIM} features"
            )
        return self


class PhaseConfig(Config):
    """A span of steps with its own trainable parameter sets.

    `target: volume` supervises points in space by the teacher's density and colour field;
    `target: image` supervises rays by the teacher's renders.
    """

    removed_keys: ClassVar[Mapping[str, str]] = {
        "freeze_student": "list what learns in `optimize` instead; the student is frozen in a "
        "phase whose `optimize` does not name it",
        "force_feature_on": "the feature loss is on in every phase that optimises only the "
        "projector; nothing needs to force it",
        "phase_feature_scale": "give the feature losses a `warmup` instead",
    }

    name: str
    end_step: int = Field(ge=1, description="completed updates when the phase ends")
    optimize: tuple[ParameterSet, ...] = Field(min_length=1)
    target: Literal["image", "volume"] = "image"
    lr: Positive | None = Field(None, description="peak of a cosine of its own; null: train.lr")


class TrainSection(Config):
    """Steps, phases and the optimiser."""

    max_steps: int = Field(5_000, ge=1)
    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(
            name="predistillation", end_step=160, optimize=("student",), target="volume", lr=4e-3
        ),
        PhaseConfig(name="joint_training", end_step=5_000, optimize=("student", "projector")),
    )
    rays: int = Field(3_072, ge=1, description="rays per step over all processes")
    points: int = Field(100_000, ge=1, description="points per step of a volume phase")
    lr: Positive = 6e-3
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    lr_schedule_steps: int | None = Field(
        None, ge=1, description="horizon of the schedule; null: max_steps"
    )
    lr_warmup: Fraction = Field(0.02, description="share of the schedule that warms up")
    lr_floor: Fraction = Field(0.02, description="final learning rate as a share of lr")
    gradient_clip_norm: Positive | None = None
    ema_decay: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _phases_follow_each_other(self) -> "TrainSection":
        ends = [phase.end_step for phase in self.phases]
        if not ends:
            raise ValueError("train.phases is empty; at least one phase says what is optimised")
        if sorted(set(ends)) != ends:
            raise ValueError(f"train.phases must end at growing steps, but end at {ends}")
        return self

    def phase_at(self, step: int) -> PhaseConfig:
        """The phase of the update after `step` completed ones; the last phase has no end."""
        return next((p for p in self.phases if step < p.end_step), self.phases[-1])

    def phase_start(self, phase: PhaseConfig) -> int:
        """Completed updates when the phase begins."""
        return max((p.end_step for p in self.phases if p.end_step < phase.end_step), default=0)

    @property
    def image_start(self) -> int:
        """Completed updates when the first image phase begins."""
        first = next((p for p in self.phases if p.target == "image"), self.phases[-1])
        return self.phase_start(first)

    @property
    def student_start(self) -> int:
        """Completed updates when the student first learns."""
        first = next((p for p in self.phases if "student" in p.optimize), self.phases[-1])
        return self.phase_start(first)

    @property
    def schedule_steps(self) -> int:
        """Horizon of the learning-rate schedule."""
        return self.lr_schedule_steps or self.max_steps

    def lr_at(self, step: int) -> float:
        """Learning rate of the update after `step` completed ones."""
        return self.lr_schedule_by_phase().at(step)

    def lr_schedule_by_phase(self) -> "PhasedSchedule":
        """The learning rate over the whole run.

        A phase with an `lr` of its own has a whole cosine of its own; the others share one, which
        begins with the first image phase.
        """
        pieces = []
        for phase in self.phases:
            begin = self.phase_start(phase)
            if phase.lr is not None:
                origin, schedule = begin, self._cosine(phase.lr, phase.end_step - begin)
            elif self.lr_schedule == "constant":
                origin, schedule = begin, Constant(self.lr)
            else:
                origin = self.image_start
                schedule = self._cosine(self.lr, max(1, self.schedule_steps - origin))
            pieces.append((begin, origin, schedule))
        return PhasedSchedule(tuple(pieces))

    def _cosine(self, peak: float, total: int) -> WarmupCosine:
        return WarmupCosine(peak, int(self.lr_warmup * total), total, self.lr_floor * peak)


@dataclass(frozen=True)
class PhasedSchedule:
    """Schedules that follow each other: (first step, step that it counts from, schedule) each."""

    pieces: tuple[tuple[int, int, Schedule], ...]

    def at(self, step: int) -> float:
        """The value of the piece that a step lies in."""
        current = [piece for piece in self.pieces if piece[0] <= step][-1]
        return current[2].at(step - current[1])


class WeightWarmupConfig(Config):
    """A loss weight that grows from `start_weight` to its final value."""

    steps: Steps = 0
    type: Literal["linear", "cosine"] = "linear"
    start_weight: NonNegative = 0.0


class ColorLossConfig(Config):
    """Premultiplied colour against the teacher's, in expectation over backgrounds."""

    type: Literal["l1", "l2"] = "l2"
    weight: NonNegative = 1.0


class DepthLossConfig(Config):
    """Expected depth, where the teacher is opaque enough to have one (scene units)."""

    type: Literal["l1", "l2", "smooth_l1"] = "smooth_l1"
    weight: NonNegative = 0.0
    alpha_threshold: Fraction = 0.6


class OpacityLossConfig(Config):
    """Opacity of each ray against the teacher's alpha, or against a constant.

    The weight is `weight` until `warmup_steps` and then grows to `target_weight` over
    `schedule_duration` steps. It may not fall: a run that sees it fall stops.
    """

    type: Literal["l1", "l2"] = "l1"
    weight: NonNegative = 0.0
    target: Literal["teacher"] | Fraction = Field(
        "teacher", description="teacher: its alpha on the ray; a number: that opacity on each ray"
    )
    target_weight: NonNegative = 0.0
    warmup_steps: Steps = 0
    schedule: Literal["linear", "cosine"] = "cosine"
    schedule_duration: Steps = 0
    background_threshold: Fraction = Field(
        0.05, description="rays whose teacher alpha is at most this keep the teacher's alpha"
    )

    @model_validator(mode="after")
    def _never_falls(self) -> "OpacityLossConfig":
        if self.target_weight < self.weight:
            raise ValueError(
                f"loss.opacity.target_weight ({self.target_weight:g}) is below its starting "
                f"weight ({self.weight:g}); the weight may only grow"
            )
        return self

    def weight_at(self) -> Schedule:
        """The effective weight as a schedule over the step."""
        return Ramp(
            self.weight,
            self.target_weight,
            over=self.schedule_duration,
            begin=self.warmup_steps,
            shape=self.schedule,
        )


class FeatureLossConfig(Config):
    """A loss on the 52 standardised teacher features."""

    weight: NonNegative
    warmup: WeightWarmupConfig = WeightWarmupConfig()

    def weight_at(self) -> Schedule:
        """The weight as a schedule over the step."""
        return Ramp(
            self.warmup.start_weight,
            self.weight,
            over=self.warmup.steps,
            shape=self.warmup.type,
        )


class LossSection(Config):
    """The terms of the loss and their weights."""

    color: ColorLossConfig = ColorLossConfig()
    depth: DepthLossConfig = DepthLossConfig()
    opacity: OpacityLossConfig = OpacityLossConfig()
    feature_l2: FeatureLossConfig = FeatureLossConfig(weight=1e-4)
    feature_cos: FeatureLossConfig = FeatureLossConfig(weight=1e-4)


class DataSection(Config):
    """What the student learns from. Without a scene and a teacher: the embedded brick model."""

    scene: Path | None = Field(None, description="NeRF-synthetic folder with transforms_*.json")
    teacher: Path | None = Field(None, description="3DGS point_cloud.ply, or a teacher run folder")
    camera_json: Path | None = Field(
        None, description="training cameras; null: transforms_train.json of the scene"
    )
    eval_camera_json: Path | None = Field(
        None, description="evaluation cameras; null: transforms_test.json of the scene"
    )
    width: int | None = Field(None, ge=8, description="image width in pixels; null: as stored")
    extra_poses: int = Field(
        300,
        ge=0,
        description="random poses on the upper hemisphere about the origin, as far as the training "
        "cameras on average, that the teacher renders as well; 0 for another kind of scene",
    )
    background_color: Literal["mixed", "random", "white", "black"] = Field(
        "mixed",
        description="background that the colour loss composites on; mixed: half of it white, on "
        "which pictures are judged, half random, which tells white from empty",
    )


class EvaluationSection(Config):
    """How often and on how many frames a run looks at itself."""

    interval: int = Field(1_000, ge=1)
    frames: int = Field(8, ge=1, description="frames spread evenly over the evaluation cameras")
    blank_check: Fraction = Field(
        0.025, description="share of the steps after which a blank student stops the run"
    )
    blank_margin_db: NonNegative = 1.0


class PruneSection(Config):
    """Occupancy starts loose and loses voxels that the student itself never shows."""

    at: tuple[Fraction, ...] = Field((0.12, 0.45), description="shares of the steps")
    threshold: Fraction = Field(0.01, description="largest rendered weight of a dropped voxel")
    window: int = Field(
        150,
        ge=1,
        description="steps over which the largest weight is taken; an earlier pruning waits for it",
    )


class TrainConfig(Config):
    """Everything that `featdistill train` depends on."""

    removed_keys: ClassVar[Mapping[str, str]] = PhaseConfig.removed_keys

    name: str = "distill"
    seed: int = Field(0, ge=0)
    data: DataSection = DataSection()
    feature_pipeline: FeaturePipelineConfig = FeaturePipelineConfig()
    student: StudentConfig = StudentConfig()
    prune: PruneSection = PruneSection()
    train: TrainSection = TrainSection()
    loss: LossSection = LossSection()
    evaluation: EvaluationSection = EvaluationSection()
    gates: tuple[Gate, ...] = ()
    log_interval: int = Field(50, ge=1)
    checkpoint_interval: int = Field(1_000, ge=1)

    @model_validator(mode="after")
    def _the_student_feeds_the_projector(self) -> "TrainConfig":
        if self.feature_pipeline.projector.in_dim != self.student.feature_dim:
            raise ValueError(
                f"feature_pipeline.projector.in_dim is {self.feature_pipeline.projector.in_dim}, "
                f"but student.feature_dim is {self.student.feature_dim}; they are the same space"
            )
        if self.student.teacher_feature_dim != FEATURE_DIM:
            raise ValueError(
                f"student.teacher_feature_dim is {self.student.teacher_feature_dim}, but the "
                f"teacher has {FEATURE_DIM} features"
            )
        return self

    @property
    def blank_check_step(self) -> int:
        """The step at which the student must be better than an empty picture."""
        return self.train.student_start + max(
            1, int(self.evaluation.blank_check * self.train.max_steps)
        )

    def schedules(self) -> dict[str, Schedule]:
        """Every value of the configuration that changes with the step."""
        return {
            "lr": self.train.lr_schedule_by_phase(),
            "loss.opacity": self.loss.opacity.weight_at(),
            "loss.feature_l2": self.loss.feature_l2.weight_at(),
            "loss.feature_cos": self.loss.feature_cos.weight_at(),
        }
