"""Two runs, or two folders of runs, side by side: settings, last metrics with intervals, curves.

A side is one run, or a folder whose runs differ in their seed alone (a condition of a sweep). Of
several runs the mean of each metric is shown with Student's interval over the runs, which are few;
of one run there is its value and no interval, for it says nothing of the spread between runs.
Where both sides were judged on the same items, `loom.paired` adds the differences over those.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loom.config import differences, read_yaml
from loom.errors import UserError
from loom.evaluation.statistics import Interval, difference_interval, mean_interval
from loom.paired import Paired, pair
from loom.record import Row, read_records
from loom.report import Cell, Report
from loom.report_curves import Curves
from loom.run_directory import CONFIG_FILE, RUN_FILE
from loom.runs import SWEEP_FILE, find_runs

_OWN = ("seed", "name")  # settings in which the runs of one side may differ


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    runs: tuple[Path, ...]
    config: Mapping[str, Any]
    rows: tuple[tuple[Row, ...], ...]
    """The records of each run."""
    left_out: tuple[str, ...] = ()
    """Runs below the folder that ended before they had settings to compare."""

    def metrics(self) -> list[str]:
        """Return the keys that were recorded, in the order in which they first appear."""
        keys = (key for rows in self.rows for row in rows for key in row)
        return [key for key in dict.fromkeys(keys) if key not in ("step", "time")]

    def last(self, key: str) -> list[float]:
        """Return the last value of a metric in each run that has one."""
        found = [[v for row in rows if (v := row.get(key)) is not None] for rows in self.rows]
        return [float(values[-1]) for values in found if values]


@dataclass(frozen=True)
class MetricRow:
    """One metric of both sides; None where a side has not measured it, or has but one run."""

    metric: str
    first: float | None
    first_interval: tuple[float, float] | None
    second: float | None
    second_interval: tuple[float, float] | None
    difference: float | None
    """The second less the first."""
    difference_interval: tuple[float, float] | None
    """Welch's of 95 % over runs; None where a side has but one."""


@dataclass(frozen=True)
class Comparison:
    """What differs between two sides."""

    first: Side
    second: Side
    settings: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    paired: Paired

    @property
    def repeated(self) -> bool:
        """Whether a side has more than one run, so that there are intervals to show."""
        return max(len(self.first.runs), len(self.second.runs)) > 1


def compare(first: Path, second: Path) -> Comparison:
    """Compare two runs, or two folders of runs that differ in their seed alone.

    Raises:
        UserError: There is no run, a run cannot be read, or the runs of one folder differ in more
            than their seed; names the folder and the settings.
    """
    one, two = map(_side, (first, second), _names(first, second))
    ignored = _OWN if max(len(one.runs), len(two.runs)) > 1 else ()
    settings = [
        change
        for change in differences(one.config, two.config)
        if change.partition(":")[0] not in ignored
    ]
    keys = sorted(dict.fromkeys([*one.metrics(), *two.metrics()]), key=_rank)
    rows = [_metric_row(key, one.last(key), two.last(key)) for key in keys]
    paired = pair(one.runs, two.runs)
    return Comparison(one, two, tuple(settings), tuple(rows), paired)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return the ends of two paths from where they differ on: `wide/seed-0`, `narrow/seed-0`.

    Links keep the names that the user gave.
    """
    one, two = (Path(os.path.normpath(path.absolute())) for path in (first, second))
    parts = 1
    while one.parts[-parts:] == two.parts[-parts:] and parts < len(one.parts) and one != two:
        parts += 1
    return "/".join(one.parts[-parts:]), "/".join(two.parts[-parts:])


def _side(path: Path, name: str) -> Side:
    """Read one side; its configuration is that of its first run."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder", hint="give a run, or a folder of runs")
    config, left_out = path / CONFIG_FILE, []
    if config.is_file() or config.is_dir():  # a folder of this name is said to be one
        runs = [path]
    elif (path / RUN_FILE).is_file():
        raise UserError(
            f"{path}: a run without {CONFIG_FILE}, so nothing says what it was",
            hint="it ended before it had written its settings, or the file was taken away",
        )
    else:
        found = [Path(each.path) for each in find_runs(path)]
        runs = [run for run in found if (run / CONFIG_FILE).is_file()]
        others = [run for run in found if run not in runs and not (run / SWEEP_FILE).is_file()]
        left_out = [run.relative_to(path).as_posix() for run in others]
    if not runs:
        raise UserError(
            f"{path}: neither a run nor a folder of runs", hint="`loom runs` lists the runs"
        )
    configs = [read_yaml(run / CONFIG_FILE) for run in runs]
    for run, config in zip(runs[1:], configs[1:], strict=True):
        changed = [
            change
            for change in differences(configs[0], config)
            if change.partition(":")[0] not in _OWN
        ]
        if changed:
            raise UserError(
                f"{path}: {runs[0].name} and {run.name} differ in more than their seed:\n  "
                + "\n  ".join(changed),
                hint="compare two runs, or two folders that hold one condition each",
            )
    rows = tuple(tuple(read_records(run)) for run in runs)
    return Side(name, tuple(runs), configs[0], rows, tuple(left_out))


def _rank(key: str) -> int:
    """Put what a run is judged by before what explains it."""
    families = ("metric/", "baseline/", "loss/")
    return next((rank for rank, family in enumerate(families) if key.startswith(family)), 3)


