"""`metrics_summary.csv`: one row per evaluation, appended without ever doubling or losing a header.

An evaluation with new columns rewrites the file with the union of the columns; old rows keep their
values and are empty in the new ones. Two evaluations that end at once take turns.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from loom.errors import UserError
from loom.files import explained, read_text, write_atomic


def append_summary(path: Path, row: Mapping[str, str | float | int | None]) -> None:
    """Append a row to a summary, whole or not at all.

    Raises:
        UserError: The file is not such a table, or the disk refuses; it is intact then.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the folder, as the file itself is replaced
        columns, rows = _read(path) if path.exists() else ([], [])
        columns += [column for column in row if column not in columns]
        rows.append({column: _cell(value) for column, value in row.items()})
        text = StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, text.getvalue())
    finally:
        os.close(folder)


def _cell(value: str | float | int | None) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        table = list(csv.reader(StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV table: {error}", hint="move it away") from error
    table = [line for line in table if line]
    if not table:
        return [], []
    columns = table[0]
    if len(set(columns)) != len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise UserError(f"{path} has two columns named {twice!r}", hint="move the file away")
    for number, line in enumerate(table[1:], start=2):
        if len(line) != len(columns) or line == columns:
            raise UserError(
                f"{path}: row {number} has {len(line)} cells"
                + (
                    " and repeats the header" if line == columns else f", the header {len(columns)}"
                ),
                hint="mend that row, or move the file away: nothing was appended",
            )
    return columns, [dict(zip(columns, line, strict=True)) for line in table[1:]]
