"""One self-contained HTML page per run: figures, tables, pictures, gates.

A report opens from a folder, an attachment or an archive, years later and without a network: style,
script and pictures are inside the file, and a content policy forbids everything else. The same
content gives the same bytes, so two reports can be compared.
"""

import base64
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard
from urllib.parse import quote

import numpy as np
from PIL import Image

from loom.config import flatten
from loom.files import explained, write_atomic
from loom.report_curves import Curves, Series, curves_html, format_number


class Link(NamedTuple):
    """A cell that leads to a file beside the page."""

    text: str
    target: str
    """Relative path with forward slashes."""


Cell = str | float | int | bool | Link | None
Picture = bytes | np.ndarray

NOT_EVALUATED = "not evaluated"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_PNG = b"\x89PNG\r\n\x1a\n"
_TALL = 25  # a table with more rows scrolls in its own box
_SHORT = 16  # characters of a text that is not broken, such as a date and a time
_LONG = 40  # characters above which a text gets a column that it can be read in


class GateRow(Protocol):
    """What the gates table shows of a gate's result; `loom.gates.GateResult` fits."""

    @property
    def passed(self) -> bool:
        """Whether the value holds against the limit."""

    @property
    def value(self) -> float | None:
        """What was measured, or None."""

    @property
    def limit(self) -> float | None:
        """What was asked for, or None where it was to be measured and was not."""

    @property
    def message(self) -> str:
        """The answer in words."""


class Report:
    """A page that grows downwards: each method adds one block and returns the report.

    Attributes:
        marks: Name -> what a program may read of the page, in its head.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.marks: dict[str, str] = {}
        self._blocks: list[str] = []

    def heading(self, text: str) -> "Report":
        """Start a section."""
        return self._add(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> "Report":
        """Add a paragraph; blank lines separate paragraphs."""
        return self._add("".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n")))

    def warning(self, text: str) -> "Report":
        """Add a box that cannot be overlooked."""
        return self._add(f'<div class="warning" role="note"><b>Warning.</b> {escape(text)}</div>')

    def facts(self, facts: Mapping[str, Cell]) -> "Report":
        """Add names with values, one per line."""
        rows = (f"<dt>{escape(name)}</dt><dd>{_shown(v)}</dd>" for name, v in facts.items())
        return self._add(f'<dl class="facts">{"".join(rows)}</dl>')

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], note: str = ""
    ) -> "Report":
        """Add a table that the reader can sort; None is shown as "not evaluated"."""
        return self._add(_table(columns, [list(row) for row in rows], note))

    def scores(
        self,
        measured: Mapping[str, Mapping[str, float | None]],
        baseline: Mapping[str, Mapping[str, float | None]],
        note: str = "",
    ) -> "Report":
        """Add a table of scores with the trivial baseline beside them.

        Args:
            measured: What was scored -> metric -> value.
            baseline: The same for what needs no learning (blank picture, mean, chance).
            note: Where the values come from.
        """
        everything = {**measured, **baseline}
        metrics = list(dict.fromkeys(metric for row in everything.values() for metric in row))
        rows = [
            [name, *(row.get(metric) for metric in metrics)] for name, row in everything.items()
        ]
        below = set(range(len(measured), len(everything)))
        return self._add(_table(["", *metrics], rows, note, baseline_rows=below))

    def curves(
        self,
        series: Series,
        x_label: str = "step",
        y_label: str = "",
        *,
        baselines: Mapping[str, float] | None = None,
        log: bool = False,
    ) -> "Report":
        """Add one figure over the full width.

        Args:
            series: Name -> (x, y); a y that is None or not finite leaves a gap.
            x_label: What x is.
            y_label: The figure's title: what y is, with its unit.
            baselines: Name -> level, drawn as dashed lines.
            log: Start with a logarithmic y axis where all values are positive.
        """
        return self._add(curves_html(Curves(series, x_label, y_label, baselines or {}, log)))

    def curves_grid(self, figures: Iterable[Curves]) -> "Report":
        """Add small figures side by side, as many as fit."""
        return self._add(f'<div class="grid">{"".join(curves_html(f) for f in figures)}</div>')

    def pictures(self, pictures: Sequence[tuple[str, Picture]], columns: int = 3) -> "Report":
        """Add pictures in rows.

        Args:
            pictures: (caption, PNG bytes or (height, width, 3) uint8 array).
            columns: Pictures per row; a row is never broken, so comparisons stay side by side.
        """
        figures = "".join(
            f'<figure><img src="data:image/png;base64,{_base64(picture)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in pictures
        )
        style = f"grid-template-columns:repeat({columns},minmax(104px,1fr))"
        return self._add(
            f'<div class="scroll"><div class="pictures" style="{style}">{figures}</div></div>'
        )

    def gates(self, results: Iterable[GateRow | Mapping[str, Any]]) -> "Report":
        """Add the gates table: pass, miss, or not evaluated where there is no value."""
        body = "".join(_gate_row(result) for result in results)
        if not body:
            return self._add('<p class="note">No gates were set.</p>')
        head = "<th>gate</th><th>result</th><th class=number>value</th><th class=number>limit</th>"
        return self._add(_framed(head, body))

    def config(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> "Report":
        """Add a configuration with the origin of each value; what is not a default comes first.

        Args:
            values: Nested, as `loom.config.plain` gives it.
            origins: Dotted key -> where the value comes from, as in `Resolved.origins`.
        """
        rows = [[key, _plain(value), origins.get(key, "")] for key, value in flatten(values)]
        columns = ("key", "value", "origin")
        chosen = [row for row in rows if row[2] and not row[2].startswith("default")]
        if chosen:
            self._add(_table(columns, chosen, ""))
        label = f"All {len(rows)} values" if chosen else f"{len(rows)} values"
        return self._add(
            f"<details><summary>{label}</summary>{_table(columns, rows, '')}</details>"
        )

    def html(self) -> str:
        """Return the page."""
        style, script = (
            files("loom").joinpath(name).read_text(encoding="utf-8")
            for name in ("report.css", "report.js")
        )
        marks = "".join(
            f'<meta name="{escape(name)}" content="{escape(content)}">'
            for name, content in self.marks.items()
        )
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{marks}'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
            f"<header><h1>{escape(self.title)}</h1>{subtitle}</header>\n"
            + "\n".join(self._blocks)
            + f"\n</main>\n<script>\n{script}</script></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page atomically: a reader sees the old one or the new one, never half."""
        path = Path(path)
        if not path.parent.exists():
            with explained(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.html())
        return path

    def _add(self, block: str) -> "Report":
        self._blocks.append(block)
        return self


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    note: str,
    *,
    baseline_rows: Iterable[int] = (),
) -> str:
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(
                f"a row of {len(row)} cells in a table of {len(columns)} columns: {row}"
            )
    numeric = [
        all(row[i] is None or _is_number(row[i]) for row in rows) for i in range(len(columns))
    ]
    decimals = [_decimals([row[i] for row in rows]) for i in range(len(columns))]
    head = "".join(
        f'<th{" class=number" if number else ""}><button type="button">{escape(name)}</button></th>'
        if name
        else "<th></th>"
        for name, number in zip(columns, numeric, strict=True)
    )
    below = set(baseline_rows)
    body = "".join(
        f"<tr{' class=baseline' if index in below else ''}>"
        + "".join(
            _cell(value, number, places)
            for value, number, places in zip(row, numeric, decimals, strict=True)
        )
        + "</tr>"
        for index, row in enumerate(rows)
    )
    tall = " tall" if len(rows) > _TALL else ""
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    return _framed(head, body, tall) + remark


