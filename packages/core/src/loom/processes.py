"""Look at and end the processes of a job: those of the session that its first process leads.

A session also holds what the job put in other process groups. Linux tells all this in `/proc`;
elsewhere only the first process group can be ended and memory cannot be measured.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
MEANINGS = {
    "SIGSEGV": "segmentation fault",
    "SIGBUS": "bad memory access",
    "SIGFPE": "arithmetic error",
    "SIGILL": "an instruction that this processor lacks",
    "SIGABRT": "aborted",
    "SIGKILL": "the machine ran out of memory, or somebody used kill -9",
    "SIGTERM": "somebody asked it to end",
    "SIGINT": "Ctrl-C",
    "SIGXCPU": "its limit of processor time",
    "SIGHUP": "its terminal closed",
}


def describe_exit(code: int) -> str:
    """Put the return code of a subprocess in words.

    Args:
        code: As `Popen.returncode`: -n for signal n. A shell's 128 + n is read the same way.
    """
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit status {code}"
    meaning = f" ({MEANINGS[name]})" if name in MEANINGS else ""
    return f"killed by {name}{meaning}" + ("" if code < 0 else f", exit status {code}")


def can_measure() -> bool:
    """Whether the memory of other processes can be seen here."""
    return (PROC / "self" / "statm").exists()


def start_time(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; with its id, this names it for good."""
    fields = _stat_fields(PROC / str(pid))
    return int(fields[19]) if fields else None


def terminate_group(pid: int) -> None:
    """Ask the process group of `pid` to end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)


def kill_session(pid: int) -> None:
    """Kill every process of the session that `pid` leads or led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for member in _members(pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)


def session_memory_mb(pid: int, limit_mb: float) -> float:
    """Return the memory that the session of `pid` holds, in MB.

    The resident sizes are added up first; they count shared pages once per process. Only when that
    sum is over the limit, the exact shares are asked for, which costs the kernel more.
    """
    members = _members(pid)
    resident = sum(map(_resident_mb, members))
    if resident <= limit_mb:
        return resident
    return sum(map(_proportional_mb, members))


def _members(session: int) -> list[int]:
    """List the processes of a session that have not ended."""
    found = []
    for path in PROC.glob("[0-9]*"):
        fields = _stat_fields(path)
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.name))
    return found


def _stat_fields(process: Path) -> list[str]:
    """Return the fields of a process's `stat` from the third on; none when it is gone."""
    try:
        text = (process / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def _resident_mb(pid: int) -> float:
    try:
        pages = int((PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _proportional_mb(pid: int) -> float:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return _resident_mb(pid)
    kilobytes = next((line.split()[1] for line in text.splitlines() if line[:4] == "Pss:"), "0")
    return int(kilobytes) / 1024
