"""The matrix: every arm in every condition, on the same episodes.

A cell is one actor in one condition. Finished cells are appended to `evaluation/cells.jsonl`, so an
interrupted matrix goes on, and every outcome stays there with its seed for any later statistic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import append_line, read_text

from maniflow_overlay.evaluation.rollout import Actor, Condition, Episode, Outcome, play
from maniflow_overlay.sim.path_source import QUALITIES, Quality
from maniflow_overlay.sim.scene import MARKED_TASK, TASK, Scene

CELLS = "cells.jsonl"


@dataclass(frozen=True, eq=False)
class Cell:
    """One actor's outcomes in one condition.

    Attributes:
        arm: What the actor sees, or the name of a baseline.
        run: Which training it is of; empty for a baseline.
        condition: Of the episodes. Quality None: the path is not seen, so all qualities are one.
        outcomes: One per episode.
    """

    arm: str
    run: str
    condition: Condition
    outcomes: tuple[Outcome, ...]

    @property
    def key(self) -> tuple[str, str, Condition]:
        """Which cell it is."""
        return self.arm, self.run, self.condition

    def to_json(self) -> str:
        """Return the cell as one line."""
        columns = {
            name: [int(getattr(outcome, name)) for outcome in self.outcomes]
            for name in Outcome._fields
        }
        condition = self.condition
        place = {
            "task": condition.task,
            "occluded": condition.occluded,
            "quality": condition.quality,
        }
        return json.dumps({"arm": self.arm, "run": self.run, **place, **columns})


def read_cells(path: Path) -> list[Cell]:
    """Read the cells of a matrix.

    Raises:
        UserError: There are none, or a line is damaged.
    """
    cells = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            cells.append(_cell(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: not a cell of a matrix ({error!r})",
                hint="remove the line and run the matrix again with --resume",
            ) from error
    return cells


def _cell(fields: dict[str, Any]) -> Cell:
    condition = Condition(fields["task"], fields["occluded"], fields["quality"])
    known = condition.quality in (None, *QUALITIES) and condition.task in (TASK, MARKED_TASK)
    if not known or not isinstance(condition.occluded, bool):
        raise ValueError(f"{condition}")
    columns = [fields[name] for name in Outcome._fields]
    if not all(type(value) is int for column in columns for value in column):
        raise ValueError("outcomes are whole numbers")
    outcomes = tuple(
        Outcome(seed, bool(done), bool(picked), bool(mistaken), steps)
        for seed, done, picked, mistaken, steps in zip(*columns, strict=True)
    )
    if not outcomes or not isinstance(fields["arm"], str) or not isinstance(fields["run"], str):
        raise ValueError("no episodes or no names")
    return Cell(fields["arm"], fields["run"], condition, outcomes)


def conditions_for(
    actor: Actor, tasks: Sequence[str], occluded: Sequence[bool], qualities: Sequence[Quality]
) -> list[Condition]:
    """Return the conditions that differ for an actor: without a path the quality does not."""
    sees = actor.asks_first or actor.asks_always
    chosen: Iterable[Quality | None] = qualities if sees else (None,)
    return [
        Condition(task, hidden, quality)
        for task in tasks
        for hidden in occluded
        for quality in chosen
    ]


def run_cell(
    actor: Actor,
    run: str,
    condition: Condition,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    folder: Path,
    watch: Callable[[Episode], None] = lambda episode: None,
) -> Cell:
    """Play a cell and append it to the folder's file."""
    outcomes = play(actor, scenes, seeds, condition, watch=watch)
    cell = Cell(actor.name, run, condition, tuple(outcomes))
    append_line(folder / CELLS, cell.to_json(), sync=True)
    return cell


def successes(cells: Iterable[Cell]) -> np.ndarray:
    """Return (runs, episodes) bool of cells that differ in their run only, in order of run."""
    ordered = sorted(cells, key=lambda cell: cell.run)
    seeds = {tuple(outcome.seed for outcome in cell.outcomes) for cell in ordered}
    if len(seeds) != 1:
        raise UserError("the runs of an arm played different episodes", hint="run them in one go")
    return np.array([[outcome.success for outcome in cell.outcomes] for cell in ordered])
