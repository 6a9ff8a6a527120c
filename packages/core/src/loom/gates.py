"""Checks that can fail or stop a run: `metric op limit` at a step, and invariants over records.

A gate asks once for a value: before the run (`preflight`), at `step N`, `every N` steps or at the
`end`. An invariant watches every record: a floor, a ceiling, or never falling, the last one across
a resume too because its memory lies in the checkpoint. A metric that could not be measured passes
no gate. Every message names the quantity, its value, the limit and what it means.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from loom.errors import GateMissed
from loom.files import write_json

Metrics = Mapping[str, float | None]
A = TypeVar("A")
_AT = re.compile(r"preflight|end|step (\d+)|every (\d+)")
_FORBID = {"extra": "forbid"}  # pydantic reads this where a config holds gates


@dataclass(frozen=True)
class Baseline:
    """A limit that is measured: a trivial answer's score plus a margin.

    `Baseline("blank", margin=1.0)` on a gate of `metric/psnr_db` stands for the recorded
    `baseline/blank/psnr_db` plus 1; a name with a slash is the key itself.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID

    metric: str
    margin: float = 0.0

    def key(self, gated: str) -> str:
        """Return the key of the baseline's score for a gated metric."""
        return self.metric if "/" in self.metric else f"baseline/{self.metric}/{_leaf(gated)}"


@dataclass(frozen=True)
class Gate:
    """A required value.

    Args:
        metric: Key of a record, such as `metric/psnr_db`.
        op: How the metric compares with the limit; `within` asks for a distance of at most the
            margin from a baseline.
        threshold: The limit, or a baseline with its margin.
        at: `preflight`, `step N`, `every N` or `end`, counted in completed updates.
        otherwise: What a miss means, such as `student is blank`.
        fatal: Whether a miss stops the run at once; the others are reported at its end.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID

    metric: str
    op: Literal[">=", ">", "<=", "<", "within"]
    threshold: float | Baseline
    at: str = "end"
    otherwise: str = ""
    fatal: bool = False

    def __post_init__(self) -> None:
        if not _AT.fullmatch(self.at):
            raise ValueError(f"a gate at {self.at!r}; preflight, step N, every N or end")
        if self.at in ("step 0", "every 0"):
            raise ValueError(
                f"a gate at {self.at!r}; steps count from 1, use preflight before them"
            )
        if self.op not in (">=", ">", "<=", "<", "within"):
            raise ValueError(f"gate operator {self.op!r}; >=, >, <=, < or within")
        if self.op == "within" and not isinstance(self.threshold, Baseline):
            raise ValueError("a gate with `within` needs a baseline as its threshold")

    def due(self, step: int, *, end: bool = False) -> bool:
        """Tell whether the gate is asked after `step` completed updates (0: preflight)."""
        if self.at == "preflight":
            return step == 0
        if self.at == "end":
            return end
        kind, number = self.at.split()
        if kind == "step":
            return step == int(number)
        return step > 0 and step % int(number) == 0

    def needs(self) -> set[str]:
        """Return the keys that must be measured to decide."""
        if isinstance(self.threshold, Baseline):
            return {self.metric, self.threshold.key(self.metric)}
        return {self.metric}


@dataclass(frozen=True)
class GateResult:
    """The answer of one gate at one step."""

    metric: str
    step: int
    at: str
    passed: bool
    value: float | None
    limit: float | None
    message: str
    fatal: bool


@dataclass(frozen=True)
class Invariant:
    """What every record must keep; a breach stops the run.

    Args:
        metric: Key of a record; records without it are passed over.
        min: Lowest allowed value.
        max: Highest allowed value.
        monotone: Whether the value may never fall, across a resume too.
        records: How many records in a row must lie outside `min` and `max` for a breach.
        otherwise: What a breach means.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID

    metric: str
    min: float | None = None
    max: float | None = None
    monotone: bool = False
    records: int = 1
    otherwise: str = ""

    def __post_init__(self) -> None:
        if self.min is None and self.max is None and not self.monotone:
            raise ValueError(f"the invariant on {self.metric} asks nothing; min, max or monotone")
        if self.records < 1:
            raise ValueError(f"an invariant over {self.records} records; 1 or more")


def evaluate(
    gates: Iterable[Gate], metrics: Metrics, step: int, *, end: bool = False
) -> list[GateResult]:
    """Answer the gates that are due after `step` completed updates."""
    return [_answer(gate, metrics, step) for gate in gates if gate.due(step, end=end)]


