"""The outcome of a sweep: conditions by seeds as a table, one JSON file and one page.

A seed is the independent unit: the value of a run is its mean over episodes, and a condition gets
the mean over its seeds with Student's interval. With one seed there is no such interval; the one
over episodes stands in its place and the table says so.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.drawing import print_table
from loom.errors import UserError
from loom.files import read_json, write_json
from loom.report import Report
from loom.runs import last_metrics
from scipy import stats

from pinpad.boundary.evaluate import ENOUGH_EPISODES
from pinpad.boundary_eval import OUTPUT
from pinpad.figures import FIRED, GRID, INTERNAL
from pinpad.sweep.plan import Member, SweepSettings, members
from pinpad.sweep.state import read_settings, read_sweep

METRICS = {
    "f1@1": "F1@1",
    "average_precision": "AP",
    "auc": "AUC",
    "subtask_nmi": "NMI",
}
"""Of a judgement -> what it is called in tables."""
WITH_INTERVAL = ("f1@1", "average_precision", "auc")
TRAINING = {
    "metric/reconstruction_error": "reconstruction",
    "metric/one_step_error": "one step ahead",
    "metric/reward_ap_open_loop": "reward AP, open loop",
    "metric/train_return": "return while training",
}
"""Last values of a training -> what they are called; nobody acts in that of a world model."""
ANCHORS = ("random", "periodic", "frame_delta")
LIFT, LEVEL = 2.0, 0.05
"""A seed counts as a success of the condition with more lift and a lower p than these."""
JSON_FILE, PAGE = "report.json", "report.html"

Judgement = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A mean with an interval: over seeds, or, of one seed, over episodes."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Row:
    """A detector of a condition against one kind of event, over seeds."""

    condition: str
    detector: str
    seeds: int
    boundaries: float
    metrics: Mapping[str, Spread | None]
    lift: Spread | None
    successes: int
    forced_share: float | None
    flags: str


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Spread | None:
    """Return mean and Student's interval of one value for each seed; None without values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = float(np.mean(known))
    if len(known) < 2:
        return Spread(mean, float("nan"), float("nan"), len(known))
    half = stats.t.ppf((1 + confidence) / 2, len(known) - 1) * np.std(known, ddof=1)
    half /= np.sqrt(len(known))
    return Spread(mean, mean - float(half), mean + float(half), len(known))


def read_judgements(root: Path, settings: SweepSettings) -> dict[Member, list[Judgement]]:
    """Return what each run was judged as; runs without an evaluation are left out.

    Raises:
        UserError: A file is damaged.
    """
    found = {}
    for member in members(settings):
        path = root / member.name / OUTPUT
        if path.is_file():
            content = read_json(path)
            if not isinstance(content, dict) or not isinstance(content.get("judgements"), list):
                raise UserError(f"{path}: holds no judgements", hint="judge the run again")
            found[member] = content["judgements"]
    return found


def rows(judged: Mapping[Member, Sequence[Judgement]], event: str) -> list[Row]:
    """Return the table of one kind of event: each condition's detectors, and the anchors once."""
    conditions = dict.fromkeys(member.condition for member in judged)
    table: list[Row] = []
    anchors: list[Row] = []
    for condition in conditions:
        runs = [each for member, each in judged.items() if member.condition == condition]
        chosen = [[one for one in run if one["event"] == event] for run in runs]
        for detector in dict.fromkeys(one["detector"] for run in chosen for one in run):
            same = [one for run in chosen for one in run if one["detector"] == detector]
            if detector not in ANCHORS:
                table.append(_row(condition, detector, same))
            elif detector not in [row.detector for row in anchors]:
                anchors.append(_row("no model", detector, same[:1]))
    return table + anchors


