"""The commands that read kept answers: options in, one table out."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from loom.drawing import print_table
from loom.errors import UserError

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
) -> None:
    """Read answers, write paths, print the table."""
    if (source / RAW).is_file():
        rows = parse_journal(source)
    else:
        numbers = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if not numbers:
            raise UserError(f"the size {size!r} is not WIDTHxHEIGHT", hint="as in 320x240")
        shape = (int(numbers[1]), int(numbers[2]))
        rows = parse_texts(source, read_dialect(dialect), size=shape, space=read_space(coordinates))
    if frames is not None:
        rows = hold(rows, [frame.key for frame in find_frames(frames)])
    _write(output, rows)


def import_command(root: Path, output: Path) -> None:
    """Read pickles, write paths, print the table."""
    _write(output, import_pickles(root))


def report_command(source: Path, *, as_json: bool) -> None:
    """Print the table of a file of paths."""
    print_table(*count(read_paths(source)), as_json=as_json)


def _write(output: Path, rows: list[PathRow]) -> None:
    write_paths(output, rows)
    print_table(*count(rows))
    typer.echo(f"written to {output}")
