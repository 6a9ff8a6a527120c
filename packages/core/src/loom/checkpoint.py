"""Checkpoints that are whole or absent.

A checkpoint is a folder `step_000500/` with `state.pt` and a sealed `manifest.json` (size and
SHA-256 of the state, step, config hash, world size). Both are written into `.tmp-*`, forced to the
disk, and appear under their name in one rename, so a process killed at any moment leaves the older
checkpoints intact and at most a stale `.tmp-*`. Reading checks the digest first, because
`torch.load` returns flipped bits without a word; a damaged checkpoint is moved to `corrupt/` and
the next older intact one is taken. Loading is always `weights_only`: a checkpoint holds tensors
and plain values.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from loom.errors import UserError
from loom.files import disk_error, read_json, sha256_file, sync_directory, write_json
from loom.hashed_file import HashedFile

STATE, MANIFEST, CORRUPT = "state.pt", "manifest.json", "corrupt"
_LOGGER = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{6,})")
_PLAIN = (torch.Tensor, int, float, str, bytes, bool, type(None))


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read from the disk: its step, its sections, its manifest and its folder."""

    step: int
    state: dict[str, Any]
    manifest: dict[str, Any]
    path: Path


class _DamagedError(Exception):
    """Why a checkpoint cannot be used; the text goes into the warning."""


