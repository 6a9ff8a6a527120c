"""Settings of the two trainings.

Keys follow the notes' options (`--kd_action_w` is `kd.action_weight`); the defaults are those that
learn to drive the embedded dataset in about a CPU-minute.
"""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from loom.config import Config
from loom.errors import UserError
from loom.gates import Gate
from loom.schedule import Schedule, WarmupCosine
from pydantic import Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PresetName = Literal["racing", "racing-fine", "kitti"]


class DataSection(Config):
    """Which windows of which dataset."""

    root: Path | None = Field(None, description="dataset folder; null: the embedded one")
    camera_root: Path | None = Field(
        None, description="dataset folder of the images, if they are not in root"
    )
    train_split: str = "train"
    val_split: str = "valid"
    seq_len: int = Field(5, ge=1, description="frames of a window")
    stride: int = Field(1, ge=1, description="frames between the starts of two windows")
    target_shift: int = Field(
        1, ge=1, description="frames from an input to the velocity that is its label"
    )
    lidar_num_features: Literal[4, 8] | None = Field(
        None, description="numbers per point that the dataset must declare; null: either"
    )
    prefetch: int = Field(0, ge=0, description="batches that a thread reads in advance")


class ActionWeights(NamedTuple):
    """Weights of the errors against the expert: wheel angle, speed, first differences."""

    steer: float = 1.0
    speed: float = 0.05
    smooth: float = 0.0


class ActionLossSection(Config):
    """Weights of the errors against the expert."""

    steer_weight: NonNegative | None = Field(
        None,
        description="null: 1, or 0.1 where a student has few labels and a teacher, whom errors in "
        "squared degrees would drown",
    )
    speed_weight: NonNegative = 0.05
    smooth_weight: NonNegative = 0.0

    def weights(self, *, few_labels_and_a_teacher: bool = False) -> ActionWeights:
        """Return the weights, that of steering filled in."""
        steer = self.steer_weight
        if steer is None:
            steer = 0.1 if few_labels_and_a_teacher else 1.0
        return ActionWeights(steer, self.speed_weight, self.smooth_weight)


class DistillationSection(Config):
    """Weights of the errors against the teacher, and where its answers come from."""

    cache_dir: Path | None = Field(None, description="teacher cache; null: no distillation")
    action_weight: NonNegative = 1.0
    bevvec_weight: NonNegative = 1.0
    temporal_weight: NonNegative = 1.0
    bevfeat_weight: NonNegative = 0.0
    missing: Literal["error", "skip"] = Field(
        "error", description="what a window without an answer is: an error, or left out of the sum"
    )
    allow_stale: bool = Field(False, description="take a cache of another teacher or dataset")
    memory: Literal["none", "topk"] = Field(
        "none", description="topk: windows without an answer get that of the most similar ones"
    )
    memory_dir: Path | None = Field(None, description="memory bank, looked up by the camera")
    topk: int = Field(8, ge=1, description="windows that are recalled")
    tau: Positive = Field(0.1, description="temperature of their weights")

    @model_validator(mode="after")
    def _memory_is_named(self) -> "DistillationSection":
        if (self.memory == "topk") != (self.memory_dir is not None):
            raise ValueError(
                f"memory is {self.memory} and memory_dir is {self.memory_dir}; topk needs a bank, "
                "and a bank is used by topk"
            )
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether there is anything to distil: somewhere to ask, and a term with a weight."""
        return bool(self.fields) and (self.cache_dir is not None or self.memory_dir is not None)

    @property
    def weights(self) -> dict[str, float]:
        """Weight by field of the teacher's answers."""
        return {
            "actions": self.action_weight,
            "bev_vec": self.bevvec_weight,
            "gru_out": self.temporal_weight,
            "bev_feat": self.bevfeat_weight,
        }

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the teacher's answers that have a weight."""
        return tuple(name for name, weight in self.weights.items() if weight > 0)


