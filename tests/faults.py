"""Damage to files: what may go wrong with a file on its way, and what a reader makes of it.

A reader is held to one claim: whatever bytes it is given, it returns, or raises a `UserError`. Any
other exception, more than ten seconds, or a change of the file is a failure.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from loom.errors import UserError

SECONDS = 10


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: Package and format, for the table.
        write: Writes a small valid file into a folder and returns the file that is damaged.
        read: Reads that file.
        text: Whether words that look like numbers or syntax may be put in its place.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    text: bool = False


class HangError(Exception):
    """A reader took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `HangError` after so many seconds of the processor, or thirty times as many of waiting.

    Seconds by the clock would blame a reader for a machine that is busy.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {seconds} s of the processor, or {30 * seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 30))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, factor in timers:
        signal.setitimer(timer, factor * seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def judge(reader: Reader, path: Path) -> str:
    """Read a file; return "read", "refused", or what went wrong.

    A refusal must say where: its message names the file or the folder that holds it.
    """
    content = path.read_bytes()
    try:
        with time_limit(SECONDS):
            reader.read(path)
        outcome = "read"
    except UserError as error:
        outcome = "refused" if error.message else "an error without words"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:120]}"
    if not path.exists() or path.read_bytes() != content:
        outcome = f"the file was changed ({outcome})"
    return outcome


def damaged(whole: bytes, text: bool, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, bytes): every sixteenth cut, foreign content, then random damage."""
    draw = random.Random(seed)
    for i in range(16):
        yield f"cut at {i}/16", whole[: len(whole) * i // 16]
    yield "doubled", whole + whole
    yield "zeros", bytes(len(whole))
    yield "a byte short", whole[:-1]
    yield "a byte more", whole + b"\0"
    foreign = (
        b"null",
        b"[]",
        b"{}",
        b"0",
        b'"x"',
        b"[" * 5000,
        b"\xff\xfe\0",
        b"\x89PNG\r\n\x1a\n",
    )
    for content in (*foreign, b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\0v\0{", b"a,b\n1,2\n"):
        yield f"{content[:8]!r} instead", content
    if text:
        yield from _edited(whole, draw, count // 2)
        count -= count // 2
    for _ in range(count):
        yield _randomly(whole, draw)


def _randomly(whole: bytes, draw: random.Random) -> tuple[str, bytes]:
    content = bytearray(whole)
    at = draw.randrange(max(1, len(whole)))
    kind = draw.choice(("bit", "bit", "bit", "byte", "run", "gap", "swap"))
    if kind == "bit":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        content[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == "run":
        content[at : at + 16] = draw.randbytes(len(content[at : at + 16]))
    elif kind == "gap":
        del content[at : at + draw.randrange(1, 64)]
    else:
        other = draw.randrange(max(1, len(whole)))
        part = content[at : at + 32]
        content[at : at + 32] = content[other : other + 32]
        content[other : other + 32] = part
    return f"{kind} at {at}", bytes(content)


WORDS = (
    *("null", "true", "-1", "0", "1e400", "-0.0", "nan", ".inf", "18446744073709551616", "[]"),
    *("{}", '""', '"x"', '"../../x"', '"\\u0000"', "'", "!!python/object:os.system", "&a *a"),
    *("9" * 400, "a" * 3000, "[[[[[[", "\u202e", "1_0", "0x1F", "12:30:45", "<<: {}"),
)


def _edited(whole: bytes, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Replace values: leaves of JSON by values of other types, else words of a line by others."""
    text = whole.decode("utf-8", errors="replace")
    try:
        tree = json.loads(text)
    except ValueError:
        tree = None
    for _ in range(count):
        word = draw.choice(WORDS)
        if isinstance(tree, dict | list):
            yield f"a value is {word[:20]}", _with_other_leaf(tree, word, draw).encode()
            continue
        tokens = text.replace(",", " , ").split(" ")
        tokens[draw.randrange(len(tokens))] = word
        joined = " ".join(tokens).replace(" , ", ",")
        yield f"a word is {word[:20]}", joined.encode("utf-8", errors="replace")


def _with_other_leaf(tree: Any, word: str, draw: random.Random) -> str:
    copy = json.loads(json.dumps(tree))
    place = copy
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = draw.choice(keys)
        below = place[key]
        if isinstance(below, dict | list) and below and draw.random() < 0.8:
            place = below
            continue
        if isinstance(place, dict) and draw.random() < 0.2:
            place[draw.choice(("", "../x", "\0", "x" * 300))] = place.pop(key)
        elif draw.random() < 0.2:
            del place[key]
        else:
            place[key] = "@@"
        break
    return json.dumps(copy).replace('"@@"', word)
