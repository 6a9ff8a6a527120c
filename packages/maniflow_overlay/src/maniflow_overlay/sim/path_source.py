"""Where the drawn path comes from in a simulated episode, and how good it is.

A path is the expert's way from the scene's present state on, projected, simplified and disturbed
like any oracle path. Three qualities:

    perfect     the way itself
    noisy       each point disturbed by a deviation of 0.01 of the picture, as HAMSTER trains
    degraded    what vision-language models do after the first picture: one answer in five does not
                come and the path before is held, points are off by 0.02, and behind the curtain the
                model guesses: in half of the episodes from then on another block and another goal,
                in the other half the last path is held. The path of the first picture is `noisy`.

What is drawn depends on the episode's seed and the quality alone, not on who acts: two policies
that meet the same situation in the same step get the same answer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from loom.errors import UserError

from maniflow_overlay.gripper_path import GripperPath
from maniflow_overlay.paths.oracle import NOISE, drawn_from
from maniflow_overlay.sim.expert import stations, way_points
from maniflow_overlay.sim.scene import SPACING_M, SPOTS, Scene, hidden, project_relative

Quality = Literal["perfect", "noisy", "degraded"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)
MISSED = 0.2  # share of the degraded answers that do not come
MISLED = 0.5  # share of the episodes in which the model guesses wrong behind the curtain


class Guess(NamedTuple):
    """What a misled model takes for the task."""

    target: int
    goal: np.ndarray


class PathSource:
    """Answers the question for the path, once per step of one episode.

    Args:
        scene: Just reset.
        quality: Of the answers.
    """

    def __init__(self, scene: Scene, quality: Quality) -> None:
        if quality not in QUALITIES:
            raise UserError(f"no path quality {quality!r}", hint=", ".join(QUALITIES))
        self._scene, self._quality = scene, quality
        self._seed = [scene.situation.seed, QUALITIES.index(quality)]
        rng = np.random.default_rng([*self._seed, 0xB1A5])
        self._misled = bool(rng.random() < MISLED)
        self._guess = _wrong_guess(scene, rng)
        self._last: GripperPath | None = None

    def ask(self) -> GripperPath:
        """Return the path for the scene as it is now."""
        self._last = self._answer()
        return self._last

    def _answer(self) -> GripperPath:
        scene = self._scene
        rng = np.random.default_rng([*self._seed, scene.steps])
        if self._quality == "perfect":
            return _drawn(scene, None, 0.0, rng)
        if self._quality == "noisy" or self._last is None:
            return _drawn(scene, None, NOISE, rng)
        missed = rng.random() < MISSED
        if not hidden(scene):
            return self._last if missed else _drawn(scene, None, 2 * NOISE, rng)
        return _drawn(scene, self._guess, 2 * NOISE, rng) if self._misled else self._last


def _drawn(
    scene: Scene, guess: Guess | None, noise: float, rng: np.random.Generator
) -> GripperPath:
    way = stations(scene) if guess is None else stations(scene, target=guess[0], goal=guess[1])
    places, opened = way_points(scene, way)
    return drawn_from(project_relative(places, scene.camera), opened, noise=noise, rng=rng)


def _wrong_guess(scene: Scene, rng: np.random.Generator) -> Guess:
    layout = scene.layout
    target = (layout.target + int(rng.integers(1, len(layout.blocks)))) % len(layout.blocks)
    taken = np.stack([layout.goal, layout.blocks[target]])
    away = np.linalg.norm(SPOTS[:, None] - taken, axis=-1).min(axis=1) > SPACING_M / 2
    return Guess(target, rng.permutation(SPOTS[away])[0])
