"""Judge detectors on recorded episodes: one table of figures with intervals, chance and collapse.

Per episode: matches within a tolerance, ranking of the scores, agreement of segmentations. Over
episodes: the mean with a bootstrap interval (an episode is the independent unit), and one
circular-shift test of all of them. Frame 0, the reset, is left out: everybody finds it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from loom.evaluation.statistics import Interval, Test, Undefined, auc, bootstrap_interval

from pinpad.boundary import compat, segments
from pinpad.boundary.detectors import Detection, Detector
from pinpad.boundary.matching import average_precision, match
from pinpad.boundary.nulls import placement_p, shift_test
from pinpad.boundary.recordings import Recording
from pinpad.boundary.segments import Shape, shape

Array = np.ndarray

TOLERANCES = (0, 1, 2, 5)
DEFAULT_EVENTS = ("sequence_append", "pad_enter", "reward", "delta")
ENOUGH_EPISODES = 20


@dataclass(frozen=True)
class Judged:
    """A detector against one kind of event.

    Attributes:
        detector: Its name.
        event: The kind.
        events: How many there were.
        episodes: How many episodes.
        metrics: Name -> mean over episodes with its interval, or why there is none.
        chance: Circular-shift test over all episodes.
        lift: Hits over those expected of boundaries anywhere in their own episode.
        shape: Its boundaries without regard to events.
        expected_count: Sum of the probabilities, beside `shape.count`.
        forced_share: Share of the boundaries that a rule made.
        compat: The earlier definitions' figures, one row for each episode.
    """

    detector: str
    event: str
    events: int
    episodes: int
    metrics: Mapping[str, Interval | Undefined]
    chance: Test | Undefined
    lift: float | Undefined
    shape: Shape
    expected_count: float | None
    forced_share: float | None
    compat: list[dict[str, Any]]


@dataclass(frozen=True)
class _Case:
    """One episode as one detector sees it, without its first frame."""

    boundary: Array
    event: Array
    score: Array | None
    subtask: Array | None


def judge(
    episodes: Sequence[Recording],
    detector: Detector,
    event: str,
    *,
    seed: int = 0,
    permutations: int = 9_999,
) -> Judged:
    """Judge one detector against one kind of event.

    Args:
        episodes: Held out from training.
        detector: Who is judged.
        event: One of `recordings.KNOWN_EVENTS`.
        seed: Of shifts, bootstrap and random detectors.
        permutations: Shifts drawn for the p value.
    """
    rng = np.random.default_rng(seed)
    found: list[Detection] = []
    cases: list[_Case] = []
    rows = []
    for episode in episodes:
        truth = episode.truth(event)
        detection = detector.detect(episode, int(truth[1:].sum()), rng)
        found.append(detection)
        cases.append(_case(episode, truth, detection))
        rows.append(_compat_row(episode, event, truth, detection))
    boundaries, truths = [case.boundary for case in cases], [case.event for case in cases]
    metrics = {
        name: _over_episodes([measure(case) for case in cases], rng)
        for name, measure in _measures().items()
    }
    return Judged(
        detector=detector.name,
        event=event,
        events=sum(int(truth.sum()) for truth in truths),
        episodes=len(cases),
        metrics=metrics,
        chance=shift_test(boundaries, truths, rng, permutations=permutations),
        lift=_lift(boundaries, truths),
        shape=shape(boundaries),
        expected_count=_expected(found),
        forced_share=_forced_share(found),
        compat=rows,
    )


def as_json(judged: Judged) -> dict[str, Any]:
    """Return a judgement as plain values; what is undefined is null, with its reason beside."""
    metrics = {name: _interval(value) for name, value in judged.metrics.items()}
    return _plain(asdict(judged) | {"metrics": metrics})


def _case(episode: Recording, truth: Array, detection: Detection) -> _Case:
    subtask = None
    if {"progress", "countdown"} <= episode.state.keys():
        subtask = np.where(episode.state["countdown"] > 0, -1, episode.state["progress"])[1:]
    score = detection.score[1:] if detection.score is not None else None
    return _Case(detection.boundary[1:], truth[1:], score, subtask)


def _measures() -> dict[str, Callable[[_Case], float | Undefined]]:
    """Return every figure of an episode by name."""
    measures: dict[str, Callable[[_Case], float | Undefined]] = {}
    for tolerance in TOLERANCES:
        for name in ("precision", "recall", "f1"):
            measures[f"{name}@{tolerance}"] = _matched(name, tolerance)
    return measures | {
        "average_precision": lambda c: _ranked(average_precision, c),
        "auc": lambda c: _ranked(auc, c),
        "window_diff": lambda c: segments.window_diff(
            c.boundary, c.event, segments.window(c.event)
        ),
        "p_k": lambda c: segments.p_k(c.boundary, c.event, segments.window(c.event)),
        "covering": lambda c: segments.covering(c.boundary, c.event),
        "subtask_nmi": _subtask_nmi,
        "placement_p": lambda c: placement_p(c.boundary, c.event),
    }


def _matched(name: str, tolerance: int) -> Callable[[_Case], float | Undefined]:
    return lambda case: getattr(match(case.boundary, case.event, tolerance), name)


def _ranked(measure: Callable[[Array, Array], float | Undefined], case: _Case) -> float | Undefined:
    return Undefined("no scores") if case.score is None else measure(case.score, case.event)


def _subtask_nmi(case: _Case) -> float | Undefined:
    """Compare segments with the stretches in which the next pad of the target stays the same."""
    if case.subtask is None:
        return Undefined("the episodes hold no subtask")
    stretches = segments.segment_ids(segments.spells(case.subtask))
    return segments.mutual_information(segments.segment_ids(case.boundary), stretches)


def _over_episodes(
    values: Sequence[float | Undefined], rng: np.random.Generator
) -> Interval | Undefined:
    """Return the mean over the episodes that have a value, with its interval where two do."""
    defined = [value for value in values if not isinstance(value, Undefined)]
    if not defined:
        return next(value for value in values if isinstance(value, Undefined))
    mean = float(np.mean(defined))
    if len(defined) < 2 or np.ptp(defined) == 0:
        low = high = mean if len(defined) > 1 else float("nan")
        return Interval(mean, low, high, 0.95, len(defined))
    return bootstrap_interval(defined, rng, resamples=1_999, method="percentile")


def _lift(boundaries: Sequence[Array], events: Sequence[Array]) -> float | Undefined:
    """Return hits over the hits expected if boundaries lay anywhere in their own episode."""
    pairs = list(zip(boundaries, events, strict=True))
    expected = sum(boundary.sum() * event.mean() for boundary, event in pairs)
    if expected == 0:
        return Undefined("no episode has both boundaries and events")
    return float(sum((boundary & event).sum() for boundary, event in pairs) / expected)


def _expected(found: Sequence[Detection]) -> float | None:
    if not all(each.probability for each in found):
        return None
    return float(sum(each.score[1:].sum() for each in found if each.score is not None))


def _forced_share(found: Sequence[Detection]) -> float | None:
    if any(each.forced is None for each in found):
        return None
    boundaries = sum(int(each.boundary[1:].sum()) for each in found)
    forced = sum(
        int((each.boundary & each.forced)[1:].sum()) for each in found if each.forced is not None
    )
    return forced / boundaries if boundaries else None


def _compat_row(
    episode: Recording, event: str, truth: Array, detection: Detection
) -> dict[str, Any]:
    probability = detection.score if detection.probability else None
    row = compat.event_metrics(event, detection.boundary, probability, truth)
    head = {"episode": f"{episode.name}-{len(episode)}.npz", "length": len(episode)}
    return head | {"boundary_count": int(detection.boundary.sum())} | row


def _interval(value: Interval | Undefined) -> Any:
    return value if isinstance(value, Undefined) else value._asdict()


def _plain(value: Any) -> Any:
    """Turn tests, undefined values and NaN into what JSON knows."""
    if isinstance(value, Undefined):
        return {"value": None, "reason": value.reason}
    if isinstance(value, Test):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        if set(value) == {"reason"}:  # what `asdict` makes of Undefined
            return {"value": None, "reason": value["reason"]}
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
