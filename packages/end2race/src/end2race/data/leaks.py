"""What makes a score look better than the driver: shared drives, and labels that are inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from end2race.data.segments import Segment

_STRETCH = 5


@dataclass(frozen=True)
class Copied:
    """Errors of answers that only repeat an input, as shares of the mean predictor's error.

    0 is a label that is given away, 1 one of which the input tells nothing.

    Attributes:
        angle_share: Wheel angle from the one before; None if the angle is constant.
        speed_share: Speed label from the present speed; None if it is constant.
        commanded_is_present_speed: Whether a recorded target speed is the present one throughout.
    """

    angle_share: float | None
    speed_share: float | None
    commanded_is_present_speed: bool


def copied_labels(segments: Sequence[Segment]) -> Copied | None:
    """Measure how far one gets by copying; None without segments of two frames."""
    long = [segment for segment in segments if len(segment) > 1]
    if not long:
        return None
    angle = np.concatenate([segment.wheel_angle[1:] for segment in long]).astype(np.float64)
    before = np.concatenate([segment.wheel_angle[:-1] for segment in long])
    speed, label = [], []
    for segment in long:
        recorded = segment.target_velocity
        speed.append(segment.velocity[:-1] if recorded is None else segment.velocity)
        label.append(segment.velocity[1:] if recorded is None else recorded)
    present, wanted = np.concatenate(speed), np.concatenate(label).astype(np.float64)
    recorded = all(segment.target_velocity is not None for segment in long)
    return Copied(
        _share(angle, before),
        _share(wanted, present),
        recorded and bool(np.array_equal(present, wanted)) and float(wanted.std()) > 0,
    )


def _share(label: np.ndarray, answer: np.ndarray) -> float | None:
    variance = float(label.var())
    return float(np.square(label - answer).mean()) / variance if variance > 0 else None


def shared_stretches(segments: Sequence[Segment]) -> Iterator[tuple[str, str, int]]:
    """Find drives of which a part occurs in another split.

    Speeds and wheel angles of five frames in a row, to the last digit, are taken for a fingerprint;
    stretches in which neither changes are left out. Time stamps and file names may differ.

    Yields:
        Two segments as `split/name`, and how many frames of the second one occur in the first.
    """
    seen: dict[bytes, int] = {}
    for number, segment in enumerate(segments):
        overlaps: dict[int, set[int]] = {}
        for row, fingerprint in _stretches(segment):
            other = seen.setdefault(fingerprint, number)
            if segments[other].split != segment.split:
                overlaps.setdefault(other, set()).update(range(row, row + _STRETCH))
        for other, rows in overlaps.items():
            first = segments[other]
            yield f"{first.split}/{first.name}", f"{segment.split}/{segment.name}", len(rows)


def _stretches(segment: Segment) -> Iterator[tuple[int, bytes]]:
    """Yield each row with the fingerprint of the frames from there on."""
    rows = np.stack([segment.velocity, segment.wheel_angle], axis=1)
    for row in range(len(rows) - _STRETCH + 1):
        stretch = rows[row : row + _STRETCH]
        if len(np.unique(stretch, axis=0)) == _STRETCH:
            yield row, stretch.tobytes()
