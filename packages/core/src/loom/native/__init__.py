"""Native kernels: compiled at first use, loaded by ctypes, explained when they cannot be had.

    library = native.library("featdistill_kilo", sources=[CSRC / "kilo.cpp"])
    if native.choose(impl, library, points.device) == "cpu":
        forward = library.function("kilo_forward", [c_void_p, c_int64, c_int])
        forward(native.pointer(points, torch.float32), len(points), native.threads())

Kernels have a plain C ABI (`extern "C"`) and include no torch header, which makes a build a matter
of a second and a built library independent of the torch version. Each has a readable torch twin;
where no library can be had, `choose` takes the twin and says so once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.errors import UserError
from loom.native.build import INCLUDE_DIR, Recipe, build
from loom.native.toolchain import (
    LEVELS,
    Unavailable,
    cache_dir,
    chosen_level,
    cpu_levels,
    find_compiler,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "Library",
    "Unavailable",
    "choose",
    "include_dir",
    "library",
    "on_notice",
    "pointer",
    "threads",
]

CXX_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno")

_logger = logging.getLogger("loom.native")
_said: set[str] = set()
_listener: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Library:
    """A loaded library: its functions by name, and the level it was compiled for."""

    name: str
    path: Path
    isa: str
    _handle: ctypes.CDLL = field(repr=False, compare=False)

    def function(self, name: str, argtypes: Sequence[Any], restype: Any = None) -> Callable:
        """Return the C function `name` with its argument and result types set.

        Raises:
            AttributeError: The library exports no such function.
        """
        try:
            function = self._handle[name]
        except AttributeError as error:
            raise AttributeError(f"{self.name} ({self.path}) exports no {name}") from error
        function.argtypes = list(argtypes)
        function.restype = restype
        return function


def include_dir() -> Path:
    """Return the folder that makes `#include <loom/simd.h>` work."""
    return INCLUDE_DIR


def library(
    name: str, *, sources: Sequence[Path], flags: Sequence[str] = ()
) -> Library | Unavailable:
    """Compile `sources` for this processor, or take them from the cache, and load the result.

    A second call with the same arguments returns the same library at the cost of a look-up.

    Args:
        name: Names the library in messages and in the cache.
        sources: C++ files.
        flags: Added to the compiler flags.
    """
    return _open(name, tuple(sources), tuple(flags), chosen_level(), cache_dir())


@functools.lru_cache(maxsize=256)
def _open(
    name: str, sources: tuple[Path, ...], flags: tuple[str, ...], isa: str, cache: Path
) -> Library | Unavailable:
    compiler = find_compiler()
    if isinstance(compiler, Unavailable):
        return compiler
    command = (
        str(compiler.path),
        *CXX_FLAGS,
        *LEVELS[isa].compiler_flags,
        f"-I{INCLUDE_DIR}",
        *flags,
    )
    recipe = Recipe(name, isa, sources, command, f"{compiler.version} {compiler.target}")
    built = build(recipe, cache, cpu_levels())
    if isinstance(built, Unavailable):
        return built
    try:
        handle = ctypes.CDLL(str(built.path))
    except OSError as error:
        return Unavailable(f"{built.path} cannot be loaded: {error}")
    return Library(name, built.path, built.isa, handle)


def pointer(
    tensor: torch.Tensor | None, dtype: torch.dtype, device: str = "cpu"
) -> ctypes.c_void_p:
    """Return the address of a tensor's data for a kernel; a null pointer for None.

    Raises:
        ValueError: The tensor is not contiguous, or has another dtype or device than the kernel's.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    if tensor.dtype != dtype or tensor.device.type != device or not tensor.is_contiguous():
        layout = "contiguous" if tensor.is_contiguous() else "strided"
        raise ValueError(
            f"the kernel takes a contiguous {dtype} tensor on {device}, "
            f"not a {layout} {tensor.dtype} tensor on {tensor.device.type}"
        )
    return ctypes.c_void_p(tensor.data_ptr())


def threads() -> int:
    """Return how many threads a kernel should use: as many as torch does."""
    import torch

    return torch.get_num_threads()


def choose(impl: str, library: Library | Unavailable, device: torch.device | str) -> str:
    """Return which implementation runs: "torch", "cpu" or "cuda".

    `auto` takes the kernel of the device that the tensors are on, and the torch twin where there is
    none; the reason is said once. Naming an implementation that cannot be had is an error.

    Raises:
        UserError: `impl` is unknown, or names a kernel that is not available for this device.
    """
    if impl not in ("auto", "torch", "cpu", "cuda"):
        raise UserError(f"impl={impl} is not one of auto, torch, cpu, cuda")
    if impl == "torch":
        return "torch"
    kind = device if isinstance(device, str) else device.type
    kind = kind.partition(":")[0]
    if isinstance(library, Library) and kind == "cpu" and impl in ("auto", "cpu"):
        _say(f"{library.name}: cpu kernel, {library.isa}")
        return "cpu"
    reason = library.reason if isinstance(library, Unavailable) else f"no kernel for {kind}"
    if impl != "auto":
        raise UserError(f"impl={impl} is not available on {kind}: {reason}", hint="use impl=auto")
    _say(f"the torch twin is used, which is slower: {reason}", logging.WARNING)
    return "torch"


def on_notice(listener: Callable[[str], None] | None) -> Callable[[str], None] | None:
    """Send the lines of `choose` to `listener` as well as to the log; return the previous one."""
    global _listener
    previous, _listener = _listener, listener
    return previous


def _say(message: str, level: int = logging.INFO) -> None:
    """Say `message` the first time that it comes up in this process."""
    if message in _said:
        return
    _said.add(message)
    _logger.log(level, message)
    if _listener is not None:
        _listener(message)
