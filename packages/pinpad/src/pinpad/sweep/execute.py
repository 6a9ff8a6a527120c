"""Run a sweep from the check of the environment to the page, and stop one that runs."""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout
from loom import jobs_sbatch, processes
from loom.config import differences, plain, resolve
from loom.errors import UserError
from loom.files import append_line, read_json
from loom.jobs import Event, Executor, Local

from pinpad.doctor import check_oracle
from pinpad.sweep import plan
from pinpad.sweep.plan import SETTINGS_FILE, SweepSettings
from pinpad.sweep.state import read_settings, read_sweep
from pinpad.sweep.status_file import STATUS_FILE, StatusWriter, log_root

LOG_ROOTS = Path("logdir")
PATIENCE_S = 30.0
"""How long a training that is told to stop has for its checkpoint."""

Say = Callable[[str], None]


def new_log_root(name: str = "pinpad") -> Path:
    """Return the folder that a sweep gets which names none: one with a time stamp."""
    return LOG_ROOTS / f"{name}_{datetime.now(UTC):%Y%m%d_%H%M%S}"


def newest_log_root() -> Path:
    """Return the newest log root under `logdir`.

    Raises:
        UserError: There is none.
    """
    found = sorted(path.parent for path in LOG_ROOTS.glob(f"*/{SETTINGS_FILE}"))
    if not found:
        raise UserError(f"{LOG_ROOTS}: no sweep is in it", hint="give --logroot DIR")
    return max(found, key=lambda path: (path / SETTINGS_FILE).stat().st_mtime)


def named_log_root(path: Path | None) -> Path:
    """Return the log root that a folder or a status file names; the newest one if None.

    Raises:
        UserError: There is none.
    """
    return newest_log_root() if path is None else log_root(path)


def settings_from(values: Mapping[str, Any]) -> SweepSettings:
    """Return checked settings.

    Raises:
        UserError: A value is wrong.
    """
    return resolve(SweepSettings, flags=values).config


def begin(settings: SweepSettings, root: Path, config: Path | None) -> list[str]:
    """Make the log root of a new sweep; return what is probably unwanted in its conditions.

    Raises:
        UserError: There is something in it, or a setting is wrong.
    """
    if root.exists() and (not root.is_dir() or not all(map(_is_log, root.iterdir()))):
        raise UserError(
            f"{root}: is not empty, and two sweeps are never mixed in one log root",
            hint="go on with it by --resume, or name another one",
        )
    return plan.prepare(settings, root, config)


def _is_log(path: Path) -> bool:
    """Whether a shell may have made a file by redirecting this very command's output."""
    return path.is_file() and (path.suffix == ".log" or path.name == "nohup.out")


def go_on(root: Path, given: Mapping[str, Any]) -> SweepSettings:
    """Return the settings of a sweep to resume.

    Args:
        root: Its log root.
        given: What the command line says explicitly.

    Raises:
        UserError: There is no sweep, or it was begun with other settings.
    """
    settings = read_settings(root)
    was = plain(settings)
    changed = differences(was, plain(settings_from({**was, **given})))
    if changed:
        raise UserError(
            f"{root}: was begun with other settings\n  " + "\n  ".join(changed),
            hint="resume without these options, or begin a new sweep",
        )
    return settings


def run_sweep(
    settings: SweepSettings,
    root: Path,
    *,
    executor: Executor | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    status_file: Path | None = None,
    run_log: Path | None = None,
    say: Say = print,
) -> bool:
    """Run what is not done, and write the report; return whether every run is done.

    Args:
        settings: Of the sweep; its log root is prepared.
        root: Its log root.
        executor: Runs its jobs; here, one after the other, if None.
        resume: Go on with a sweep that was begun.
        retry_failed: Run also what had failed.
        status_file: Shell assignments, replaced every second.
        run_log: Gets every line that is said.
        say: Prints a line.

    Raises:
        UserError: The environment does not pay, or somebody runs this sweep.
        SweepInterrupted: A signal came; the sweep can be resumed.
    """
    from pinpad.sweep.report import write_report

    require_reward()
    root = root.absolute()
    plan.record(settings, root)
    status_file = status_file or root / STATUS_FILE
    count = len(plan.members(settings))

    def tell(text: str) -> None:
        say(text)
        if run_log is not None:
            for line in filter(None, text.splitlines()):
                append_line(run_log, line)

    if run_log is not None:
        run_log.parent.mkdir(parents=True, exist_ok=True)
    tell(f"[sweep] {count} runs in {root}; follow them with: pinpad monitor {quote(str(root))}")
    with ExitStack() as stack:
        stack.enter_context(StatusWriter(root, status_file, tell))
        chosen = executor or Local(grace_s=PATIENCE_S)
        events = chosen.run(plan.jobs(settings, root), root, resume, retry_failed=retry_failed)
        stack.callback(events.close)
        for event in events:
            tell(_line(event))
    page = write_report(root, tell)
    tell(f"report: {page}")
    return read_sweep(root).state == "finished"


def require_reward() -> None:
    """See that the environment pays, before days are spent in it.

    Raises:
        UserError: The oracle earns nothing in some layout.
    """
    finding = check_oracle()
    if finding.level != "ok":
        raise UserError(finding.detail, hint=finding.fix)


def stop(root: Path, say: Say = print, patience_s: float = 2 * PATIENCE_S) -> None:
    """End a sweep as Ctrl-C would, and wait until it has.

    Where its process was killed, what that one left running is ended.

    Raises:
        UserError: Nothing runs there, or it does not end.
    """
    read_settings(root)
    path = root / "status.json"
    status: dict[str, Any] = read_json(path) if path.is_file() else {"jobs": {}}
    if not _is_held(root):
        if array := jobs_sbatch.cancel(root):
            say(f"[sweep] array job {array} was cancelled; {_completion(root)}")
            return
        left = [
            entry["pid"]
            for entry in status["jobs"].values()
            if entry["state"] == "running"
            and processes.start_time(entry["pid"]) == entry["process_start"] is not None
        ]
        if not left:
            raise UserError(f"{root}: nothing is running", hint="`pinpad monitor` shows its state")
        for pid in left:
            processes.terminate_group(pid)
        say(f"[sweep] its process is gone; {len(left)} runs that it had left behind were ended")
        return
    if status["host"] != socket.gethostname():
        raise UserError(f"{root}: is run by {status['host']}", hint="stop it on that machine")
    os.kill(status["pid"], signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while _is_held(root):
        if time.monotonic() > deadline:
            raise UserError(
                f"{root}: process {status['pid']} has not ended within {patience_s:g} s",
                hint="stop it again, which ends its runs without a checkpoint",
            )
        time.sleep(0.1)
    say(f"[sweep] stopped; {_completion(root)}")


def _completion(root: Path) -> str:
    """Say how a sweep is gone on with, in words that can be pasted into a shell."""
    return f"pinpad sweep --resume --logroot {quote(str(root))} completes it"


def _is_held(root: Path) -> bool:
    """Whether a process runs the sweep: it holds a lock for as long as it lives."""
    try:
        with FileLock(root / "sweep.lock", timeout=0):
            return False
    except Timeout:
        return True


def _line(event: Event) -> str:
    """Put an event in one line, with the time; a start does not repeat its command."""
    detail = event.detail
    if event.kind == "started" and event.job:
        detail = f"log: logs/{event.job}.log"
    stamp = datetime.fromtimestamp(event.time, UTC).strftime("%H:%M:%S")
    return f"{stamp} {event.job or 'sweep'}: {event.kind}" + (f", {detail}" if detail else "")
