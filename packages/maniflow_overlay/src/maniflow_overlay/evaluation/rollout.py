"""Episodes in closed loop, many side by side, so that a policy answers for all of them at once.

Everything that an episode holds depends on its seed and its condition: layout, curtain, path
answers and the noise that a policy begins from. Two policies play the same episodes, and their
outcomes can be compared in pairs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from maniflow_overlay.gripper_path import GripperPath
from maniflow_overlay.sim.path_source import PathSource, Quality
from maniflow_overlay.sim.scene import BLOCK_HALF_M, STEPS, TASK, Scene, success

LIFTED_M = BLOCK_HALF_M + 0.02


@dataclass(frozen=True)
class Condition:
    """What episodes of one cell have in common.

    Attributes:
        task: `pick_place` or `pick_place_marked`.
        occluded: Whether the curtain comes.
        quality: Of the paths; None for somebody who is shown none.
    """

    task: str
    occluded: bool
    quality: Quality | None

    @property
    def marked(self) -> bool:
        """Whether block and goal can be recognised."""
        return self.task != TASK


class View(NamedTuple):
    """A step as it can be looked at.

    Attributes:
        rgb: (H, W, 3) uint8, as the camera has it.
        state: (14,) float32.
        path: The answer of this step, or None where nobody was asked.
    """

    rgb: np.ndarray
    state: np.ndarray
    path: GripperPath | None


class Outcome(NamedTuple):
    """How an episode ended.

    Attributes:
        seed: Of its layout.
        success: Whether the right block lay on the goal, let go.
        picked: Whether the right block was lifted at any time.
        mistaken: Whether another block was.
        steps: How long it took.
    """

    seed: int
    success: bool
    picked: bool
    mistaken: bool
    steps: int


class Actor(Protocol):
    """Somebody who acts.

    Attributes:
        name: For tables.
        remembers: How many of the newest views it looks at.
        asks_first: Whether it needs the path of the first step.
        asks_always: Whether it needs the path of every step.
    """

    name: str
    remembers: int
    asks_first: bool
    asks_always: bool

    def act(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Return the next actions of each episode, (episodes, steps, 14)."""
        ...


class Episode:
    """An episode in progress.

    Args:
        scene: To play in; it is reset.
        seed: Of the layout.
        condition: What is asked for.
        actor: Who will act; decides what is kept and asked.
    """

    def __init__(self, scene: Scene, seed: int, condition: Condition, actor: Actor) -> None:
        self.scene, self.seed, self.condition = scene, seed, condition
        self._always = actor.asks_always
        seen = scene.reset(seed, occluded=condition.occluded, marked=condition.marked)
        self._source = None
        if condition.quality is not None and (actor.asks_first or actor.asks_always):
            self._source = PathSource(scene, condition.quality)
        path = self._source.ask() if self._source else None
        self.first = View(seen.rgb, seen.state, path)
        self.views: deque[View] = deque([self.first] * actor.remembers, maxlen=actor.remembers)
        self.picked = self.mistaken = self.success = False

    @property
    def over(self) -> bool:
        """Whether it has succeeded or run out of steps."""
        return self.success or self.scene.steps >= STEPS

    def step(self, action: np.ndarray) -> None:
        """Carry out an action and look."""
        seen = self.scene.step(action)
        path = self._source.ask() if self._source and self._always else None
        self.views.append(View(seen.rgb, seen.state, path))
        lifted = self.scene.blocks_m[:, 2] > LIFTED_M
        target = self.scene.layout.target
        self.picked |= bool(lifted[target])
        self.mistaken |= bool(np.delete(lifted, target).any())
        self.success = success(self.scene)

    def outcome(self) -> Outcome:
        """Return how it stands."""
        return Outcome(self.seed, self.success, self.picked, self.mistaken, self.scene.steps)


def play(
    actor: Actor,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    condition: Condition,
    *,
    watch: Callable[[Episode], None] = lambda episode: None,
) -> list[Outcome]:
    """Play one episode per seed.

    Args:
        actor: Who acts; asked again when the actions of its last answer are used up.
        scenes: Play in these, as many episodes at a time.
        seeds: Of the layouts.
        condition: Of all of them.
        watch: Is shown every episode at its beginning and after each step.

    Returns:
        Outcomes in the order of `seeds`.
    """
    outcomes: list[Outcome] = []
    for begin in range(0, len(seeds), len(scenes)):
        group = [
            Episode(scene, seed, condition, actor)
            for scene, seed in zip(scenes, seeds[begin : begin + len(scenes)], strict=False)
        ]
        for episode in group:
            watch(episode)
        going = group
        while going:
            chunk = actor.act(going)
            for episode, actions in zip(going, chunk, strict=True):
                for action in actions:
                    if episode.over:
                        break
                    episode.step(action)
                    watch(episode)
            going = [episode for episode in going if not episode.over]
        outcomes += [episode.outcome() for episode in group]
    return outcomes
