"""The scripted expert: a feedback law on the scene's true state, and the way that it will take.

It hovers to the block, goes down, closes, lifts, hovers to the goal, goes down, opens and rises. At
any state of the scene `stations` lists what is left of that way; the first of them is where the
next step goes. So the path that is drawn and the motion that follows are one plan, also after
somebody else has moved the gripper.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maniflow_overlay.sim.scene import (
    BLOCK_HALF_M,
    GOAL_RADIUS_M,
    HOVER_M,
    Scene,
    carried,
    vector_of,
)

NEAR_M = 0.008
OPEN, CLOSED = 1.0, 0.0


class Station(NamedTuple):
    """A place on the way, and the gripper's opening from there on."""

    tip_m: np.ndarray
    opening: float


def stations(
    scene: Scene, *, target: int | None = None, goal: np.ndarray | None = None
) -> list[Station]:
    """Return what is left to do, in order, as `Station`s.

    Args:
        scene: In any state.
        target: Which block to take instead of the right one.
        goal: (2,) where to put it instead of the goal.
    """
    target = scene.layout.target if target is None else target
    goal = scene.layout.goal if goal is None else goal
    block, tip = scene.blocks_m[target], scene.tip_m
    way: list[Station] = []
    lowered = np.append(goal, BLOCK_HALF_M)
    if carried(scene) != target:
        if np.linalg.norm(block[:2] - goal) <= GOAL_RADIUS_M:
            return [Station(_above(tip), OPEN)]
        if scene.opening <= 0.5:
            way.append(Station(tip, OPEN))
        way += _approach(tip, block, OPEN)
        way.append(Station(np.append(block[:2], BLOCK_HALF_M), CLOSED))
        tip = block
    way += _approach(tip, lowered, CLOSED)
    way += [Station(lowered, OPEN), Station(_above(lowered), OPEN)]
    return way


def _above(place: np.ndarray) -> np.ndarray:
    return np.append(place[:2], HOVER_M)


def _approach(tip: np.ndarray, place: np.ndarray, opening: float) -> list[Station]:
    """Return the way over to a place on the table and down to it."""
    way = []
    if np.linalg.norm(tip[:2] - place[:2]) > NEAR_M:
        if tip[2] < HOVER_M - NEAR_M:
            way.append(Station(_above(tip), opening))
        way.append(Station(_above(place), opening))
    way.append(Station(np.append(place[:2], BLOCK_HALF_M), opening))
    return way


def expert(scene: Scene) -> np.ndarray:
    """Return the expert's action, (14,) float32: towards the first station that is not reached."""
    for station in stations(scene):
        away = np.abs(station.tip_m - scene.tip_m).max() > NEAR_M
        if away or abs(station.opening - scene.opening) > 0.5:
            return vector_of(station.tip_m, station.opening)
    return vector_of(scene.tip_m, scene.opening)


def way_points(scene: Scene, way: list[Station]) -> tuple[np.ndarray, np.ndarray]:
    """Return a way as points: positions (n, 3), and whether the gripper is open from each on."""
    places = np.array([scene.tip_m, *(station.tip_m for station in way)])
    opened = np.array([scene.opening > 0.5, *(station.opening > 0.5 for station in way)])
    return places, opened
