"""Hostile files and hostile disks: small files that claim to be huge, writers without room.

A bomb is a valid file of a format whose header claims gigabytes, or that unpacks to them. A reader
is held to the claim of `faults`, and to memory besides: it returns or refuses within ten seconds,
and never asks for more than `MOST_BYTES` beyond what the process had.
"""

from __future__ import annotations

import resource
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from faults import Reader
from loom.errors import UserError

MOST_BYTES = 2 << 30


@dataclass(frozen=True)
class Bomb:
    """A hostile file of one reader's format, made from a valid one."""

    name: str
    reader: str
    make: Callable[[Path], None]


@contextmanager
def memory_limit(most: int = MOST_BYTES) -> Iterator[None]:
    """Let this process ask for so many more bytes and no more: the rest is a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a disk that is full does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Bombs


def _chunk(kind: bytes, body: bytes) -> bytes:
    whole = kind + body
    return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))


def png_claiming(width: int, height: int, colour: int = 2) -> Callable[[Path], None]:
    """A picture of zeros whose header, check sum included, claims a size."""

    def make(path: Path) -> None:
        head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
        body = zlib.compress(bytes(1 << 20), 9)
        parts = (_chunk(b"IHDR", head), _chunk(b"IDAT", body), _chunk(b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    return make


def _zeros(count: int) -> bytes:
    """A raw deflate stream of so many megabytes of zeros, made from one block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush(zlib.Z_FINISH)
    return block * count + end


def npz_claiming(megabytes: int, honest: bool) -> Callable[[Path], None]:
    """An archive whose first array unpacks to so much, and says so or says that it is small."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(BytesIO(path.read_bytes())) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        first = next(iter(members))
        packed = _zeros(megabytes)
        claimed = megabytes << 20 if honest else len(members[first])
        local, central = b"", b""
        for name, content in members.items():
            data, size, method = (packed, claimed, 8) if name == first else (content, 0, 0)
            size = size or len(content)
            size = min(size, 2**32 - 2)
            fields = (method, 0, 33, zlib.crc32(content), len(data), size, len(name), 0)
            central += struct.pack("<IHHHHHHIIIHH", 0x02014B50, 20, 20, 0, *fields)
            central += struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + name.encode()
            local += struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, *fields) + name.encode() + data
        end = struct.pack(
            "<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(central), len(local), 0
        )
        path.write_bytes(local + central + end)

    return make


def npz_shape(path: Path) -> None:
    """An archive whose arrays claim a shape of petabytes over a few bytes."""
    with np.load(path) as archive:
        names = archive.files
    stream = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 64)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", stream.getvalue() + bytes(64))


def npy_shape(path: Path) -> None:
    """An array that claims petabytes."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**25, 2**25)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(64))


def hdf5_shape(path: Path) -> None:
    """A file whose every data set claims 2^36 rows, none of which was ever written."""
    import h5py

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda n, each: names.append(n) if isinstance(each, h5py.Dataset) else None)
        for name in names:
            dataset = file[name]
            kind, shape = dataset.dtype, (2**36, *dataset.shape[1:])
            del file[name]
            chunks = (1024, *shape[1:])
            file.create_dataset(name, shape=shape, dtype=kind, chunks=chunks, compression="gzip")


def ply_count(path: Path) -> None:
    """A point cloud whose header claims 10^12 points."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"element vertex 5", b"element vertex 1000000000000", 1))


def pcd_count(path: Path) -> None:
    """A point cloud whose header claims more points than there are bytes."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"POINTS 7", b"POINTS 19999999", 1))


def safetensors_header(path: Path) -> None:
    """A file whose header claims to be 2^60 bytes long."""
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def yaml_aliases(path: Path) -> None:
    """Nine generations of nine aliases each: 10^9 leaves."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path.write_text("\n".join(rows) + "\n")


def deep_json(path: Path) -> None:
    """Brackets deeper than any parser's stack."""
    path.write_text("[" * 200_000 + "]" * 200_000)


def wide_csv(path: Path) -> None:
    """A line of ten million columns."""
    path.write_text("velocity," * 2_000_000 + "\n")


NPZ = (
    "featdistill: rgba .npz",
    "pinpad: episode .npz",
    "pinpad: trace .npz",
    "end2race: the notes' cache .npz",
)
PNG = (
    "featdistill: picture of a scene",
    "featdistill: PNG",
    "coopcyl: depth, CARLA rgb24",
    "coopcyl: depth, OPV2V-H",
    "coopcyl: camera PNG",
    "end2race: camera PNG",
)
JSON = (
    "core: status.json",
    "core: run.json",
    "core: checkpoint manifest",
    "featdistill: transforms.json",
    "maniflow_overlay: recorded drawings",
    "end2race: dataset.json",
    "end2race: calibration.json",
    "end2race: cache.json",
    "end2race: cache shard index",
    "end2race: plan of an export",
)
YAML = ("core: config.yaml", "coopcyl: frame .yaml", "coopcyl: rig.yaml")
BOMBS = (
    *(Bomb("unpacks to 3.9 GB and says so", each, npz_claiming(3990, True)) for each in NPZ),
    *(Bomb("unpacks to 4 GB and hides it", each, npz_claiming(4096, False)) for each in NPZ),
    *(Bomb("claims a shape of petabytes", each, npz_shape) for each in NPZ),
    *(Bomb("claims 2^31 x 2^31 pixels", each, png_claiming(2**31 - 1, 2**31 - 1)) for each in PNG),
    *(Bomb("claims 60,000 x 60,000 pixels", each, png_claiming(60_000, 60_000)) for each in PNG),
    Bomb("claims a shape of petabytes", "coopcyl: depth .npy", npy_shape),
    Bomb("claims 2^36 rows", "maniflow_overlay: RoboTwin .hdf5", hdf5_shape),
    Bomb("claims 10^12 points", "featdistill: point_cloud.ply", ply_count),
    Bomb("claims 20 million points", "coopcyl: LiDAR .pcd", pcd_count),
    Bomb("claims a header of 2^60 bytes", "featdistill: student.safetensors", safetensors_header),
    *(Bomb("10^9 leaves by aliases", each, yaml_aliases) for each in YAML),
    *(Bomb("200,000 brackets deep", each, deep_json) for each in JSON),
    Bomb("two million columns", "end2race: data.csv", wide_csv),
)

# Writers

NOT_OURS = (
    *("core: config.yaml", "core: status.json", "core: gates.json", "core: run.json"),
    *("core: metrics.jsonl", "pinpad: trace .npz", "coopcyl: depth .npy", "coopcyl: rig.yaml"),
    *("maniflow_overlay: raw.jsonl", "maniflow_overlay: path .pkl"),
    *("maniflow_overlay: recorded drawings", "maniflow_overlay: answer of a model"),
    *("end2race: centreline .csv", "core: config.yaml, typed"),
)
"""Readers whose file the test itself writes."""


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def attempt(reader: Reader, folder: Path) -> str:
    """Write a reader's file; return "written", "refused", or what went wrong."""
    try:
        reader.write(folder)
    except UserError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    return "written"
