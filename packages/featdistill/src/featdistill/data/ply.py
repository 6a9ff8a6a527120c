"""Read and write gaussians in the `point_cloud.ply` layout of 3D Gaussian Splatting.

One little-endian binary element `vertex` with 62 float32 properties, 248 bytes per gaussian:
`x y z nx ny nz f_dc_0..2 f_rest_0..44 opacity scale_0..2 rot_0..3` (graphdeco-inria/gaussian-
splatting, `scene/gaussian_model.py: save_ply`). Normals are zero. `f_rest` is channel-major:
`f_rest_{15 c + k}` is coefficient k + 1 of colour channel c. Everything is raw: logits, log scales.

Files of other trainers are read as well where they mean the same: without normals, with properties
that nobody needs here, and of SH degree 0 to 2, whose 0, 9 or 24 `f_rest` are channel-major in the
same way and leave the higher coefficients zero. What only looks the same is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.files import write_atomic

from featdistill.gaussians import SH_COEFFICIENTS, Gaussians

REST = SH_COEFFICIENTS - 1
REST_BY_DEGREE = (0, 3, 8, REST)
"""Coefficients per colour channel beside the constant one, by SH degree."""
POSITION = ("x", "y", "z")
NORMAL = ("nx", "ny", "nz")
F_DC = tuple(f"f_dc_{c}" for c in range(3))
F_REST = tuple(f"f_rest_{k}" for k in range(3 * REST))
SCALE = tuple(f"scale_{k}" for k in range(3))
ROTATION = tuple(f"rot_{k}" for k in range(4))
PROPERTIES = (*POSITION, *NORMAL, *F_DC, *F_REST, "opacity", *SCALE, *ROTATION)
"""The 62 property names in file order."""

PLY_NAME = "point_cloud.ply"
MAX_HEADER_BYTES = 1 << 16
NUMPY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
}  # fmt: skip
EXPORT_HINT = "a 3DGS training writes it as point_cloud/iteration_N/point_cloud.ply"
FOREIGN = {
    "filter_3D": "Mip-Splatting stores opacities and scales without its 3D filter; fuse it in with "
    "its create_fused_ply.py",
}
"""Properties that change what the others mean, and what to do about each."""


@dataclass(frozen=True)
class Header:
    """What the text part of a PLY file declares about its vertices."""

    count: int
    properties: tuple[tuple[str, str], ...]  # (name, numpy type)
    size: int  # bytes of the text part

    def dtype(self) -> np.dtype:
        """Return the record type of one vertex."""
        return np.dtype(list(self.properties))


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """Write gaussians as a 3DGS `point_cloud.ply`, atomically."""
    n = len(gaussians)
    sh = gaussians.sh.detach().cpu()
    columns = [
        gaussians.means.detach().cpu(),
        torch.zeros(n, 3),
        sh[:, 0],
        sh[:, 1:].transpose(1, 2).reshape(n, 3 * REST),
        gaussians.opacity_logits.detach().cpu()[:, None],
        gaussians.log_scales.detach().cpu(),
        gaussians.rotations.detach().cpu(),
    ]
    rows = torch.cat(columns, dim=1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    header += [f"property float {name}" for name in PROPERTIES] + ["end_header", ""]
    write_atomic(path, "\n".join(header).encode("ascii") + rows.tobytes())


def read_ply(path: Path) -> Gaussians:
    """Read a 3DGS `point_cloud.ply` of SH degree 0 to 3; properties may stand in any order.

    Raises:
        UserError: the file is missing, damaged or no 3DGS model; names the file and the property.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the PLY file: {error.strerror}") from error
    header = _parse_header(path, content)
    rest = _rest_of(path, {name for name, _ in header.properties})
    dtype = header.dtype()
    found, expected = len(content) - header.size, header.count * dtype.itemsize
    if found != expected:
        raise UserError(
            f"{path}: {header.count} vertices of {dtype.itemsize} bytes need {expected} bytes "
            f"after the header, found {found}",
            hint="the file is truncated or was written by a broken export; copy it again",
        )
    vertices = np.frombuffer(content, dtype, header.count, header.size)
    return _gaussians(path, vertices, rest)


