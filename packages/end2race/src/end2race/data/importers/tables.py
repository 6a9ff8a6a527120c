"""CSV files with numbers by column name, as importers meet them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import read_text

from end2race.data.segments import refuse_twice


def read_columns(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """Read every column that `required` names, and any other one that holds numbers only.

    Returns:
        Column -> float64 [rows].

    Raises:
        UserError: A column is missing or there twice, a number is none or not finite, a row has
            another length.
    """
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        numbered = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{path}: {error}", hint="save the table as CSV again") from error
    if len(numbered) < 2:
        raise UserError(f"{path}: no row below a header", hint="give a table with numbers")
    lines, rows = zip(*numbered[1:], strict=True)
    header = [name.strip().lstrip("# ") for name in numbered[0][1]]
    if missing := [name for name in required if name not in header]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(header[:8])}",
            hint="rename the columns",
        )
    refuse_twice(path, header, sorted({*header} - {""}))
    for number, row in numbered[1:]:
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {number} has {len(row)} values, the header has {len(header)}",
                hint="the file was cut short or edited; restore it, or drop the line",
            )
    columns = {}
    for place, name in enumerate(header):
        cells = [row[place] for row in rows]
        try:
            values = np.array([float(cell) for cell in cells])
        except ValueError:
            values = np.full(len(cells), np.nan)
        if np.isfinite(values).all():
            columns[name] = values
        elif name in required:
            row = next(i for i, cell in enumerate(cells) if not _is_finite(cell))
            raise UserError(
                f"{path}: line {lines[row]}: {name} is {cells[row]!r}, expected a finite number",
                hint="fill the value in, or drop the line",
            )
    return columns


def _is_finite(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False
