"""What a sweep consists of: settings, and the jobs that follow from them.

For each condition and seed there are three jobs, each a plain command in the log root:

    NAME.train    pinpad train-world --config base.yaml --run-dir NAME --resume KEY=VALUE...
    NAME.judge    pinpad boundaries eval NAME --episodes heldout
    NAME.draw     pinpad report NAME

Whatever becomes of a training, what follows it runs if a checkpoint is there, and is skipped if
none is. All conditions learn from the same episodes and are judged on the same others.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loom.config import Config, resolve, to_yaml
from loom.errors import UserError
from loom.files import write_atomic
from loom.jobs import Job, Sweep
from pydantic import Field, field_validator

from pinpad.boundary_eval import OUTPUT
from pinpad.config import WorldConfig
from pinpad.data.collect import record_episodes, write_whole
from pinpad.data.players import parse_mix
from pinpad.envs.layouts import layout_name
from pinpad.figures import FIRED, GRID, INTERNAL
from pinpad.sweep.conditions import BOUNDARY4, override_text, require_disjoint

STAGES = ("train", "judge", "draw")
CHECKPOINT = "checkpoints/latest.json"
SETTINGS_FILE, BASE_FILE = "sweep_settings.yaml", "base.yaml"
EPISODES, HELDOUT = "episodes", "heldout"
HELDOUT_SEED = 1_000_003
EMBEDDED = ("updates=400", "eval_every=200", "log_every=20", "prefill=40_000")
"""What a sweep without settings trains: minutes on two cores."""


class SweepSettings(Config):
    """Everything that a sweep depends on."""

    task: str = "pinpad_three"
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    conditions: dict[str, dict[str, str | int | float | bool]] = Field(
        default_factory=lambda: {name: dict(each) for name, each in BOUNDARY4.items()}
    )
    overrides: tuple[str, ...] = Field((), description="KEY=VALUE for every condition")
    vta_eval_every: int | None = Field(None, ge=1, description="eval_every of VTA conditions")
    data: Path | None = Field(None, description="training episodes; null: scripted ones")
    episodes: int = Field(20, ge=1, description="held-out episodes that boundaries are judged on")
    permutations: int = Field(9_999, ge=1)
    threads: int = Field(1, ge=1, description="of each job")
    timeout_s: float | None = Field(None, gt=0, description="of each training")
    memory_mb: float | None = Field(None, gt=0, description="of each training")

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        return f"pinpad_{layout_name(task)}"

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"{seeds} holds a seed twice or below 0")
        return seeds


@dataclass(frozen=True)
class Member:
    """One run of a sweep: a condition with a seed."""

    condition: str
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its directory, as `pinpad_rssm_seed0`."""
        return f"{self.condition}_seed{self.seed}"

    def job(self, stage: str) -> str:
        """Return the name of one of its jobs."""
        return f"{self.name}.{stage}"


def members(settings: SweepSettings) -> list[Member]:
    """Return the runs in the order in which they start: all conditions of the first seed first."""
    return [Member(name, seed) for seed in settings.seeds for name in settings.conditions]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0 1 2` or `0,1,2`.

    Raises:
        UserError: A seed is no number.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"{text!r} is no list of seeds", hint="write --seeds 0,1,2")
    return tuple(map(int, words))


def prepare(settings: SweepSettings, root: Path, config: Path | None) -> None:
    """Write what every job reads: the common configuration and the episodes.

    Args:
        settings: Of the sweep.
        root: Its log root.
        config: YAML file under the overrides.

    Raises:
        UserError: A setting is unknown, wrong, or set in two places.
    """
    require_disjoint(settings.conditions, settings.overrides)
    common = [f"task={settings.task}", *settings.overrides]
    base = resolve(WorldConfig, config, common).config
    for name, each in settings.conditions.items():
        try:
            resolve(WorldConfig, config, [*common, *override_text(each)])
        except UserError as error:
            raise UserError(f"condition {name}: {error.message}", hint=error.hint) from error
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / SETTINGS_FILE, to_yaml(settings))
    write_atomic(root / BASE_FILE, to_yaml(base))


def record(settings: SweepSettings, root: Path) -> None:
    """Record the episodes that all conditions share, unless they are there."""
    base = resolve(WorldConfig, root / BASE_FILE).config
    mix = parse_mix(base.players)

    def scripted(count: int, seed: int):
        return record_episodes(
            layout_name(base.task), mix, count, length=base.time_limit, size=base.size, seed=seed
        )

    if settings.data is None:
        count = max(1, base.prefill // base.time_limit)
        write_whole(root / EPISODES, scripted(count, settings.seeds[0]))
    write_whole(root / HELDOUT, scripted(settings.episodes, HELDOUT_SEED + settings.seeds[0]))


def jobs(settings: SweepSettings, root: Path) -> Sweep:
    """Return every job of a sweep; the runs' directories exist then."""
    listed: list[Job] = []
    for member in members(settings):
        (root / member.name).mkdir(exist_ok=True)
        listed += _jobs(settings, root, member)
    return Sweep("pinpad", listed)


def _jobs(settings: SweepSettings, root: Path, member: Member) -> list[Job]:
    name, condition = member.name, settings.conditions[member.condition]
    environment = {"OMP_NUM_THREADS": str(settings.threads)}
    own: Sequence[str] = [
        f"name={name}",
        f"seed={member.seed}",
        f"data={settings.data.absolute() if settings.data else root / EPISODES}",
        f"heldout={root / HELDOUT}",
        *override_text(condition),
    ]
    if settings.vta_eval_every is not None and condition.get("dynamics_type") == "vta":
        own = [*own, f"eval_every={settings.vta_eval_every}"]
    train = ["train-world", "--config", BASE_FILE, "--run-dir", name, "--resume", *own]
    judge = ["boundaries", "eval", name, "--episodes", HELDOUT]
    judge += ["--permutations", str(settings.permutations)]
    produced = {
        "train": [f"{name}/{CHECKPOINT}"],
        "judge": [f"{name}/{OUTPUT}"],
        "draw": [f"{name}/{picture}" for picture in (GRID, INTERNAL, FIRED)],
    }
    return [
        Job(
            member.job("train"),
            _pinpad(*train),
            directory=root,
            outputs=produced["train"],
            timeout_s=settings.timeout_s,
            memory_mb=settings.memory_mb,
            env=environment,
        ),
        Job(
            member.job("judge"),
            _pinpad(*judge),
            directory=root,
            outputs=produced["judge"],
            after=[member.job("train")],
            inputs=produced["train"],
            env=environment,
        ),
        Job(
            member.job("draw"),
            _pinpad("report", name),
            directory=root,
            outputs=produced["draw"],
            after=[member.job("judge")],
            inputs=produced["judge"],
            env=environment,
        ),
    ]


def _pinpad(*words: str) -> list[str]:
    return [sys.executable, "-m", "pinpad", *words]
