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
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.errors import UserError
from loom.native.build import INCLUDE_DIR, Recipe, build_library
from loom.native.cuda import architectures, find_cuda, nvcc_command
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
    "cores_for_kernels",
    "include_dir",
    "library",
    "notice",
    "on_notice",
    "pointer",
    "stream",
    "threads",
]

CXX_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno")

_logger = logging.getLogger("loom.native")
_said: set[str] = set()
_listener: Callable[[str], None] | None = None
_kernel_threads: int | None = None


@dataclass(frozen=True)
class CudaPart:
    """The CUDA sources of a library and the flags that nvcc gets for them."""

    sources: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """A loaded library: its functions by name, and the level it was compiled for."""

    name: str
    path: Path
    isa: str  # avx512, avx2, portable; cuda for the GPU part
    _handle: ctypes.CDLL = field(repr=False, compare=False)
    _gpu_part: CudaPart = field(default=CudaPart(), repr=False)

    def function(
        self, name: str, argtypes: Sequence[Any], restype: Any = None
    ) -> Callable[..., Any]:
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

    @property
    def has_cuda(self) -> bool:
        """Whether there are CUDA sources, built or not."""
        return bool(self._gpu_part.sources)

    @property
    def cuda(self) -> Library | Unavailable:
        """The library of the CUDA sources, compiled when it is first asked for."""
        if not self.has_cuda:
            return Unavailable(f"{self.name} has no CUDA kernel")
        return _open_cuda(self.name, self._gpu_part, architectures(), cache_dir())


def include_dir() -> Path:
    """Return the folder that makes `#include <loom/simd.h>` work."""
    return INCLUDE_DIR


def library(
    name: str,
    *,
    sources: Sequence[Path],
    cuda: Sequence[Path] = (),
    flags: Sequence[str] = (),
    cuda_flags: Sequence[str] = (),
) -> Library | Unavailable:
    """Compile `sources` for this processor, or take them from the cache, and load the result.

    A second call with the same arguments returns the same library at the cost of a look-up.

    Args:
        name: Names the library in messages and in the cache.
        sources: C++ files.
        cuda: `.cu` files with `extern "C"` launchers that take a stream; see `Library.cuda`.
        flags: Added to the C++ compiler flags.
        cuda_flags: Added to the flags of nvcc.
    """
    level = chosen_level()
    gpu_part = CudaPart(tuple(cuda), tuple(cuda_flags))
    return _open(name, tuple(sources), gpu_part, tuple(flags), level, cache_dir())


@functools.lru_cache(maxsize=256)
def _open(
    name: str,
    sources: tuple[Path, ...],
    gpu_part: CudaPart,
    flags: tuple[str, ...],
    isa: str,
    cache: Path,
) -> Library | Unavailable:
    compiler = find_compiler()
    if isinstance(compiler, Unavailable):
        return compiler
    include = f"-I{INCLUDE_DIR}"
    command = (str(compiler.path), *CXX_FLAGS, *LEVELS[isa].compiler_flags, include, *flags)
    recipe = Recipe(name, isa, sources, command, f"{compiler.version} {compiler.target}")
    return _load(recipe, cache, cpu_levels(), gpu_part)


@functools.lru_cache(maxsize=256)
def _open_cuda(
    name: str, part: CudaPart, archs: tuple[str, ...], cache: Path
) -> Library | Unavailable:
    compiler, toolkit = find_compiler(), find_cuda()
    if isinstance(compiler, Unavailable):
        return compiler
    if isinstance(toolkit, Unavailable):
        return toolkit
    command = (*nvcc_command(toolkit, compiler.path, archs), f"-I{INCLUDE_DIR}", *part.flags)
    recipe = Recipe(
        name, "cuda", part.sources, command, f"nvcc {toolkit.version}, {compiler.version}"
    )
    return _load(recipe, cache, ("cuda",), CudaPart())


def _load(
    recipe: Recipe, cache: Path, levels: tuple[str, ...], gpu_part: CudaPart
) -> Library | Unavailable:
    built = build_library(recipe, cache, levels)
    if isinstance(built, Unavailable):
        return built
    try:
        handle = ctypes.CDLL(str(built.path))
    except OSError as error:
        return Unavailable(f"{built.path} cannot be loaded: {error}")
    return Library(recipe.name, built.path, built.isa, handle, gpu_part)


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
    """Return how many threads a kernel should use: as many as torch does, or did."""
    import torch

    return _kernel_threads or torch.get_num_threads()


@contextmanager
def cores_for_kernels() -> Generator[None]:
    """Leave the cores to kernels in the block; torch itself works in one thread.

    Between two kernels torch has small tensors only. Its pool cannot speed those up, but its idle
    threads spin, which costs the kernels a core and the user CPU time.
    """
    import torch

    global _kernel_threads
    before = _kernel_threads
    width = torch.get_num_threads()
    _kernel_threads = threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _kernel_threads = before
        torch.set_num_threads(width)


def stream(device: torch.device) -> ctypes.c_void_p:
    """Return torch's current CUDA stream on `device`, for a launcher's last argument."""
    import torch

    return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)


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
    kind = (device if isinstance(device, str) else device.type).partition(":")[0]
    found = _for_device(library, kind)
    if isinstance(found, Library) and impl in ("auto", kind):
        notice(f"{found.name}: {kind} kernel ({found.isa})")
        return kind
    reason = found.reason if isinstance(found, Unavailable) else f"the tensors are on {kind}"
    if impl != "auto":
        raise UserError(f"impl={impl} is not available: {reason}", hint="use impl=auto")
    notice(f"a torch twin runs in place of the {kind} kernel: {reason}", logging.WARNING)
    return "torch"


def _for_device(library: Library | Unavailable, kind: str) -> Library | Unavailable:
    if isinstance(library, Unavailable) or kind == "cpu":
        return library
    return library.cuda if kind == "cuda" else Unavailable(f"no kernels exist for {kind}")


def on_notice(listener: Callable[[str], None] | None) -> Callable[[str], None] | None:
    """Send the lines of `notice` to `listener` as well as to the log; return the previous one."""
    global _listener
    previous, _listener = _listener, listener
    return previous


def notice(message: str, level: int = logging.INFO) -> None:
    """Say `message` the first time that it comes up in this process, to the log and `on_notice`."""
    if message in _said:
        return
    _said.add(message)
    _logger.log(level, message)
    if _listener is not None:
        _listener(message)
