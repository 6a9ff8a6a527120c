"""The file that later steps read, `paths.jsonl`: one line per frame with its path or the reason.

It is written by reading journals again, so a better reader of answers lifts old ones without a GPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from loom.errors import UserError
from loom.files import explained, read_text, write_atomic

from maniflow_overlay.gripper_path import GripperPath, path_from_rows
from maniflow_overlay.parts import WHOLE, Part
from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.grammar import Dialect, ParsedAnswer, Space, Status, parse_answer
from maniflow_overlay.paths.journal import RAW, read_events
from maniflow_overlay.paths.prompts import from_central_square

IMPORTED = "imported"
ORACLE = "oracle"
STATUSES = (*(str(status) for status in Status), IMPORTED, ORACLE)


@dataclass(frozen=True)
class PathRow:
    """One frame's path.

    Attributes:
        key: The frame.
        status: As in `Status`, or `imported` or `oracle`.
        path: In relative coordinates of the whole picture; None if there is none to use.
        repairs: What was mended in the answer.
        mask: PEEK's points of interest, relative, (n, 2), or None.
        held_from: The frame whose path this is, if not its own.
    """

    key: FrameKey
    status: str
    path: GripperPath | None
    repairs: tuple[str, ...] = ()
    mask: np.ndarray | None = None
    held_from: int | None = None

    def to_json(self) -> str:
        """Return the row as one line."""
        row: dict[str, Any] = {**self.key._asdict(), "status": self.status}
        row["path"] = self.path.rows() if self.path else None
        if self.repairs:
            row["repairs"] = list(self.repairs)
        if self.mask is not None:
            row["mask"] = self.mask.tolist()
        if self.held_from is not None:
            row["held_from"] = self.held_from
        return json.dumps(row, allow_nan=False)


def write_paths(path: Path, rows: Iterable[PathRow]) -> None:
    """Write the rows in order of their frames, whole or not at all."""
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row.to_json() for row in sorted(rows, key=lambda row: row.key)]
    write_atomic(path, "".join(line + "\n" for line in lines))


def read_paths(path: Path) -> list[PathRow]:
    """Read a file of paths.

    Raises:
        UserError: A line is damaged, a frame stands twice, or coordinates lie outside the picture.
    """
    rows: dict[FrameKey, PathRow] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        row = _read_row(line, f"{path}:{number}")
        if row.key in rows:
            raise UserError(f"{path}:{number}: {row.key} stands here twice")
        rows[row.key] = row
    return list(rows.values())


def _read_row(line: str, place: str) -> PathRow:
    try:
        fields = json.loads(line)
        key = FrameKey(fields["task"], fields["episode"], fields["frame"])
        numbers = type(key.episode) is int and type(key.frame) is int
        if not isinstance(key.task, str) or not numbers or fields["status"] not in STATUSES:
            raise ValueError(f"{key!r} with status {fields['status']!r}")
        points, mask = fields["path"], fields.get("mask")
        repairs, held_from = tuple(fields.get("repairs", ())), fields.get("held_from")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{place}: not a row of paths ({error!r})", hint="write the file again: paths parse"
        ) from error
    path = None if points is None else path_from_rows(points, place)
    interest = None if mask is None else path_from_rows(mask, f"{place}, mask").points
    if path is not None and len(path) and (path.points.min() < 0 or path.points.max() > 1):
        raise UserError(f"{place}: {key} has points outside of the picture (0 to 1)")
    return PathRow(key, fields["status"], path, repairs, interest, held_from)


def parse_journal(folder: Path, part: Part = WHOLE) -> list[PathRow]:
    """Read every answer of a journal again and keep the best of each frame.

    Args:
        folder: Of the journal.
        part: Of its frames, in their order.

    Raises:
        UserError: The journal is damaged, or it asked one frame in two ways.
    """
    questions: dict[str, dict[str, Any]] = {}
    answers: dict[FrameKey, list[dict[str, Any]]] = {}
    failures: dict[FrameKey, str] = {}
    asked: dict[FrameKey, str] = {}
    for event in read_events(folder / RAW):
        if event["event"] == "question":
            questions[event["question"]] = event
            continue
        key = FrameKey(event["task"], event["episode"], event["frame"])
        if asked.setdefault(key, event["question"]) != event["question"]:
            raise UserError(
                f"{folder / RAW}: {key} was asked in two ways",
                hint="generate paths of another model or prompt into another folder",
            )
        if event["event"] == "answered":
            answers.setdefault(key, []).append(event)
        elif event["event"] == "failed" and event.get("terminal"):
            failures[key] = event["status"]
    rows = []
    for key in part.of(sorted(answers.keys() | failures.keys())):
        if key in answers:
            parsed = [_reread(event, questions, folder) for event in answers[key]]
            rows.append(_best(key, parsed))
        else:
            rows.append(PathRow(key, failures[key], None))
    return rows


def _reread(event: dict, questions: dict[str, dict], folder: Path) -> ParsedAnswer:
    try:
        question = questions[event["question"]]
        width, height = event["size"]
        square = question["square"]
        answer = parse_answer(
            event["text"],
            Dialect(question["dialect"]),
            space=question["space"],
            size=(square, square) if square else (width, height),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{folder / RAW}: an answer without its question or size: {error!r}") from (
            error
        )
    if square and answer.path is not None:
        points = from_central_square(answer.path.points, width, height)
        answer = replace(answer, path=replace(answer.path, points=points))
    if square and answer.mask is not None:
        answer = replace(answer, mask=from_central_square(answer.mask, width, height))
    return answer


def _best(key: FrameKey, answers: Sequence[ParsedAnswer]) -> PathRow:
    """Prefer the last answer with a path; a whole one is always the last of its frame."""
    usable = [answer for answer in answers if answer.path is not None]
    answer = (usable or answers)[-1]
    return PathRow(key, answer.status, answer.path, answer.repairs, answer.mask)


_RAW_TEXT = re.compile(r"(?:raw_)?(?:frame_)?(\d{1,9})\.txt")
_EPISODE = re.compile(r"episode_?(\d{1,9})")


def parse_texts(
    root: Path,
    dialect: Dialect,
    *,
    size: tuple[int, int],
    space: Space | None = None,
    part: Part = WHOLE,
) -> list[PathRow]:
    """Read answers that lie as text files: `TASK/episode_07/raw_outputs/raw_frame_0042.txt`.

    Args:
        root: Folder of the tasks.
        dialect: Who answered. PEEK saw the central square of the picture.
        size: Width and height of the frames.
        space: What coordinates mean, if not the dialect's default.
        part: Of the files, in the order of their names.

    Raises:
        UserError: There are no such files.
    """
    files = []
    for path in sorted(root.glob("*/episode*/raw_outputs/*.txt")):
        episode, frame = _EPISODE.fullmatch(path.parts[-3]), _RAW_TEXT.fullmatch(path.name)
        if episode and frame:
            files.append((FrameKey(path.parts[-4], int(episode[1]), int(frame[1])), path))
    if not files:
        raise UserError(
            f"{root}: no answers",
            hint=f"expected {RAW}, or TASK/episode_07/raw_outputs/raw_frame_0042.txt",
        )
    square = 384 if dialect is Dialect.PEEK else None
    question = {"dialect": dialect, "square": square, "space": space}
    rows = []
    for key, path in part.of(files):
        event = {"question": "", "size": size, "text": read_text(path)}
        rows.append(_best(key, [_reread(event, {"": question}, root)]))
    return rows


def hold(rows: Sequence[PathRow], frames: Iterable[FrameKey]) -> list[PathRow]:
    """Give every frame the last usable path of its episode, flagged with where it comes from.

    Frames before the first usable path keep what they have.
    """
    known = {row.key: row for row in rows}
    keys = sorted({*frames, *known})
    held = []
    for _, episode in groupby(keys, key=lambda key: key[:2]):
        last: PathRow | None = None
        for key in episode:
            row = known.get(key)
            if row is not None and row.path is not None:
                last = row
                held.append(row)
            elif last is not None:
                held.append(replace(last, key=key, held_from=last.key.frame))
            elif row is not None:
                held.append(row)
    return held


def count(rows: Iterable[PathRow]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of a table: task, statuses, frames with a path, their share."""
    by_task: dict[str, list[PathRow]] = {}
    for row in rows:
        by_task.setdefault(row.key.task, []).append(row)
    everything = [row for task in by_task.values() for row in task]
    seen = [status for status in STATUSES if any(row.status == status for row in everything)]
    groups = [*sorted(by_task.items()), *([("all", everything)] if len(by_task) > 1 else [])]
    table = []
    for task, members in groups:
        numbers = [sum(row.status == status for row in members) for status in seen]
        held = sum(row.held_from is not None for row in members)
        usable = sum(row.path is not None for row in members)
        share = f"{100 * usable / len(members):.1f} %"
        table.append([task, *numbers, held, usable, len(members), share])
    return ["task", *seen, "held", "with path", "frames", "share"], table
