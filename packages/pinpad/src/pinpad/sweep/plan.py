"""What a sweep consists of: settings, and the jobs that follow from them.

For each condition and seed there are three jobs, each a plain command in the log root:

    NAME.train    pinpad train --config base.yaml --run-dir NAME --resume KEY=VALUE...
    NAME.judge    pinpad boundaries eval NAME --on heldout
    NAME.draw     pinpad report NAME

Whatever becomes of a training, what follows it runs if a checkpoint is there, and is skipped if
none is. All conditions are judged on the same episodes, and with `wm_only` learn from the same
others, so that they differ in nothing but their models.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loom.config import Config, Resolved, plain, resolve, to_yaml
from loom.errors import UserError
from loom.files import write_atomic
from loom.jobs import Job, Sweep
from pydantic import Field, field_validator

from pinpad.boundary_eval import OUTPUT
from pinpad.data.collect import record_episodes, write_whole
from pinpad.data.episodes import Episode, episode_files, read_episode, require_same_frames
from pinpad.data.players import parse_mix
from pinpad.envs.layouts import layout_name
from pinpad.figures import FIRED, GRID, INTERNAL
from pinpad.sweep.conditions import BOUNDARY4, override_text, require_disjoint
from pinpad.train_config import PRESETS, TrainConfig

STAGES = ("train", "judge", "draw")
CHECKPOINT = "checkpoints/latest.json"
SETTINGS_FILE, BASE_FILE = "sweep_settings.yaml", "base.yaml"
_PER_RUN = ("name", "seed", "heldout", "data", "eval_every")
EPISODES, HELDOUT = "episodes", "heldout"
HELDOUT_SEED = 1_000_003
EMBEDDED = (
    "wm_only=true",
    "updates=300",
    "eval_every=150",
    "batch_size=12",
    "batch_length=40",
    "prefill=40000",
    "players=uniform=1,sticky=1,babble=1,oracle:0.1=1",
    "time_limit=1000",
)
"""What a sweep without settings trains: world models, in minutes on two cores.

A window has to be longer than a segment may be (30 steps), or the rule never acts in training.
"""


class SweepSettings(Config):
    """Everything that a sweep depends on."""

    task: str = "pinpad_three"
    preset: str | None = Field(None, description="sizes under the overrides")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    conditions: dict[str, dict[str, str | int | float | bool]] = Field(
        default_factory=lambda: {name: dict(each) for name, each in BOUNDARY4.items()}
    )
    overrides: tuple[str, ...] = Field((), description="KEY=VALUE for every condition")
    pretrain: int | None = Field(None, ge=0, description="updates before an agent acts")
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

    @field_validator("data")
    @classmethod
    def _from_anywhere(cls, data: Path | None) -> Path | None:
        return None if data is None else data.absolute()  # a resume may start in another folder

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


def prepare(settings: SweepSettings, root: Path, config: Path | None) -> list[str]:
    """Write what every job reads; return what is legal in a condition but probably unwanted.

    Args:
        settings: Of the sweep.
        root: Its log root.
        config: YAML file under the overrides.

    Raises:
        UserError: A setting is unknown, wrong, or set in two places.
    """
    require_disjoint(settings.conditions, settings.overrides)
    common = [f"task={settings.task}", *settings.overrides]
    if settings.preset is not None:
        common.insert(0, f"preset={settings.preset}")
    if settings.pretrain is not None:
        common.append(f"pretrain={settings.pretrain}")
    base, notices = _resolved(config, common).config, []
    for name, each in settings.conditions.items():
        try:
            resolved = _resolved(config, [*common, *override_text(each)])
            notices += [f"{name}: {notice}" for notice in resolved.notices]
        except UserError as error:
            raise UserError(f"condition {name}: {error.message}", hint=error.hint) from error
    if base.wm_only and settings.pretrain is not None:
        raise UserError(
            "pretrain is what an agent does before it acts, and with wm_only=true nobody acts",
            hint="drop --pretrain (PRETRAIN), or set wm_only=false",
        )
    if settings.data is not None and not base.wm_only:
        raise UserError("an agent makes its own episodes", hint="drop --data, or set wm_only=true")
    if settings.data is not None:
        learnt = read_episode(episode_files(settings.data)[0]).image.shape[1:]
        require_same_frames(learnt, (base.size, base.size, 3))
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / SETTINGS_FILE, to_yaml(settings))
    write_atomic(root / BASE_FILE, _shared_text(base, settings.conditions.values()))
    return notices


def _shared_text(base: TrainConfig, conditions: Iterable[Mapping[str, object]]) -> str:
    """Return what all runs share; what each sets itself would be noticed as a change.

    A key is left out where it stands at its default, so nothing that was asked for is lost.
    """
    defaults = plain(TrainConfig())
    own = {*_PER_RUN, *(key for condition in conditions for key in condition)}
    left_out = {
        key
        for key, value in plain(base).items()
        if key in own and value == defaults[key] and not isinstance(value, list | dict)
    }
    lines = to_yaml(base).splitlines(keepends=True)
    return "".join(line for line in lines if line.partition(":")[0] not in left_out)


def _resolved(config: Path | None, overrides: Sequence[str]) -> Resolved[TrainConfig]:
    return resolve(TrainConfig, config, overrides, groups=PRESETS)


def record(settings: SweepSettings, root: Path) -> None:
    """Record the episodes that all conditions share, unless they are there."""
    base = _resolved(root / BASE_FILE, ()).config

    def scripted(players: str, count: int, seed: int) -> Iterator[Episode]:
        layout, mix = layout_name(base.task), parse_mix(players)
        return record_episodes(
            layout, mix, count, length=base.time_limit, size=base.size, seed=seed
        )

    if settings.data is not None:
        episode_files(settings.data)  # they may have gone since the sweep began
    elif base.wm_only:
        count = max(1, base.prefill // base.time_limit)
        write_whole(root / EPISODES, scripted(base.players, count, settings.seeds[0]))
    seed = HELDOUT_SEED + settings.seeds[0]
    write_whole(root / HELDOUT, scripted(base.heldout_players, settings.episodes, seed))


def jobs(settings: SweepSettings, root: Path) -> Sweep:
    """Return every job of a sweep; the runs' directories exist then."""
    listed: list[Job] = []
    data = settings.data or root / EPISODES
    for member in members(settings):
        (root / member.name).mkdir(exist_ok=True)
        listed += _jobs(settings, root, member, data)
    return Sweep("pinpad", listed)


def _jobs(settings: SweepSettings, root: Path, member: Member, data: Path) -> list[Job]:
    name, condition = member.name, settings.conditions[member.condition]
    environment = {"OMP_NUM_THREADS": str(settings.threads)}
    own: Sequence[str] = [
        f"name={name}",
        f"seed={member.seed}",
        f"heldout={root / HELDOUT}",
        *override_text(condition),
    ]
    if data.is_dir():  # recorded or given: with an agent there is none
        own = [*own, f"data={data}"]
    if settings.vta_eval_every is not None and condition.get("dynamics_type") == "vta":
        own = [*own, f"eval_every={settings.vta_eval_every}"]
    train = ["train", "--config", BASE_FILE, "--run-dir", name, "--resume", *own]
    judge = ["boundaries", "eval", name, "--on", HELDOUT]
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
