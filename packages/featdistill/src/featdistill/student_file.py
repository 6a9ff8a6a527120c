"""A student as one file: all that a renderer needs, nothing that only training used.

The file is in the safetensors layout, which any language reads and nothing executes:

    weights      float16 [cells, P]       one network per row, blocks as `NetworkShape.block_shapes`
    cell_index   int32   [gx, gy, gz]     row of `weights` of a grid cell, -1 where there is none
    occupancy    uint8   [ceil(v / 8)]    one bit per voxel in C order, the highest bit first
    voxels       int32   [3]              voxels per axis
    box          float32 [2, 3]           lowest and highest corner in the world

and in its metadata `format`, `config` (the student's settings as JSON) and `sha256` over the bytes
of the tensors in the order above. Rows of cells that pruning has emptied are left out, as is the
head through which features were distilled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loom.config import plain
from loom.errors import UserError
from loom.files import explained, write_atomic
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from featdistill.models import occupancy
from featdistill.models.student import Student
from featdistill.student_config import StudentConfig

FORMAT = "featdistill student 1"
LARGEST = 1 << 30
"""Largest number of voxels that a file may ask for."""


class Written(NamedTuple):
    """A file that was written."""

    path: Path
    size: int
    """Bytes."""
    cells: int
    dropped: int
    """Cells that pruning had emptied."""


def write_student(student: Student, path: Path) -> Written:
    """Write a student.

    Raises:
        UserError: A weight does not fit into half precision, or the disk refuses.
    """
    weights, kept = packed_networks(student, path)
    filled = (student.occupancy > 0).cpu().numpy()
    tensors = {
        "weights": weights,
        "cell_index": kept,
        "occupancy": torch.from_numpy(np.packbits(filled)),
        "voxels": torch.tensor(filled.shape, dtype=torch.int32),
        "box": student.box,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    config = json.dumps(plain(student.config))
    metadata = {"format": FORMAT, "config": config, "sha256": _digest(tensors)}
    content = save(tensors, metadata)
    write_atomic(path, content)
    return Written(path, len(content), len(weights), len(student.weights) - len(weights))


def packed_networks(student: Student, path: Path) -> tuple[Tensor, Tensor]:
    """Return the networks that pruning has left, and the row of each cell among them.

    Args:
        student: Whose networks.
        path: The file that they are meant for, which an error names.

    Returns:
        Weights [cells, P] in half precision, and `cell_index` [gx, gy, gz], on the CPU.

    Raises:
        UserError: A weight does not fit into half precision.
    """
    index = occupancy.touched_cells(student.occupancy, student.config.grid_shape)
    rows = student.cell_index.cpu()[index >= 0].long()
    weights = student.weights.detach().cpu()[rows].half()
    if not torch.isfinite(weights).all():
        raise UserError(
            f"{path}: a weight is beyond the range of float16",
            hint="the training has diverged: look at the run with `featdistill diagnose`",
        )
    return weights, index


def read_student(path: Path) -> Student:
    """Read a student, ready to be rendered; its head and projector are zero.

    Raises:
        UserError: The file is missing, damaged, or not one of these.
    """
    tensors, config = _read(path)
    box, index, weights = (tensors[name] for name in ("box", "cell_index", "weights"))
    voxels = tuple(tensors["voxels"].tolist())
    if not torch.isfinite(box).all() or not (box[0] < box[1]).all():
        raise _damaged(path, f"the box {box.tolist()} has no volume")
    if voxels != occupancy.voxel_shape(box, config.occupancy_resolution):
        raise _damaged(path, f"{voxels} voxels do not belong to its box and settings")
    size = int(np.prod(voxels))
    if size > LARGEST or len(tensors["occupancy"]) != -(-size // 8):
        raise _damaged(path, f"the occupancy has {len(tensors['occupancy'])} bytes")
    bits = np.unpackbits(tensors["occupancy"].numpy(), count=size).reshape(voxels)
    filled = torch.from_numpy(bits)
    if not torch.equal(index, occupancy.touched_cells(filled, config.grid_shape)):
        raise _damaged(path, "cell_index does not belong to its occupancy")
    if not torch.isfinite(weights).all() or len(weights) != int(index.max()) + 1:
        raise _damaged(path, f"{len(weights)} rows of weights, or one that is not finite")
    student = Student(config, box, filled, torch.Generator().manual_seed(0))
    if weights.shape != student.weights.shape:
        raise _damaged(path, f"weights are {list(weights.shape)}")
    with torch.no_grad():
        student.weights.copy_(weights.float())
        for unused in (student.head, student.projector.weight, student.projector.bias):
            unused.zero_()
    return student


_EXPECTED = {
    "weights": (torch.float16, 2),
    "cell_index": (torch.int32, 3),
    "occupancy": (torch.uint8, 1),
    "voxels": (torch.int32, 1),
    "box": (torch.float32, 2),
}


def _read(path: Path) -> tuple[dict[str, Tensor], StudentConfig]:
    """Read tensors of the right types and ranks, and the settings."""
    with explained(path), path.open("rb"):
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, f"no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise _damaged(path, f"format is {metadata.get('format')!r}, not {FORMAT!r}")
    try:
        config = StudentConfig.model_validate_json(metadata.get("config", ""))
    except ValidationError as error:
        raise _damaged(path, f"settings: {error.errors()[0]['msg']}") from error
    if tensors.keys() != _EXPECTED.keys():
        raise _damaged(path, f"holds {sorted(tensors)}, not {sorted(_EXPECTED)}")
    for name, (kind, rank) in _EXPECTED.items():
        if tensors[name].dtype != kind or tensors[name].ndim != rank:
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise _damaged(path, f"{name} is {found}, not {kind} of rank {rank}")
    if metadata.get("sha256") != _digest(tensors):
        raise _damaged(path, "its bytes are not those that were written")
    sizes = {"cell_index": config.grid_shape, "voxels": (3,), "box": (2, 3)}
    for name, size in sizes.items():
        if tuple(tensors[name].shape) != size:
            raise _damaged(path, f"{name} is {list(tensors[name].shape)}, not {list(size)}")
    return tensors, config


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _EXPECTED:
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", hint="write it again with `featdistill export RUN FILE`")
