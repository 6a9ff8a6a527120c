"""A student read back from its run, with the configuration that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from loom.checkpoint import Checkpoints, newest_folder
from loom.config import differences, plain, read_yaml, resolve
from loom.errors import UserError
from loom.files import read_json, sha256_file

from featdistill.config import TrainConfig
from featdistill.models.student import Student

BELONGING = ("student", "feature_pipeline")
"""Sections that a checkpoint cannot be read without."""


class Restored(NamedTuple):
    """A student, its configuration, and where both come from."""

    student: Student
    config: TrainConfig
    step: int
    run: Path
    checkpoint: Path

    def sources(self) -> dict[str, str]:
        """Digests of what pictures of this student depend on."""
        return {
            "checkpoint": sha256_file(self.checkpoint / "state.pt"),
            "config": sha256_file(self.run / "config.yaml"),
        }


def restore_student(path: Path, config: Path | None = None) -> Restored:
    """Read a student from a run directory, its `checkpoints/`, or one checkpoint.

    Args:
        path: Where the checkpoint is; the newest is taken where there are several.
        config: A configuration that the checkpoint must belong to; None takes the run's own.

    Raises:
        UserError: There is no intact checkpoint, or it belongs to another configuration.
    """
    folder = newest_folder(path)
    run = folder.parent.parent
    _require_student(run)
    own = resolve(TrainConfig, run / "config.yaml").config
    if config is not None:
        _require_same(own, resolve(TrainConfig, config).config, config, folder)
    loaded = Checkpoints(folder.parent).load(folder)
    state = loaded.state["ema"] or loaded.state["model"]
    return Restored(Student.from_state(own.student, state), own, loaded.step, run, folder)


def _require_student(run: Path) -> None:
    """Refuse the run of a teacher or of another thread, which its configuration gives away."""
    content = read_yaml(run / "config.yaml")
    if "gaussians" in content:
        raise UserError(
            f"{run} is the run of a teacher, not of a student",
            hint="`featdistill teacher info` and `featdistill teacher render` look at a teacher",
        )
    record = run / "run.json"
    thread = read_json(record).get("thread") if record.is_file() else "featdistill"
    if thread != "featdistill":
        raise UserError(f"{run} is a run of {thread}", hint="give a run of `featdistill train`")


def _require_same(own: TrainConfig, given: TrainConfig, path: Path, folder: Path) -> None:
    was, now = plain(own), plain(given)
    changed = differences({k: was[k] for k in BELONGING}, {k: now[k] for k in BELONGING})
    if changed:
        raise UserError(
            f"{folder} is the checkpoint of another configuration than {path}: "
            + "; ".join(changed),
            hint="leave out --config: the run directory has the one that it belongs to",
        )
