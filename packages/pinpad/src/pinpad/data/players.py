"""Scripted players of many rooms at once, and mixtures of them.

Every player is a plan with noise: with some probability its action is a uniform draw instead of the
plan's. `uniform` has no plan; `sticky` repeats its last action (15 % noise); `babble` walks to a
random other pad, again and again (10 %: knows the map, not the order); `oracle` walks the target.
"""

from dataclasses import dataclass

import numpy as np
from loom.errors import UserError

from pinpad.envs.layouts import MOVES
from pinpad.envs.oracle import oracle_actions, routes
from pinpad.envs.vector import PinPadVectorEnv

NOISE = {"uniform": 1.0, "sticky": 0.15, "babble": 0.1, "oracle": 0.0}


@dataclass(frozen=True)
class Player:
    """A plan and the probability of a uniform action instead of the planned one."""

    plan: str
    noise: float

    def __str__(self) -> str:
        return self.plan if self.noise == NOISE[self.plan] else f"{self.plan}:{self.noise:g}"


@dataclass(frozen=True)
class Share:
    """A player and the share of the rooms it plays in."""

    player: Player
    share: float


def parse_player(text: str) -> Player:
    """Read `uniform`, `sticky`, `babble` or `oracle`, with another noise as `oracle:0.1`.

    Raises:
        UserError: The player is unknown or the noise is no probability.
    """
    plan, _, noise = text.strip().partition(":")
    if plan not in NOISE:
        raise UserError(f"{plan!r} is no player", hint=f"there are {', '.join(NOISE)}")
    try:
        value = float(noise) if noise else NOISE[plan]
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"{text!r}: the noise is not a probability", hint="write oracle:0.1")
    return Player(plan, value)


def parse_mix(text: str) -> tuple[Share, ...]:
    """Read `uniform=0.5,sticky=0.3,oracle:0.1=0.2`; a name without a share counts 1.

    Shares are scaled to a sum of 1.

    Raises:
        UserError: A player is unknown or a share is not positive.
    """
    shares = []
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            value = float(share) if share else 1.0
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise UserError(f"{part!r}: the share is not a positive number", hint="sticky=0.3")
        shares.append((parse_player(name), value))
    total = sum(share for _, share in shares)
    return tuple(Share(player, share / total) for player, share in shares)


def assign(mix: tuple[Share, ...], rooms: int) -> list[Player]:
    """Give each room a player, by the largest remainders; the earlier player wins a tie."""
    exact = [share.share * rooms for share in mix]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(mix)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: rooms - sum(counts)]:
        counts[i] += 1
    return [share.player for share, count in zip(mix, counts, strict=True) for _ in range(count)]


class Players:
    """One player in each room of a vector environment."""

    def __init__(
        self, players: list[Player], envs: PinPadVectorEnv, rng: np.random.Generator
    ) -> None:
        """Take a seat in each room.

        Args:
            players: One for each room.
            envs: The rooms.
            rng: Draws the noise and the goals.
        """
        if len(players) != envs.num_envs:
            raise ValueError(f"{len(players)} players for {envs.num_envs} rooms")
        self._envs, self._rng = envs, rng
        self._noise = np.array([player.noise for player in players])
        self._plan = np.array([list(NOISE).index(player.plan) for player in players])
        self._previous = np.zeros(envs.num_envs, np.int64)
        self._goal = np.zeros(envs.num_envs, np.int64)

    def act(self) -> np.ndarray:
        """Return (rooms,) int64 actions for the state that the rooms are in."""
        envs, count = self._envs, self._envs.num_envs
        table = routes(envs.room.name)
        reached = (self._goal == 0) | (self._goal == envs.last) | (envs.steps == 0)
        # A pad other than the one under the player or written last: skip over it in the draw.
        here = np.maximum(envs.room.pad[envs.cell], envs.last)
        drawn = self._rng.integers(1, envs.room.pads + (here == 0), count)
        drawn += (here > 0) & (drawn >= here)
        self._goal = np.where(reached, drawn, self._goal)
        oracle = oracle_actions(envs.room.name, envs.cell, envs.progress, envs.countdown)
        plans = np.stack(
            [self._previous, self._previous, table.action[self._goal, envs.cell], oracle]
        )
        planned = plans[self._plan, np.arange(count)]
        random = self._rng.integers(0, len(MOVES), count)
        actions = np.where(self._rng.random(count) < self._noise, random, planned)
        self._previous = actions
        return actions
