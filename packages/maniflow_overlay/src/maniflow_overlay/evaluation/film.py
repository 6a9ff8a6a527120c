"""Episodes as pictures: a strip of steps for the page, an animation to look at."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from loom.files import write_atomic
from PIL import Image

from maniflow_overlay.evaluation.rollout import Episode
from maniflow_overlay.overlay.drawing import draw_path_rgb
from maniflow_overlay.sim.scene import Scene

STRIP = 8  # pictures of a strip
_EDGE = 4
_SUCCESS, _FAILURE, _GOING = (40, 160, 70), (200, 50, 40), (120, 120, 120)


class Film:
    """Keeps the pictures of a few episodes, by seed.

    In an occluded episode the table without the curtain is shown below what is seen.

    Args:
        seeds: Whose.
    """

    def __init__(self, seeds: set[int]) -> None:
        self._frames: dict[int, list[np.ndarray]] = {seed: [] for seed in seeds}

    def watch(self, episode: Episode) -> None:
        """Take the newest picture of an episode, framed in red or green once it is over."""
        frames = self._frames.get(episode.seed)
        if frames is None:
            return
        view = episode.views[-1]
        path = view.path or (None if frames else episode.first.path)
        shown = [draw_path_rgb(view.rgb.copy(), path) if path else view.rgb]
        if episode.condition.occluded:
            shown.append(_uncovered(episode.scene))
        colour = _GOING
        if episode.over:
            colour = _SUCCESS if episode.success else _FAILURE
        frames.append(np.concatenate([_framed(picture, colour) for picture in shown]))

    def frames(self, seed: int) -> list[np.ndarray]:
        """Return the pictures of an episode's steps, (H, W, 3) uint8 RGB each."""
        return self._frames[seed]

    def strip(self, seed: int) -> np.ndarray:
        """Return some steps of an episode in a row, the first and the last among them."""
        frames = self.frames(seed)
        chosen = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
        return np.concatenate([frames[number] for number in chosen], axis=1)

    def write_webp(self, path: Path, seed: int) -> None:
        """Write an episode as an animation that repeats."""
        frames = [Image.fromarray(frame) for frame in self.frames(seed)]
        waits = [150] * (len(frames) - 1) + [1000]
        stream = io.BytesIO()
        frames[0].save(
            stream, "WEBP", save_all=True, append_images=frames[1:], duration=waits, loop=0
        )
        write_atomic(path, stream.getvalue())


def _uncovered(scene: Scene) -> np.ndarray:
    """Return the scene's picture without the curtain."""
    situation = scene.situation
    scene.situation = replace(situation, occluded=False)
    try:
        return scene.picture()
    finally:
        scene.situation = situation


def _framed(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    framed = np.empty((height + 2 * _EDGE, width + 2 * _EDGE, 3), np.uint8)
    framed[:] = colour
    framed[_EDGE:-_EDGE, _EDGE:-_EDGE] = picture
    return framed
