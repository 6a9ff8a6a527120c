"""Acting in many rooms at once: what is played goes into the memory.

Scripted players fill it first; then the agent acts, and its latent states, the rooms and their
sources of spawns lie in every checkpoint, so that a resumed run meets the same frames.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pinpad.data.players import Players, Share, assign
from pinpad.data.replay import Replay
from pinpad.envs.vector import PinPadVectorEnv
from pinpad.models.agent import Agent
from pinpad.tensors import frames, one_hot


class Rooms:
    """Rooms in which somebody plays, and the frame that each of them shows."""

    def __init__(self, layout: str, count: int, *, size: int, length: int, seed: int) -> None:
        """Begin episodes at random places of their length, so that they do not end together.

        Args:
            layout: `three` to `eight`.
            count: How many rooms.
            size: Pixels of an image's side.
            length: Steps of an episode.
            seed: Of spawns; room i has seed + i.
        """
        self.envs = PinPadVectorEnv(count, layout, size=size, length=length, copy=False)
        self.image, _ = self.envs.reset(seed=seed)
        self.is_first = np.ones(count, bool)
        self.action = np.zeros(count, np.int64)

    def scatter(self, rng: np.random.Generator) -> None:
        """Put every room somewhere into its episode."""
        self.envs.steps = rng.integers(0, self.envs.length, self.envs.num_envs)

    def step(self, action: np.ndarray) -> np.ndarray:
        """Act (rooms,) and return the rewards (rooms,)."""
        self.image, reward, _, _, info = self.envs.step(action)
        self.is_first = info["is_first"]
        self.action = np.where(self.is_first, 0, action)
        return reward.astype(np.float32)


class Acting:
    """An agent in rooms, step by step."""

    def __init__(self, agent: Agent, rooms: Rooms) -> None:
        """Sit down; what was played before is not known to the agent.

        Args:
            agent: Acts as it is at each step.
            rooms: Where.
        """
        self.agent, self.rooms = agent, rooms
        self._state = agent.world.dynamics.zeros(rooms.envs.num_envs, agent.world.pixel_mean)
        self._unknown = True

    def step(self, generator: torch.Generator) -> np.ndarray:
        """Let the agent see the frames and act; return the rewards (rooms,)."""
        rooms, device = self.rooms, self.agent.device
        first = torch.from_numpy(rooms.is_first | self._unknown).to(device)
        self._unknown = False
        frame, given = frames(rooms.image, device), one_hot(rooms.action, device)
        self._state, action = self.agent.act(self._state, frame, given, first, generator)
        return rooms.step(action.argmax(-1).cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        """Return rooms and latent states, for a checkpoint."""
        snapshot = self.rooms.envs.snapshot()
        envs = {k: v if isinstance(v, str) else torch.from_numpy(v) for k, v in snapshot.items()}
        return {
            "envs": envs,
            "is_first": torch.from_numpy(self.rooms.is_first.copy()),
            "action": torch.from_numpy(self.rooms.action.copy()),
            "latent": list(self._state),
            "unknown": self._unknown,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where other rooms of the same kind were left."""
        rooms = self.rooms
        rooms.envs.restore(
            {k: v if isinstance(v, str) else v.numpy() for k, v in state["envs"].items()}
        )
        rooms.image = rooms.envs.images()
        rooms.is_first, rooms.action = state["is_first"].numpy(), state["action"].numpy()
        latent = [part.to(self.agent.device) for part in state["latent"]]
        self._state = type(self._state)(*latent)
        self._unknown = bool(state["unknown"])


def fill(
    replay: Replay, rooms: Rooms, mix: tuple[Share, ...], steps: int, rng: np.random.Generator
) -> None:
    """Remember what scripted players do in the rooms.

    Args:
        replay: The memory.
        rooms: Where they play.
        mix: Who plays in which share of the rooms.
        steps: Of all rooms together, rounded up to whole ones of each.
        rng: Draws the players' noise.
    """
    count = rooms.envs.num_envs
    players = Players(assign(mix, count), rooms.envs, rng)
    replay.add(rooms.envs, rooms.action, np.zeros(count, np.float32), rooms.is_first)
    while replay.total * count < steps:
        reward = rooms.step(players.act())
        replay.add(rooms.envs, rooms.action, reward, rooms.is_first)