def _row(condition: str, detector: str, same: Sequence[Judgement]) -> Row:
    passed = [
        one
        for one in same
        if (_number(one["lift"]) or 0) > LIFT and (one["chance"].get("p") or 1.0) < LEVEL
    ]
    forced = [one["forced_share"] for one in same if one["forced_share"] is not None]
    return Row(
        condition,
        detector,
        len(same),
        float(np.mean([one["shape"]["count"] for one in same])),
        {name: _spread([one["metrics"][name] for one in same]) for name in METRICS},
        over_seeds([value for one in same if (value := _number(one["lift"])) is not None]),
        len(passed),
        float(np.mean(forced)) if forced else None,
        _flags([one["shape"]["flags"] for one in same]),
    )


def _flags(found: Sequence[Sequence[str]]) -> str:
    """Return every flag of any seed, and of how many seeds where it is not all of them."""
    counts = Counter(flag for flags in found for flag in flags)
    named = (
        flag if count == len(found) else f"{flag} {count}/{len(found)}"
        for flag, count in counts.items()
    )
    return ", ".join(named) or "-"


def _spread(values: Sequence[Mapping[str, Any]]) -> Spread | None:
    """Return mean and interval of a figure over seeds."""
    known = [value for value in values if value.get("estimate") is not None]
    if len(known) == 1:
        low, high = (known[0][key] for key in ("low", "high"))
        gap = float("nan")
        return Spread(known[0]["estimate"], low if low is not None else gap,
                      high if high is not None else gap, 1)  # fmt: skip
    return over_seeds([value["estimate"] for value in known])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def mean_cells(row: Row) -> list[Any]:
    """Return a row as numbers, without intervals."""
    spreads = [*row.metrics.values(), row.lift]
    means = [None if each is None else each.mean for each in spreads]
    return [_short(row.condition), row.detector, row.boundaries, row.flags, *means, *_ends(row)]


def interval_cells(row: Row) -> list[str]:
    """Return the intervals of a row as text."""
    spreads = [*(row.metrics[name] for name in WITH_INTERVAL), row.lift]
    named = [_short(row.condition), row.detector]
    return [*named, *("-" if spread is None else str(spread) for spread in spreads)]


def _short(condition: str) -> str:
    """Return a condition's name without what all those of the first experiments begin with."""
    return condition.removeprefix("pinpad_")


def cells(row: Row) -> list[Any]:
    """Return a row as text with intervals, for a wide table."""
    return [
        row.condition,
        row.detector,
        f"{row.boundaries:.0f}",
        row.flags,
        *("-" if row.metrics[name] is None else str(row.metrics[name]) for name in METRICS),
        "-" if row.lift is None else str(row.lift),
        *_ends(row),
    ]


def _ends(row: Row) -> list[str]:
    forced = "-" if row.forced_share is None else f"{row.forced_share:.2f}"
    return [f"{row.successes}/{row.seeds}", forced]


COLUMNS = (
    *("condition", "detector", "boundaries", "flags"),
    *METRICS.values(),
    *("lift", "pass", "forced"),
)


def training_table(root: Path) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows: state and last figures of each run's training."""
    runs = [(run, last_metrics(root / run.name)) for run in read_sweep(root).runs]
    known = [key for key in TRAINING if any(key in last for _, last in runs)]
    columns = ["run", "state", "stage", "step", *(TRAINING[key] for key in known)]
    rows = [
        [run.name, run.state, run.stage, run.step, *(last.get(key) for key in known)]
        for run, last in runs
    ]
    return columns, rows


