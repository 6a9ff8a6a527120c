"""How good a memory is: each window is answered by the other segments, and the truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from end2race.cache.keys import parse_key
from end2race.memory.bank import MemoryBank

_QUERIES = 2000
_WHOLE_SEGMENT = 10**9


@dataclass(frozen=True)
class Answered:
    """Errors of recalled wheel angles, in degrees^2; None where nothing was recalled.

    Attributes:
        name: How the answers were made.
        mse: Mean over all windows.
        confident_mse: Mean over the half with the higher confidence.
        unsure_mse: Mean over the other half.
        correlation: Rank correlation of the neighbours' variance and the error.
    """

    name: str
    mse: float | None
    confident_mse: float | None = None
    unsure_mse: float | None = None
    correlation: float | None = None


@dataclass(frozen=True)
class MemoryStats:
    """A memory in numbers."""

    facts: dict[str, Any]
    answered: tuple[Answered, ...]


def memory_stats(bank: MemoryBank, k: int, tau: float) -> MemoryStats:
    """Answer evenly spread windows from the other segments' windows.

    Beside the memory stand the mean over all windows, a window drawn at random, and the single
    nearest window.
    """
    n = len(bank.windows)
    chosen = np.unique(np.linspace(0, n - 1, _QUERIES).round().astype(np.int64))
    asking = [bank.windows[row] for row in chosen]
    every = bank.cache.read(bank.windows, ["actions"])["actions"][..., 0]
    truth = every[chosen]
    variance = float(every.var())
    answered = [
        Answered("mean of all", _mean(np.square(truth - every.mean(axis=0)))),
        Answered("random window", 2 * variance),  # expectation over pairs
    ]
    for count in sorted({1, k}):
        recall = bank.recall(
            bank.vectors[chosen], asking=asking, k=count, tau=tau, exclude_frames=_WHOLE_SEGMENT
        )
        error = np.square(recall.fields["actions"][..., 0] - truth).mean(axis=1)
        known = np.isfinite(recall.variance)
        name = "nearest window" if count == 1 else f"{count} nearest, tau {tau:g}"
        answered.append(_judge(name, error[known], recall.variance[known], split=count > 1))
    facts = {
        "kind": bank.kind,
        "windows": n,
        "segments": len({parse_key(key).segment for key in bank.windows}),
        "dimension": bank.vectors.shape[1],
        "variance_scale_deg2": bank.variance_scale,
        "teacher": bank.cache.info.teacher_sha256,
        "cache": str(bank.cache.directory),
    }
    return MemoryStats(facts, tuple(answered))


def _judge(name: str, error: np.ndarray, variance: np.ndarray, *, split: bool) -> Answered:
    if not split or len(error) < 2:
        return Answered(name, _mean(error))
    order = np.argsort(variance, kind="stable")
    sure, unsure = np.array_split(error[order], 2)
    ranks = [np.argsort(np.argsort(each, kind="stable")) for each in (variance, error)]
    moves = variance.std() > 0 and error.std() > 0
    correlation = float(np.corrcoef(np.stack(ranks).astype(np.float64))[0, 1]) if moves else None
    return Answered(name, _mean(error), _mean(sure), _mean(unsure), correlation)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
