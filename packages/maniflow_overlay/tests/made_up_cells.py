"""Cells of a matrix that nobody has played."""

from maniflow_overlay.evaluation.matrix import Cell
from maniflow_overlay.evaluation.rollout import Condition, Outcome

CLEAR = Condition("pick_place", False, None)
NOISY = Condition("pick_place", False, "noisy")


def made_cell(arm, run, condition, solved):
    """Return a cell of these successes; without one, another block was lifted."""
    outcomes = [
        Outcome(seed, bool(done), bool(done), not done, 10) for seed, done in enumerate(solved)
    ]
    return Cell(arm, run, condition, tuple(outcomes))
