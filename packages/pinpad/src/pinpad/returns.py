"""What an agent earns, beside uniform play and the oracle, in rooms that it has not seen.

The unit is the return of 2,000 steps, as in all tables; the score is normalised so that uniform
play has 0 and the oracle 1. The agent acts as it does in training: it samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loom.errors import UserError
from loom.evaluation.statistics import Undefined, bootstrap_interval
from loom.files import read_json, write_json

from pinpad.data.players import Players, assign, parse_mix
from pinpad.models.agent import Agent
from pinpad.rooms import Acting, Rooms

RETURN_STEPS = 2_000
COLUMNS = ("who", "return per 2,000 steps", "low", "high", "score", "rooms")
FILE = "returns.json"
_FAR = 7_000_003  # seeds of rooms that training does not reach


@dataclass(frozen=True)
class Earned:
    """What somebody earned in 2,000 steps: mean over rooms, a 95 % interval, and the score."""

    who: str
    mean: float
    low: float
    high: float
    score: float | None
    rooms: int


@dataclass(frozen=True)
class Judging:
    """Where somebody is judged."""

    layout: str
    rooms: int
    steps: int
    size: int
    seed: int

    def open(self) -> Rooms:
        """Return the rooms, at the beginning of an episode of all the steps."""
        return Rooms(
            self.layout, self.rooms, size=self.size, length=self.steps, seed=self.seed + _FAR
        )


def agent_returns(agent: Agent[Any], judging: Judging) -> np.ndarray:
    """Return (rooms,) what an agent earns in 2,000 steps."""
    rooms, generator = judging.open(), torch.Generator(agent.device).manual_seed(judging.seed)
    acting = Acting(agent, rooms)
    return _returns(lambda: acting.step(generator), judging)


def scripted_returns(player: str, judging: Judging) -> np.ndarray:
    """Return (rooms,) what a scripted player earns in 2,000 steps."""
    rooms = judging.open()
    seats = assign(parse_mix(player), judging.rooms)
    players = Players(seats, rooms.envs, np.random.default_rng(judging.seed))
    return _returns(lambda: rooms.step(players.act()), judging)


def yardsticks(judging: Judging) -> dict[str, np.ndarray]:
    """Return (rooms,) what uniform play and the oracle earn, between which an agent is scored.

    Raises:
        UserError: The oracle earns no more than uniform play: the episodes are too short.
    """
    found = {
        "random": scripted_returns("uniform", judging),
        "oracle": scripted_returns("oracle", judging),
    }
    random, oracle = found["random"].mean(), found["oracle"].mean()
    if oracle <= random:
        raise UserError(
            f"the oracle earns {oracle:g} in {judging.steps} steps, uniform play {random:g}",
            hint="judge over more steps; `pinpad doctor` checks the environment",
        )
    return found


def compare(
    agent: Agent[Any], judging: Judging, scripted: Mapping[str, np.ndarray] | None = None
) -> list[Earned]:
    """Return a row each for the agent, uniform play and the oracle.

    Args:
        agent: Who is judged.
        judging: Where.
        scripted: The `yardsticks` of these rooms, if they are known.
    """
    scripted = scripted or yardsticks(judging)
    random, oracle = (float(scripted[who].mean()) for who in ("random", "oracle"))
    found = {"agent": agent_returns(agent, judging), **scripted}
    rng = np.random.default_rng(judging.seed)
    return [_earned(who, values, random, oracle, rng) for who, values in found.items()]


def write_returns(folder: Path, earned: Sequence[Earned]) -> Path:
    """Write the rows as JSON."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"per_steps": RETURN_STEPS, "rows": [asdict(row) for row in earned]})
    return path


def read_returns(folder: Path) -> list[Earned]:
    """Read them again; none where there is no file."""
    path = folder / FILE
    return [Earned(**row) for row in read_json(path)["rows"]] if path.is_file() else []


def table(earned: Sequence[Earned]) -> list[tuple[str, float, float, float, float | None, int]]:
    """Return the rows of `COLUMNS`."""
    return [(row.who, row.mean, row.low, row.high, row.score, row.rooms) for row in earned]


def _returns(step: Callable[[], np.ndarray], judging: Judging) -> np.ndarray:
    total = np.zeros(judging.rooms)
    for _ in range(judging.steps):
        total += step()
    return total * RETURN_STEPS / judging.steps


def _earned(
    who: str, values: np.ndarray, random: float, oracle: float, rng: np.random.Generator
) -> Earned:
    mean = float(values.mean())
    interval = bootstrap_interval(values, rng, resamples=1_999, method="percentile")
    low, high = (mean, mean) if isinstance(interval, Undefined) else (interval.low, interval.high)
    score = float((mean - random) / (oracle - random))
    return Earned(who, mean, float(low), float(high), score, len(values))
