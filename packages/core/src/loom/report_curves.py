"""Curves of a report: inline SVG that needs no library and no network.

Lines are drawn in a stretched SVG with strokes that do not scale, and labels are HTML placed by
percentages: so text keeps its size from a telephone to a wall, and the file stays small. A long
series is thinned to the lowest and the highest point of each column, which keeps every spike.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 1000.0, 300.0  # the SVG's own units
COLUMNS = 400  # a series is thinned to two points per column
WORTH_A_LOG_SCALE = (
    30.0  # the switch is offered where the highest value is this many times the lowest
)
_ROUNDING, _NOTHING = 1e-12, 1e-290  # a relative difference, and a size, that no axis resolves
_LARGEST = 1e290  # larger values are drawn as gaps: their differences overflow
DASHES = ("5 4", "1.5 3", "9 4 2 4")  # of the baselines, and of the members of a group
COLOURS = 6  # --c0 ... --c5 in report.css; further series are dashed

Series = Mapping[str, tuple[Sequence[float], Sequence[float | None]]]


@dataclass(frozen=True)
class Curves:
    """One figure: named series over one x axis, with horizontal baselines beside them.

    Series of one group, such as the seeds of a condition, share a colour and differ in dashes; a
    series without a group is one of its own.
    """

    series: Series
    x_label: str = "step"
    y_label: str = ""
    baselines: Mapping[str, float] = field(default_factory=dict)
    log: bool = False  # start with a logarithmic y axis; the reader can switch
    groups: Mapping[str, str] = field(default_factory=dict)

    def strokes(self) -> "list[_Stroke]":
        """Return how each series is drawn, in their order."""
        groups = [self.groups.get(name, name) for name in self.series]
        order = list(dict.fromkeys(groups))
        strokes = []
        for position, group in enumerate(groups):
            colour, member = order.index(group), groups[:position].count(group)
            dash = DASHES[(member - 1) % len(DASHES)] if member else ""
            if colour >= COLOURS and not member:
                dash = "7 5"
            strokes.append(_Stroke(f"var(--c{colour % COLOURS})", dash))
        return strokes


@dataclass(frozen=True)
class _Stroke:
    """How a line is drawn: CSS colour and SVG dashes, empty for a solid one."""

    colour: str
    dash: str

    @property
    def attributes(self) -> str:
        dashed = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'style="stroke:{self.colour}"{dashed}'

    @property
    def swatch(self) -> str:
        if not self.dash:
            return f'<i style="background:{self.colour}"></i>'
        return _swatch(f'class="line" {self.attributes}')


@dataclass(frozen=True)
class _Axis:
    """A map from values to fractions of the plot, and where its ticks are."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            return (math.log10(value) - self.low) / (self.high - self.low)
        return (value - self.low) / (self.high - self.low)

    def shows(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not self.log)


