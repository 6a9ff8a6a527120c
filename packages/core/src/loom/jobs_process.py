"""One attempt of a job on this machine: its processes, its limits, and how it ended.

A job is a subprocess in a session of its own, so that a time-out, a memory limit or a signal ends
the whole tree. Every executor ends up here: `Local` in its own process, Ray and SLURM on the
machine that they chose.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loom import processes
from loom.jobs_spec import Job

POLL_S = 0.05
MEMORY_POLL_S = 0.5
LAST_LINE_BYTES = 4096


class Ending(NamedTuple):
    """How an attempt ended.

    Attributes:
        state: done, failed, interrupted, skipped, or lost.
        detail: Why, in words.
        facts: Exit status, seconds and peak memory, where it ran at all; goes to `status.json`.
    """

    state: str
    detail: str
    facts: Mapping[str, Any] = {}


class JobProcess:
    """A job under way on this machine."""

    def __init__(self, job: Job, directory: Path, log: Path, env: Mapping[str, str]) -> None:
        """Start the job.

        Args:
            job: What to run.
            directory: Where; made if it is not there.
            log: Gets what the job prints, after what earlier attempts printed.
            env: Added to this process's environment, above what the job adds.

        Raises:
            OSError, ValueError: It cannot be started.
        """
        command = [str(word) for word in job.command]
        directory.mkdir(parents=True, exist_ok=True)
        self.job, self._directory, self._log = job, directory, log
        with log.open("ab") as stream:
            stream.write(f"$ {' '.join(command)}\n".encode())
            stream.flush()
            self._log_begin = stream.tell()
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **job.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._begin = self._measured = time.monotonic()
        self._ended_because = ""
        self._kill_at = math.inf  # when patience with SIGTERM ends
        self._peak_mb = 0.0

    @property
    def where(self) -> dict[str, Any]:
        """Return what names the process for good."""
        pid = self._process.pid
        return {"pid": pid, "process_start": processes.start_time(pid)}

    def poll(self, stops: int, grace_s: float) -> Ending | None:
        """Tell the job to end if it is over a limit or interrupted; return its ending if it has.

        Args:
            stops: How often a stop was asked for: 1 gives it `grace_s`, 2 does not.
            grace_s: How long a job that is told to end has before it is killed.
        """
        now = time.monotonic()
        reason, patience_s = self._why_end(stops, now), grace_s
        if reason.startswith("used "):
            patience_s = 0.0  # it may be about to take the machine down
        if reason and not self._ended_because:
            self._ended_because = reason
            self._kill_at = now + patience_s
            processes.terminate_group(self._process.pid)
        if now >= self._kill_at or stops > 1:
            processes.kill_session(self._process.pid)
        return self._close() if self._process.poll() is not None else None

    def kill(self) -> Ending:
        """End the job at once."""
        self._ended_because = self._ended_because or "interrupted"
        processes.kill_session(self._process.pid)
        self._process.wait()
        return self._close()

    def _why_end(self, stops: int, now: float) -> str:
        job = self.job
        if job.memory_mb is not None and now - self._measured >= MEMORY_POLL_S:
            self._measured = now
            used = processes.session_memory_mb(self._process.pid, job.memory_mb)
            self._peak_mb = max(self._peak_mb, used)
        if stops:
            return "interrupted"
        if job.timeout_s is not None and now - self._begin > job.timeout_s:
            return f"timed out after {job.timeout_s:g} s"
        if job.memory_mb is not None and self._peak_mb > job.memory_mb:
            return f"used {self._peak_mb:.0f} MB of memory, the limit is {job.memory_mb:g} MB"
        return ""

    def _close(self) -> Ending:
        """Kill what an ended job left running, and judge its end."""
        processes.kill_session(self._process.pid)
        code, seconds = self._process.returncode, time.monotonic() - self._begin
        facts = {
            "exit": code,
            "seconds": round(seconds, 3),
            "peak_mb": round(self._peak_mb, 1) if self.job.memory_mb is not None else None,
        }
        if self._ended_because == "interrupted":
            return Ending("interrupted", "", facts)
        if self._ended_because:
            return Ending("failed", self._ended_because, facts)
        if code != 0:
            said = _last_line(self._log, self._log_begin)
            detail = processes.describe_exit(code) + (f": {said}" if said else "")
            return Ending("failed", detail, facts)
        if missing := missing_outputs(self.job, self._directory):
            detail = f"exit status 0, but it left no {', '.join(missing)}"
            return Ending("failed", detail, facts)
        return Ending("done", f"{seconds:.1f} s", facts)


def start(job: Job, directory: Path, log: Path, env: Mapping[str, str]) -> JobProcess | Ending:
    """Start a job as `JobProcess` does; what cannot be started has ended."""
    try:
        return without_inputs(job, directory) or JobProcess(job, directory, log, env)
    except (OSError, ValueError) as error:
        return Ending("failed", f"cannot be started: {error}")


def without_inputs(job: Job, directory: Path) -> Ending | None:
    """Return the ending of a job that cannot run for want of its inputs."""
    missing = [path for path in job.inputs if not (directory / path).exists()]
    return Ending("skipped", f"missing {', '.join(missing)}") if missing else None


def missing_outputs(job: Job, directory: Path) -> Sequence[str]:
    """Return the outputs that a job should leave and that are not there."""
    return [output for output in job.outputs if not (directory / output).exists()]


def _last_line(log: Path, begin: int) -> str:
    """Return the last line that an attempt printed, but for a hint: in Python, the exception."""
    with log.open("rb") as stream:
        stream.seek(max(begin, stream.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    said = (line.strip() for line in reversed(lines) if not line.startswith("hint: "))
    return next((line[:200] for line in said if line), "")
