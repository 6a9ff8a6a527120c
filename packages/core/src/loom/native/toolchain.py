"""Find what can build and run native code here: instruction sets, C++ compiler, cache folder.

A kernel is compiled once per instruction-set level, never with `-march=native`, so that the level
in a file's manifest says exactly which processors may load it. The level comes from the flags in
`/proc/cpuinfo`; on other processors (aarch64, macOS) only `portable` exists, which the compiler
lowers to whatever 16-byte vectors the machine has.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loom.errors import UserError

CPU_INFO = Path("/proc/cpuinfo")
PROBE_TIMEOUT_S = 60


@dataclass(frozen=True)
class Level:
    """One instruction-set level: what the processor must report and how to compile for it."""

    cpu_flags: frozenset[str]
    compiler_flags: tuple[str, ...]


LEVELS: Mapping[str, Level] = {  # best first
    "avx512": Level(
        frozenset({"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma"}),
        ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
    ),
    "avx2": Level(frozenset({"avx2", "fma"}), ("-mavx2", "-mfma")),
    "portable": Level(frozenset(), ()),
}


@dataclass(frozen=True)
class Unavailable:
    """Native code that cannot be had here, and why, in words for the user."""

    reason: str


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answered `--version`."""

    path: Path
    version: str
    target: str


def cpu_levels() -> tuple[str, ...]:
    """List the instruction-set levels that this processor runs, best first."""
    flags = _cpu_flags(CPU_INFO)
    return tuple(name for name, level in LEVELS.items() if level.cpu_flags <= flags)


@functools.cache
def _cpu_flags(cpu_info: Path) -> frozenset[str]:
    """Return the feature flags of the first processor in `cpu_info`; none where it is absent."""
    if not cpu_info.is_file():
        return frozenset()
    for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def chosen_level() -> str:
    """Return the level to build for: the best one of this processor, or `LOOM_ISA`.

    Raises:
        UserError: `LOOM_ISA` names no level, or one that this processor lacks.
    """
    levels = cpu_levels()
    forced = os.environ.get("LOOM_ISA", "")
    if not forced:
        return levels[0]
    if forced not in LEVELS:
        raise UserError(f"LOOM_ISA={forced} is not one of {', '.join(LEVELS)}")
    if forced not in levels:
        raise UserError(
            f"LOOM_ISA={forced}, but this processor has no {forced}",
            hint=f"unset LOOM_ISA, or take one of {', '.join(levels)}",
        )
    return forced


def find_compiler() -> Compiler | Unavailable:
    """Return the first C++ compiler that runs: `$CXX`, then `g++`, then `clang++`."""
    named = os.environ.get("CXX", "")
    for name in (named, "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        compiler = _ask_compiler(path)
        if compiler is not None:
            return compiler
    tried = f"$CXX={named}, g++, clang++" if named else "$CXX, g++, clang++"
    return Unavailable(f"no C++ compiler found (tried {tried}); install g++ or clang++")


@functools.cache
def _ask_compiler(path: str) -> Compiler | None:
    version = probe([path, "--version"]).partition("\n")[0].strip()
    target = probe([path, "-dumpmachine"]).strip()
    return Compiler(Path(path), version, target) if version else None


def probe(command: list[str]) -> str:
    """Return all that `command` prints, or "" when it cannot run or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def cache_dir() -> Path:
    """Return the folder of the built libraries: `$LOOM_CACHE/native`, else under the XDG cache."""
    named = os.environ.get("LOOM_CACHE", "")
    if named:
        return Path(named).expanduser() / "native"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "loom" / "native"
