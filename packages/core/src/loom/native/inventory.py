"""Report the tool chain as it was found, and build every package's kernels ahead of time.

A package names its libraries in its `pyproject.toml`:

    [project.entry-points."loom.native"]
    featdistill = "featdistill.models.kernels:LIBRARIES"

where `LIBRARIES` maps a name to a function without arguments that returns what
`loom.native.library` gave it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loom.native import Library
from loom.native.build import Artefact, artefacts
from loom.native.cuda import CudaToolkit, architectures, find_cuda
from loom.native.toolchain import (
    Compiler,
    Unavailable,
    cache_dir,
    chosen_level,
    cpu_levels,
    find_compiler,
)

ENTRY_POINTS = "loom.native"


@dataclass(frozen=True)
class Toolchain:
    """What this machine builds native code with, and what has been built."""

    machine: str
    levels: tuple[str, ...]  # that the processor runs, best first
    level: str  # that is built for
    compiler: Compiler | Unavailable
    cuda: CudaToolkit | Unavailable
    architectures: tuple[str, ...]
    cache: Path
    artefacts: tuple[Artefact, ...]


@dataclass(frozen=True)
class BuildResult:
    """The outcome of building one library of one package."""

    package: str
    name: str
    result: Library | Unavailable
    seconds: float


def toolchain() -> Toolchain:
    """Look at this machine; builds nothing."""
    cache = cache_dir()
    return Toolchain(
        machine=platform.machine(),
        levels=cpu_levels(),
        level=chosen_level(),
        compiler=find_compiler(),
        cuda=find_cuda(),
        architectures=architectures(),
        cache=cache,
        artefacts=artefacts(cache),
    )


def build_all() -> Iterator[BuildResult]:
    """Build the libraries of all installed packages, and their CUDA part where nvcc is there.

    Yields each result as it is ready; one failure does not end the rest.
    """
    with_cuda = isinstance(find_cuda(), CudaToolkit)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            libraries = entry.load()
        except (ImportError, AttributeError) as error:
            reason = Unavailable(f"{entry.value} cannot be imported: {error}")
            yield BuildResult(entry.name, "", reason, 0.0)
            continue
        for name, open_library in libraries.items():
            begin = time.perf_counter()
            result = open_library()
            yield BuildResult(entry.name, name, result, time.perf_counter() - begin)
            if isinstance(result, Library) and result.has_cuda and with_cuda:
                begin = time.perf_counter()
                gpu_part = result.cuda
                seconds = time.perf_counter() - begin
                yield BuildResult(entry.name, f"{name} (cuda)", gpu_part, seconds)
