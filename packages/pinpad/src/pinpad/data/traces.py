"""Replay a recorded trace of a PinPad environment and find the first step that differs.

A trace is an `.npz` file of one environment that was stepped N times. It holds what went in
(`action`, `reset`, and `spawn_index`: the cells drawn, in the order they were drawn), what came out
(`reward`, `is_first`, `is_last`, `position`, `sequence_length`, `countdown`) and
`image_sha256_every_500`, one running SHA-256 over the bytes of all (64, 64, 3) images, noted after
each 500 steps. When an episode is over, the next step is a reset whatever `reset` says.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loom.arrays import read_npz
from loom.errors import UserError

from pinpad.envs.core import REWARD, PinPad
from pinpad.envs.layouts import LAYOUTS, layout_name

IMAGE_BLOCK = 500
_IMAGES = "image_sha256_every_500"
_KINDS = {
    "action": "iu",
    "reset": "b",
    "reward": "f",
    "is_first": "b",
    "is_last": "b",
    "position": "iu",
    "sequence_length": "iu",
    "countdown": "iu",
}


@dataclass(frozen=True)
class Trace:
    """What went into an environment and what came out of it, one entry for each step.

    Attributes:
        layout: `three` to `eight`.
        length: Steps of an episode.
        fields: Name -> (steps, ...) array, the names of `_KINDS`.
        spawns: Cells in the order they were drawn.
        image_digests: Running SHA-256 of all images after each 500 steps.
    """

    layout: str
    length: int
    fields: dict[str, np.ndarray]
    spawns: list[int]
    image_digests: list[str]

    def __len__(self) -> int:
        return len(self.fields["action"])


@dataclass(frozen=True)
class Mismatch:
    """The first difference between a trace and this package."""

    step: int
    field: str
    recorded: object
    found: object

    def __str__(self) -> str:
        return f"step {self.step}: {self.field} is {self.found}, recorded is {self.recorded}"


def read_trace(path: Path) -> Trace:
    """Read a trace; its layout is the key `layout`, or the beginning of the file's name.

    Raises:
        UserError: The file is damaged, or a field is missing or has a wrong shape or range.
    """
    arrays = read_npz(path)
    wanted = [*_KINDS, "spawn_index", "length", _IMAGES]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UserError(
            f"{path}: a trace without {', '.join(missing)}",
            hint="`pinpad doctor --help` names the fields of a trace",
        )
    layout = str(arrays["layout"]) if "layout" in arrays else _layout_of_name(path)
    steps = len(arrays["action"]) if arrays["action"].ndim else 0
    if steps == 0:
        raise UserError(f"{path}: action holds no steps", hint="record the trace again")
    for name, kinds in _KINDS.items():
        shape = (steps, 2) if name == "position" else (steps,)
        if arrays[name].shape != shape or arrays[name].dtype.kind not in kinds:
            raise UserError(
                f"{path}: {name} is {arrays[name].dtype} of shape {arrays[name].shape}, "
                f"expected shape {shape}",
                hint="every field has one entry for each step",
            )
    _check_range(path, "action", arrays["action"], 5)
    _check_range(path, "spawn_index", arrays["spawn_index"], 168)
    if arrays["length"].shape != () or arrays["length"] < 1:
        raise UserError(f"{path}: length is {arrays['length']}", hint="steps of an episode, >= 1")
    return Trace(
        layout=layout_name(layout),
        length=int(arrays["length"]),
        fields={name: arrays[name] for name in _KINDS},
        spawns=arrays["spawn_index"].tolist(),
        image_digests=[str(digest) for digest in arrays[_IMAGES]],
    )


def replay(trace: Trace) -> Mismatch | None:
    """Step our environment through a trace; return the first difference, or None."""
    pinpad = PinPad(trace.layout, size=64, length=trace.length)
    rows = {name: values.tolist() for name, values in trace.fields.items()}
    spawns = iter(trace.spawns)
    images = hashlib.sha256()
    begun = False
    for step in range(len(trace)):
        is_first = not begun or pinpad.over or rows["reset"][step]
        reward = 0.0
        try:
            if is_first:
                pinpad.reset(next(spawns))
            elif pinpad.step(rows["action"][step], lambda: next(spawns)).reward:
                reward = REWARD
        except StopIteration:
            return Mismatch(step, "spawn_index", f"{len(trace.spawns)} draws", "one more")
        begun = True
        found = {
            "reward": reward,
            "is_first": is_first,
            "is_last": not is_first and pinpad.over,
            "position": list(pinpad.position),
            "sequence_length": len(pinpad.sequence),
            "countdown": pinpad.countdown,
        }
        for name, value in found.items():
            if rows[name][step] != value:
                return Mismatch(step, name, rows[name][step], value)
        images.update(pinpad.image().tobytes())
        block, rest = divmod(step + 1, IMAGE_BLOCK)
        if rest == 0 and block <= len(trace.image_digests):
            recorded, drawn = trace.image_digests[block - 1], images.hexdigest()
            if recorded != drawn:
                since = f"images since step {step + 1 - IMAGE_BLOCK}"
                return Mismatch(step, since, recorded[:12], drawn[:12])
    left = len(list(spawns))
    return Mismatch(len(trace), "spawn_index", f"{left} more draws", "none") if left else None


def trace_files(folder: Path) -> list[Path]:
    """Return the traces of a folder, or the file itself.

    Raises:
        UserError: There are none.
    """
    found = [folder] if folder.is_file() else sorted(folder.glob("*.npz"))
    if not found:
        raise UserError(f"{folder}: no .npz traces", hint="give the folder that holds them")
    return found


def _layout_of_name(path: Path) -> str:
    found = [name for name in LAYOUTS if path.stem.lower().startswith(name)]
    if not found:
        raise UserError(
            f"{path}: the layout is neither the key `layout` nor in the name",
            hint="call the file three_something.npz, or store the key",
        )
    return found[0]


def _check_range(path: Path, name: str, values: np.ndarray, end: int) -> None:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} is not a row of integers", hint="record the trace again")
    wrong = np.flatnonzero((values < 0) | (values >= end))
    if len(wrong):
        raise UserError(
            f"{path}: {name}[{wrong[0]}] is {values[wrong[0]]}, expected 0 to {end - 1}",
            hint="record the trace again",
        )