def _rest_of(path: Path, known: set[str]) -> int:
    """Check that the properties are those of a 3DGS model; return its f_rest per channel."""
    for name in sorted(known & FOREIGN.keys()):
        raise UserError(f"{path}: has the property {name!r}", hint=FOREIGN[name])
    count = sum(name in known for name in F_REST)
    rest = next((k for k in REST_BY_DEGREE if 3 * k >= count), REST)
    needed = (*POSITION, *F_DC, *F_REST[: 3 * rest], "opacity", *SCALE, *ROTATION)
    missing = [name for name in needed if name not in known]
    if missing:
        others = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise UserError(
            f"{path}: property {missing[0]!r}{others} missing from the vertex element",
            hint=f"a 3D Gaussian Splatting model of SH degree 0 to 3 is needed: {EXPORT_HINT}",
        )
    return rest


def _parse_header(path: Path, content: bytes) -> Header:
    text, separator, _ = content[:MAX_HEADER_BYTES].partition(b"end_header\n")
    if not content.startswith(b"ply\n") or not separator:
        raise UserError(f"{path}: not a PLY file (no header from 'ply' to 'end_header')")
    try:
        lines = text.decode("ascii").splitlines()[1:]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} of the PLY header is not ASCII") from error
    lines = [line for line in lines if line.split(" ", 1)[0] not in ("comment", "obj_info")]
    if not lines or lines[0] != "format binary_little_endian 1.0":
        found = lines[0] if lines else "nothing"
        raise UserError(
            f"{path}: 'format binary_little_endian 1.0' expected, found {found!r}",
            hint="write the file again as binary little-endian, the only format of 3DGS",
        )
    count, properties = _parse_vertex_element(path, lines[1:])
    return Header(count, properties, len(text) + len(separator))


def _parse_vertex_element(path: Path, lines: list[str]) -> tuple[int, tuple[tuple[str, str], ...]]:
    if not lines or not (match := re.fullmatch(r"element vertex (\d{1,12})", lines[0])):
        found = lines[0] if lines else "nothing"
        raise UserError(f"{path}: 'element vertex N' expected in the header, found {found!r}")
    properties: dict[str, str] = {}
    for line in lines[1:]:
        words = line.split()
        if len(words) != 3 or words[0] != "property" or words[1] not in NUMPY_TYPES:
            raise UserError(
                f"{path}: header line {line!r} is not 'property TYPE NAME' of a scalar type",
                hint=f"only a single vertex element is read: {EXPORT_HINT}",
            )
        if words[2] in properties:
            raise UserError(f"{path}: property {words[2]!r} is declared twice")
        properties[words[2]] = NUMPY_TYPES[words[1]]
    return int(match.group(1)), tuple(properties.items())


def _gaussians(path: Path, vertices: np.ndarray, rest: int) -> Gaussians:
    if not len(vertices):
        raise UserError(f"{path}: the file holds no gaussian")

    def columns(names: tuple[str, ...]) -> torch.Tensor:
        block = np.empty((len(vertices), len(names)), np.float32)
        for column, name in enumerate(names):
            block[:, column] = vertices[name]
            finite = np.isfinite(block[:, column])
            if not finite.all():
                row = int(np.argmin(finite))
                raise UserError(
                    f"{path}: property {name!r} of vertex {row} is {block[row, column]}",
                    hint="the training that wrote it diverged; take an earlier iteration",
                )
        return torch.from_numpy(block)

    n = len(vertices)
    sh = torch.zeros(n, SH_COEFFICIENTS, 3)
    sh[:, 0] = columns(F_DC)
    sh[:, 1 : 1 + rest] = columns(F_REST[: 3 * rest]).reshape(n, 3, rest).transpose(1, 2)
    rotations = columns(ROTATION)
    unusable = rotations.norm(dim=1) == 0
    if unusable.any():
        row = int(unusable.nonzero()[0])
        raise UserError(f"{path}: properties 'rot_0..3' of vertex {row} are all zero")
    return Gaussians(
        means=columns(POSITION),
        log_scales=columns(SCALE),
        rotations=rotations,
        opacity_logits=columns(("opacity",))[:, 0],
        sh=sh,
    )


def ply_of(path: Path) -> Path:
    """Return the PLY file that a path means: the file itself, or that of a teacher run.

    A folder in the 3DGS layout (`point_cloud/iteration_30000/point_cloud.ply`) gives its newest.
    """
    if not path.is_dir():
        return path
    if (path / PLY_NAME).is_file():
        return path / PLY_NAME
    found = path.glob(f"point_cloud/iteration_*/{PLY_NAME}")
    iterations = {int(number): ply for ply in found if (number := ply.parent.name[10:]).isdecimal()}
    if not iterations:
        raise UserError(
            f"{path} holds no {PLY_NAME}",
            hint="give a PLY file, a teacher run or a 3DGS model folder",
        )
    return iterations[max(iterations)]
