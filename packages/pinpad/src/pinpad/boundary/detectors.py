"""Who says where a boundary is: learned scores from disk, and the anchors that need no learning.

Every detector answers the same question, `detect(episode, count)`: given an episode, where are its
boundaries? `count` is the number of true events; a rate-matched detector places exactly as many, so
that detectors differ in where they fire and not in how often.

| name | fires |
|---|---|
| `periodic`, `periodic:30` | at the matched rate, or every 30 steps |
| `random`, `random:0.1` | anywhere, at the matched rate or with probability 0.1 |
| `frame_delta` | at the largest pixel differences, at the matched rate |
| scores | as their selection says: `map` (p > 0.5), `topk` (matched rate) or `sample` |

Scores of a model are files named as the episodes, `score` (T,) with `kind` "probability" (P(READ)
of a VTA) or "value" (surprise: the latent divergence of an RSSM), and optionally `forced` (T,)
bool, where a rule and not the model made the decision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from loom.arrays import read_npz
from loom.errors import UserError

from pinpad.boundary.matching import top
from pinpad.boundary.recordings import Recording

Array = np.ndarray
Selection = Literal["map", "topk", "sample"]
SELECTIONS: tuple[Selection, ...] = ("map", "topk", "sample")
ANCHORS = ("random", "periodic", "frame_delta")


@dataclass(frozen=True)
class Detection:
    """The answer for one episode of T frames.

    Attributes:
        boundary: (T,) bool.
        score: (T,) higher means rather a boundary; None where there is nothing to rank.
        probability: Whether scores are probabilities.
        forced: (T,) bool, boundaries that a rule made; None if that is not known.
    """

    boundary: Array
    score: Array | None = None
    probability: bool = False
    forced: Array | None = None


class Detector(Protocol):
    """Anything that finds boundaries."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def detect(self, episode: Recording, count: int, rng: np.random.Generator) -> Detection:
        """Return the boundaries of an episode; `count` is the matched number of them."""
        ...


@dataclass(frozen=True)
class Anchor:
    """A detector that learns nothing."""

    name: str
    find: Callable[[Recording, int, np.random.Generator], Detection]

    def detect(self, episode: Recording, count: int, rng: np.random.Generator) -> Detection:
        """Return the boundaries of an episode."""
        return self.find(episode, count, rng)


def periodic(period: int | None = None) -> Anchor:
    """Fire every `period` steps, or as often as there are events."""

    def find(episode: Recording, count: int, rng: np.random.Generator) -> Detection:
        steps, boundary = len(episode), np.zeros(len(episode), bool)
        if period is None:
            boundary[np.arange(1, count + 1) * steps // (count + 1)] = True
        else:
            boundary[period::period] = True
        return Detection(boundary)

    return Anchor("periodic" if period is None else f"periodic:{period}", find)


def random(rate: float | None = None) -> Anchor:
    """Fire anywhere, with a probability or as often as there are events."""

    def find(episode: Recording, count: int, rng: np.random.Generator) -> Detection:
        score = rng.random(len(episode))
        return Detection(top(score, count) if rate is None else score > 1 - rate, score=score)

    return Anchor("random" if rate is None else f"random:{rate:g}", find)


def largest_frame_delta() -> Anchor:
    """Fire at the largest pixel differences: what can be had without a model."""

    def find(episode: Recording, count: int, rng: np.random.Generator) -> Detection:
        return Detection(top(episode.delta, count), score=episode.delta)

    return Anchor("frame_delta", find)


@dataclass(frozen=True)
class Scores:
    """A model's scores, one file for each episode.

    Attributes:
        name: What the model is called.
        folder: Where the files are.
        selection: How boundaries follow from scores; None is `map` for probabilities and `topk`
            for values.
    """

    name: str
    folder: Path
    selection: Selection | None = None

    def detect(self, episode: Recording, count: int, rng: np.random.Generator) -> Detection:
        """Return the boundaries of an episode.

        Raises:
            UserError: Its file is missing, damaged, of another length, or asks for the impossible.
        """
        path = self.folder / f"{episode.name}-{len(episode)}.npz"
        if not path.is_file():
            inner = [str(each.parent) for each in sorted(self.folder.glob(f"*/{path.name}"))]
            raise UserError(
                f"{path}: no scores of episode {episode.name}",
                hint=f"name one kind of score: {', '.join(inner)}"
                if inner
                else "score the same episodes that are evaluated",
            )
        score, probability, forced = read_scores(path, len(episode))
        selection = self.selection or ("map" if probability else "topk")
        if selection != "topk" and not probability:
            raise UserError(
                f"{path}: holds values and no probabilities, so `{selection}` has no meaning",
                hint="use the selection topk",
            )
        if selection == "map":
            boundary = score > 0.5
        elif selection == "sample":
            boundary = rng.random(len(score)) < score
        else:
            boundary = top(score, count)
        return Detection(boundary, score, probability, forced)


def read_scores(path: Path, frames: int) -> tuple[Array, bool, Array | None]:
    """Read (score, whether it is a probability, forced or None) of an episode.

    Raises:
        UserError: The file is damaged, of another length, not finite, or no probability.
    """
    arrays = read_npz(path)
    score, kind = arrays.get("score"), str(arrays.get("kind", ""))
    if score is None or kind not in ("probability", "value"):
        raise UserError(
            f"{path}: needs `score` and `kind`, which is {kind!r}",
            hint="kind is probability or value",
        )
    score, forced = score.astype(np.float64), arrays.get("forced")
    for name, row in (("score", score), ("forced", forced)):
        if row is not None and row.shape != (frames,):
            raise UserError(
                f"{path}: {name} has shape {row.shape}, but the episode has {frames} frames",
                hint="score the same episodes that are evaluated",
            )
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        raise UserError(f"{path}: score[{bad[0]}] is {score[bad[0]]}", hint="the model is broken")
    probability = kind == "probability"
    if probability and not ((score >= 0) & (score <= 1)).all():
        raise UserError(
            f"{path}: scores lie in [{score.min():g}, {score.max():g}], probabilities in [0, 1]",
            hint="store P(READ), or the kind value",
        )
    return score, probability, None if forced is None else forced.astype(bool)


def parse_anchor(text: str) -> Anchor:
    """Read `periodic`, `periodic:30`, `random`, `random:0.1` or `frame_delta`.

    Raises:
        UserError: There is no such detector.
    """
    name, _, value = text.partition(":")
    try:
        if name == "periodic" and (not value or int(value) > 0):
            return periodic(int(value) if value else None)
        if name == "random" and (not value or 0 <= float(value) <= 1):
            return random(float(value) if value else None)
    except ValueError:
        pass
    if text == "frame_delta":
        return largest_frame_delta()
    raise UserError(
        f"{text!r} is no detector",
        hint="there are periodic, periodic:30, random, random:0.1 and frame_delta",
    )
