"""Read the path out of a model's answer, whatever state the answer is in.

HAMSTER's own reader evaluates the text as Python and fails on a leading action, a literal `...`, a
missing comma, text around the list and everything that is cut off: in the notes on 72 % of the
answers for one task. Here a scanner takes points, actions and separators one by one, and says what
it had to mend. Nothing is evaluated.

HAMSTER's rule for the gripper: it starts closed; an action sets the state of the point before it
and of all points after it. An action before the first point sets the start. PEEK gives no states
but a mask, a second list of points; Qwen gives pairs in brackets, also inside JSON objects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np

from maniflow_overlay.gripper_path import CLOSED, OPEN, GripperPath

LONGEST_ANSWER = 50_000
OVERSHOOT = 0.05  # relative; a point this little outside is held at the border

Space = Literal["unit", "permille", "pixel"]


class Dialect(StrEnum):
    """Who answers."""

    HAMSTER = "hamster"
    PEEK = "peek"
    QWEN = "qwen"


class Status(StrEnum):
    """What became of one frame."""

    OK = "ok"
    REPAIRED = "ok_repaired"
    TRUNCATED = "truncated"
    NO_ANSWER = "no_answer"
    BAD_NUMBER = "bad_number"
    DEGENERATE = "degenerate"
    OUT_OF_RANGE = "out_of_range"
    EMPTY = "empty"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as it was understood.

    Attributes:
        status: One of the first eight.
        path: The path in relative coordinates of the picture that was shown, or None: what could
            be read would mislead. A truncated answer keeps the points before the cut.
        repairs: What was mended, by name, in the order of the text.
        mask: PEEK's second list, (n, 2) relative; None when there is none.
    """

    status: Status
    path: GripperPath | None = None
    repairs: tuple[str, ...] = ()
    mask: np.ndarray | None = None


_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_PAIR = re.compile(rf"[(\[]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,?\s*[)\]]")
_ACTION = re.compile(r"<action>\s*(open|close)[\s_]*gripper\s*(?:<\s*/?\s*action\s*>)?", re.I)
_QUOTED_ACTION = re.compile(r"[\"'](open|close)[\s_]*gripper[\"']", re.I)
_ELLIPSIS = re.compile(r"\.\.\.+|…")
_COMMA = re.compile(r"[\s,;]+")
_OBJECT = re.compile(r"[{}]+|\"[^\"]{0,200}\"\s*:?|'[^']{0,200}'\s*:?")
_TUPLE = re.compile(r"\([^()\[\]<>]*\)|\[[^()\[\]<>]*\]")
_STRAY = re.compile(r".[^\[\](){}<,.\s\"'…]*", re.S)
_BEGINNING = re.compile(r"\s*\[?\s*[(\[]?\s*")
_LIST = re.compile(r"\[\s*(?=[\[({<\]])|(?=[(\[]\s*[-+.\d])")


def parse_answer(
    text: str,
    dialect: Dialect,
    *,
    space: Space | None = None,
    size: tuple[int, int] | None = None,
) -> ParsedAnswer:
    """Read the path out of an answer.

    Args:
        text: The answer as it came.
        dialect: Who answered.
        space: What coordinates mean: `unit` 0 to 1, `permille` 0 to 1000, `pixel` of the picture
            that was shown. By default unit for HAMSTER and PEEK, permille for Qwen.
        size: Width and height of the picture that was shown; needed for `pixel`.
    """
    if not text.strip():
        return ParsedAnswer(Status.EMPTY)
    if len(text) > LONGEST_ANSWER:
        return ParsedAnswer(Status.BAD_NUMBER, repairs=("answer_too_long",))
    space = space or ("permille" if dialect is Dialect.QWEN else "unit")
    if space == "pixel" and size is None:
        raise ValueError("pixel coordinates need the size of the picture")
    scale = {"unit": (1, 1), "permille": (1000, 1000), "pixel": size or (1, 1)}[space]
    if dialect is Dialect.PEEK:
        trajectory, marker, rest = text.partition("MASK:")
        answer = _judge(_scan(trajectory, dialect, ends=bool(marker)), dialect, scale)
        mask = _judge(_scan(rest, dialect, ends=False), dialect, scale) if marker else None
        if mask is None or mask.path is None:
            return answer
        return replace(answer, mask=mask.path.points)
    return _judge(_scan(text, dialect, ends=False), dialect, scale)


@dataclass
class _Scan:
    """What the scanner took from the text."""

    points: list[tuple[float, float]]
    states: list[int]
    repairs: list[str]
    found: bool = True
    closed: bool = False
    malformed: bool = False
    acted: bool = False

    def repair(self, name: str) -> None:
        if name not in self.repairs:
            self.repairs.append(name)


