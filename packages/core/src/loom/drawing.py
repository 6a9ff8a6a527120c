"""Tables, schedules and JSON as text, for commands that show them."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from loom.config import Config, sections
from loom.errors import UserError
from loom.record import json_safe

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # would break a row, or speak to the terminal


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as strict JSON: what it lacks, such as infinity, becomes text."""
    text = json.dumps(json_safe(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # Names that are not UTF-8 are lone surrogates, which JSON spells \udcff.
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool = False
) -> None:
    """Print a table; numbers stand to the right, None is a dash, nothing is cut.

    Args:
        columns: Headings.
        rows: Cells of each row.
        as_json: Print a list of rows by heading instead, for machines.
    """
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a pipe has no width: each row stays on one line
    with console.capture() as text:  # rich itself answers a closed pipe with exit code 1
        console.print(table)
    typer.echo(text.get(), nl=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(value))


def schedule_values(config: Config, steps: int | None = None) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) pairs of every schedule of a config, by dotted name; empty without any.

    Args:
        config: A config whose sections name their schedules in `Config.schedules`.
        steps: The last step; None takes `max_steps` from the config.

    Raises:
        UserError: No step is known.
    """
    found = list(sections(config))
    named = {
        f"{place}.{name}" if place else name: schedule
        for place, section in found
        for name, schedule in section.schedules().items()
    }
    if not named:
        return {}
    known = [section.max_steps for _, section in found if hasattr(section, "max_steps")]
    last = steps if steps is not None else next(iter(known), None)
    if not isinstance(last, int):
        raise UserError("the config does not say how long it trains", hint="give --steps N")
    places = sorted({round(last * column / (_COLUMNS - 1)) for column in range(_COLUMNS)})
    return {
        name: [(step, schedule.at(step)) for step in places] for name, schedule in named.items()
    }


def schedule_lines(values: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    """Draw each schedule as one line of blocks between its least and its greatest value."""
    if not values:
        return ["nothing in this config changes over training"]
    width = max(map(len, values))
    return [f"{name:<{width}}  {_line(pairs)}" for name, pairs in values.items()]


def _line(pairs: Sequence[tuple[int, float]]) -> str:
    numbers = [value for _, value in pairs]
    low, high = min(numbers), max(numbers)
    span = high - low
    marks = [
        _BLOCKS[min(7, math.floor(8 * (value - low) / span))] if span > 0 else _BLOCKS[0]
        for value in numbers
    ]
    first, last = pairs[0], pairs[-1]
    return (
        f"{''.join(marks)}  {first[1]:.4g} at {first[0]} -> {last[1]:.4g} at {last[0]}"
        f", {low:.4g} to {high:.4g}"
    )
