"""What a matrix says: rates with Wilson's interval, and arms compared on the same episodes.

An arm's trainings are pooled. The interval is then about episodes; how much trainings differ stands
beside it as the lowest and highest rate of a single one. Comparisons pair the k-th training of two
arms, episode by episode, by McNemar's exact test, and Holm's correction covers all of a matrix. The
episodes of several trainings are the same, so pooled intervals are narrow and p is small: what is
said of arms has to hold between the worst training of one and the best of the other, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from loom.errors import UserError
from loom.evaluation.statistics import Undefined, holm, mcnemar, wilson_interval

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
        pairs: Episodes that both played.
        gain: Rate of the first less that of the second.
        only_first: Episodes that only the first solved.
        only_second: Episodes that only the second solved.
        p: Of McNemar's test, two-sided; 1 where both agree in every episode.
        p_holm: The same, corrected for all comparisons of the matrix.
    """

    first: str
    second: str
    condition: Condition
    pairs: int
    gain: float
    only_first: int
    only_second: int
    p: float
    p_holm: float


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
    corrected = holm([comparison.p for comparison in found]) if found else []
    return [
        comparison._replace(p_holm=float(p)) for comparison, p in zip(found, corrected, strict=True)
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
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    p = mcnemar(only_first, only_second)
    return Comparison(
        first,
        second,
        condition,
        one.size,
        float(one.mean() - other.mean()),
        only_first,
        only_second,
        1.0 if isinstance(p, Undefined) else p,
        1.0,
    )


def _seeds(cells: list[Cell]) -> list[int]:
    return [outcome.seed for outcome in cells[0].outcomes]
