"""Episodes as boundary evaluation needs them: what happened at each frame, without the images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loom.errors import UserError

from pinpad.boundary.compat import delta_events, frame_delta
from pinpad.boundary.segments import spells
from pinpad.data.episodes import Episode, episode_files, read_episode
from pinpad.envs.events import EVENTS

Array = np.ndarray

BACKGROUND = "background"
KNOWN_EVENTS = (*EVENTS, BACKGROUND, "delta")


@dataclass(frozen=True)
class Recording:
    """One episode of T frames.

    Attributes:
        name: That of the episode.
        delta: (T,) mean absolute pixel difference to the frame before.
        reward: (T,) reward.
        events: Event -> (T,) bool, as far as the file knows.
        state: `progress` and `countdown` (T,), as far as the file knows.
    """

    name: str
    delta: Array
    reward: Array
    events: Mapping[str, Array]
    state: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.delta)

    def truth(self, event: str) -> Array:
        """Return (T,) bool, the events of a kind.

        Raises:
            UserError: The kind is unknown, or the episode's file does not know it.
        """
        if event not in KNOWN_EVENTS and event not in self.events:
            known = dict.fromkeys([*KNOWN_EVENTS, *self.events])
            raise UserError(f"{event!r} is no event", hint=f"there are {', '.join(known)}")
        if event == "delta":
            return delta_events(self.delta)
        if event == "reward":
            return np.abs(self.reward) > 0
        if event == BACKGROUND and "countdown" in self.state:
            return self._background()
        if event not in self.events:
            known = ", ".join([*self.events, "delta", "reward"])
            raise UserError(
                f"episode {self.name} knows no `{event}` events",
                hint=f"`pinpad collect` records them; --event takes what it knows: {known}",
            )
        return self.events[event]

    def _background(self) -> Array:
        """Return where the picture behind player and sequence changes.

        It depends on the pad under the player and on whether the pause after a win runs.
        """
        moved = self.truth("pad_enter") | self.truth("pad_leave")
        return moved | spells(self.state["countdown"] > 0)


def recording(episode: Episode) -> Recording:
    """Take from an episode what its evaluation needs."""
    return Recording(
        name=episode.name,
        delta=frame_delta(episode.image),
        reward=episode.reward,
        events=episode.events,
        state=episode.state,
    )


def read_recordings(folder: Path) -> list[Recording]:
    """Read the episodes of a folder one by one, in the order of their names."""
    return [recording(read_episode(path)) for path in episode_files(folder)]
