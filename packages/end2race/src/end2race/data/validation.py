"""Is a dataset what it says it is?  Every answer names its place, its value and a remedy.

Opening a dataset stops at its first problem; validation reads everything and lists them all. Beyond
the files it looks at two things that no reader can see: whether drives of one split occur in
another one, and how much of a label can be told from an input that the network is given.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from loom.errors import UserError

from end2race.data.dataset import (
    FILE,
    SPLITS,
    Dataset,
    DatasetInfo,
    read_info,
    segment_directories,
    segment_problems,
    unit_problems,
)
from end2race.data.images import read_image
from end2race.data.leaks import Copied, copied_labels, shared_stretches
from end2race.data.lidar_files import read_points
from end2race.data.segments import SEGMENT_NAME, Segment, read_segment

Level = Literal["ok", "warn", "fail"]
Contents = dict[bytes, list[tuple[str, Path]]]
"""Digest of a cloud -> split and file of each place where it was found."""

_FEWEST_POINTS = 10
_LATE = 1.5  # a frame later than so many periods is a gap


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        level: `ok`, `warn` or `fail`.
        check: What was looked at.
        detail: What was found, with file and value.
        fix: What to do about it.
    """

    level: Level
    check: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Validation:
    """All answers about a dataset.

    Attributes:
        root: Its folder.
        findings: In the order of the checks.
        counts: Segments and frames of each split that could be read.
        copied: What can be told from an input without learning anything, by split.
    """

    root: str
    findings: tuple[Finding, ...]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    copied: dict[str, Copied] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.level != "fail" for finding in self.findings)

    def to_json(self) -> str:
        """Return the answers as JSON."""
        return json.dumps(asdict(self) | {"passed": self.passed}, indent=2, ensure_ascii=False)


def validate(
    root: Path,
    splits: Sequence[str] = SPLITS,
    files_per_segment: int = 0,
    say_done: Callable[[int, int], None] = lambda done, total: None,
) -> Validation:
    """Check a dataset.

    Args:
        root: Its folder.
        splits: Which splits.
        files_per_segment: Clouds and images to decode in each segment, evenly spread; 0: all.
        say_done: Told how many segments have been read, and of how many.
    """
    try:
        info = read_info(root)
    except UserError as error:
        return Validation(str(root), (_failed("dataset.json", error),))
    beams = "" if info.lidar_beams is None else f", {info.lidar_beams} beams"
    findings = [
        Finding("ok", "dataset.json", f"{info.lidar_num_features} numbers per point{beams}")
    ]
    segments: list[Segment] = []
    contents: Contents = defaultdict(list)
    directories = segment_directories(root, splits)
    findings += _name_problems(directories)
    for done, directory in enumerate(directories, 1):
        try:
            segment = read_segment(directory, info.rate_hz, info.units.wheel_angle == "radians")
        except UserError as error:
            findings.append(_failed("table", error))
            continue
        segments.append(segment)
        findings += [_failed("files", problem) for problem in segment_problems(segment, info)]
        findings += _gaps(segment, info)
        findings += _unreadable(segment, info, files_per_segment, contents)
        say_done(done, len(directories))
    if not segments:
        findings.append(
            Finding("fail", "segments", f"no segment of {', '.join(splits)} can be read")
        )
        return Validation(str(root), tuple(findings))
    dataset = Dataset(root, info, tuple(segments))
    findings += [_failed("units", problem) for problem in unit_problems(dataset)]
    findings += _twice(contents)
    findings += [
        Finding(
            "fail",
            "splits",
            f"{first} and {second} hold the same stretch of {length} frames",
            "put the whole drive into one split",
        )
        for first, second, length in shared_stretches(segments)
    ]
    copied = {split: copied_labels([s for s in segments if s.split == split]) for split in splits}
    copied = {split: each for split, each in copied.items() if each is not None}
    findings += [leak for split, each in copied.items() for leak in _leaks(split, each)]
    findings += _all_well(findings)
    counts = {
        split: {
            "segments": sum(s.split == split for s in segments),
            "frames": sum(len(s) for s in segments if s.split == split),
        }
        for split in splits
    }
    return Validation(str(root), tuple(findings), counts, copied)


def _failed(check: str, error: UserError) -> Finding:
    return Finding("fail", check, error.message, error.hint)


def _name_problems(directories: Sequence[Path]) -> Iterator[Finding]:
    """Find names that make no key of a window, or differ from another one by case only."""
    alike: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for directory in directories:
        alike[directory.parent, directory.name.casefold()].append(directory)
        if not SEGMENT_NAME.fullmatch(directory.name):
            yield Finding(
                "fail",
                "names",
                f"{directory}: its name makes no key of a window",
                "rename it: at most 128 letters, digits, _, - and inner dots",
            )
    for first, *others in alike.values():
        if others:
            yield Finding(
                "warn",
                "names",
                f"{first} and {others[0].name} differ by case only",
                "rename one: some file systems take them for the same",
            )


