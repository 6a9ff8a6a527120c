"""Who acts: trained policies, and those whose results say what a number is worth.

The expert shows what can be reached. `replay` is blind: it plays what the expert does in another
layout, so its rate is what a policy gets that has learned the motion and nothing of the picture.
`random` draws every action anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from loom.errors import UserError

from maniflow_overlay.arms import Arm, Fuse, Mode
from maniflow_overlay.data.convert import scaled
from maniflow_overlay.evaluation.rollout import Episode, View
from maniflow_overlay.overlay.drawing import draw_path_rgb, path_image_rgb
from maniflow_overlay.sim.expert import expert
from maniflow_overlay.sim.planar import Planar
from maniflow_overlay.sim.scene import (
    INSTRUCTIONS,
    REACH_M,
    STEPS,
    TIP_HIGH_M,
    TIP_LOW_M,
    success,
    vector_of,
)

_ELSEWHERE = 500_000_000  # seeds of layouts that nothing else is played in


class AskedPolicy(Protocol):
    """What is used of a trained policy; `maniflow_overlay.policy.runtime.Policy` is one."""

    @property
    def observation_steps(self) -> int:
        """Steps of an observation."""
        ...

    @property
    def mode(self) -> Mode:
        """On which pictures it expects the path."""
        ...

    @property
    def fuse(self) -> Fuse:
        """How it expects the path there."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it tells apart."""
        ...

    def act(
        self,
        images: np.ndarray,
        state: np.ndarray,
        task: np.ndarray,
        *,
        initial: np.ndarray | None = None,
        seeds: Sequence[int] | np.ndarray | None = None,
        instructions: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Predict (n, steps, 14) actions."""
        ...


def compose(view: View, arm: Arm, size: tuple[int, int], *, drawn: bool) -> np.ndarray:
    """Return a view as a policy of this arm sees it, (h, w, 3 or 6) uint8.

    Args:
        view: A step.
        arm: Of the policy.
        size: Width and height of its pictures.
        drawn: Whether the path is shown on it.
    """
    frame = scaled(view.rgb, *size)
    path = view.path if drawn else None
    if arm.channels == 6:
        beside = np.zeros_like(frame) if path is None else path_image_rgb(path, *size)
        return np.concatenate([frame, beside], axis=-1)
    return frame if path is None else draw_path_rgb(frame.copy(), path)


class PolicyActor:
    """A trained policy at the table.

    Args:
        name: For tables.
        policy: As `load_policy` gives it.
    """

    def __init__(self, name: str, policy: AskedPolicy) -> None:
        self.name = name
        self._policy, self._arm = policy, Arm(policy.mode, policy.fuse)
        self.remembers = policy.observation_steps
        self.asks_first = policy.mode != "none"
        self.asks_always = self._arm.draws_current

    def act(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Return the next actions of each episode, (episodes, steps, 14)."""
        policy, arm, size = self._policy, self._arm, self._policy.image_size
        images = np.stack(
            [
                np.stack([compose(v, arm, size, drawn=arm.draws_current) for v in episode.views])
                for episode in episodes
            ]
        )
        initial = None
        if arm.sees_initial:
            initial = np.stack([compose(e.first, arm, size, drawn=True) for e in episodes])
        state = np.stack([np.stack([view.state for view in e.views]) for e in episodes])
        task = np.array([self._number(e.condition.task) for e in episodes], np.int64)
        # The same episode at the same step begins from the same noise, whichever arm plays it.
        seeds = [e.seed * STEPS + e.scene.steps for e in episodes]
        texts = [INSTRUCTIONS[episode.condition.task][0] for episode in episodes]
        return policy.act(images, state, task, initial=initial, seeds=seeds, instructions=texts)

    def _number(self, task: str) -> int:
        """Return by which number the policy knows a task; one that tells none apart needs none."""
        known = self._policy.tasks
        if len(known) < 2:
            return 0
        if task not in known:
            raise UserError(
                f"{self.name}: the policy tells the tasks {', '.join(known)} apart, not {task}",
                hint="train it on episodes of this task too, or with language=none",
            )
        return known.index(task)


class Expert:
    """The scripted expert."""

    name, remembers, asks_first, asks_always = "expert", 1, False, False

    def act(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Return one action for each episode, (episodes, 1, 14)."""
        return np.stack([expert(episode.scene)[None] for episode in episodes])


class Replay:
    """Plays the expert's motion of another layout, blindly."""

    name, remembers, asks_first, asks_always = "replay (blind)", 1, False, False

    def act(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Return all actions of each episode at once, (episodes, 32, 14)."""
        return np.stack([_motion_elsewhere(episode.seed) for episode in episodes])


def _motion_elsewhere(seed: int) -> np.ndarray:
    """Return the expert's actions in another layout; the last one is held."""
    table = Planar()
    table.reset(_ELSEWHERE + seed)
    actions = []
    while len(actions) < STEPS and not success(table):
        actions.append(expert(table))
        table.step(actions[-1])
    return np.array(actions + [actions[-1]] * (STEPS - len(actions)))


class Random:
    """Draws every action anew, within the table."""

    name, remembers, asks_first, asks_always = "random", 1, False, False

    def act(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Return one action for each episode, (episodes, 1, 14)."""
        actions = []
        for episode in episodes:
            rng = np.random.default_rng([episode.seed, episode.scene.steps])
            place = rng.uniform([-REACH_M, -REACH_M, TIP_LOW_M], [REACH_M, REACH_M, TIP_HIGH_M])
            actions.append(vector_of(place, float(rng.integers(2)))[None])
        return np.stack(actions)