def format_number(value: float) -> str:
    """Return a number for a label: at most five digits, thousands separated, no trailing zeros."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = max(0, 4 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".rstrip("0").rstrip(".")


def curves_html(curves: Curves) -> str:
    """Return one figure as HTML; a figure without a single finite value says so."""
    series = {name: _thin(list(x), list(y)) for name, (x, y) in curves.series.items()}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points if y is not None]
    title = f"<span>{escape(curves.y_label)}</span>"
    if not ys:
        return (
            f'<div class="no-curves"><div class="top">{title}</div>'
            '<p class="note">No values recorded.</p></div>'
        )
    levels = ys + [value for value in curves.baselines.values() if abs(value) < _LARGEST]
    x_axis = _linear(min(xs), max(xs), tight=True)
    views = [_view("linear-view", curves, series, x_axis, _linear(min(levels), max(levels)))]
    positive = min(levels) > _NOTHING and max(levels) > (1 + _ROUNDING) * min(levels)
    logarithmic = curves.log and positive
    if logarithmic or (positive and max(levels) / min(levels) > WORTH_A_LOG_SCALE):
        log_axis = _logarithmic(min(levels), max(levels))
        views.append(_view("log-view", curves, series, x_axis, log_axis))
        label = "linear scale" if logarithmic else "log scale"
        title += f'<button type="button" class="scale">{label}</button>'
    return (
        f'<figure class="curves{" logarithmic" if logarithmic else ""}">'
        f'<div class="top">{title}</div><div class="plot">{"".join(views)}'
        f"{_x_labels(x_axis, curves.x_label)}"
        '<div class="cursor" hidden></div><div class="tip" hidden></div></div>'
        f"{_legend(curves, series)}{_data(curves, series, x_axis)}</figure>"
    )


Points = list[tuple[float, float | None]]


def _thin(xs: list[float], ys: list[float | None]) -> Points:
    """Keep finite x; other y become gaps; a long series keeps the extremes of each column."""
    points: Points = [
        (float(x), float(y) if y is not None and abs(y) < _LARGEST else None)
        for x, y in zip(xs, ys, strict=True)
        if abs(x) < _LARGEST
    ]
    if len(points) <= 2 * COLUMNS:
        return points
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    columns: dict[int, list[int]] = {}
    for index, (x, _) in enumerate(points):
        columns.setdefault(int((x - low) / ((high - low) or 1.0) * COLUMNS), []).append(index)
    kept = {0, len(points) - 1}
    for indices in columns.values():
        drawn = [index for index in indices if points[index][1] is not None]
        if drawn:
            kept.add(min(drawn, key=lambda index: points[index][1] or 0.0))
            kept.add(max(drawn, key=lambda index: points[index][1] or 0.0))
        else:
            kept.add(indices[0])
    return [points[index] for index in sorted(kept)]


def _linear(low: float, high: float, *, tight: bool = False) -> _Axis:
    """Return an axis with about five ticks at 1, 2 or 5 times a power of ten.

    Values that differ by rounding only count as one: steps between them would vanish.
    """
    size = max(abs(low), abs(high))
    if high - low <= _ROUNDING * size or size < _NOTHING:
        margin = size * 0.1 if size >= _NOTHING else 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    if not tight:
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return _Axis(low, high, tuple(index * step for index in range(first, last + 1)))


def _logarithmic(low: float, high: float) -> _Axis:
    """Return a logarithmic axis; short ones carry ticks at 2 and 5 too."""
    bottom, top = math.log10(low), math.log10(high)
    margin = 0.04 * (top - bottom)
    bottom, top = bottom - margin, top + margin
    factors = (1,) if top - bottom >= 3 else (1, 2, 5)
    every = max(1, math.ceil((top - bottom) / 6))
    decades = range(math.floor(bottom), math.ceil(top) + 1)
    ticks = (f * 10.0**d for d in decades if d % every == 0 for f in factors)
    shown = tuple(tick for tick in ticks if bottom <= math.log10(tick) <= top)
    return _Axis(bottom, top, shown or (low, high), log=True)


def _view(
    name: str, curves: Curves, series: Mapping[str, Points], x_axis: _Axis, y_axis: _Axis
) -> str:
    """Draw rules, baselines, lines and the y labels for one scale."""
    shapes, labels = [], []
    for tick in y_axis.ticks:
        place = 1 - y_axis.place(tick)
        shapes.append(f'<path class="rule" d="M0 {place * HEIGHT:.1f}H{WIDTH:.0f}"/>')
        labels.append(_label("tick y", f"top:{100 * place:.2f}%", format_number(tick)))
    shapes.append(f'<path class="axis" d="M0 {HEIGHT:.0f}H{WIDTH:.0f}"/>')
    for index, value in enumerate(curves.baselines.values()):
        if y_axis.shows(value):
            place = (1 - y_axis.place(value)) * HEIGHT
            dash = DASHES[index % len(DASHES)]
            rule = f'<path class="base" stroke-dasharray="{dash}" d="M0 {place:.1f}H{WIDTH:.0f}"/>'
            shapes.append(rule)
    for stroke, points in zip(curves.strokes(), series.values(), strict=True):
        shapes.append(_line(stroke, points, x_axis, y_axis))
    svg = (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" role="img">'
        f"<title>{escape(curves.y_label)} over {escape(curves.x_label)}</title>"
        f"{''.join(shapes)}</svg>"
    )
    return f'<div class="{name}">{svg}{"".join(labels)}</div>'


def _line(stroke: _Stroke, points: Points, x_axis: _Axis, y_axis: _Axis) -> str:
    """Draw one series: a line with gaps, and dots where points are few or stand alone."""
    runs: list[list[str]] = [[]]
    for x, y in points:
        if y is None or not y_axis.shows(y):
            runs.append([])
            continue
        runs[-1].append(f"{x_axis.place(x) * WIDTH:.1f} {(1 - y_axis.place(y)) * HEIGHT:.1f}")
    path = "".join(f"M{'L'.join(run)}" for run in runs if len(run) > 1)
    dotted = [run for run in runs if len(run) == 1 or len(points) <= 30]
    dots = "".join(f"M{point}h0" for run in dotted for point in run)
    line = f'<path class="line" {stroke.attributes} d="{path}"/>' if path else ""
    dot = f'<path class="dots" style="stroke:{stroke.colour}" d="{dots}"/>'
    return line + (dot if dots else "")


def _x_labels(axis: _Axis, name: str) -> str:
    labels = [
        _label("tick x", f"left:{100 * axis.place(tick):.2f}%", format_number(tick))
        for tick in axis.ticks
    ]
    return "".join(labels) + _label("tick axis-label", "", name)


def _legend(curves: Curves, series: Mapping[str, Points]) -> str:
    """Name each series with its last value, which is the one that is quoted; then the baselines."""
    rows = []
    for stroke, (name, points) in zip(curves.strokes(), series.items(), strict=True):
        values = [y for _, y in points if y is not None]
        last = f" <b>{format_number(values[-1])}</b>" if values else " (no values)"
        rows.append(f"<li>{stroke.swatch}{escape(name)}{last}</li>")
    for index, (name, value) in enumerate(curves.baselines.items()):
        swatch = _swatch(f'class="base" stroke-dasharray="{DASHES[index % len(DASHES)]}"')
        rows.append(f"<li>{swatch}{escape(name)} <b>{format_number(value)}</b></li>")
    return f'<ul class="legend">{"".join(rows)}</ul>'


def _swatch(attributes: str) -> str:
    """Draw a piece of a line for the legend."""
    return (
        '<svg class="swatch" viewBox="0 0 24 3" aria-hidden="true">'
        f'<path {attributes} d="M0 1.5H24"/></svg>'
    )


def _data(curves: Curves, series: Mapping[str, Points], x_axis: _Axis) -> str:
    data = {
        "x_label": curves.x_label,
        "range": [x_axis.low, x_axis.high],
        "series": [
            {
                "name": name,
                "colour": stroke.colour,
                "x": [x for x, _ in points],
                "y": [None if y is None else float(f"{y:.6g}") for _, y in points],
            }
            for stroke, (name, points) in zip(curves.strokes(), series.items(), strict=True)
        ],
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _label(classes: str, style: str, text: str) -> str:
    place = f' style="{style}"' if style else ""
    return f'<span class="{classes}"{place}>{escape(text)}</span>'
