"""What a matrix says: rates with Wilson's interval, and arms compared on the same episodes.

A rate pools an arm's trainings, so its interval describes what these trainings did; how much they
differ stands beside it as the lowest and highest rate of a single one. All play the same episodes,
which are therefore no independent draws, and a comparison of two arms says two things apart. Both
pair the k-th training of one with the k-th of the other, episode by episode:

| what is said | of | by |
|---|---|---|
| `gain`, `low`, `high`, `p` | the arms: other trainings on other tables | min F' (`crossed`) |
| `mcnemar` | two trained networks each: other tables | McNemar's exact test |

A single training per arm says nothing of the arms. Holm's correction covers all comparisons of a
matrix, for each of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from loom.errors import UserError
from loom.evaluation.statistics import Undefined, holm, mcnemar, wilson_interval

from maniflow_overlay.evaluation.crossed import crossed_interval
from maniflow_overlay.evaluation.matrix import Cell, successes
from maniflow_overlay.evaluation.rollout import Condition

QUESTIONS = (
    ("initial A", "none"),
    ("current A", "none"),
    ("initial+current A", "none"),
    ("initial+current A", "current A"),
    ("initial+current A", "initial A"),
    ("current A", "initial A"),
    ("current B", "current A"),
    ("initial+current B", "initial+current A"),
)
"""Pairs of arms that the notes ask about: the first against the second."""


class Rate(NamedTuple):
    """How often an arm succeeds in a condition.

    Attributes:
        arm: What is seen.
        condition: Of the episodes.
        runs: Trainings that are pooled.
        episodes: Of all of them.
        rate: Share of successes.
        low: Lower end of the interval of 95 %.
        high: Upper end.
        lowest: Rate of the worst training.
        highest: Rate of the best.
        picked: Share of episodes in which the right block was lifted.
        mistaken: Share in which another block was.
    """

    arm: str
    condition: Condition
    runs: int
    episodes: int
    rate: float
    low: float
    high: float
    lowest: float
    highest: float
    picked: float
    mistaken: float

    def shown(self) -> str:
        """Return the rate with its interval, in per cent."""
        return f"{100 * self.rate:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


class Comparison(NamedTuple):
    """One arm against another in a condition.

    Attributes:
        first: An arm.
        second: Another one.
        condition: Of the episodes.
        runs: Trainings of each.
        pairs: Episodes that both played, of all trainings.
        gain: Rate of the first less that of the second.
        low: Lower end of the gain's interval of 95 % over trainings and episodes; None where there
            is none: a single training, or no difference anywhere.
        high: Upper end.
        p: Two-sided, from the same.
        p_holm: The same, corrected for all comparisons of the matrix that have one.
        only_first: Episodes that only the first solved.
        only_second: Episodes that only the second solved.
        mcnemar: P of McNemar's test in each pair of trainings, two-sided; 1 where both agree in
            every episode.
        mcnemar_holm: The same, corrected for all of the matrix.
    """

    first: str
    second: str
    condition: Condition
    runs: int
    pairs: int
    gain: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    only_first: int
    only_second: int
    mcnemar: tuple[float, ...]
    mcnemar_holm: tuple[float, ...]


def grouped(cells: Sequence[Cell]) -> dict[tuple[str, Condition], list[Cell]]:
    """Return the trainings of each arm in each condition, in the order of the file."""
    groups: dict[tuple[str, Condition], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.arm, cell.condition), []).append(cell)
    return groups


def rates(cells: Sequence[Cell]) -> list[Rate]:
    """Return the rate of every arm in every condition that it was tried in."""
    found = []
    for (arm, condition), group in grouped(cells).items():
        done = successes(group)
        interval = wilson_interval(int(done.sum()), done.size)
        if isinstance(interval, Undefined):  # a cell has episodes
            raise UserError(f"{arm}: {interval}")
        outcomes = [outcome for cell in group for outcome in cell.outcomes]
        single = done.mean(axis=1)
        found.append(
            Rate(
                arm,
                condition,
                len(group),
                done.size,
                interval.estimate,
                interval.low,
                interval.high,
                float(single.min()),
                float(single.max()),
                sum(outcome.picked for outcome in outcomes) / done.size,
                sum(outcome.mistaken for outcome in outcomes) / done.size,
            )
        )
    return found


def comparisons(cells: Sequence[Cell]) -> list[Comparison]:
    """Return the notes' questions as far as these cells answer them."""
    groups = grouped(cells)
    found = []
    for first, second in QUESTIONS:
        for (arm, condition), group in groups.items():
            if arm != first:
                continue
            # Without a path the quality makes no difference: one cell stands for all.
            plain = replace(condition, quality=None)
            other = groups.get((second, condition)) or groups.get((second, plain))
            if other:
                found.append(_compare(first, second, condition, group, other))
    return _corrected(found)


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons with Holm's correction, of the arms' p and of those of single networks."""
    whole = iter(holm([each.p for each in found if each.p is not None]))
    single = iter(holm([p for each in found for p in each.mcnemar]))
    return [
        each._replace(
            p_holm=None if each.p is None else float(next(whole)),
            mcnemar_holm=tuple(float(next(single)) for _ in each.mcnemar),
        )
        for each in found
    ]


def _compare(
    first: str, second: str, condition: Condition, ours: list[Cell], theirs: list[Cell]
) -> Comparison:
    runs = min(len(ours), len(theirs))
    one, other = successes(ours)[:runs], successes(theirs)[:runs]
    if one.shape != other.shape or _seeds(ours) != _seeds(theirs):
        raise UserError(
            f"{first} and {second} played different episodes", hint="run them in one matrix"
        )
    better, worse = one & ~other, other & ~one
    tests = (mcnemar(int(b), int(w)) for b, w in zip(better.sum(1), worse.sum(1), strict=True))
    between = crossed_interval(one.astype(np.float64) - other)
    known = None if isinstance(between, Undefined) else between
    return Comparison(
        first,
        second,
        condition,
        runs,
        one.size,
        float(one.mean() - other.mean()),
        known and known.low,
        known and known.high,
        known and known.p,
        None,
        int(better.sum()),
        int(worse.sum()),
        tuple(1.0 if isinstance(p, Undefined) else p for p in tests),
        (),
    )


def _seeds(cells: list[Cell]) -> list[int]:
    return [outcome.seed for outcome in cells[0].outcomes]
