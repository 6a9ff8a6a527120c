"""The part of a training's configuration that is the world model's.

Option names are those of earlier runs. Sizes and weights are those with which a small agent has
learnt pinpad_three from 16 x 16 images on one CPU thread.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from loom.config import Config
from loom.gates import Baseline, Gate
from pydantic import Field, field_validator, model_validator

from pinpad.envs.layouts import layout_name

if TYPE_CHECKING:
    from pinpad.models.rssm import RssmSettings
    from pinpad.models.vta import VtaSettings

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Width = Annotated[int, Field(ge=1)]


class WorldConfig(Config):
    """Everything that a world model on recorded episodes depends on."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "compile": "nothing is compiled; leave it out",
        "action_repeat": "PinPad's actions are not repeated; leave it out",
    }

    name: str = "world"
    seed: int = Field(0, ge=0)
    task: str = "pinpad_three"
    data: Path | None = Field(
        None, description="folder of episodes; null: scripted ones are recorded for this run"
    )
    heldout: Path | None = Field(
        None, description="episodes to evaluate on; null: scripted ones of another seed"
    )
    players: str = "uniform=1,sticky=1,babble=1,oracle:0.1=1"
    prefill: int = Field(40_000, ge=1, description="steps recorded where `data` is null")
    heldout_players: str = Field(
        "uniform=1,sticky=1,babble=1,oracle:0.1=1", description="who plays where `heldout` is null"
    )
    heldout_episodes: int = Field(20, ge=1)
    time_limit: int = Field(1_000, ge=1, description="steps of a recorded episode")
    size: Literal[16, 64] = Field(16, description="pixels of an image's side")

    updates: int = Field(1_000, ge=1)
    batch_size: int = Field(32, ge=1)
    batch_length: int = Field(16, ge=2)
    reward_windows: Fraction = Field(0.25, description="share of the windows that hold a reward")
    model_lr: Positive = 2e-3
    grad_clip: Positive = 100.0
    cnn_depth: int = Field(
        0, ge=0, description="channels of the first convolution; 0: plain networks"
    )
    image_scale: Positive = Field(3.0, description="weight of the frames' cross-entropy")
    precision: Literal[16, 32, "bf16"] = 32
    threads: int = Field(
        1, ge=1, description="of the CPU; on tensors this small more of them wait for each other"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    eval_every: int = Field(500, ge=1)
    log_every: int = Field(50, ge=1)

    dynamics_type: Literal["rssm", "vta"] = "rssm"
    dyn_deter: Width = 128
    dyn_hidden: Width = 128
    dyn_stoch: Width = 8
    dyn_discrete: Width = 8
    unimix_ratio: Fraction = 0.01
    kl_free: Annotated[float, Field(ge=0)] = 1.0
    dyn_scale: Annotated[float, Field(ge=0)] = 0.5
    rep_scale: Annotated[float, Field(ge=0)] = 0.1

    vta_abs_belief: Width = 128
    vta_abs_stoch: Width = 8
    vta_obs_belief: Width = 128
    vta_obs_stoch: Width = 8
    vta_discrete: int = Field(
        8, ge=0, description="classes of a latent; 0: normal, as in the paper"
    )
    vta_max_seg_len: Width = 50
    vta_max_seg_num: Width = 200
    vta_boundary_temp: Positive = 1.0
    vta_boundary_force_scale: Annotated[float, Field(ge=0)] = 0.0
    vta_force: Literal["prior", "both"] = "both"
    vta_force_precedence: Literal["read", "copy"] = "copy"
    vta_at_read: Literal["begin", "carry"] = Field(
        "carry", description="begin, as in the paper, forgets at each boundary where the player is"
    )
    vta_abs_input: Literal["abstract", "observation"] = Field(
        "observation",
        description="abstract, as in the paper, expects a segment without hearing what is done",
    )
    vta_boundary_rate: Annotated[float, Field(ge=0, lt=1)] = 0.05
    vta_boundary_scale: Annotated[float, Field(ge=0)] = 1.0
    vta_mask_scale: Annotated[float, Field(ge=0)] = 1.0
    vta_abs_scale: Annotated[float, Field(ge=0)] = Field(
        1.0, description="price of what a boundary tells; 1 to act, 0.1 to detect"
    )

    gates: tuple[Gate, ...] = (
        Gate(
            "metric/reconstruction_error",
            "<",
            Baseline("copy_last"),
            otherwise="the model predicts a frame no better than the frame before it does",
        ),
    )

    @property
    def heldout_seed(self) -> int:
        """Seed of the held-out episodes: rooms that training does not reach."""
        return self.seed + 1_000_003

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        return f"pinpad_{layout_name(task)}"

    @model_validator(mode="after")
    def _a_pull_has_a_rate(self) -> "WorldConfig":
        if self.vta_boundary_scale > 0 and self.vta_boundary_rate == 0:
            raise ValueError(
                f"vta_boundary_scale is {self.vta_boundary_scale:g} but vta_boundary_rate is 0; "
                "a pull to no boundaries at all has no finite divergence"
            )
        return self

    def notices(self) -> Iterable[str]:
        """Say where a rule about segments can never act in training."""
        acts = self.dynamics_type == "vta" and self.vta_boundary_force_scale > 0
        if acts and self.batch_length <= self.vta_max_seg_len:
            yield (
                f"[config] batch_length {self.batch_length} is not above vta_max_seg_len "
                f"{self.vta_max_seg_len}: no training window is long enough for the rule to act"
            )

    def all_updates(self) -> int:
        """Return the updates of a run."""
        return self.updates

    def dynamics(self) -> "RssmSettings | VtaSettings":
        """Return the settings of the chosen latent dynamics."""
        if self.dynamics_type == "rssm":
            from pinpad.models.rssm import RssmSettings

            return RssmSettings(
                deter=self.dyn_deter,
                variables=self.dyn_stoch,
                classes=self.dyn_discrete,
                hidden=self.dyn_hidden,
                unimix=self.unimix_ratio,
                free_nats=self.kl_free,
                dyn_scale=self.dyn_scale,
                rep_scale=self.rep_scale,
            )
        from pinpad.models.vta import VtaSettings

        return VtaSettings(
            abs_belief=self.vta_abs_belief,
            abs_stoch=self.vta_abs_stoch,
            obs_belief=self.vta_obs_belief,
            obs_stoch=self.vta_obs_stoch,
            classes=self.vta_discrete,
            unimix=self.unimix_ratio,
            hidden=self.dyn_hidden,
            max_seg_len=self.vta_max_seg_len,
            max_seg_num=self.vta_max_seg_num,
            boundary_temp=self.vta_boundary_temp,
            boundary_force_scale=self.vta_boundary_force_scale,
            force=self.vta_force,
            precedence=self.vta_force_precedence,
            at_read=self.vta_at_read,
            abs_input=self.vta_abs_input,
            boundary_rate=self.vta_boundary_rate,
            boundary_scale=self.vta_boundary_scale,
            mask_scale=self.vta_mask_scale,
            abs_scale=self.vta_abs_scale,
            free_nats=self.kl_free,
            dyn_scale=self.dyn_scale,
            rep_scale=self.rep_scale,
        )