def _gaps(segment: Segment, info: DatasetInfo) -> Iterator[Finding]:
    """Find another rate than the declared one, and frames that are missing in a drive."""
    steps = np.diff(segment.timestamp_ns) * 1e-9 * info.rate_hz
    usual = float(np.median(steps)) if steps.size else 1.0
    if not 1 / _LATE < usual < _LATE:
        yield Finding(
            "warn",
            "timing",
            f"{segment.directory}: frames come at {info.rate_hz / usual:.3g} Hz, {FILE} says "
            f"{info.rate_hz:g}",
            f"correct rate_hz in {FILE}; imports take it from --rate-hz",
        )
        return
    late = np.flatnonzero(steps > _LATE)
    if late.size:
        row = int(late[0])
        yield Finding(
            "warn",
            "timing",
            f"{segment.directory}: {late.size} gaps at {info.rate_hz:g} Hz, the first of "
            f"{steps[row] / info.rate_hz:.3g} s before line {row + 3}",
            "cut the segment there, or correct rate_hz",
        )


def _unreadable(
    segment: Segment, info: DatasetInfo, limit: int, contents: Contents
) -> Iterator[Finding]:
    """Decode clouds and images; note what each cloud holds."""
    chosen = _spread(len(segment.lidar_files), limit)
    for path in (segment.directory / segment.lidar_files[row] for row in chosen):
        if not path.is_file():
            continue  # `segment_problems` has named it
        try:
            points = read_points(path, info.lidar_num_features)
        except UserError as error:
            yield _failed("clouds", error)
            continue
        digest = hashlib.sha256(points.tobytes()).digest()
        contents[digest].append((segment.split, path))
        if len(points) < _FEWEST_POINTS:
            yield Finding(
                "warn", "clouds", f"{path}: only {len(points)} points", "look at the recording"
            )
    camera = info.calibration
    if segment.image_files is None:
        return
    if camera is None:
        yield Finding(
            "warn",
            "images",
            f"{segment.directory}: images without a calibrated camera cannot be learned from",
            "add the camera to calibration.json",
        )
        return
    for row in _spread(len(segment.image_files), limit):
        path = segment.directory / segment.image_files[row]
        if path.is_file():
            try:
                read_image(path, camera.width, camera.height)
            except UserError as error:
                yield _failed("images", error)


def _spread(count: int, limit: int) -> list[int]:
    if not limit or limit >= count:
        return list(range(count))
    return sorted({int(row) for row in np.linspace(0, count - 1, limit)})


def _twice(contents: Contents) -> Iterator[Finding]:
    """Find clouds that occur more than once: across splits, or from a sensor that hangs."""
    for found in contents.values():
        if len(found) < 2:
            continue
        paths = [path for _, path in found]
        splits = {split for split, _ in found}
        if len(splits) > 1:
            yield Finding(
                "fail",
                "splits",
                f"{paths[0]} and {paths[-1]} hold the same cloud in {' and '.join(sorted(splits))}",
                "put the whole drive into one split",
            )
        else:
            yield Finding(
                "warn",
                "clouds",
                f"{paths[0]} and {len(paths) - 1} more hold the same cloud",
                "the sensor hung: drop the repeated frames",
            )


def _leaks(split: str, copied: Copied) -> Iterator[Finding]:
    """Judge how much of the labels the inputs give away."""
    if copied.commanded_is_present_speed:
        yield Finding(
            "fail",
            "labels",
            f"{split}: target_velocity is the present velocity in every frame, so the label is "
            "the input",
            "record the commanded speed, or drop the column: the speed one frame later is taken",
        )
    if copied.angle_share is not None and copied.angle_share < 1e-6:
        yield Finding(
            "warn",
            "labels",
            f"{split}: the wheel angle never changes from one frame to the next",
            "look at the recording; nothing about steering can be learned of it",
        )


def _all_well(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Say which checks found nothing."""
    for check, what in {
        "names": "every segment's name makes a key",
        "table": "every data.csv can be read",
        "files": "every file is there and whole",
        "clouds": "clouds have points, and finite ones",
        "images": "images have the calibration's size",
        "units": "speeds and angles fit their units",
        "timing": "no frame is missing",
        "splits": "no drive occurs in two splits",
        "labels": "no label is an input",
    }.items():
        if all(finding.check != check for finding in findings):
            yield Finding("ok", check, what)