def write_report(root: Path, say: Callable[[str], None] = print, event: str | None = None) -> Path:
    """Write a sweep's `report.json` and `report.html`, print its table; return the page.

    Args:
        root: The log root.
        say: Prints a line.
        event: The kind of true event that is printed; by default the first that was judged.

    Raises:
        UserError: There is no sweep, nothing was judged against this event, or a file is damaged.
    """
    settings = read_settings(root)
    judged = read_judgements(root, settings)
    events = list(dict.fromkeys(one["event"] for run in judged.values() for one in run))
    if event is not None and event not in events:
        raise UserError(f"nothing was judged against {event!r}", hint=f"there are {events}")
    tables = {kind: rows(judged, kind) for kind in events}
    shown = event or next(iter(events), None)
    training = training_table(root)
    print_table(*training)
    for run in read_sweep(root).runs:
        if run.detail:
            say(f"{run.name}: {run.detail}")
    if shown is not None:
        say(f"\n{shown}, {_seeds(settings)}:")
        print_table(COLUMNS, [cells(row) for row in tables[shown]])
    plain = {kind: [_plain(row) for row in table] for kind, table in tables.items()}
    columns, runs = training
    listed = [dict(zip(columns, row, strict=True)) for row in runs]
    content = {"settings": settings.model_dump(mode="json"), "runs": listed, "events": plain}
    write_json(root / JSON_FILE, content)
    return _page(root, settings, tables, training).write(root / PAGE)


def _seeds(settings: SweepSettings) -> str:
    count = len(settings.seeds)
    if count == 1:
        return "one seed, 95 % intervals over episodes"
    return f"means over {count} seeds, Student's 95 % intervals"


def _plain(row: Row) -> dict[str, Any]:
    spreads = {**row.metrics, "lift": row.lift}
    return {
        "condition": row.condition,
        "detector": row.detector,
        "seeds": row.seeds,
        "boundaries": row.boundaries,
        **{name: None if each is None else _bounds(each) for name, each in spreads.items()},
        "successes": row.successes,
        "forced_share": row.forced_share,
        "flags": row.flags,
    }


def _bounds(spread: Spread) -> dict[str, float | None]:
    low, high = (v if np.isfinite(v) else None for v in (spread.low, spread.high))
    return {"mean": spread.mean, "low": low, "high": high}


def _page(
    root: Path,
    settings: SweepSettings,
    tables: Mapping[str, Sequence[Row]],
    training: tuple[Sequence[str], Sequence[Sequence[Any]]],
) -> Report:
    state = read_sweep(root)
    page = Report(f"pinpad sweep / {root.name}", f"{settings.task}, {_seeds(settings)}")
    bad = [run for run in state.runs if run.state != "done"]
    if bad:
        page.warning("; ".join(f"{r.name}: {r.state} ({r.detail or r.stage})" for r in bad))
    if settings.episodes < ENOUGH_EPISODES:
        page.warning(f"{settings.episodes} held-out episodes; intervals want {ENOUGH_EPISODES}.")
    page.heading("Runs").table(
        *training,
        "Errors are sums of squares over a frame; reward AP from actions alone, 1 to 15 steps on.",
    )
    headline = _seeds(settings)
    headline = headline[0].upper() + headline[1:]
    for event, table in tables.items():
        page.heading(f"Boundaries against {event}")
        page.table(
            COLUMNS,
            [mean_cells(row) for row in table],
            f"{headline}. NMI: shared information with the stretches of one next pad. "
            f"pass: seeds with a lift over {LIFT:g} and p under {LEVEL:g}, both of exact hits. "
            "forced: share of the boundaries that a rule made. "
            "topk fires as often as there are events.",
        )
        names = [METRICS[name] for name in WITH_INTERVAL]
        rows_with_intervals = [interval_cells(row) for row in table]
        page.table(("condition", "detector", *names, "lift"), rows_with_intervals)
    _pictures(page, root, settings)
    return page


def _pictures(page: Report, root: Path, settings: SweepSettings) -> None:
    """Add the figures of each condition's first seed that has any."""
    for condition in settings.conditions:
        runs = [Member(condition, seed).name for seed in settings.seeds]
        drawn = next((run for run in runs if (root / run / GRID).is_file()), None)
        if drawn:
            page.heading(f"Pictures: {drawn}")
            files = [root / drawn / name for name in (GRID, INTERNAL, FIRED)]
            pictures = [(path.stem, path.read_bytes()) for path in files if path.is_file()]
            page.pictures(pictures, columns=1)
