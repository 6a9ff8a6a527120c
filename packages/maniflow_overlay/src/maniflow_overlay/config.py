"""Settings of policy training, in ManiFlow's and the notes' names where they have one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from loom.config import Config
from loom.gates import Gate
from loom.schedule import Schedule, WarmupCosine
from pydantic import Field, field_validator, model_validator

from maniflow_overlay.arms import Arm, Fuse, Mode
from maniflow_overlay.policy.presets import PRESETS, Preset, PresetName

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
_NO_WORKERS = (
    "frames are read by one thread, ahead of the step: worker processes are slower at this size"
)


class AugmentConfig(Config):
    """How training pictures vary, by ManiFlow's amounts; evaluation sees them as they are.

    The path is composited after the colours have been changed, so its colours keep their meaning,
    and one crop and rotation holds for all pictures of a sample.
    """

    crop: float = Field(0.95, gt=0, le=1, description="side of the random crop; 1: none")
    rotation_deg: float = Field(5.0, ge=0, le=45)
    brightness: Share = 0.3
    contrast: Share = 0.4
    saturation: Share = 0.5
    hue: float = Field(0.08, ge=0, le=0.5, description="share of a turn")

    @property
    def active(self) -> bool:
        """Whether anything varies."""
        amounts = (self.rotation_deg, self.brightness, self.contrast, self.saturation, self.hue)
        return self.crop < 1 or any(amounts)


NO_CHANGE = AugmentConfig(crop=1, rotation_deg=0, brightness=0, contrast=0, saturation=0, hue=0)


class TrainConfig(Config):
    """Everything that `maniflow-overlay train` depends on."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "num_workers": _NO_WORKERS,
        "persistent_workers": _NO_WORKERS,
        "pin_memory": "memory is pinned where there is a GPU; leave it out",
        "shuffle": "training windows are always shuffled, validation windows never; leave it out",
        "use_ema": "averaged weights are part of the objective: they are its teacher",
        "tqdm_interval_sec": "there is a line at least every ten seconds, also through a pipe",
    }
    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {
            "steps",
            "num_epochs",
            "log_every",
            "val_every",
            "checkpoint_every",
            "watchdog_s",
            "device",
            "shard",
        }
    )

    name: str = "policy"
    seed: int = Field(0, ge=0)
    store: Path | None = Field(
        None,
        description="folder of a frame store; null: episodes of the simulated table, recorded once",
    )
    preset: PresetName = "tiny"
    mode: Mode = Field("initial_current", description="on which pictures the path is seen")
    fuse: Fuse = Field("overlay", description="overlay: approach A; concat6: approach B")
    language: Literal["none", "task", "text"] = Field(
        "task",
        description="task: an embedding per task, where the store has more than one; text: an "
        "instruction of the episode, through text_encoder",
    )
    text_encoder: Path | None = Field(
        None, description="folder of a T5 (config.json, tokenizer.json, *.safetensors), kept frozen"
    )
    encoder_weights: Path | None = Field(
        None, description="R3M's r3m_18/model.pt; null: the encoder begins at random"
    )

    horizon: int | None = Field(None, ge=2, description="actions at a time; null: the preset's")
    n_obs_steps: int = Field(2, ge=1)
    n_action_steps: int | None = Field(
        None, ge=1, description="actions carried out; null: all from the last observed step on"
    )
    range_eps: Positive = Field(1e-4, description="narrower dimensions are not scaled up")

    flow_batch_ratio: float = Field(0.75, gt=0, le=1)
    consistency_batch_ratio: Share = 0.25
    flow_times: Literal["beta", "uniform", "lognorm"] = "beta"
    target_t: Literal["relative", "absolute"] = "relative"
    num_inference_steps: int = Field(10, ge=1, description="of Euler's method")

    batch_size: int = Field(64, ge=1, description="over all processes and accumulated parts")
    steps: int = Field(2_000, ge=1)
    num_epochs: int | None = Field(None, ge=1, description="passes over the windows; else `steps`")
    lr: Positive | None = Field(None, description="null: the preset's")
    lr_warmup_steps: int = Field(500, ge=0, description="at most a tenth of all steps")
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: NonNegative = 1e-3
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    gradient_accumulate_every: int = Field(1, ge=1)
    clip_norm: Positive | None = None
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    shard: Literal["none", "fsdp2"] = Field(
        "none", description="fsdp2: processes share the weights; none: each has all of them"
    )
    augment: AugmentConfig = AugmentConfig()

    val_ratio: Share = Field(0.1, description="share of the episodes that is kept back")
    val_every: int = Field(500, ge=1)
    val_windows: int = Field(256, ge=1, description="looked at on the way; all of them at the end")
    checkpoint_every: int = Field(500, ge=1)
    log_every: int = Field(20, ge=1)
    watchdog_s: Positive = Field(300.0, description="without a step, all stacks are written")
    gates: tuple[Gate, ...] = ()

    @field_validator("store", "encoder_weights", "text_encoder")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> TrainConfig:
        total = self.flow_batch_ratio + self.consistency_batch_ratio
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"flow_batch_ratio {self.flow_batch_ratio:g} and consistency_batch_ratio "
                f"{self.consistency_batch_ratio:g} add up to {total:g}; a batch has two parts"
            )
        if self.consistency_batch_ratio and self.batch_size * self.consistency_batch_ratio < 1:
            raise ValueError(
                f"batch_size {self.batch_size} leaves no sample for consistency_batch_ratio "
                f"{self.consistency_batch_ratio:g}"
            )
        return self

    @model_validator(mode="after")
    def _weights_have_a_place(self) -> TrainConfig:
        if self.encoder_weights is not None and self.preset == "tiny":
            raise ValueError("preset tiny has no ResNet-18 for encoder_weights; spatial has one")
        return self

    @model_validator(mode="after")
    def _text_has_an_encoder(self) -> TrainConfig:
        if self.language == "text" and self.text_encoder is None:
            raise ValueError("language text needs text_encoder, the local folder of a T5")
        if self.language != "text" and self.text_encoder is not None:
            raise ValueError(f"language {self.language} does not use text_encoder; text does")
        return self

    @model_validator(mode="after")
    def _actions_within_the_horizon(self) -> TrainConfig:
        if not 1 <= self.action_steps <= self.steps_ahead - self.n_obs_steps + 1:
            raise ValueError(
                f"n_action_steps {self.action_steps} from observed step {self.n_obs_steps} on lie "
                f"behind the horizon of {self.steps_ahead}"
            )
        return self

    def notices(self) -> Iterable[str]:
        """Say what is legal and probably unwanted."""
        if self.mode == "none" and self.fuse == "concat6":
            yield "mode none shows no path: fuse concat6 changes nothing"
        asked = self.steps != type(self).model_fields["steps"].default
        if self.num_epochs is not None and asked:
            yield f"num_epochs {self.num_epochs} decides the length: steps {self.steps} is not used"

    def schedules(self) -> Mapping[str, Schedule]:
        """Return the learning rate, where its length does not depend on the data."""
        return {} if self.num_epochs is not None else {"lr": self.learning_rate(self.steps)}

    @property
    def max_steps(self) -> int | None:
        """Where the schedules end, where that does not depend on the data."""
        return self.steps if self.num_epochs is None else None

    @property
    def arm(self) -> Arm:
        """What the policy gets to see."""
        return Arm(self.mode, self.fuse)

    @property
    def size(self) -> Preset:
        """The preset itself."""
        return PRESETS[self.preset]

    @property
    def steps_ahead(self) -> int:
        """Actions at a time."""
        return self.horizon or self.size.horizon

    @property
    def action_steps(self) -> int:
        """Actions that are carried out before the policy looks again."""
        return self.n_action_steps or self.steps_ahead - self.n_obs_steps + 1

    def total_steps(self, windows: int) -> int:
        """Return the updates in all, for a data set of so many windows."""
        if self.num_epochs is None:
            return self.steps
        return self.num_epochs * -(-windows // self.batch_size)

    def learning_rate(self, total: int) -> WarmupCosine:
        """Return the learning rate over a run of `total` updates."""
        peak = self.lr if self.lr is not None else self.size.lr
        return WarmupCosine(peak, min(self.lr_warmup_steps, total // 10), total)
