"""Poses of several vehicles from poses of pairs: along the pairs that can be trusted most.

Two vehicles that see little in common are often both close to a third. The tree starts at the
reference and always adds the vehicle with the most trusted pair to one that is in it (Prim 1957),
so each vehicle's chain has the largest possible weakest link.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from coopcyl.geometry.carla import inverse

Pair = tuple[int, int]


class PairPose(NamedTuple):
    """The pose between two views.

    Attributes:
        pose: 4x4, maps points of the second view to the first.
        confidence: In [0, 1]; 0 where there was no solution.
        matches: How many matches it rests on.
    """

    pose: np.ndarray
    confidence: float
    matches: int


def chain_poses(pairs: Mapping[Pair, PairPose], views: int) -> tuple[np.ndarray, np.ndarray]:
    """Return poses from each view to view 0, and the confidence of each one's weakest link.

    Args:
        pairs: (i, j) with i < j, every one of them.
        views: How many there are.

    Returns:
        `(views, 4, 4)` and `(views,)`.
    """
    poses = np.tile(np.eye(4), (views, 1, 1))
    confidence = np.ones(views)
    reached = [0]
    while len(reached) < views:
        left = [view for view in range(views) if view not in reached]
        known, added = max(
            ((i, j) for i in reached for j in left),
            key=lambda edge: pairs[min(edge), max(edge)].confidence,
        )
        pair = pairs[min(known, added), max(known, added)]
        step = pair.pose if known < added else inverse(pair.pose)
        poses[added] = poses[known] @ step
        confidence[added] = min(confidence[known], pair.confidence)
        reached.append(added)
    return poses, confidence