class Checkpoints:
    """The checkpoints of one run: the last few, the best and the final one are kept."""

    def __init__(
        self,
        directory: Path,
        keep_last: int = 2,
        *,
        on_warning: Callable[[str], None] = _LOGGER.warning,
    ) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            directory: The folder, made at the first save.
            keep_last: How many of the newest to keep; at least 2, so that one may be damaged.
            on_warning: Receives one line for each damaged checkpoint.
        """
        if keep_last < 2:
            raise ValueError(f"keep_last is {keep_last}; at least 2, because one may be damaged")
        self.directory = Path(directory)
        self.keep_last = keep_last
        self._warn = on_warning

    def recover(self) -> None:
        """Clear what a killed save left behind. Only the run that owns the folder calls this."""
        for leftover in self.directory.glob(".old-*"):
            name = leftover.name.removeprefix(".old-")
            if not (self.directory / name).exists():
                leftover.rename(self.directory / name)
        for pattern in (".old-*", ".tmp-*"):
            for leftover in self.directory.glob(pattern):
                shutil.rmtree(leftover)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first. None has been verified."""
        if not self.directory.is_dir():
            return []
        names = (_NAME.fullmatch(entry.name) for entry in self.directory.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def folder(self, step: int) -> Path:
        """Return the folder of a step, whether it exists or not."""
        return self.directory / f"step_{step:06d}"

    def best(self) -> Path | None:
        """Return the folder of the checkpoint with the highest metric, if one was given."""
        return self._pointed("best")

    def final(self) -> Path | None:
        """Return the folder of the checkpoint that a completed run ended with."""
        return self._pointed("final")

    def best_metric(self) -> float | None:
        """Return the metric that `best` was saved with."""
        pointer = self._pointer("best")
        return None if pointer is None else float(pointer["metric"])

    def save(
        self,
        step: int,
        state: Mapping[str, Mapping[str, Any]],
        *,
        metric: float | None = None,
        config_hash: str = "",
        world_size: int = 1,
        extra: Mapping[str, Any] | None = None,
        final: bool = False,
    ) -> Path:
        """Write a checkpoint, then drop those that need not be kept.

        Args:
            step: Completed updates.
            state: Named sections of tensors and plain values.
            metric: Higher is better; decides which checkpoint is `best`.
            config_hash: What the run was configured with, for the guard at resume.
            world_size: Processes that took part.
            extra: JSON values for the manifest.
            final: Whether the run ends here; such a checkpoint is never dropped.

        Returns:
            The folder of the checkpoint.

        Raises:
            UserError: The disk refused; older checkpoints are intact.
        """
        _require_plain(state, "state")
        target = self.folder(step)
        temporary = self.directory / f".tmp-{target.name}-{os.getpid()}"
        manifest = {
            "format": 1,
            "step": step,
            "metric": _number(metric),
            "config_hash": config_hash,
            "world_size": world_size,
            "torch": torch.__version__,
            "time": time.time(),
            "extra": dict(extra or {}),
        }
        with _removed_on_failure(temporary, step):
            temporary.mkdir(parents=True)
            size, digest = _write_state(temporary / STATE, dict(state))
            manifest["files"] = {STATE: {"bytes": size, "sha256": digest}}
            write_json(temporary / MANIFEST, {"manifest": manifest, "seal": _seal(manifest)})
            self._publish(temporary, target)
        best = self.best_metric()
        self._point("latest", step, metric)
        if metric is not None and not math.isnan(metric) and (best is None or metric > best):
            self._point("best", step, metric)
        if final:
            self._point("final", step, metric)
        self._prune()
        return target

    def load(self, which: Path | int) -> Loaded:
        """Read one checkpoint, by folder or by step.

        Raises:
            UserError: It is missing or damaged.
        """
        folder = self.folder(which) if isinstance(which, int) else Path(which)
        try:
            return _read(folder)
        except _DamagedError as damage:
            raise UserError(
                f"{folder}: damaged checkpoint: {damage}",
                hint=f"take another one; intact here are {self.intact_steps() or 'none'}",
            ) from damage

    def load_newest(self) -> Loaded | None:
        """Read the newest intact checkpoint; damaged ones are moved to `corrupt/` with a warning.

        Returns:
            None if this folder never held a checkpoint.

        Raises:
            UserError: There were checkpoints, and none is intact.
        """
        for step in reversed(self.steps()):
            folder = self.folder(step)
            try:
                return _read(folder)
            except _DamagedError as damage:
                self._set_aside(folder, str(damage))
        if (self.directory / CORRUPT).is_dir():
            raise UserError(
                f"{self.directory}: no intact checkpoint is left",
                hint=f"the damaged ones are in {self.directory / CORRUPT}; start a new run",
            )
        return None

    def intact_steps(self) -> list[int]:
        """Return the steps whose checkpoint matches its digests. Reads every byte."""
        intact = []
        for step in self.steps():
            try:
                _verify(self.folder(step))
            except _DamagedError:
                continue
            intact.append(step)
        return intact

    def _set_aside(self, folder: Path, reason: str) -> None:
        target = self.directory / CORRUPT / f"{folder.name}-{time.time_ns()}"
        try:
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
            place = f"moved to {target}"
        except (
            OSError
        ) as error:  # a read-only folder: the older checkpoint can be used all the same
            place = f"left where it is ({error.strerror})"
        self._warn(f"{folder}: damaged checkpoint: {reason}; {place}, taking the next older one")

    def _publish(self, temporary: Path, target: Path) -> None:
        sync_directory(temporary)
        replaced = self.directory / f".old-{target.name}"
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        sync_directory(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)

    def _point(self, name: str, step: int, metric: float | None) -> None:
        pointer = {"step": step, "folder": self.folder(step).name, "metric": _number(metric)}
        write_json(self.directory / f"{name}.json", pointer)

    def _pointed(self, name: str) -> Path | None:
        pointer = self._pointer(name)
        return None if pointer is None else self.directory / pointer["folder"]

    def _pointer(self, name: str) -> dict[str, Any] | None:
        """Return what a pointer says; None without one, or where its checkpoint is gone."""
        path = self.directory / f"{name}.json"
        if not path.exists():
            return None
        pointer = read_json(path)
        try:
            sound = _NAME.fullmatch(pointer["folder"]) is not None
            sound = sound and (name != "best" or not math.isnan(float(pointer["metric"])))
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise UserError(
                f"{path}: not what Loom wrote",
                hint="remove it; it only names one of the checkpoints, which are as they were",
            )
        return pointer if (self.directory / pointer["folder"]).is_dir() else None

    def _prune(self) -> None:
        kept = {self.best(), self.final()}
        for step in self.steps()[: -self.keep_last]:
            folder = self.folder(step)
            if folder not in kept:
                # Renamed first: a kill inside rmtree must not leave half a checkpoint.
                doomed = self.directory / f".tmp-{folder.name}-dropped"
                folder.rename(doomed)
                shutil.rmtree(doomed)


def newest_folder(path: Path) -> Path:
    """Find the checkpoint that a path means: its folder, or the newest of a run.

    Args:
        path: A checkpoint, a `checkpoints/` folder or a run directory.

    Raises:
        UserError: There is no checkpoint.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return path
    for folder in (path / "checkpoints", path):
        checkpoints = Checkpoints(folder)
        if steps := checkpoints.steps():
            return checkpoints.folder(steps[-1])
    raise UserError(f"{path}: no checkpoint here", hint="give a run directory or a step_* folder")


def init_from(model: nn.Module, path: Path, *, skip: Sequence[str] = ()) -> list[str]:
    """Start a model from the weights of another run, and take nothing else from it.

    The EMA weights are taken where the checkpoint has them: they are what was evaluated.

    Args:
        model: Receives the weights in place.
        path: A checkpoint, or a run directory for its newest one.
        skip: Shell patterns of the keys that keep their present value, such as `head.*`.

    Returns:
        The keys that were skipped, for the log.

    Raises:
        UserError: A key outside `skip` is missing on one side or has another shape.
    """
    folder = newest_folder(path)
    state = Checkpoints(folder.parent).load(folder).state
    weights = state.get("ema") or state["model"]
    own = model.state_dict()
    keys = sorted(own.keys() | weights.keys())
    skipped = [key for key in keys if any(fnmatch(key, pattern) for pattern in skip)]
    problems = [
        problem
        for key in keys
        if key not in skipped and (problem := _mismatch(key, own.get(key), weights.get(key)))
    ]
    if problems:
        raise UserError(
            f"{folder}: the weights do not fit the model: {'; '.join(problems[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else ""),
            hint="skip these keys by pattern, or build the model with the same configuration",
        )
    model.load_state_dict({key: weights[key] for key in keys if key not in skipped}, strict=False)
    return skipped


def _mismatch(key: str, own: Any, other: Any) -> str:
    if own is None:
        return f"{key} is not in the model"
    if other is None:
        return f"{key} is not in the checkpoint"
    if isinstance(own, torch.Tensor) and own.shape != other.shape:
        return f"{key} has shape {tuple(other.shape)}, the model {tuple(own.shape)}"
    return ""


def _read(folder: Path) -> Loaded:
    manifest = _verify(folder)
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler says, the file is not one of ours
        reason = str(error).splitlines()[0]
        raise _DamagedError(f"{STATE} is refused by the safe loader: {reason}") from error
    return Loaded(manifest["step"], state, manifest, folder)


def _verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of an intact checkpoint, or raise `_DamagedError` with the reason."""
    if not (folder / MANIFEST).is_file():
        raise _DamagedError(f"there is no {MANIFEST}")
    try:
        sealed = read_json(folder / MANIFEST)
        manifest, seal = sealed["manifest"], sealed["seal"]
    except (UserError, KeyError, TypeError) as error:
        raise _DamagedError(f"{MANIFEST} cannot be read ({error})") from error
    if _seal(manifest) != seal:
        raise _DamagedError(f"{MANIFEST} does not match its seal")
    if folder.name != f"step_{manifest['step']:06d}":
        raise _DamagedError(f"{MANIFEST} is that of step {manifest['step']}")
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise _DamagedError(f"{name} is missing")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise _DamagedError(f"{name} has {size} bytes of {expected['bytes']}")
        if sha256_file(file) != expected["sha256"]:
            raise _DamagedError(f"{name} does not match its sha256, its content has changed")
    return manifest


def _seal(manifest: Any) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _number(metric: float | None) -> float | str | None:
    """JSON has no infinity, which is the PSNR of a perfect picture."""
    return metric if metric is None or math.isfinite(metric) else str(metric)


def _require_plain(value: Any, place: str) -> None:
    """Refuse, before anything is written, what the safe loader would refuse to read."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(key, f"a key of {place}")
            _require_plain(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{place}[{index}]")
    elif not isinstance(value, _PLAIN):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{place} is a {kind}; a checkpoint holds tensors and plain values")


@contextmanager
def _removed_on_failure(temporary: Path, step: int) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _disk_refused(error, temporary.parent, step) from error
        raise


def _disk_refused(error: OSError, directory: Path, step: int) -> UserError:
    known = disk_error(error, directory)
    return UserError(
        f"{directory}: the checkpoint of step {step} was not written: {error.strerror or error}",
        hint=(known.hint if known else "check the disk and its limits")
        + "; older checkpoints are intact",
    )


def _write_state(path: Path, state: dict[str, Any]) -> tuple[int, str]:
    """Write and force to the disk; return the size in bytes and the SHA-256."""
    with HashedFile(path) as file:
        try:
            torch.save(state, cast(IO[bytes], file))
        except RuntimeError as error:
            if file.error is not None:  # torch hides the cause behind "unexpected pos"
                raise file.error from error
            raise
        file.sync()
    return file.size, file.digest
