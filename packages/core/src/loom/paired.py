"""Two sides judged on the same items (views, episodes): mean differences with their intervals.

Two runs that were judged on the same items can be told apart far below the spread between items,
because what makes an item hard is the same for both and leaves the difference

    d_i = b_i - a_i,    mean(d) +- t(0.975, n - 1) s_d / sqrt(n)

(Student's interval of paired values). It speaks of items like these, taken as independent of each
other, and of these trainings: other trainings of the same settings differ as well, which no number
of items shows.

A run keeps such values where a file `evaluation/NAME.json` holds a list of mappings that each have
a `name`, as `loom.evaluation.images.Scores.to_json` writes it. Lists without names are not paired:
nothing says that their places mean the same items.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loom.errors import UserError
from loom.evaluation.statistics import Interval, mean_interval
from loom.files import read_json

FOLDER = "evaluation"
_ORDER = ("first side", "second side")


@dataclass(frozen=True)
class PairedRow:
    """One metric over the items of both sides; the difference is the second less the first."""

    judgement: str
    """The file in `evaluation/`, without its ending."""
    metric: str
    items: str
    """What the items are called: the key of their list, such as `frames`."""
    n: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    """Limits of the 95 % interval; None where it is undefined."""
    reason: str | None
    """Why there is no interval."""


@dataclass(frozen=True)
class Paired:
    """What could be paired, and in words what could not."""

    rows: tuple[PairedRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Judgement:
    """What one file says of each item."""

    items: str
    references: Any  # fingerprint of what the items were judged against
    lpips_weights: Any
    values: Mapping[str, Mapping[str, float]]  # metric -> item -> value
    names: frozenset[str]


def pair(first: Sequence[Path], second: Sequence[Path]) -> Paired:
    """Pair the values per item of two sides; several runs of a side are averaged item by item.

    Args:
        first: Directories of the runs of one side.
        second: Those of the other; its values less the first's are the differences.
    """
    notes: list[str] = []
    read = [[_read_judgements(run, notes) for run in side] for side in (first, second)]
    kept = [{name for found in side for name in found} for side in read]
    if not all(kept):
        who = "neither side keeps" if not any(kept) else f"only the {_ORDER[bool(kept[1])]} keeps"
        return Paired((), (*notes, f"{who} values of single items in {FOLDER}/"))
    rows: list[PairedRow] = []
    for name in sorted(kept[0] | kept[1]):
        sides = [[found[name] for found in side if name in found] for side in read]
        runs, having = len(first) + len(second), sum(map(len, sides))
        lacking = f"only {having} of the {runs} runs have it" if having < runs else None
        reason = lacking or _unlike([*sides[0], *sides[1]])
        if reason is not None:
            notes.append(f"{name}: {reason}")
            continue
        for row in _rows(name, *sides):
            if isinstance(row, str):
                notes.append(row)
            else:
                rows.append(row)
    return Paired(tuple(rows), tuple(notes))


def _unlike(judged: Sequence[_Judgement]) -> str | None:
    """Return why these are not judgements of the same items, or None."""
    one = judged[0]
    for other in judged[1:]:
        if other.names != one.names or other.items != one.items:
            both = len(one.names & other.names)
            counts = f"{len(one.names)} {one.items} and {len(other.names)} {other.items}"
            return f"other items: {counts}, {both} names in both"
        if other.references != one.references:
            return f"{one.items} of the same names, but judged against other references"
    return None


def _rows(
    name: str, first: Sequence[_Judgement], second: Sequence[_Judgement]
) -> Iterator[PairedRow | str]:
    """Yield a row for each metric that all runs measured on the same items, else why there is none.

    A metric that one side has not measured at all is no news: the table of metrics shows it.
    """
    everyone = [*first, *second]
    for metric in everyone[0].values:
        measured = [each.values.get(metric, {}) for each in everyone]
        if not all(measured):
            continue
        if any(values.keys() != measured[0].keys() for values in measured):
            yield f"{name}, {metric}: measured on other {everyone[0].items}"
        elif metric == "lpips" and any(
            each.lpips_weights != everyone[0].lpips_weights for each in everyone
        ):
            yield f"{name}, {metric}: measured with other weights"
        else:
            names = sorted(measured[0])
            table = np.array([[values[item] for item in names] for values in measured])
            yield _row(name, metric, everyone[0].items, table[: len(first)], table[len(first) :])


def _row(
    name: str, metric: str, items: str, first: np.ndarray, second: np.ndarray
) -> PairedRow | str:
    """Return the row of one metric; both tables are (runs, items)."""
    with np.errstate(invalid="ignore"):  # inf - inf: identical pictures on both sides
        differences = second.mean(axis=0) - first.mean(axis=0)
    if bad := int(np.count_nonzero(~np.isfinite(differences))):
        return f"{name}, {metric}: not finite for {bad} of {len(differences)} {items}"
    found = mean_interval(differences)
    low, high, reason = (
        (found.low, found.high, None) if isinstance(found, Interval) else (None, None, found.reason)
    )
    means = float(first.mean()), float(second.mean())
    mean = float(differences.mean())
    return PairedRow(name, metric, items, len(differences), *means, mean, low, high, reason)


def _read_judgements(run: Path, notes: list[str]) -> dict[str, _Judgement]:
    """Return the judgements of a run that name their items; what cannot be read is noted."""
    found: dict[str, _Judgement] = {}
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            judged = _judgement(read_json(path))
        except UserError as error:
            notes.append(error.message)
            continue
        if judged is not None:
            found[path.stem] = judged
    return found


def _judgement(content: Any) -> _Judgement | None:
    """Return what a file says of items; None if it does not name each of them once."""
    if not isinstance(content, dict):
        return None
    for key, listed in content.items():
        if not isinstance(listed, list) or not listed:
            continue
        named = {
            each["name"]: each
            for each in listed
            if isinstance(each, dict) and isinstance(each.get("name"), str)
        }
        if len(named) == len(listed):
            values: dict[str, dict[str, float]] = {}
            for name, item in named.items():
                for metric, value in item.items():
                    if metric != "name" and (number := _number(value)) is not None:
                        values.setdefault(metric, {})[name] = number
            against = content.get("references_sha256"), content.get("lpips_weights")
            return _Judgement(key, *against, values, frozenset(named))
    return None


def _number(value: Any) -> float | None:
    """Return a number as it stands in strict JSON, where an infinity is a string."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return None
    return float(value) if value in ("inf", "-inf", "nan") else None
