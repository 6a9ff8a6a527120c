"""`export-cache --executor`: the shards of an export as jobs, here or on other machines.

What goes into which shard is decided once and kept beside the cache, in
`CACHE-export/plan-SPLIT.json`. A shard's bytes then depend on its plan alone: its windows are shown
to the teacher in the batches of an export in one process, and frames that an earlier shard shows
are left to that one, whether it is written yet or not. So jobs may end in any order, be killed and
run again, and the cache is that of one process, byte for byte on equal machines.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Self

import pydantic
from loom.config import Config
from loom.errors import UserError
from loom.files import explained, read_json, write_json
from loom.jobs import Executor, Job, Sweep

from end2race.cache.export import Exported
from end2race.cache.shards import index_path
from end2race.cache.store import TeacherCache
from end2race.exporting import (
    ExportSettings,
    Prepared,
    announce,
    open_cache,
    prepare,
    report,
    verify,
)

JOBS_PER_SLOT = 4
"""A job takes up to a quarter of a slot's shards: a lost one costs little, a start pays off."""
MANY_SLOTS = 16
"""How large a cluster is taken to be that nobody has counted."""


class ExportPlan(Config):
    """Which windows go into which shard.

    Attributes:
        settings: Of the export, with absolute paths.
        identity: Digest of the teacher, the data, the windows, the batches and the shards.
        first: Number of the first shard.
        shards: The positions of each shard's windows in the list of the split's windows.
    """

    settings: ExportSettings
    identity: str
    first: int
    shards: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan.

        Raises:
            UserError: It is damaged.
        """
        try:
            return cls.model_validate_json(json.dumps(read_json(path)))
        except pydantic.ValidationError as error:
            hint = "remove it; --resume then plans what the cache lacks"
            raise UserError(f"{path}: damaged plan of an export", hint=hint) from error

    def write(self, path: Path) -> None:
        """Write the plan, into a folder that it may make."""
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.model_dump(mode="json"))

    @property
    def numbers(self) -> range:
        """Numbers of the shards."""
        return range(self.first, self.first + len(self.shards))

    def keys(self, number: int, keys: Sequence[str]) -> list[str]:
        """Return the windows of a shard.

        Args:
            number: Of the shard.
            keys: Every window of the split.
        """
        return [keys[row] for row in self.shards[number - self.first]]

    def fits(self, cache: TeacherCache, keys: Sequence[str]) -> bool:
        """Tell whether all that the cache lacks are whole shards of this plan."""
        for number in self.numbers:
            own = self.keys(number, keys)
            there = cache.windows_of(number)
            if (list(there) != own) if there is not None else cache.holds_any(own):
                return False
        planned = set(chain.from_iterable(self.shards))
        return all(keys[row] in cache for row in range(len(keys)) if row not in planned)


def export_with_jobs(
    settings: ExportSettings,
    executor: Executor,
    slots: int | None,
    say: Callable[[str], None],
) -> TeacherCache:
    """Put a teacher's answers on a split into a cache, shard by shard as jobs.

    Args:
        settings: As for `exporting.export_cache`.
        executor: Runs the jobs.
        slots: How many run at once, if that is known; decides how many shards a job has.
        say: Prints a line.

    Raises:
        UserError: As for `exporting.export_cache`, or a job failed.
    """
    began = time.monotonic()
    settings = _absolute(settings)
    prepared = prepare(settings)
    announce(settings, prepared, say)
    cache = open_cache(settings, prepared)
    keys = prepared.exporter.keys
    root = settings.cache_dir.with_name(f"{settings.cache_dir.name}-export")
    failed = []
    with cache.writing():
        found = cache.coverage(keys).found
        plan = _plan(settings, prepared, cache, root)
    if found < len(keys):
        sweep = Sweep(f"export {settings.split}", _jobs(plan, root, slots))
        for event in executor.run(sweep, root, resume=True, retry_failed=True):
            say(f"{event.job or 'export'}: {event.kind}" if event.kind == "started" else str(event))
            failed += [event.job] if event.job and event.kind == "failed" else []
    with cache.writing():  # takes up the shards, and clears away what killed jobs have left
        lacking = sum(cache.windows_of(number) is None for number in plan.numbers)
    if lacking:
        raise UserError(
            f"{lacking} of {len(plan.shards)} shards are not written; failed: "
            f"{', '.join(failed) or 'none'}",
            hint=f"{root / 'logs'} says why; --resume runs what is left",
        )
    report(Exported(len(keys) - found, found, time.monotonic() - began), cache, say)
    if settings.verify:
        verify(prepared.exporter, cache, say)
    return cache


def export_shards(plan_file: Path, first: int, last: int, say: Callable[[str], None]) -> None:
    """Write the shards of a plan from one number to another, as far as they are not there.

    Raises:
        UserError: The plan, the teacher, the data or the cache is not what it was.
    """
    plan = ExportPlan.read(plan_file)
    if not plan.numbers.start <= first <= last < plan.numbers.stop:
        raise UserError(f"{plan_file}: it has no shards {first} to {last}")
    prepared = prepare(plan.settings)
    if plan.identity != _identity(plan.settings, prepared, plan.first, plan.shards):
        raise UserError(
            f"{plan_file}: the teacher or the data are not those of the plan, or it is damaged",
            hint="run export-cache again; it names what changed, or plans anew",
        )
    keys = prepared.exporter.keys
    cache = TeacherCache.open(plan.settings.cache_dir, prepared.info)
    with cache.writing(together=True):
        for number in range(first, last + 1):
            if cache.windows_of(number) is None:
                earlier = chain.from_iterable(
                    plan.keys(each, keys) for each in plan.numbers if each < number
                )
                rows = plan.shards[number - plan.first]
                values = prepared.exporter.answers(rows)
                cache.commit(number, plan.keys(number, keys), values, earlier)
            say(f"shard {number}: {len(plan.shards[number - plan.first])} windows")


def _absolute(settings: ExportSettings) -> ExportSettings:
    """Return settings that mean the same in every directory."""
    paths = {
        name: value.absolute() for name, value in vars(settings).items() if isinstance(value, Path)
    }
    return ExportSettings(**{**vars(settings), **paths})


def _plan(
    settings: ExportSettings, prepared: Prepared, cache: TeacherCache, root: Path
) -> ExportPlan:
    """Take up the plan of an export that was begun, or make one of what the cache lacks."""
    path = plan_file(root, settings.split)
    if path.is_file():
        begun = ExportPlan.read(path)
        same = begun.identity == _identity(settings, prepared, begun.first, begun.shards)
        if same and begun.fits(cache, prepared.exporter.keys):
            return begun
    first, shards = cache.next_number, tuple(map(tuple, prepared.exporter.shards(cache)))
    identity = _identity(settings, prepared, first, shards)
    plan = ExportPlan(settings=settings, identity=identity, first=first, shards=shards)
    plan.write(path)
    return plan


def plan_file(root: Path, split: str) -> Path:
    """Return the file of a split's plan."""
    return root / f"plan-{split}.json"


def _identity(
    settings: ExportSettings, prepared: Prepared, first: int, shards: Sequence[Sequence[int]]
) -> str:
    info = {name: value for name, value in asdict(prepared.info).items() if name != "origin"}
    content = [info, list(prepared.exporter.keys), settings.batch_size, first, shards]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _jobs(plan: ExportPlan, root: Path, slots: int | None) -> list[Job]:
    """Cut a plan into jobs of neighbouring shards; their names tell plans apart."""
    count = -(-len(plan.shards) // ((slots or MANY_SLOTS) * JOBS_PER_SLOT))
    digest = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:8]
    jobs = []
    for first in plan.numbers[:: max(count, 1)]:
        last = min(first + count, plan.numbers.stop) - 1
        command = [sys.executable, "-m", "end2race", "export-shards"]
        command += [str(plan_file(root, plan.settings.split)), str(first), str(last)]
        outputs = [str(index_path(plan.settings.cache_dir, n)) for n in range(first, last + 1)]
        name = f"{plan.settings.split}-{first:06d}-{last:06d}-{digest}"
        jobs.append(Job(name, command, directory=Path.cwd(), outputs=outputs))
    return jobs
