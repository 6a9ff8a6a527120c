"""Find the real CUDA toolkit and the call that compiles plain `.cu` files to a shared library.

`nvcc` on the PATH is often a wrapper script or a link, so its folder says nothing about where the
headers and libraries are. `nvcc --dryrun` does: the driver prints the folder that it really runs
from. The runtime is linked statically, so a library loads beside whatever CUDA torch brought along,
and sources include no torch header, which makes a build a matter of one or two seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loom.errors import UserError
from loom.native.toolchain import Unavailable, probe

DEFAULT_ROOT = Path("/usr/local/cuda")
DEFAULT_ARCHITECTURES = ("86", "90")
NVCC_FLAGS = ("-std=c++17", "-O3", "-shared", "-cudart", "static", "-Xcompiler", "-fPIC")


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit that has the compiler, the headers and the static runtime."""

    root: Path
    version: str

    @property
    def nvcc(self) -> Path:
        """The compiler itself, not a wrapper."""
        return self.root / "bin" / "nvcc"


def find_cuda() -> CudaToolkit | Unavailable:
    """Return the first complete CUDA toolkit.

    Looked for in `$CUDA_HOME`, `$CUDA_PATH`, behind the `nvcc` on the PATH, in `/usr/local/cuda`
    and in the nvidia wheels.
    """
    problems: list[str] = []
    for origin, root in _candidates():
        problem = _what_is_missing(root)
        if problem:
            problems.append(f"{origin} ({root}) has no {problem}")
            continue
        version = _release(root / "bin" / "nvcc")
        if version:
            return CudaToolkit(root, version)
        problems.append(f"{origin} ({root}): nvcc does not run")
    detail = "; ".join(dict.fromkeys(problems)) or "no nvcc on the PATH, CUDA_HOME is not set"
    return Unavailable(f"no complete CUDA toolkit: {detail}")


def architectures() -> tuple[str, ...]:
    """Return the GPU architectures to build for, as in `86`.

    `$LOOM_CUDA_ARCH` (as in `86;90`), else those of the GPUs in this machine, else 86 and 90. The
    highest one is added as PTX, for newer GPUs.

    Raises:
        UserError: `LOOM_CUDA_ARCH` is not a list of architectures.
    """
    named = os.environ.get("LOOM_CUDA_ARCH", "")
    if not named:
        return _present_architectures() or DEFAULT_ARCHITECTURES
    listed = tuple(part.strip().replace(".", "") for part in named.split(";") if part.strip())
    if not listed or not all(re.fullmatch(r"\d{2,3}[a-f]?", arch) for arch in listed):
        raise UserError(f"LOOM_CUDA_ARCH={named} is not a list such as 86;90")
    return listed


def nvcc_command(
    toolkit: CudaToolkit, host_compiler: Path, archs: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the compiler call for `archs`, without sources and output."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    return (
        str(toolkit.nvcc),
        *NVCC_FLAGS,
        "-ccbin",
        str(host_compiler),
        f"-L{_folder_of_static_runtime(toolkit.root)}",
        *targets,
    )


def _candidates() -> Iterator[tuple[str, Path]]:
    """Yield where a toolkit may be, as (what names it, its root)."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield variable, Path(os.environ[variable])
    on_path = shutil.which("nvcc")
    if on_path:
        yield "nvcc on the PATH", real_root(Path(on_path))
    if DEFAULT_ROOT.is_dir():
        yield "default", DEFAULT_ROOT
    wheels = importlib.util.find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or []) if wheels else []:
        for nvcc in sorted(Path(folder).glob("*/bin/nvcc"), reverse=True):
            yield "nvidia wheel", nvcc.parent.parent


def real_root(nvcc: Path) -> Path:
    """Return the toolkit that `nvcc` runs from, also behind links and wrapper scripts."""
    said = probe([str(nvcc), "--dryrun", "-x", "cu", os.devnull])
    found = re.search(r"^#\$ _HERE_=(.+)$", said, re.MULTILINE)
    folder = Path(found.group(1).strip()) if found else nvcc.resolve().parent
    return folder.resolve().parent


def _what_is_missing(root: Path) -> str:
    """Name the first part that a build needs and `root` lacks, or ""."""
    for part in ("bin/nvcc", "include/cuda_runtime.h"):
        if not (root / part).is_file():
            return part
    return "" if _folder_of_static_runtime(root) else "libcudart_static.a"


def _folder_of_static_runtime(root: Path) -> Path | None:
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (root / folder / "libcudart_static.a").is_file():
            return root / folder
    return None


@functools.cache
def _release(nvcc: Path) -> str:
    """Return what `nvcc --version` says of its release, or ""."""
    found = re.search(r"release .*", probe([str(nvcc), "--version"]))
    return found.group(0).strip() if found else ""


@functools.cache
def _present_architectures() -> tuple[str, ...]:
    """Ask the driver for the architectures of the GPUs here; none without a driver."""
    smi = shutil.which("nvidia-smi")
    said = probe([smi, "--query-gpu=compute_cap", "--format=csv,noheader"]) if smi else ""
    found = {major + minor for major, minor in re.findall(r"^(\d+)\.(\d)$", said, re.MULTILINE)}
    return tuple(sorted(found, key=int))