class TrainSection(Config):
    """Length, batches and the optimiser."""

    epochs: Positive = Field(8, description="passes over the training windows")
    max_steps: int | None = Field(None, ge=1, description="updates in all, instead of epochs")
    batch_size: int = Field(16, ge=1, description="windows per update over all processes")
    accumulate: int = Field(1, ge=1, description="micro-batches of an update")
    lr: Positive = 2e-3
    lr_warmup: Fraction = Field(0.05, description="share of the training that warms up")
    lr_floor: Fraction = Field(0.05, description="final learning rate as a share of lr")
    weight_decay: NonNegative = 1e-4
    clip_norm: Positive | None = 1.0
    steering_dropout: Fraction = Field(
        0.5, description="share of windows whose previous wheel angles are withheld"
    )
    speed_dropout: Fraction = Field(0.5, description="share of windows whose speeds are withheld")
    colour_mixing: Fraction = Field(
        0.5, description="share of windows whose images get random colours"
    )
    validate_interval: int | None = Field(
        100, ge=1, description="updates between two validations; null: none, not even at the end"
    )

    def steps(self, windows: int) -> int:
        """Updates in all for so many training windows."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round(self.epochs * windows / self.batch_size))

    def schedules(self) -> dict[str, Schedule]:
        """Return the learning rate over `max_steps`.

        Raises:
            UserError: It is not set: how many updates epochs make depends on the dataset.
        """
        if self.max_steps is None:
            raise UserError(
                "how many updates the epochs make depends on the dataset",
                hint="say train.max_steps=N",
            )
        return {"lr": self.rate(self.max_steps)}

    def rate(self, steps: int) -> Schedule:
        """Learning rate over so many updates."""
        warmup = min(round(self.lr_warmup * steps), steps)
        return WarmupCosine(self.lr, warmup, steps, self.lr * self.lr_floor)


class DriverConfig(Config):
    """What both trainings have."""

    name: str | None = Field(None, description="first part of the run directory's name")
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    preset: PresetName = "racing"
    data: DataSection = DataSection()
    loss: ActionLossSection = ActionLossSection()
    train: TrainSection = TrainSection()
    init_path: Path | None = Field(None, description="run or checkpoint to start the weights from")
    init_strict: bool = Field(
        True, description="every weight must fit; else those that do not stay"
    )
    init_skip_output_layer: bool = Field(False, description="leave the last layer as it begins")
    save_path: Path | None = Field(None, description="also write the trained model to this file")
    log_interval: int = Field(20, ge=1)
    checkpoint_interval: int | None = Field(200, ge=1)
    gates: tuple[Gate, ...] = ()


class TeacherConfig(DriverConfig):
    """Training of the LiDAR teacher."""


class StudentConfig(DriverConfig):
    """Training of the camera student."""

    view_transform: Literal["lift_splat", "identity"] = "lift_splat"
    kd: DistillationSection = DistillationSection()
    label_fraction: Fraction = Field(
        1.0, description="share of the training segments whose expert labels are used"
    )
    labelled_segments: tuple[str, ...] = Field(
        (), description="names of the segments whose expert labels are used; empty: by fraction"
    )
    labelled_share: Fraction = Field(
        0.125,
        description="share of each batch that is drawn from the labelled windows, where the "
        "others are not all labelled",
    )

    @property
    def action_weights(self) -> ActionWeights:
        """The weights of the errors against the label."""
        few_labels = self.label_fraction < 1 or bool(self.labelled_segments)
        return self.loss.weights(few_labels_and_a_teacher=few_labels and self.kd.has_teacher)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "StudentConfig":
        if self.label_fraction == 0 and not self.labelled_segments and not self.kd.has_teacher:
            raise ValueError(
                "label_fraction is 0, and there is no teacher (kd.cache_dir, kd.memory_dir) with a "
                "weight: nothing to learn from"
            )
        return self
