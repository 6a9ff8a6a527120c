"""What is wrong with this machine, each finding with one line that mends it."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: `ok`, `warn` (works, with a loss) or `fail`.
        detail: What was found, with its number.
        fix: What to do about it.
    """

    level: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A named question to this machine."""

    name: str
    run: Callable[[], Finding]


@dataclass(frozen=True)
class Outcome:
    """A check and what it found."""

    name: str
    finding: Finding


def run_checks(checks: Iterable[Check]) -> list[Outcome]:
    """Run every check; one that raises is a failure of its own."""
    return [Outcome(check.name, _guarded(check)) for check in checks]


def _guarded(check: Check) -> Finding:
    try:
        return check.run()
    except Exception as error:  # a broken machine breaks checks in ways nobody listed
        return Finding("fail", f"the check itself failed: {type(error).__name__}: {error}")


def report(outcomes: Sequence[Outcome], *, as_json: bool = False) -> int:
    """Print the outcomes and return the exit code: 1 if a check failed, else 0."""
    if as_json:
        rows = [
            {"name": each.name, "level": each.finding.level, "detail": each.finding.detail}
            | ({"fix": each.finding.fix} if each.finding.fix else {})
            for each in outcomes
        ]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    else:
        width = max((len(each.name) for each in outcomes), default=0)
        for each in outcomes:
            finding = each.finding
            sys.stdout.write(f"{finding.level:<4}  {each.name:<{width}}  {finding.detail}\n")
            if finding.fix and finding.level != "ok":
                sys.stdout.write(f"{'':<4}  {'':<{width}}  -> {finding.fix}\n")
    return int(any(each.finding.level == "fail" for each in outcomes))


def core_checks(package: str | None = None) -> list[Check]:
    """Return the checks that every thread needs."""
    return [Check("python", _python)]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info[:2]) < OLDEST_PYTHON:
        return Finding("fail", version, "use Python 3.11 or newer: uv python install 3.12")
    return Finding("ok", f"{version} ({sys.executable})")
