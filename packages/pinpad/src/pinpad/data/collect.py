"""Record episodes of scripted players, with true events at every frame."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loom.errors import UserError

from pinpad.data.episodes import Episode, write_episode
from pinpad.data.players import Player, Players, Share, assign
from pinpad.envs.events import EVENTS
from pinpad.envs.vector import PinPadVectorEnv


@dataclass(frozen=True)
class Tally:
    """What a player did in all its episodes: reward in sum, and pads written."""

    player: str
    episodes: int
    reward: float
    appends: int


_TOGETHER = 16  # rooms played at once; bounds the memory that images take


def record_episodes(
    layout: str,
    mix: tuple[Share, ...],
    episodes: int,
    *,
    length: int,
    size: int,
    seed: int,
) -> Iterator[Episode]:
    """Yield one whole episode for each room of a mixture.

    Args:
        layout: `three` to `eight`.
        mix: Who plays in which share of the episodes.
        episodes: How many.
        length: Steps of an episode; it has one frame more.
        size: Pixels of an image's side.
        seed: Of spawns and players.
    """
    players = assign(mix, episodes)
    for begin in range(0, episodes, _TOGETHER):
        part = players[begin : begin + _TOGETHER]
        yield from _record(layout, part, begin, length=length, size=size, seed=seed)


def _record(
    layout: str, players: list[Player], begin: int, *, length: int, size: int, seed: int
) -> Iterator[Episode]:
    """Play one episode in each of a few rooms."""
    rooms, frames = len(players), length + 1
    envs = PinPadVectorEnv(rooms, layout, size=size, length=length, copy=False)
    seats = Players(players, envs, np.random.default_rng((seed, begin)))
    image = np.empty((rooms, frames, size, size, 3), np.uint8)
    rows = {name: np.zeros((rooms, frames), bool) for name in EVENTS}
    state = {name: np.zeros((rooms, frames), np.int8) for name in ("progress", "countdown")}
    action = np.zeros((rooms, frames), np.int8)
    reward = np.zeros((rooms, frames), np.float32)
    image[:, 0], _ = envs.reset(seed=[(seed + begin + i) for i in range(rooms)])
    for t in range(1, frames):
        action[:, t] = seats.act()
        image[:, t], reward[:, t], _, _, info = envs.step(action[:, t])
        for name, row in rows.items():
            row[:, t] = info[f"event_{name}"]
        for name, row in state.items():
            row[:, t] = info[name]
    mark = np.zeros(frames, bool)
    for i, player in enumerate(players):
        first, last = mark.copy(), mark.copy()
        first[0], last[-1] = True, True
        yield Episode(
            name=f"{begin + i:04d}",
            image=image[i],
            action=action[i],
            reward=reward[i],
            is_first=first,
            is_last=last,
            events={name: row[i] for name, row in rows.items()},
            state={name: row[i] for name, row in state.items()},
            layout=envs.room.name,
            player=str(player),
        )


def collect(
    folder: Path,
    layout: str,
    mix: tuple[Share, ...],
    episodes: int,
    *,
    length: int,
    size: int,
    seed: int,
) -> list[Tally]:
    """Record episodes into a folder that holds none yet, and say who earned what.

    Returns:
        What each player did.

    Raises:
        UserError: The folder already holds episodes.
    """
    tallies: dict[str, Tally] = {}

    def counted(episode: Episode) -> Episode:
        old = tallies.get(episode.player, Tally(episode.player, 0, 0.0, 0))
        tallies[episode.player] = Tally(
            episode.player,
            old.episodes + 1,
            old.reward + float(episode.reward.sum()),
            old.appends + int(episode.events["sequence_append"].sum()),
        )
        return episode

    recorded = record_episodes(layout, mix, episodes, length=length, size=size, seed=seed)
    write_new(folder, map(counted, recorded))
    return list(tallies.values())


def write_new(folder: Path, episodes: Iterable[Episode]) -> int:
    """Write episodes into a folder that holds none yet; return how many.

    Raises:
        UserError: The folder already holds episodes.
    """
    if folder.is_dir() and any(folder.glob("*.npz")):
        raise UserError(
            f"{folder}: holds episodes already", hint="give a new folder, or remove them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for episode in episodes:
        write_episode(folder, episode)
        count += 1
    return count


def write_whole(folder: Path, episodes: Iterable[Episode]) -> bool:
    """Write a folder of episodes that is either complete or not there; False if it was there."""
    if folder.is_dir():
        return False
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_new(partial, episodes)
    partial.rename(folder)
    return True