def _metric_row(key: str, first: Sequence[float], second: Sequence[float]) -> MetricRow:
    """Return a metric of both sides, given its last value in each of their runs."""
    one, two = _estimate(first), _estimate(second)
    difference = None if one[0] is None or two[0] is None else two[0] - one[0]
    found = difference_interval(first, second)
    interval = (found.low, found.high) if isinstance(found, Interval) else None
    return MetricRow(key, *one, *two, difference, interval)


def _estimate(values: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean of a metric over runs and its 95 % interval."""
    if not values:
        return None, None
    found = mean_interval(values)
    interval = (found.low, found.high) if isinstance(found, Interval) else None
    return float(np.mean(values)), interval


def comparison_report(comparison: Comparison) -> Report:
    """Return the page: settings that differ, the metric table, the curves of both sides."""
    first, second = comparison.first, comparison.second
    report = Report(f"{first.name} against {second.name}")
    report.facts({side.name: ", ".join(run.name for run in side.runs) for side in (first, second)})
    for note in left_out_notes(comparison):
        report.warning(note)
    report.heading("Settings that differ")
    changes = [_change(change) for change in comparison.settings]
    if changes:
        report.table(("key", first.name, second.name), changes)
    else:
        report.text("None.")
    report.heading("Last recorded value of each metric")
    note = (
        "Mean over runs, with Student's interval of 95 % over runs in brackets; that of the "
        "difference is Welch's."
        if comparison.repeated
        else "One run a side: no interval over runs."
    )
    report.table(("metric", first.name, second.name, "difference"), _cells(comparison), note)
    report.heading("Differences over the same items")
    if comparison.paired.rows:
        cells = [[*map(_unbroken, row)] for row in paired_cells(comparison)]
        report.table(paired_columns(comparison), cells, paired_note(comparison))
    if comparison.paired.notes:
        report.text("Not paired: " + "; ".join(comparison.paired.notes) + ".")
    figures = list(_curves(comparison))
    if figures:
        report.heading("Curves").curves_grid(figures)
    return report


def _change(change: str) -> tuple[str, str, str]:
    key, _, values = change.partition(": ")
    was, _, now = values.partition(" -> ")
    return key, was, now


def _cells(comparison: Comparison) -> list[list[Cell]]:
    """Return the metric table: plain numbers, or `mean [low, high]` where runs were repeated."""
    shown: list[list[Cell]] = []
    for row in comparison.metrics:
        pairs = (
            (row.first, row.first_interval),
            (row.second, row.second_interval),
            (row.difference, row.difference_interval),
        )
        values = (
            value if interval is None else with_interval(value, interval)
            for value, interval in pairs
        )
        shown.append([row.metric, *map(_unbroken, values)])
    return shown


def _unbroken(cell: Cell) -> Cell:
    """Keep an interval on one line of the page."""
    return cell.replace(", ", ",\N{NO-BREAK SPACE}") if isinstance(cell, str) else cell


def paired_columns(comparison: Comparison) -> tuple[str, ...]:
    """Return the headings of the table of differences over items."""
    sides = (comparison.first.name, comparison.second.name)
    return ("judgement", "metric", "items", *sides, "difference")


def paired_cells(comparison: Comparison) -> list[tuple[Cell, ...]]:
    """Return the table of differences over items: `0.9 [0.8, 1.1]`, or why there is no interval."""
    rows: list[tuple[Cell, ...]] = []
    for row in comparison.paired.rows:
        if row.low is None or row.high is None:
            difference = f"{row.difference:.4g} ({row.reason})"
        else:
            difference = with_interval(row.difference, (row.low, row.high))
        rows.append(
            (row.judgement, row.metric, f"{row.n} {row.items}", row.first, row.second, difference)
        )
    return rows


def paired_note(comparison: Comparison) -> str:
    """Say of what the intervals over items speak, and of what they do not."""
    runs = [len(side.runs) for side in (comparison.first, comparison.second)]
    trainings = "one training each" if max(runs) == 1 else f"{runs[0]} and {runs[1]} trainings"
    return (
        f"Student's interval of 95 % over items, taken as independent; {trainings}: how other "
        "trainings would differ it does not say."
    )


def left_out_notes(comparison: Comparison) -> list[str]:
    """Say which runs of a side are in none of its numbers, and how many are."""
    return [
        f"{side.name} is {len(side.runs)} of {len(side.runs) + len(side.left_out)} runs: "
        f"{', '.join(side.left_out)} ended without {CONFIG_FILE}"
        for side in (comparison.first, comparison.second)
        if side.left_out
    ]


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str | None:
    """Write `35.1 [34.8, 35.3]`; the value alone without an interval, None without a value."""
    if value is None:
        return None
    if interval is None:
        return f"{value:.5g}"
    return f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"


def _curves(comparison: Comparison) -> Iterator[Curves]:
    """Yield one figure for each metric that changes over the steps of a run."""
    sides = (comparison.first, comparison.second)
    for row in comparison.metrics:
        series, groups = {}, {}
        for side in sides:
            for run, rows in zip(side.runs, side.rows, strict=True):
                points = [
                    (each["step"] or 0, each[row.metric]) for each in rows if row.metric in each
                ]
                if points:
                    name = side.name if len(side.runs) == 1 else f"{side.name}/{run.name}"
                    series[name] = ([step for step, _ in points], [value for _, value in points])
                    groups[name] = side.name
        if any(len(steps) > 1 for steps, _ in series.values()):
            log = row.metric.startswith("loss")
            title = row.metric.removeprefix("metric/")
            yield Curves(series, "step", title, log=log, groups=groups)
