"""The configuration of `pinpad train`, with the option names of earlier runs.

The defaults are the preset `cpu_tiny`: `pinpad_three` from 16 x 16 images on one CPU thread.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pinpad.config import Fraction, Positive, Width, WorldConfig
from pinpad.envs.layouts import layout_name

if TYPE_CHECKING:
    from pinpad.models.agent import BehaviourSettings
    from pinpad.returns import Judging

PRESETS = Path(__file__).parent / "groups"
"""Folder of `preset/NAME.yaml`."""

NotNegative = Annotated[float, Field(ge=0)]


def preset_names() -> list[str]:
    """Return the presets there are."""
    return sorted(path.stem for path in (PRESETS / "preset").glob("*.yaml"))


class TrainConfig(WorldConfig):
    """Everything that `pinpad train` depends on."""

    free_on_resume: ClassVar[frozenset[str]] = frozenset({"steps", "updates"})

    name: str = "train"
    wm_only: bool = Field(False, description="learn from recorded episodes; nobody acts")
    players: str = Field("uniform=1,sticky=1", description="who fills the memory first")
    prefill: int = Field(100_000, ge=1, description="steps of scripted players")
    time_limit: int = Field(2_000, ge=1, description="steps of an episode")

    steps: int = Field(330_000, ge=1, description="environment steps, the scripted ones included")
    updates: int = Field(0, ge=0, description="0: as many as `steps` ask for")
    envs: int = Field(64, ge=1, description="rooms that are played in side by side")
    train_ratio: Positive = Field(8.0, description="frames learnt from for each new one")
    pretrain: int = Field(1_000, ge=0, description="updates before the agent first acts")
    dataset_size: int = Field(1_000_000, ge=1, description="steps that are remembered")
    recent_windows: Fraction = Field(
        0.0, description="share of the windows from the newest steps, of an agent that acts"
    )
    recent_steps: int = Field(100_000, ge=1, description="how many steps are the newest ones")

    opt: Literal["adam", "laprop"] = "adam"
    agc: NotNegative = Field(0.3, description="clips each tensor's gradient, with opt=laprop")
    actor_lr: Positive = 3e-4
    critic_lr: Positive = 3e-4
    units: Width = Field(128, description="width of actor and critic")
    actor_entropy: NotNegative = 3e-3
    imag_horizon: Width = 15
    imag_starts: Width = Field(128, description="states of a batch that are imagined from")
    discount: Fraction = 0.99
    discount_lambda: Fraction = 0.95
    slow_target_fraction: Fraction = 0.02

    expl_behavior: Literal["greedy", "plan2explore"] = "greedy"
    expl_until: int = Field(
        0, ge=0, description="environment step at which the novelty bonus ends; 0: never"
    )
    expl_extr_scale: NotNegative = Field(1.0, description="weight of the task while exploring")
    expl_intr_scale: NotNegative = Field(1.0, description="weight of novelty while exploring")
    disag_models: int = Field(8, ge=2)
    disag_units: Width = 128

    least_reward_ap: Fraction = Field(
        0.05,
        description="gate of an acting run: average precision of rewards, predicted in open loop",
    )
    eval_episodes: int = Field(64, ge=2, description="rooms in which the agent is judged at last")
    eval_steps: int = Field(2_000, ge=1)

    @model_validator(mode="after")
    def _windows_are_shared_out(self) -> "TrainConfig":
        if self.reward_windows + self.recent_windows > 1:
            raise ValueError(
                f"reward_windows is {self.reward_windows} and recent_windows is "
                f"{self.recent_windows}: together more than all windows"
            )
        return self

    @model_validator(mode="after")
    def _an_agent_acts(self) -> "TrainConfig":
        if self.data is not None and not self.wm_only:
            raise ValueError(
                f"data is {self.data} but wm_only is false: an agent makes its own episodes"
            )
        if not self.wm_only and self.updates == 0 and self.steps < self.prefill:
            raise ValueError(
                f"steps is {self.steps} but prefill is {self.prefill}; the scripted steps count "
                "among them, so the agent would never act"
            )
        return self

    def all_updates(self) -> int:
        """Return the updates of a run; those of an agent too where nobody acts."""
        if self.updates:
            return self.updates
        acted = max(0, self.steps - self.prefill)
        frames = self.batch_size * self.batch_length
        return max(1, self.pretrain + round(acted * self.train_ratio / frames))

    def acted(self, step: int) -> int:
        """Return how often each room has been acted in by the agent before an update."""
        frames = self.batch_size * self.batch_length
        return int(max(0, step - self.pretrain) * frames / self.train_ratio) // self.envs

    def explores(self, env_steps: int) -> bool:
        """Return whether novelty counts after so many environment steps."""
        if self.expl_behavior == "greedy":
            return False
        return self.expl_until == 0 or env_steps < self.expl_until

    def judging(
        self,
        *,
        seed: int | None = None,
        task: str | None = None,
        rooms: int | None = None,
        steps: int | None = None,
    ) -> "Judging":
        """Return where the agent is judged, with other values where they are given."""
        from pinpad.returns import Judging

        return Judging(
            layout_name(task or self.task),
            self.eval_episodes if rooms is None else rooms,
            self.eval_steps if steps is None else steps,
            self.size,
            self.seed if seed is None else seed,
        )

    def behaviour(self) -> "BehaviourSettings":
        """Return the settings of acting."""
        from pinpad.models.agent import BehaviourSettings

        return BehaviourSettings(
            units=self.units,
            horizon=self.imag_horizon,
            starts=self.imag_starts,
            discount=self.discount,
            lam=self.discount_lambda,
            entropy=self.actor_entropy,
            unimix=self.unimix_ratio,
            slow_rate=self.slow_target_fraction,
            explorers=self.disag_models if self.expl_behavior == "plan2explore" else 0,
            explorer_units=self.disag_units,
        )
