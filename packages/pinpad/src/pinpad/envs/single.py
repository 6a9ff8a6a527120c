"""One room behind gymnasium's interface."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from pinpad.envs.core import LENGTH, REWARD, PinPad
from pinpad.envs.events import EVENTS, NOTHING, Events
from pinpad.envs.layouts import MOVES


class PinPadEnv(gymnasium.Env[np.ndarray, np.int64]):
    """PinPad with images as observations; an episode is truncated after `length` steps.

    `info` holds the true events of the step (see `Events`; `event_progress` and so on) and the
    state: `position`, `sequence` (0 where it is empty), `progress`, `countdown`, and `is_first`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        layout: str,
        *,
        size: int = 64,
        length: int = LENGTH,
        render_mode: str | None = None,
    ) -> None:
        """Make a room.

        Args:
            layout: `three` to `eight`.
            size: Pixels of an image's side, a multiple of 16.
            length: Steps of an episode.
            render_mode: `rgb_array` or None.
        """
        self.pinpad = PinPad(layout, size=size, length=length)
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(MOVES))
        self.render_mode = render_mode
        self._begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode at a random cell."""
        super().reset(seed=seed, options=options)
        self.pinpad.reset(self._draw())
        self._begun = True
        return self.pinpad.image(), self._info(NOTHING, is_first=True)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply an action."""
        if not self._begun or self.pinpad.over:
            raise ResetNeeded("the episode is over or has not begun: call reset()")
        if not 0 <= action < len(MOVES):
            raise ValueError(f"action {action} does not lie in [0, 4]")
        events = self.pinpad.step(int(action), self._draw)
        reward = REWARD if events.reward else 0.0
        info = self._info(events, is_first=False)
        return self.pinpad.image(), reward, False, self.pinpad.over, info

    def render(self) -> np.ndarray | None:
        """Return the current image in the mode `rgb_array`."""
        return self.pinpad.image() if self.render_mode == "rgb_array" else None

    def _draw(self) -> int:
        return int(self.np_random.integers(self.pinpad.room.cells))

    def _info(self, events: Events, *, is_first: bool) -> dict[str, Any]:
        info: dict[str, Any] = {
            f"event_{name}": value for name, value in zip(EVENTS, events, strict=True)
        }
        sequence = np.zeros(self.pinpad.room.pads, np.int8)
        sequence[: len(self.pinpad.sequence)] = self.pinpad.sequence
        info["position"] = np.array(self.pinpad.position, np.int8)
        info["sequence"] = sequence
        info["progress"] = self.pinpad.progress
        info["countdown"] = self.pinpad.countdown
        info["is_first"] = is_first
        return info
