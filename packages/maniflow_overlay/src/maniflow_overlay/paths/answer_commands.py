"""The commands on kept answers and paths: options in, one table out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import typer
from loom.drawing import print_table
from loom.errors import UserError
from loom.progress import Progress

from maniflow_overlay.parts import ALONE, WHOLE, Part, Spread, remove_parts, run_parts
from maniflow_overlay.paths.drawn_frames import draw_frames
from maniflow_overlay.paths.frames import find_frames
from maniflow_overlay.paths.journal import RAW
from maniflow_overlay.paths.old_pickles import import_pickles
from maniflow_overlay.paths.server_commands import read_dialect, read_space
from maniflow_overlay.paths.table import (
    PathRow,
    count,
    hold,
    parse_journal,
    parse_texts,
    read_paths,
    write_paths,
)


def parse_command(
    source: Path,
    output: Path,
    *,
    dialect: str,
    coordinates: str | None,
    size: str,
    frames: Path | None,
    spread: Spread = ALONE,
) -> None:
    """Read answers, write paths, print the table."""
    if spread.jobs is not None:
        command = ["paths", "parse", source.absolute(), output.absolute()]
        command += ["--dialect", dialect, "--size", size]
        command += ["--coordinates", coordinates] if coordinates else []
        parts = run_parts(command, output, spread.jobs, spread.executor, say=typer.echo)
        rows = [row for part in parts for row in read_paths(part)]
    else:
        rows = _parsed(source, dialect, coordinates, size, spread.part or WHOLE)
    if spread.part is not None:
        write_paths(spread.part.path(output), rows)
        return
    if frames is not None:
        rows = hold(rows, [frame.key for frame in find_frames(frames)])
    _write(output, rows)
    if spread.jobs is not None:
        remove_parts(output)


def _parsed(
    source: Path, dialect: str, coordinates: str | None, size: str, part: Part
) -> list[PathRow]:
    if (source / RAW).is_file():
        return parse_journal(source, part)
    numbers = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not numbers:
        raise UserError(f"the size {size!r} is not WIDTHxHEIGHT", hint="as in 320x240")
    return parse_texts(
        source,
        read_dialect(dialect),
        size=(int(numbers[1]), int(numbers[2])),
        space=read_space(coordinates),
        part=part,
    )


def import_command(root: Path, output: Path) -> None:
    """Read pickles, write paths, print the table."""
    _write(output, import_pickles(root))


def draw_command(
    root: Path, paths: Path, output: Path, tasks: Sequence[str], *, path_only: bool
) -> None:
    """Draw paths into frames."""
    frames = find_frames(root, tasks)
    progress = Progress("draw", len(frames))
    try:
        drawn = draw_frames(frames, paths, output, path_only=path_only, done=progress.update)
    finally:
        progress.close()
    typer.echo(f"{len(frames)} pictures written to {output}, {drawn} of them with a path")


def report_command(source: Path, *, as_json: bool) -> None:
    """Print the table of a file of paths."""
    print_table(*count(read_paths(source)), as_json=as_json)


def _write(output: Path, rows: list[PathRow]) -> None:
    write_paths(output, rows)
    print_table(*count(rows))
    typer.echo(f"written to {output}")
