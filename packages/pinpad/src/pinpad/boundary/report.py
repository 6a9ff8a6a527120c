"""Boundary judgements as a table on the terminal, one JSON file and one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.evaluation.statistics import Interval, Undefined
from loom.files import write_json
from loom.report import Report

from pinpad.boundary.evaluate import ENOUGH_EPISODES, Judged, as_json

COLUMNS = ("detector", "boundaries", "flags", "F1@0", "F1@1", "AP", "AUC", "lift", "p", "CV")
_METRICS = ("f1@0", "f1@1", "average_precision", "auc")


def rows(judged: Sequence[Judged], event: str) -> list[list[Any]]:
    """Return the table of one kind of event; None is undefined."""
    return [
        [
            each.detector,
            each.shape.count,
            ", ".join(each.shape.flags) or "-",
            *(_value(each.metrics[name]) for name in _METRICS),
            _value(each.lift),
            None if isinstance(each.chance, Undefined) else each.chance.p,
            _value(each.shape.interval_cv),
        ]
        for each in judged
        if each.event == event
    ]


def stored_row(judgement: Mapping[str, Any]) -> list[Any]:
    """Return the same row from a judgement that was read from its JSON file."""
    metrics, shape = judgement["metrics"], judgement["shape"]
    plain = [judgement["lift"], shape["interval_cv"]]
    lift, cv = (None if isinstance(value, dict) else value for value in plain)
    return [
        judgement["detector"],
        shape["count"],
        ", ".join(shape["flags"]) or "-",
        *(metrics[name].get("estimate") for name in _METRICS),
        lift,
        judgement["chance"].get("p"),
        cv,
    ]


def write(judged: Sequence[Judged], path: Path, facts: dict[str, Any]) -> Path:
    """Write every figure as JSON, and the page beside it; return the path of the page.

    Args:
        judged: Every detector against every kind of event.
        path: The JSON file, `.json` if it says nothing else; the page beside it has `.html`.
        facts: What was evaluated.
    """
    if path.suffix != ".json":
        path = path.with_name(f"{path.name.removesuffix('.html')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**facts, "judgements": [as_json(each) for each in judged]})
    return _page(judged, facts).write(path.with_suffix(".html"))


def _page(judged: Sequence[Judged], facts: dict[str, Any]) -> Report:
    page = Report("Boundaries", f"{facts['episodes']} episodes in {facts['folder']}")
    if facts["episodes"] < ENOUGH_EPISODES:
        page.warning(f"{facts['episodes']} episodes; an interval wants {ENOUGH_EPISODES}.")
    for event in dict.fromkeys(each.event for each in judged):
        some = [each for each in judged if each.event == event]
        page.heading(f"{event}: {some[0].events} events")
        page.table(
            COLUMNS,
            rows(judged, event),
            "Means over episodes. lift and p are of exact hits; p: circular shifts of whole "
            "episodes. CV: deviation over mean of the intervals between boundaries, 0 for a clock.",
        )
        names = list(some[0].metrics)
        page.table(
            ("detector", *names),
            [[each.detector, *(_shown(each.metrics[name]) for name in names)] for each in some],
            "With 95 % bootstrap intervals over episodes.",
        )
    return page


def _value(value: float | Interval | Undefined) -> float | None:
    if isinstance(value, Undefined):
        return None
    return value.estimate if isinstance(value, Interval) else value


def _shown(value: Interval | Undefined) -> str | None:
    if isinstance(value, Undefined):
        return None
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"
