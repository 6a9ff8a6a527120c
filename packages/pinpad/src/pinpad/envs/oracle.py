"""The shortest ways through a room, and the player that walks them.

`Routes` holds, for every pad and cell, the first action of a shortest way that touches no other pad
(one it stands on may be left). The oracle walks to the next pad of the target and waits out the
pause: it must earn reward in every layout, or the environment is broken.
"""

from collections import deque
from dataclasses import dataclass
from functools import cache

import numpy as np

from pinpad.envs.layouts import MOVES, Room, room

WAIT = 0


@dataclass(frozen=True)
class Routes:
    """First actions and lengths of the shortest ways.

    Attributes:
        action: (pads + 1, cells) int8 by [pad, cell]; row 0 waits.
        distance: (pads + 1, cells) int16, steps to the pad; 0 on it, -1 where no way leads.
    """

    action: np.ndarray
    distance: np.ndarray


@cache
def routes(layout: str) -> Routes:
    """Find the ways to every pad of a layout by breadth-first search from the pad."""
    tables = room(layout)
    action = np.full((tables.pads + 1, tables.cells), WAIT, np.int8)
    distance = np.full((tables.pads + 1, tables.cells), -1, np.int16)
    for pad in range(1, tables.pads + 1):
        _search(tables, pad, action[pad], distance[pad])
    action.setflags(write=False)
    distance.setflags(write=False)
    return Routes(action, distance)


def _search(tables: Room, pad: int, action: np.ndarray, distance: np.ndarray) -> None:
    """Fill in the ways to one pad, from the pad outwards."""
    came_from: list[list[tuple[int, int]]] = [[] for _ in range(tables.cells)]
    for cell in range(tables.cells):
        for move in range(1, len(MOVES)):
            target = int(tables.next_cell[cell, move])
            allowed = tables.pad[target] in (0, pad, tables.pad[cell])
            if target != cell and allowed:
                came_from[target].append((cell, move))
    queue = deque(np.flatnonzero(tables.pad == pad).tolist())
    distance[list(queue)] = 0
    while queue:
        reached = queue.popleft()
        for cell, move in came_from[reached]:
            if distance[cell] < 0:
                distance[cell] = distance[reached] + 1
                action[cell] = move
                queue.append(cell)


def oracle_actions(
    layout: str, cell: np.ndarray, progress: np.ndarray, countdown: np.ndarray
) -> np.ndarray:
    """Return the oracle's action for each room.

    Args:
        layout: `three` to `eight`.
        cell: (rooms,) where the players are.
        progress: (rooms,) pads of the target that are done.
        countdown: (rooms,) steps left of the pause; the oracle waits as long as there is one.
    """
    pads = room(layout).pads
    # At the last step of a pause the respawn comes before the move, so waiting wins nothing there.
    goal = np.where((countdown > 0) | (progress >= pads), 0, progress + 1)
    return routes(layout).action[goal, cell]
