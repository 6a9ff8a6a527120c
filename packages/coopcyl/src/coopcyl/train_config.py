"""Settings of a training: sections by the names that the notes' command line uses.

Every length is in steps or follows from them; nothing depends on the number of processes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from loom.config import Config
from loom.errors import UserError
from loom.gates import Baseline, Gate
from loom.schedule import Schedule, WarmupCosine
from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from coopcyl.config import DatasetSection, PanoramaSection
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.samples import Augmentation
from coopcyl.geometry.alignment import SolverOptions
from coopcyl.loss_options import MatchingLossOptions, OverallLossOptions
from coopcyl.models.options import PATCH, CylNetOptions, ModelOptions


def _at_least_two(views: tuple[int, int]) -> tuple[int, int]:
    least, most = views
    if not 2 <= least <= most:
        raise ValueError(
            f"views are {least} to {most}; a pose needs 2, and the smaller comes first"
        )
    return views


Views = Annotated[tuple[int, int], AfterValidator(_at_least_two)]


class NetworkPanorama(PanoramaSection):
    """The panorama that the network sees."""

    width: int = Field(256, ge=8, le=8192)
    height: int = Field(64, ge=8, le=4096)
    supersample: int = Field(2, ge=1, le=8, description="finer colours, averaged")


_PANORAMAS = {
    "cylnet": NetworkPanorama(),
    "mapanything": NetworkPanorama(width=1008, height=252, supersample=1),
}
_MULTIPLES = {"cylnet": 8, "mapanything": PATCH}


class ValidationSection(Config):
    """What the network is judged on."""

    split: str = "validate"
    max_sets_per_epoch: int | None = Field(
        64, ge=1, description="sets of an evaluation, evenly spread; null: all"
    )
    views: Views = Field((2, 2), description="fewest and most vehicles of a set")


class TrainDataset(DatasetSection):
    """An OPV2V data set to learn from."""

    views: Views = Field((2, 2), description="fewest and most vehicles of a set")
    max_sets_per_epoch: int = Field(400, ge=1, description="sets, not steps, of an epoch")
    cache: Path = Field(Path("data/coopcyl/cache"), description="folder of the stitched panoramas")
    memory_mb: int = Field(1000, ge=0, description="of panoramas that stay in memory, per process")
    val: ValidationSection = ValidationSection()


class TrainParams(Config):
    """Steps and the optimiser."""

    epochs: int = Field(10, ge=1)
    steps_per_epoch: int | None = Field(
        None, ge=1, description="null: dataset.max_sets_per_epoch / global_batch"
    )
    global_batch: int = Field(4, ge=1, description="sets per step over all processes")
    parts: int | None = Field(
        None,
        ge=1,
        description="micro-batches of a step over all processes; null: one per process. 2 give the "
        "same bits on one and on two processes",
    )
    lr: PositiveFloat = 1.5e-3
    min_lr: float = Field(3e-5, ge=0)
    warmup_steps: int = Field(60, ge=0)
    warmup_epochs: int | None = Field(None, ge=0, description="instead of warmup_steps")
    temperature_lr_factor: PositiveFloat = Field(
        5.0, description="rate of the matching temperature over that of the rest"
    )
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: PositiveFloat | None = 1.0
    ema_decay: float | None = Field(0.998, gt=0, lt=1, description="of the weights that are judged")


class AugmentationSection(Config):
    """How far training samples are changed; see `coopcyl.data.samples`."""

    mirror: float = Field(0.5, ge=0, le=1)
    colours: float = Field(0.6, ge=0, le=1, description="chance of exchanged colour channels")
    shared_gain: float = Field(0.15, ge=0)
    view_gain: float = Field(0.04, ge=0)
    contrast: float = Field(0.25, ge=0)
    offset: float = Field(0.02, ge=0)

    def build(self) -> Augmentation:
        """Return the augmentation."""
        return Augmentation(**self.model_dump())


class SolverSection(Config):
    """Settings of the pose solver; see `coopcyl.geometry.alignment`."""

    hypotheses: int = Field(500, ge=1)
    cutoff: PositiveFloat = 1.5
    tilt_deg: PositiveFloat = 3.0
    height_m: PositiveFloat = 1.0

    def build(self) -> SolverOptions:
        """Return the solver's options."""
        return SolverOptions(**self.model_dump())


