"""A student read back from its run, with the configuration that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from loom.checkpoint import Checkpoints, newest_folder
from loom.config import differences, plain, read_yaml, resolve
from loom.errors import UserError
from loom.files import sha256_file
from loom.run_directory import require_thread

from featdistill.config import TrainConfig
from featdistill.models.student import Student

BELONGING = ("student", "feature_pipeline")
"""Sections that a checkpoint cannot be read without."""

Kind = Literal["student", "teacher"]
_COMMANDS: dict[Kind, str] = {
    "student": "`featdistill train --resume` goes on with it, `featdistill view` looks at it",
    "teacher": "`featdistill teacher fit --resume` goes on with it, `featdistill teacher info` and "
    "`featdistill teacher render` look at it",
}


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
    require_kind(run, "student")
    own = resolve(TrainConfig, run / "config.yaml").config
    if config is not None:
        _require_same(own, resolve(TrainConfig, config).config, config, folder)
    loaded = Checkpoints(folder.parent).load(folder)
    state = loaded.state["ema"] or loaded.state["model"]
    return Restored(Student.from_state(own.student, state), own, loaded.step, run, folder)


def require_kind(run: Path, kind: Kind) -> None:
    """Refuse the run of another thread, or of the other kind: its settings are not those asked for.

    A folder without a configuration passes: it has nothing that could be mistaken.
    """
    require_thread(run, "featdistill")
    if not (run / "config.yaml").is_file():
        return
    found: Kind = "teacher" if "gaussians" in read_yaml(run / "config.yaml") else "student"
    if found != kind:
        raise UserError(f"{run} is the run of a {found}, not of a {kind}", hint=_COMMANDS[found])


def _require_same(own: TrainConfig, given: TrainConfig, path: Path, folder: Path) -> None:
    was, now = plain(own), plain(given)
    changed = differences({k: was[k] for k in BELONGING}, {k: now[k] for k in BELONGING})
    if changed:
        raise UserError(
            f"{folder} is the checkpoint of another configuration than {path}: "
            + "; ".join(changed),
            hint="leave out --config: the run directory has the one that it belongs to",
        )
