"""One run, one directory: choose it, claim it for this process, move an old one aside.

A directory is claimed by a lock on its `.lock` file, held for the life of the process and given
back by the kernel even after kill -9. Whoever comes second is told who holds it.
"""

import re
import time
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from loom.errors import UserError
from loom.files import explained, read_json

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
STATUS_FILE = "status.json"
GATES_FILE = "gates.json"
REPORT_FILE = "report.html"
LOG_FILE = "log.txt"
LOCK_FILE = ".lock"


class Claim(NamedTuple):
    """A directory that is ours until the lock is released."""

    lock: BaseFileLock
    continues: bool
    """Whether an earlier process's run is in it."""
    moved: Path | None
    """Where an older run was moved to."""


def choose(root: Path, name: str, *, resume: bool) -> Path:
    """Return `root/name-N`: on a resume the run with the highest N, else a new directory.

    Raises:
        UserError: there is nothing to resume.
    """
    name = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "run"
    if not resume:
        return _next(root, name)
    numbered = {
        int(match[1]): path
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := re.fullmatch(re.escape(name) + r"-(\d+)", path.name))
        and (path / RUN_FILE).is_file()
    }
    if not numbered:
        raise UserError(f"{root}: no run named {name}-N to resume", hint="name the run's directory")
    return numbered[max(numbered)]


def require_thread(
    directory: Path, thread: str, hint: str = "`loom runs` says which thread each run is of"
) -> None:
    """Refuse the run of another thread; a directory that does not say whose it is passes.

    Raises:
        UserError: it is a run of another thread, whose settings and weights mean nothing here.
    """
    try:
        facts = read_json(directory / RUN_FILE)
    except UserError:
        return
    whose = facts.get("thread", thread) if isinstance(facts, dict) else thread
    if whose != thread:
        raise UserError(f"{directory} is a run of {whose}, not of {thread}", hint=hint)


def settings_of(
    source: Path | None, directory: Path | None, *, resume: bool, thread: str
) -> Path | None:
    """Return the file a command takes its settings from.

    Args:
        source: the one that was named; it is taken as it is.
        directory: the run's, where it was named.
        resume: a resume without a source takes the settings of the run.
        thread: whose run it has to be.

    Returns:
        A settings file, or None for the defaults.

    Raises:
        UserError: there is no run, it is of another thread, or it ended so early that its settings
            are not known: they need not have been the defaults.
    """
    if not resume or source is not None or directory is None:
        return source
    require_thread(directory, thread)
    if (directory / CONFIG_FILE).is_file():
        return directory / CONFIG_FILE
    _require_folder(directory)
    if is_vacant(directory):
        raise UserError(
            f"{directory}: the run ended before it had written its configuration",
            hint="start it again as at its beginning, without --resume",
        )
    _require_vacant(directory, resume)
    return None


def claim(directory: Path, *, resume: bool = False, archive: bool = False) -> Claim:
    """Make the directory where needed, lock it, and see that no other run is in it.

    Args:
        directory: the run's directory.
        resume: accept the run that is in it. A process that was killed before it had written
            `run.json` left nothing to go on with; the run then begins there.
        archive: move what is in it to `archive/<time stamp>/` beside it. A run that failed before
            it had made anything, as by a misspelt path, is moved without being asked for.

    Raises:
        UserError: somebody is running in it, another run or something else is in it, there is
            nothing to resume, or the disk refuses. Nothing has been changed then.
    """
    if resume:
        _require_folder(directory)
    if not archive and directory.is_dir() and not (directory / LOCK_FILE).exists():
        _require_vacant(directory, resume)  # leaves no lock file in a folder that is no run's
    lock = _lock(directory)
    moved = None
    try:
        aside = archive or (not resume and _failed_at_once(directory))
        if aside and not is_vacant(directory):
            moved = _archive(directory)
            old, lock = lock, _lock(directory)
            old.release()
        _require_vacant(directory, resume)
        for torn in directory.glob(".*.tmp"):  # an atomic write that a kill -9 had cut short
            torn.unlink()
    except BaseException:
        lock.release()
        raise
    return Claim(lock, (directory / RUN_FILE).is_file(), moved)


def move_aside(directory: Path) -> Path:
    """Move a run to `archive/<time stamp>/` beside it; return where it is now.

    Raises:
        UserError: there is no such directory, or somebody is running in it.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such run", hint="`loom runs` lists the runs")
    lock = _lock(directory)
    try:
        return _archive(directory)
    finally:
        lock.release()


def _require_folder(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no run to resume", hint="check the path")


def _require_vacant(directory: Path, resume: bool) -> None:
    if is_vacant(directory) or (resume and (directory / RUN_FILE).is_file()):
        return
    if resume:
        raise UserError(
            f"{directory}: is not a run's directory, it has no {RUN_FILE}",
            hint="name the directory of the run to go on with",
        )
    raise UserError(
        f"{directory}: is not empty, and two runs are never mixed in one directory",
        hint="--resume goes on with it, --archive moves it aside, or name another directory",
    )


def _failed_at_once(directory: Path) -> bool:
    """Return whether a run in it failed and left no record, checkpoint or other result."""
    words = {CONFIG_FILE, RUN_FILE, STATUS_FILE, LOG_FILE, LOCK_FILE}
    if any(path.name not in words for path in directory.iterdir()):
        return False
    try:
        status = read_json(directory / STATUS_FILE)
    except UserError:
        return False
    return isinstance(status, dict) and status.get("state") == "failed" and "step" not in status


def is_vacant(directory: Path) -> bool:
    """Return whether there is nothing but what a run that died while opening may have left."""
    ours = {LOCK_FILE, CONFIG_FILE}
    return all(path.name in ours or path.suffix == ".tmp" for path in directory.iterdir())


def _lock(directory: Path) -> BaseFileLock:
    if directory.exists() and not directory.is_dir():
        raise UserError(
            f"{directory}: is a file, a run needs a directory", hint="name another directory"
        )
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{directory}: {_holder(directory)} is running in it",
                hint="wait for it, stop it, or name another directory",
            ) from None
    return lock


def _holder(directory: Path) -> str:
    try:
        status = read_json(directory / STATUS_FILE)
        return f"process {status['pid']} on {status['host']}"
    except (UserError, KeyError, TypeError):
        return "another process"


def _next(root: Path, name: str) -> Path:
    number = 1
    while True:
        directory = root / f"{name}-{number}"
        with explained(directory):
            try:
                directory.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return directory


def _archive(directory: Path) -> Path:
    stamp = time.strftime("%Y%m%d_%H%M%S")
    number = 1
    while True:
        folder = directory.parent / "archive" / (stamp if number == 1 else f"{stamp}_{number}")
        with explained(folder):
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
                continue
            return directory.rename(folder / directory.name)
