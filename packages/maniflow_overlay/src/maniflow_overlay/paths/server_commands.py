"""The commands that talk to servers: options in, one table out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import typer
from loom.drawing import print_table
from loom.errors import UserError

from maniflow_overlay.paths.client import parse_endpoint
from maniflow_overlay.paths.engine import Outcome, Patience
from maniflow_overlay.paths.fake_server import FakeModel, FakeServer
from maniflow_overlay.paths.frames import find_frames, select_frames
from maniflow_overlay.paths.generate import generate, read_instructions
from maniflow_overlay.paths.grammar import Dialect, Space
from maniflow_overlay.paths.prompts import asking


def read_dialect(text: str) -> Dialect:
    """Return the dialect of this name."""
    try:
        return Dialect(text)
    except ValueError:
        known = ", ".join(Dialect)
        raise UserError(f"no dialect is called {text!r}", hint=f"one of {known}") from None


def read_space(text: str | None) -> Space | None:
    """Return the meaning of coordinates of this name."""
    spaces: dict[str, Space] = {space: space for space in get_args(Space)}
    if text is not None and text not in spaces:
        known = ", ".join(spaces)
        raise UserError(f"coordinates cannot be {text!r}", hint=f"one of {known}")
    return spaces[text] if text is not None else None


def generate_command(
    root: Path,
    folder: Path,
    *,
    endpoints: Sequence[str],
    model: str,
    dialect: str,
    coordinates: str | None,
    tasks: Sequence[str],
    instructions: Sequence[str],
    stride: int,
    only_first: bool,
    episodes: int | None,
    max_tokens: int | None,
    timeout_s: float,
    retries: int,
    reasks: int,
    give_up_s: float,
) -> None:
    """Ask for the frames below `root` and print what each endpoint did."""
    frames = select_frames(
        find_frames(root, tasks), stride=stride, most=1 if only_first else None, episodes=episodes
    )
    outcome = generate(
        frames,
        folder,
        asking(read_dialect(dialect), model, max_tokens),
        [parse_endpoint(text) for text in endpoints],
        instructions=read_instructions(instructions),
        patience=Patience(timeout_s, retries, reasks, give_up_s=give_up_s),
        space=read_space(coordinates),
        say=typer.echo,
    )
    if outcome.asked:
        print_endpoints(outcome)
    typer.echo(f"{len(frames)} frames are done, {outcome.done} of them now; paths parse {folder}")


def print_endpoints(outcome: Outcome) -> None:
    """Print calls, answers and the busy share of each endpoint."""
    rows = []
    for lane in outcome.lanes:
        room = outcome.seconds * lane.endpoint.limit
        busy = f"{100 * lane.busy_s / room:.0f} %" if room > 0 else "-"
        rows.append([lane.endpoint.url, lane.calls, lane.answers, busy, lane.trouble])
    print_table(["endpoint", "calls", "answers", "busy", "last trouble"], rows)


def serve_fake_command(
    port: int, kind: str, model: str, latency_s: float, faults: Sequence[str], seed: int
) -> None:
    """Serve until Ctrl-C."""
    if kind not in ("hamster", "openai"):
        raise UserError(f"no kind of server is called {kind!r}", hint="hamster or openai")
    shares = {}
    for text in faults:
        name, _, share = text.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UserError(f"fault {text!r} is not KIND=SHARE", hint="as in error=0.1") from None
    with FakeServer(FakeModel(kind, model, latency_s, seed, shares), port=port) as server:
        typer.echo(f"{kind} server of {model} at {server.url}, counts at {server.url}/counts")
        while True:
            time.sleep(3600)
