"""What happened in a step, from the environment itself and not from its pixels."""

from typing import Any, NamedTuple


class Events(NamedTuple):
    """True events of one step: booleans of one room, or arrays of many.

    Attributes:
        pad_enter: The move led onto a pad.
        pad_leave: The move led off a pad. A respawn is neither an entry nor a leave.
        sequence_append: A pad was written into the sequence.
        progress: The sequence's end matches a longer beginning of the target than before.
        wrong_pad: A pad was written outside the pause after a win, and progress did not grow.
        reward: The target was complete and paid.
        respawn: The pause after a win ended, and the player was put elsewhere before its move.
        wall_bump: A move that a wall stopped.
    """

    pad_enter: Any
    pad_leave: Any
    sequence_append: Any
    progress: Any
    wrong_pad: Any
    reward: Any
    respawn: Any
    wall_bump: Any


EVENTS = Events._fields
NOTHING = Events(*[False] * len(EVENTS))