def by_gate(answers: Iterable[A], field: Callable[[A, str], Any]) -> Iterator[tuple[tuple, A]]:
    """Yield each answer behind what names its gate.

    Two gates may ask for one metric at one time, such as for both ends of a range. They are told
    apart by their order, which is the same at every step.

    Args:
        answers: Of any number of steps, as they were given.
        field: Returns a field of an answer by its name.
    """
    asked: Counter[tuple] = Counter()
    for answer in answers:
        metric, at, step = (str(field(answer, name)) for name in ("metric", "at", "step"))
        yield (metric, at, asked[metric, at, step]), answer
        asked[metric, at, step] += 1


def write_results(path: Path, results: Sequence[GateResult]) -> None:
    """Write every answer so far as JSON; infinities and NaN become text."""
    rows = [asdict(result) for result in results]
    for row in rows:
        for key in ("value", "limit"):
            if row[key] is not None and not math.isfinite(row[key]):
                row[key] = str(row[key])
    write_json(path, rows)


def gates_missed(missed: Sequence[GateResult | str]) -> GateMissed:
    """Return the error that ends a run with missed gates."""
    messages = [item if isinstance(item, str) else item.message for item in missed]
    return GateMissed(
        "; ".join(messages), hint="report.html in the run's directory shows what it did"
    )


class InvariantWatch:
    """Invariants with their memory; `state_dict` puts the memory into a checkpoint."""

    def __init__(self, invariants: Sequence[Invariant]) -> None:
        """Start with an empty memory."""
        self._invariants = tuple(invariants)
        self._highest: dict[str, float] = {}
        self._streaks: dict[str, int] = {}

    def check(self, metrics: Metrics, step: int) -> list[str]:
        """Take in a record and return a sentence for each breach."""
        breaches = []
        for invariant in self._invariants:
            value = metrics.get(invariant.metric)
            if value is not None:
                breaches += self._check(invariant, value, step)
        return breaches

    def _check(self, invariant: Invariant, value: float, step: int) -> Iterable[str]:
        name = invariant.metric
        meaning = f": {invariant.otherwise}" if invariant.otherwise else ""
        low, high = invariant.min, invariant.max
        outside = math.isnan(value) or (low is not None and value < low)
        outside = outside or (high is not None and value > high)
        memory = f"{name} {low} {high}"
        streak = self._streaks.get(memory, 0) + 1 if outside else 0
        self._streaks[memory] = streak
        if streak >= invariant.records:
            limits = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"
            times = f" in {streak} records in a row" if invariant.records > 1 else ""
            yield f"{name} = {value:.6g} is outside {limits}{times} at step {step}{meaning}"
        if invariant.monotone:
            highest = self._highest.get(name, -math.inf)
            if value < highest:
                yield f"{name} fell from {highest:.6g} to {value:.6g} at step {step}{meaning}"
            self._highest[name] = max(value, highest)

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as plain values."""
        return {"highest": dict(self._highest), "streaks": dict(self._streaks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a memory."""
        self._highest = dict(state["highest"])
        self._streaks = dict(state["streaks"])


def _leaf(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def _answer(gate: Gate, metrics: Metrics, step: int) -> GateResult:
    value = metrics.get(gate.metric)
    limit, shown = _limit(gate, metrics)
    passed = value is not None and limit is not None and _holds(gate, value, limit)
    if value is None:
        text = f"{gate.metric} was not measured, {gate.op} {shown} is required"
    elif limit is None:
        text = f"{gate.metric} = {value:.6g}, but {shown} was not measured"
    else:
        text = f"{gate.metric} = {value:.6g} is {'' if passed else 'not '}{gate.op} {shown}"
    text += " at the end" if gate.at == "end" else f" at step {step}"
    if gate.otherwise and not passed and value is not None and limit is not None:
        text += f": {gate.otherwise}"
    return GateResult(gate.metric, step, gate.at, passed, value, limit, text, gate.fatal)


def _limit(gate: Gate, metrics: Metrics) -> tuple[float | None, str]:
    """Return the limit and how to show it; for `within` the limit is the baseline itself."""
    if not isinstance(gate.threshold, Baseline):
        return gate.threshold, f"{gate.threshold:.6g}"
    key, margin = gate.threshold.key(gate.metric), gate.threshold.margin
    base = metrics.get(key)
    if base is None:
        return None, key
    if gate.op == "within":
        return base, f"{margin:g} of {base:.6g} ({key})"
    return base + margin, f"{base + margin:.6g} ({key} {base:.6g} {margin:+g})"


def _holds(gate: Gate, value: float, limit: float) -> bool:
    if isinstance(gate.threshold, Baseline) and gate.op == "within":
        return value == limit or abs(value - limit) <= gate.threshold.margin
    return {
        ">=": value >= limit,
        ">": value > limit,
        "<=": value <= limit,
        "<": value < limit,
    }[gate.op]
