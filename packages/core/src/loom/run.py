"""A run: one directory that holds everything its numbers depend on.

`Run.open` resolves the configuration, claims the directory, refuses to mix two runs in it, writes
`config.yaml` and `run.json`, and on the way out leaves in `status.json` how it ended. A resume goes
on only with the same code, configuration and data; each difference is named `key: was -> now`.
Under torchrun only rank 0 writes.
"""

import contextlib
import hashlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from loom import farewell, native, provenance, run_directory
from loom.config import Config, Resolved, resolve, to_yaml
from loom.errors import GateMissed, UserError
from loom.files import append_line, read_json, write_atomic, write_json
from loom.progress import Heartbeat, Progress, write_text
from loom.record import Records, read_records, storable
from loom.run_directory import CONFIG_FILE, LOG_FILE, RUN_FILE

if TYPE_CHECKING:
    import numpy as np
    import torch
    from filelock import BaseFileLock


RUNS = Path("runs")

C = TypeVar("C", bound=Config)


class Run(Generic[C]):
    """An open run directory; made by `Run.open`, used as a context manager.

    Attributes:
        dir: the directory.
        thread: whose run it is.
        config: the resolved configuration.
        seed: `config.seed`, or 0 where the configuration has none.
        resumed: whether the run goes on from an earlier process.
        is_main: whether this process writes (rank 0).
    """

    def __init__(
        self, thread: str, resolved: Resolved[C], directory: Path, *, quiet: bool = False
    ) -> None:
        self.dir = directory
        self.thread = thread
        self.config: C = resolved.config
        self.seed = int(getattr(resolved.config, "seed", 0) or 0)
        self.resumed = False
        self.is_main = _from_environment("RANK", 0) == 0
        self._resolved = resolved
        self._quiet = quiet
        self._facts: dict[str, Any] = {}
        self._lock: BaseFileLock | None = None
        self._heartbeat: Heartbeat | None = None
        self._records: Records | None = None
        self._metrics: dict[str, float | str | None] = {}
        self._progress: Progress | None = None
        self._resume_step: int | None = None
        self._listener: Callable[[str], None] | None = None

    @classmethod
    def open(
        cls,
        thread: str,
        model: type[C],
        source: Path | Resolved[C] | None = None,
        overrides: Sequence[str] | None = (),
        *,
        directory: Path | None = None,
        resume: bool = False,
        archive: bool = False,
        quiet: bool = False,
    ) -> Self:
        """Resolve the configuration and claim a directory.

        Args:
            thread: name of the thread's distribution.
            model: class of the configuration.
            source: file of the configuration, or one that is already resolved. A resume without it
                takes the `config.yaml` of the run.
            overrides: `KEY=VALUE` on top of the file.
            directory: where the run lives; `runs/<thread>/<name>-<N>` if None, where the name is
                the configuration's `name` or the stem of its file, and N the first free number, or
                on a resume the highest there is.
            resume: go on with the run that is in the directory.
            archive: move what is in the directory to `archive/<time stamp>/` beside it.
            quiet: print nothing; `log.txt` gets everything all the same.

        Raises:
            UserError: the directory belongs to another run, somebody is running in it, the resumed
                run differs, the configuration is wrong, or the disk refuses. Nothing that was there
                has been changed.
        """
        if resume and archive:
            raise UserError("a run can be resumed or archived, not both", hint="drop one of them")
        if directory is None and _from_environment("WORLD_SIZE", 1) > 1:
            raise UserError(
                "the processes of one run have to agree on its directory",
                hint="name the run's directory",
            )
        if not isinstance(source, Resolved):
            source = run_directory.settings_of(source, directory, resume=resume, thread=thread)
        resolved = source if isinstance(source, Resolved) else resolve(model, source, overrides)
        if directory is None:
            directory = run_directory.choose(RUNS / thread, _name(resolved, thread), resume=resume)
        run = cls(thread, resolved, directory, quiet=quiet)
        if run.is_main:
            run._begin(resume=resume, archive=archive)
        else:
            run.resumed = resume
        return run

    # Randomness -----------------------------------------------------------------------------------

    def generator(self, name: str, device: str = "cpu") -> "torch.Generator":
        """Return a torch generator that depends on the seed and the name only."""
        import torch

        return torch.Generator(device).manual_seed(self._derived_seed(name))

    def rng(self, name: str) -> "np.random.Generator":
        """Return a numpy generator that depends on the seed and the name only."""
        import numpy as np

        return np.random.default_rng(self._derived_seed(name))

    def _derived_seed(self, name: str) -> int:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits without a sign

    # Words ----------------------------------------------------------------------------------------

    def info(self, message: str) -> None:
        """Say one thing on standard output and in `log.txt`."""
        if not self.is_main:
            return
        self._log(message)
        if self._progress is None:
            self.status(phase=message)
        if not self._quiet:
            if self._progress is not None:
                self._progress.clear()
            write_text(sys.stdout, message + "\n")

    def warn(self, message: str) -> None:
        """Say one thing and keep it in `run.json`, from where the report takes it."""
        self.info(message)
        if self.is_main and message not in self._facts["warnings"]:
            self._facts["warnings"].append(message)
            self._write_facts()

    def shorten(self, key: str, was: float, now: float) -> None:
        """Say that an override ends the run before its configuration would.

        Args:
            key: dotted key of the length, such as `train.max_steps`.
            was: what the configuration says.
            now: what the override says; nothing happens unless it is less.
        """
        if now >= was or not self.is_main:
            return
        entry = {"key": key, "was": was, "now": now}
        if entry not in self._facts["shortened"]:
            self._facts["shortened"].append(entry)
        leaf = key.rpartition(".")[2]
        self.warn(
            f"[config] {leaf} override {now} is below config {leaf} {was}; "
            "using override regardless."
        )

    # Numbers --------------------------------------------------------------------------------------

    def record(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record the metrics of a step; see `loom.record`."""
        if not self.is_main:
            return
        if self._records is None:
            if self.resumed and self._resume_step is None:
                steps = [int(row["step"] or 0) for row in read_records(self.dir)]
                self._resume_step = max(steps, default=0)
            self._records = Records(self.dir, self._resume_step, on_notice=self.info)
        self._records.record(step, metrics)
        self._metrics |= {k: None if v is None else storable(float(v)) for k, v in metrics.items()}
        self.status(metrics=dict(self._metrics))

    def resume_at(self, step: int) -> None:
        """Say from which step a resumed run goes on: the records of later steps are dropped.

        Whoever loads a checkpoint calls this, with 0 where there was none to load. Without it all
        records are kept.

        Raises:
            ValueError: something has been recorded already.
        """
        if self._records is not None:
            raise ValueError(f"resume_at({step}) after the first record")
        if self.is_main and self.resumed:
            self._resume_step = step
            self._facts["resumes"][-1]["step"] = step
            self._write_facts()

    def progress(self, name: str, total: int, start: int = 0) -> Progress:
        """Begin a stretch of steps; an earlier one is closed."""
        if self._progress is not None:
            self._progress.close()
        self._note_torch()
        show = self.is_main and not self._quiet
        log = self._log if self.is_main else None
        self._progress = Progress(name, total, start, log=log, enabled=show)
        return self._progress

    def status(self, **fields: Any) -> None:
        """Merge fields into `status.json`; they are on disk with the next heartbeat.

        `state="stopped", reason=...` is how a loop that returns early says so; otherwise a run that
        leaves its block is finished.
        """
        if self._heartbeat is not None:
            self._heartbeat.set(**fields)

    # Files ----------------------------------------------------------------------------------------

    def path(self, *parts: str) -> Path:
        """Return a path in the run directory; the folders above it exist then."""
        path = self.dir.joinpath(*parts)
        if self.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def use(self, name: str, source: Path | str) -> str:
        """Note what the run depends on and return its sha256.

        Args:
            name: what it is to the run: `data`, `teacher`, `parent`.
            source: a file, a folder, or a digest that is already known.

        Raises:
            UserError: the resumed run had used something else under that name.
        """
        digest, path = provenance.fingerprint(source)
        if not self.is_main:
            return digest
        before = self._facts["parents"].get(name)
        if before is not None and before["sha256"] != digest:
            raise UserError(
                f"{self.dir}: cannot go on with other data\n"
                f"  {name}: {_origin(before)} -> {_origin({'sha256': digest, 'path': path})}",
                hint="give back the data it began with, or start a new run",
            )
        if before is None:
            self._facts["parents"][name] = {"sha256": digest, "path": path}
            self._write_facts()
        return digest

    # Beginning and end ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._listener = native.on_notice(self.info)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        native.on_notice(self._listener)
        if error is not None:
            farewell.announce()
        if not self.is_main:
            return
        state, reason = self._outcome(error)
        self.status(state=state, reason=reason)
        last_words = f"[run] {state}" + (f": {reason}" if reason else "")
        if isinstance(error, Exception) and not isinstance(error, UserError):
            last_words += "\n" + "".join(traceback.format_exception(error))
        # A disk that fails now must not hide the error that ended the run.
        hidden = (OSError, UserError) if error is not None else ()
        with contextlib.suppress(*hidden), contextlib.ExitStack() as closing:
            if self._lock is not None:
                closing.callback(self._lock.release)
            if state == "gate_missed":
                closing.callback(self._leave_page)
            if self._heartbeat is not None:
                closing.callback(self._heartbeat.stop)
            closing.callback(self._note_torch)
            closing.callback(self._log, last_words)
            if self._records is not None:
                closing.callback(self._records.close)
            if self._progress is not None:
                closing.callback(self._progress.close)

    def _leave_page(self) -> None:
        """Write the standard page of a run whose thread will not come to its own."""
        from loom.report_run import write_standard_page

        try:
            write_standard_page(self.dir)
        except Exception as error:  # must not hide the gate
            self._log(f"[run] no page: {type(error).__name__}: {error}")

    def _outcome(self, error: BaseException | None) -> tuple[str, str]:
        """Return state and reason: what the loop said, unless an error tells otherwise."""
        said = self._heartbeat.get("state") if self._heartbeat else "running"
        reason = (self._heartbeat.get("reason") if self._heartbeat else "") or ""
        if said != "running" and not isinstance(error, Exception):
            return said, reason
        match error:
            case None | SystemExit(code=None | 0):
                return "finished", reason
            case KeyboardInterrupt():
                return "stopped", "interrupted"
            case GateMissed():
                return "gate_missed", error.message
            case UserError():
                return "failed", error.message
            case SystemExit():
                return "failed", f"exit with {error.code}"
        first_line = next(iter(str(error).splitlines()), "")
        return "failed", f"{type(error).__name__}: {first_line}"

    def _begin(self, *, resume: bool, archive: bool) -> None:
        """Claim the directory, hold a resume to its beginning, and write what is known."""
        claim = run_directory.claim(self.dir, resume=resume, archive=archive)
        self._lock = claim.lock
        self.resumed = claim.continues
        try:
            world_size = _from_environment("WORLD_SIZE", 1)
            now = provenance.facts(
                self.thread, self._resolved, seed=self.seed, world_size=world_size
            )
            if self.resumed:
                saved = read_json(self.dir / RUN_FILE)
                self._facts = provenance.continued(saved, now, self.config, self.dir)
            else:
                self._facts = now
            write_atomic(self.dir / CONFIG_FILE, to_yaml(self.config))
            self._write_facts()
            fields = {"thread": self.thread, "run": self.dir.name}
            self._heartbeat = Heartbeat(self.dir, fields, self._live)
        except BaseException:
            self._lock.release()
            raise
        if claim.moved is not None:
            self.info(f"[run] what was in {self.dir} is now in {claim.moved}")
        if resume and not self.resumed:
            self.info(f"[run] nothing had been done in {self.dir}; the run begins")
        else:
            self.info(f"[run] {'goes on' if self.resumed else 'begins'} in {self.dir}")
        for notice in self._resolved.notices:
            say = self.info if notice in self._resolved.overridden else self.warn
            say(notice)
        if self.resumed:
            self._tell_changes(**{k: self._facts["resumes"][-1][k] for k in ("changed", "gained")})

    def _tell_changes(self, changed: Sequence[str], gained: Sequence[str]) -> None:
        """Say in which way a resume is not what the run was before."""
        for change in changed:
            self.warn(f"[resume] {change}")
        if gained:
            keys = ", ".join(gained)
            self.warn(f"[resume] newer code has settings of its own, at their defaults: {keys}")

    def _live(self) -> Mapping[str, Any]:
        return self._progress.status() if self._progress is not None else {}

    def _log(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        for line in text.splitlines():
            append_line(self.dir / LOG_FILE, f"{stamp} {line}")

    def _write_facts(self) -> None:
        write_json(self.dir / RUN_FILE, self._facts)

    def _note_torch(self) -> None:
        """Put what torch says of the machine into `run.json` once it is imported."""
        found = provenance.torch_in_use()
        if self.is_main and found != self._facts["torch"]:
            self._facts["torch"] = found
            self._write_facts()


def _name(resolved: Resolved[Any], thread: str) -> str:
    """Return the first part of a default directory's name."""
    name = getattr(resolved.config, "name", None)
    if isinstance(name, str) and name:
        return name
    if resolved.source == "defaults":
        return thread
    path = Path(resolved.source)
    return re.sub(r"-\d+$", "", path.parent.name) if path.name == CONFIG_FILE else path.stem


def _origin(parent: Mapping[str, str | None]) -> str:
    digest = str(parent["sha256"])[:12]
    return f"{parent['path']} (sha256 {digest})" if parent["path"] else f"sha256 {digest}"


def _from_environment(name: str, default: int) -> int:
    """Return one of the numbers that torchrun sets for its processes."""
    return int(os.environ.get(name, default))