def _framed(head: str, body: str, tall: str = "") -> str:
    return (
        f'<div class="box{tall}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell, number: bool, decimals: int | None) -> str:
    classes = "number" if number else "text"
    if isinstance(value, str) and not _SHORT < len(value) <= _LONG:
        classes += " short" if len(value) <= _SHORT else " long"
    if value is None:
        return f'<td class="{classes} absent">{NOT_EVALUATED}</td>'
    if isinstance(value, float) and math.isfinite(value) and decimals is not None:
        shown = f"{value:,.{decimals}f}"
    else:
        shown = _shown(value)
    plain = value.text if isinstance(value, Link) else value
    key = float(plain) if _is_number(plain) else str(plain)
    order = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(key, str(key))  # as JavaScript reads
    return f'<td class="{classes}" data-value="{escape(order)}">{shown}</td>'


def _decimals(values: Sequence[Cell]) -> int | None:
    """Return one number of decimals for a column, so that its points stand in line.

    None where the values span so many powers of ten that each needs a format of its own.
    """
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
    if not sizes:
        return 0 if any(isinstance(v, float) for v in values) else None
    if max(sizes) / min(sizes) > 1e4 or not 1e-4 <= max(sizes) < 1e6:
        return None
    power = -1 if max(sizes) <= 1 else math.floor(math.log10(max(sizes)))
    return max(0, 3 - power)


def _gate_row(result: GateRow | Mapping[str, Any]) -> str:
    get = result.get if isinstance(result, Mapping) else lambda key: getattr(result, key, None)
    value, limit = (_gate_number(get(key)) for key in ("value", "limit"))
    if value is None or limit is None:
        kind, word = "open", NOT_EVALUATED
    elif get("passed") is True:
        kind, word = "pass", "✓ pass"
    else:
        kind, word = "miss", "✗ miss"
    numbers = ["–" if number is None else _shown(number) for number in (value, limit)]
    return (
        f'<tr><td class="text">{escape(str(get("message") or ""))}</td>'
        f'<td><span class="verdict {kind}">{word}</span></td>'
        f'<td class="number">{numbers[0]}</td><td class="number">{numbers[1]}</td></tr>'
    )


def _gate_number(value: object) -> float | None:
    """Return a gate's number, which in `gates.json` is text where it is infinite or NaN."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _is_number(value: object) -> TypeGuard[int | float]:
    """Say whether a value can be shown and sorted as a number; an integer may be beyond a float."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**300)


def _shown(value: object) -> str:
    if value is None:
        return NOT_EVALUATED
    if isinstance(value, Link):
        return f'<a href="{quote(os.fsencode(value.target))}">{escape(value.text)}</a>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return format_number(value)
    return escape(str(value))


def _plain(value: object) -> str:
    """Return a configuration's value as it is written in its file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _base64(picture: Picture) -> str:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4):
            raise ValueError(
                f"picture is {picture.dtype} of shape {picture.shape}, expected uint8 "
                "(height, width, 3)"
            )
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG", optimize=True)
        picture = stream.getvalue()
    if not picture.startswith(_PNG):
        raise ValueError("picture is not a PNG")
    return base64.b64encode(picture).decode("ascii")
