"""Sequences whose boundaries are known because they were planted: a check of boundary detectors.

A row of 8 pixels has one of 6 colours; at random instants it takes another one. A dot moves over it
by the action, and every pixel is noisy. The colour is what lasts, the dot is what does not.
"""

from collections.abc import Iterator

import numpy as np

from pinpad.data.episodes import Episode
from pinpad.envs.layouts import MOVES

PIXELS, NOISE = 8, 0.02
PALETTE = np.array(
    [(0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9), (0.8, 0.8, 0.1), (0.8, 0.1, 0.8)]
    + [(0.1, 0.8, 0.8)]
)
EVENT = "planted"


def planted_episodes(
    count: int, *, length: int = 200, rate: float = 0.075, seed: int = 0
) -> Iterator[Episode]:
    """Yield episodes with one event, `planted`, at every change of colour.

    Args:
        count: How many.
        length: Steps of an episode; it has one frame more.
        rate: Changes per step.
        seed: Of everything.
    """
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        frames = length + 1
        change = rng.random(frames) < rate
        change[0] = False
        color = np.zeros(frames, np.int64)
        color[0] = rng.integers(len(PALETTE))
        for t in range(1, frames):
            step = rng.integers(1, len(PALETTE)) if change[t] else 0
            color[t] = (color[t - 1] + step) % len(PALETTE)
        action = rng.integers(0, len(MOVES), frames).astype(np.int8)
        action[0] = 0
        moves = np.array([move[0] + move[1] for move in MOVES])
        place = (rng.integers(PIXELS) + np.cumsum(moves[action])) % PIXELS
        row = np.repeat(PALETTE[color][:, None], PIXELS, axis=1)
        row[np.arange(frames), place] = 1.0
        row = np.clip(row + rng.normal(0, NOISE, row.shape), 0, 1)
        ends = np.zeros((2, frames), bool)
        ends[0, 0], ends[1, -1] = True, True
        yield Episode(
            name=f"{index:04d}",
            image=(row * 255).round().astype(np.uint8)[:, None],
            action=action,
            reward=np.zeros(frames, np.float32),
            is_first=ends[0],
            is_last=ends[1],
            events={EVENT: change},
            layout="planted",
            player="planted",
        )
