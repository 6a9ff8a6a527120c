"""`paths generate`: from frames on disk to a journal of answers, stopped and resumed at will."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from loom.errors import UserError
from loom.progress import Progress
from loom.signals import StopSignals, exit_code

from maniflow_overlay.paths.client import Endpoint
from maniflow_overlay.paths.engine import Generation, Outcome, Patience
from maniflow_overlay.paths.frames import FrameFile
from maniflow_overlay.paths.grammar import Space
from maniflow_overlay.paths.journal import Journal
from maniflow_overlay.paths.prompts import INSTRUCTIONS, Asking


class GenerationStoppedError(UserError):
    """A signal ended the generation; what was answered is kept."""

    def __init__(self, number: int, left: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; {left} frames are left",
            hint="the same command goes on where it stopped",
        )
        self.exit_code = exit_code(number)


def read_instructions(given: Sequence[str]) -> dict[str, str]:
    """Add `TASK=TEXT` pairs to the known instructions.

    Raises:
        UserError: One of them is no such pair.
    """
    instructions = dict(INSTRUCTIONS)
    for pair in given:
        task, equals, text = pair.partition("=")
        if not equals or not task.strip() or not text.strip():
            raise UserError(f"instruction {pair!r} is not TASK=TEXT")
        instructions[task.strip()] = text.strip()
    return instructions


def generate(
    frames: Sequence[FrameFile],
    folder: Path,
    asking: Asking,
    endpoints: Sequence[Endpoint],
    *,
    instructions: dict[str, str],
    patience: Patience,
    space: Space | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Ask for every frame that the folder's journal does not hold as done.

    Raises:
        UserError: Bad input, no endpoint in reach, pictures that cannot be read.
        GenerationStoppedError: A signal came.
    """
    if not endpoints:
        raise UserError(
            "no endpoint given", hint="--endpoint hamster=http://127.0.0.1:8000, once per server"
        )
    if len({endpoint.url for endpoint in endpoints}) < len(endpoints):
        raise UserError("two endpoints have the same URL")
    with Journal(folder) as journal, StopSignals() as signals:
        progress = Progress("paths", len(frames))

        def show(done: int) -> None:
            progress.update(before + done)

        generation = Generation(
            journal,
            asking,
            instructions,
            endpoints,
            patience,
            space=space,
            stopped=lambda: bool(signals.received),
            progress=show,
            say=say,
        )
        before = generation.count_done(frames)
        if before:
            progress.update(before)
        try:
            outcome = asyncio.run(generation.run(frames))
        finally:
            progress.close()
        left = outcome.asked - outcome.done
        if signals.received and left:
            raise GenerationStoppedError(signals.received, left)
    if outcome.unreadable:
        raise UserError(
            f"{len(outcome.unreadable)} pictures cannot be read, first {outcome.unreadable[0]}",
            hint="all other frames are done; extract these again and repeat the command",
        )
    return outcome
