"""The configuration of a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from loom.config import Config
from pydantic import Field, field_validator, model_validator

from maniflow_overlay.sim.collect import FIRST_TRAINING_SEED
from maniflow_overlay.sim.path_source import QUALITIES, Quality

Task = Literal["pick_place", "pick_place_marked"]
Baseline = Literal["expert", "replay", "random"]


class MatrixConfig(Config):
    """Everything that the outcomes of a matrix depend on.

    A matrix may grow: resumed with more runs, baselines or conditions, it plays the cells that are
    not there yet, on the same episodes. A run of a known name has to hold the same policy, by a
    digest of its weights.
    """

    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {"runs", "baselines", "tasks", "occluded", "qualities"}
    )

    name: str = "matrix"
    runs: tuple[Path, ...] = Field((), description="training runs; each is a row of its arm")
    checkpoint: str = Field("best", description="best, last, or a step")
    baselines: tuple[Baseline, ...] = ("expert", "replay", "random")
    tasks: tuple[Task, ...] = Field(("pick_place",), min_length=1)
    occluded: tuple[bool, ...] = Field((False, True), min_length=1)
    qualities: tuple[Quality, ...] = Field(QUALITIES, min_length=1)
    episodes: int = Field(200, ge=1, description="of each cell; the same ones in all of them")
    seed: int = Field(0, ge=0, description="of the first episode's layout")
    scene: Literal["auto", "tabletop", "planar"] = "auto"
    at_a_time: int = Field(25, ge=1, description="episodes side by side")
    shown: int = Field(2, ge=0, description="episodes of each cell that are kept as pictures")

    @field_validator("runs")
    @classmethod
    def _at_home(cls, runs: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(run.expanduser() for run in runs)

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        known: dict[str, Path] = {}
        for run in self.runs:
            if run.name in known:
                raise ValueError(
                    f"two runs are called {run.name!r}, {known[run.name]} and {run}: trainings are "
                    "told apart by the names of their folders"
                )
            known[run.name] = run
        return self

    @model_validator(mode="after")
    def _apart_from_training(self) -> Self:
        if self.seed + self.episodes > FIRST_TRAINING_SEED:
            raise ValueError(
                f"seeds {self.seed} to {self.seed + self.episodes} reach into those of "
                f"collections, which begin at {FIRST_TRAINING_SEED}"
            )
        return self