class TrainConfig(Config):
    """Everything that `coopcyl train` depends on."""

    name: str = "cylnet"
    seed: int = Field(0, ge=0)
    dataset: TrainDataset = TrainDataset()
    panorama: NetworkPanorama | None = Field(
        None, description="null: 256x64 for cylnet, 1008x252 for mapanything"
    )
    model: ModelOptions = CylNetOptions()
    loss: MatchingLossOptions | OverallLossOptions = MatchingLossOptions()
    train_params: TrainParams = TrainParams()
    augmentation: AugmentationSection = AugmentationSection()
    solver: SolverSection = SolverSection()
    gates: tuple[Gate, ...] = (
        Gate(
            "metric/trans_err_m_median",
            "<",
            Baseline("identity"),
            otherwise="the poses are no better than standing still",
        ),
    )
    eval_interval: int = Field(500, ge=1, description="steps between two evaluations")
    log_interval: int = Field(50, ge=1)
    checkpoint_interval: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainConfig":
        if self.warmup_steps > self.max_steps:
            raise ValueError(
                f"train_params.warmup_steps is {self.warmup_steps}, but there are only "
                f"{self.max_steps} steps"
            )
        return self

    @model_validator(mode="after")
    def _model_and_loss_belong_together(self) -> "TrainConfig":
        wanted = "overall_loss" if self.model.name == "mapanything" else "matching"
        if self.loss.name != wanted:
            raise ValueError(
                f"loss is {self.loss.name}, but model={self.model.name} is taught by loss={wanted}"
            )
        return self

    @model_validator(mode="after")
    def _the_panorama_divides(self) -> "TrainConfig":
        width, height = self.view_panorama.width, self.view_panorama.height
        multiple = _MULTIPLES[self.model.name]
        if width % multiple or height % multiple:
            raise ValueError(
                f"panorama is {width}x{height}; for model={self.model.name} both must be "
                f"multiples of {multiple}"
            )
        return self

    @property
    def view_panorama(self) -> NetworkPanorama:
        """The panorama of the settings, or that of the model."""
        return self.panorama or _PANORAMAS[self.model.name]

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        params = self.train_params
        if params.warmup_epochs is None:
            return params.warmup_steps
        return params.warmup_epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, for any number of processes."""
        params = self.train_params
        given = params.steps_per_epoch
        return given or max(1, self.dataset.max_sets_per_epoch // params.global_batch)

    def accumulate(self, processes: int) -> int:
        """Return the micro-batches that each of so many processes takes for a step.

        Raises:
            UserError: The parts cannot be shared out, or there are more than sets in a step.
        """
        parts = self.train_params.parts or processes
        if parts % processes:
            raise UserError(
                f"train_params.parts is {parts}, which {processes} processes cannot share evenly",
                hint=f"a multiple of {processes}",
            )
        if parts > self.train_params.global_batch:
            raise UserError(
                f"{parts} parts of {self.train_params.global_batch} sets",
                hint="fewer processes or train_params.parts, or a larger train_params.global_batch",
            )
        return parts // processes

    @property
    def max_steps(self) -> int:
        """Steps in all."""
        return self.train_params.epochs * self.steps_per_epoch

    def lr(self) -> WarmupCosine:
        """Return the learning rate as a function of the global step."""
        params = self.train_params
        return WarmupCosine(params.lr, self.warmup_steps, self.max_steps, params.min_lr)

    def schedules(self) -> Mapping[str, Schedule]:
        """Return what changes over training."""
        return {"train_params.lr": self.lr()}

    def reader(self) -> PanoramaReader:
        """Return the reader of the views."""
        return PanoramaReader(
            self.view_panorama.build(),
            self.dataset.depth(),
            self.dataset.max_range_m,
            self.view_panorama.supersample,
        )