def _section(text: str, scan: _Scan, *, ends: bool) -> tuple[str, bool]:
    """Cut the text down to its list; also tell whether the section's end was seen."""
    begin = text.lower().rfind("<ans>")
    if begin < 0:
        scan.repair("no_ans_tag")
    else:
        text = text[begin + len("<ans>") :]
    end = re.search(r"<\s*/\s*ans\s*>", text, re.I)
    if end:
        text = text[: end.start()]
    opening = _LIST.search(text)
    if not opening:
        # Cut off right behind the tag: the list was about to begin.
        scan.found = begin >= 0 and not end and _BEGINNING.fullmatch(text) is not None
        return "", False
    if not opening.group():
        scan.repair("no_brackets")
    return text[opening.end() :], bool(end) or ends


def _scan(text: str, dialect: Dialect, *, ends: bool) -> _Scan:
    """Take points, actions and separators one by one until the list ends."""
    scan = _Scan([], [], [])
    body, terminated = _section(text, scan, ends=ends)
    if not scan.found:
        return scan
    state, comma, position = CLOSED, True, 0
    ends_of = _Ends(max(body.rfind(")"), body.rfind("]")), body.rfind(">"), body.rfind("<"))
    while position < len(body):
        if match := _PAIR.match(body, position):
            if not comma:
                scan.repair("missing_comma")
            scan.points.append((float(match[1]), float(match[2])))
            scan.states.append(state)
            comma = False
        elif match := _ACTION.match(body, position) or (
            dialect is Dialect.QWEN and _QUOTED_ACTION.match(body, position)
        ):
            scan.acted = True
            state = OPEN if match[1].lower() == "open" else CLOSED
            if scan.states:
                scan.states[-1] = state
            else:
                scan.repair("leading_action")
            comma = False
        elif match := _COMMA.match(body, position):
            comma = comma or "," in match.group() or ";" in match.group()
        elif match := _ELLIPSIS.match(body, position):
            scan.repair("ellipsis")
        elif body[position] == "]":
            scan.closed = True
            if body[position + 1 :].strip(" \t\r\n`'\"."):
                scan.repair("text_after_list")
            break
        elif dialect is Dialect.QWEN and (match := _OBJECT.match(body, position)):
            pass
        elif _is_cut(body, position, ends_of):
            if terminated:
                scan.malformed = True
            break
        elif match := _TUPLE.match(body, position):
            scan.malformed = True
        else:
            match = _STRAY.match(body, position)
            scan.repair("stray_text")
        position = match.end() if match else position + 1
    if not scan.closed and terminated:
        scan.closed = True
        if "no_brackets" not in scan.repairs:
            scan.repair("unclosed_list")
    return scan


class _Ends(NamedTuple):
    """Where something ends or begins for the last time; looked up once, or reading is quadratic."""

    tuple: int
    tag: int
    tag_begins: int


def _is_cut(body: str, position: int, last: _Ends) -> bool:
    """Return whether what begins here was cut off: a tuple, a tag, or what a tag announces."""
    if body[position] in "([{":
        return position > last.tuple
    if body[position] != "<":
        return False
    announced = position == last.tag_begins and body[position:].lower().startswith("<action>")
    return position > last.tag or announced


def _judge(scan: _Scan, dialect: Dialect, scale: tuple[int, int]) -> ParsedAnswer:
    """Turn what was scanned into a path in relative coordinates, or say why not."""
    repairs = tuple(scan.repairs)
    if not scan.found:
        return ParsedAnswer(Status.NO_ANSWER)
    if scan.malformed:
        return ParsedAnswer(Status.BAD_NUMBER, repairs=repairs)
    if not scan.points:
        return ParsedAnswer(Status.EMPTY if scan.closed else Status.TRUNCATED, repairs=repairs)
    points = np.array(scan.points, dtype=np.float64)
    if dialect is Dialect.QWEN and scale != (1, 1) and points.max() <= 1 and (points % 1).any():
        repairs += ("unit_coordinates",)
    else:
        points = points / scale
    held = np.clip(points, 0, 1)
    if not np.isfinite(points).all() or np.abs(points - held).max() > OVERSHOOT:
        return ParsedAnswer(Status.OUT_OF_RANGE, repairs=repairs)
    if (points != held).any():
        repairs += ("clipped",)
    known = dialect is Dialect.HAMSTER or (dialect is Dialect.QWEN and scan.acted)
    states = np.array(scan.states, dtype=np.uint8) if known else None
    path = GripperPath(held, states)
    if not scan.closed:
        return ParsedAnswer(Status.TRUNCATED, path, repairs)
    if len(np.unique(held, axis=0)) < 2:
        return ParsedAnswer(Status.DEGENERATE, repairs=repairs)
    return ParsedAnswer(Status.REPAIRED if repairs else Status.OK, path, repairs)
