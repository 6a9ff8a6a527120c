"""Compile sources to a shared library in a cache that is keyed by everything the result depends on.

A finished library is a directory `<name>-<isa>-<key>/` with `lib.so`, `build.log` and, written
last, `manifest.json`. It is built in a temporary directory beside it and renamed into place under
a file lock, so a killed build leaves nothing that could be taken for a library: the lock goes with
its process and the next build removes what the dead one left.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from loom.native.toolchain import Unavailable

INCLUDE_DIR = Path(__file__).parent / "include"
LOCK_TIMEOUT_S = 600
COMPILE_TIMEOUT_S = 600
SHOWN_LINES = 30  # of the log, from the first error on
_logger = logging.getLogger("loom.native")
INCLUDE_LINE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """One compiler call that makes one shared library for one instruction-set level."""

    name: str
    isa: str
    sources: tuple[Path, ...]
    command: tuple[str, ...]  # the compiler and its flags, without sources and output
    compiler: str  # its version line

    def key(self) -> str:
        """Hash what the library depends on: sources, headers, flags, compiler and level."""
        digest = hashlib.sha256()
        # Folders are left out: what they hold is hashed, and two checkouts share their libraries.
        flags = [part for part in self.command[1:] if not part.startswith("-I")]
        described = [self.name, self.isa, flags, self.compiler]
        digest.update(json.dumps(described).encode())
        for path in [*self.sources, *self.headers()]:
            content = path.read_bytes()
            digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:20]

    def headers(self) -> list[Path]:
        """List the headers of the package and of loom that the sources include, in any depth."""
        folders = [INCLUDE_DIR, *(Path(f[2:]) for f in self.command if f[:2] == "-I" and f[2:])]
        found: dict[Path, None] = {}
        open_files = list(self.sources)
        while open_files:
            current = open_files.pop(0)
            text = current.read_text(encoding="utf-8", errors="replace")
            for included in INCLUDE_LINE.findall(text):
                for folder in (current.parent, *folders):
                    candidate = (folder / included).resolve()
                    if candidate.is_file():
                        if candidate not in found:
                            found[candidate] = None
                            open_files.append(candidate)
                        break
        return list(found)


@dataclass(frozen=True)
class Artefact:
    """A library in the cache, as its manifest describes it."""

    path: Path
    name: str
    isa: str
    key: str
    sha256: str
    compiler: str


def build_library(recipe: Recipe, cache: Path, levels: Collection[str]) -> Artefact | Unavailable:
    """Return the library of `recipe` from `cache`, compiling it where it is absent or damaged.

    Args:
        recipe: What to compile.
        cache: Folder of the built libraries.
        levels: The levels that may be loaded here; a library of another one is refused.
    """
    missing = [str(path) for path in recipe.sources if not path.is_file()]
    if missing:
        return Unavailable(f"native source not found: {', '.join(missing)}")
    key = recipe.key()
    target = cache / f"{recipe.name}-{recipe.isa}-{key}"
    found = check(target, recipe.isa, key, levels)
    if isinstance(found, Artefact):
        return found
    lock = cache / f"{target.name}.lock"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=LOCK_TIMEOUT_S):
            found = check(target, recipe.isa, key, levels)
            if isinstance(found, Artefact):  # another process built it meanwhile
                return found
            if target.exists():
                _logger.warning("building %s again: %s", target, found.reason)
            problem = _compile(recipe, key, target)
        return Unavailable(problem) if problem else check(target, recipe.isa, key, levels)
    except Timeout:
        return Unavailable(
            f"another process has been building {recipe.name} for {LOCK_TIMEOUT_S} s "
            f"and holds {lock}; end it, or set LOOM_CACHE to another folder"
        )
    except (OSError, NotImplementedError) as error:  # NotImplementedError: no locks on this disk
        return Unavailable(
            f"cannot build in {cache}: {error}; set LOOM_CACHE to a writable folder with space"
        )


def check(directory: Path, isa: str, key: str, levels: Collection[str]) -> Artefact | Unavailable:
    """Return the library in `directory`, or why it may not be loaded.

    Its manifest must name this key and this level, the level must be one of `levels`, and the file
    must have the recorded sha256.
    """
    try:
        artefact = read_manifest(directory)
        digest = hashlib.sha256(artefact.path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return Unavailable("not built")
    except (OSError, ValueError) as error:
        return Unavailable(f"unreadable: {error}")
    if artefact.key != key:
        return Unavailable("its manifest belongs to another build")
    if artefact.isa != isa or isa not in levels:
        return Unavailable(f"it is for {artefact.isa}, this processor takes {', '.join(levels)}")
    if artefact.sha256 != digest:
        return Unavailable("damaged: its content does not match the manifest")
    return artefact


def read_manifest(directory: Path) -> Artefact:
    """Read the manifest of the library in `directory`.

    Raises:
        ValueError: It is not a manifest.
    """
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    names = ("name", "isa", "key", "sha256", "compiler")
    if not isinstance(manifest, dict) or not all(name in manifest for name in names):
        raise ValueError(f"{path} is not the manifest of a native library")
    return Artefact(directory / "lib.so", *(str(manifest[name]) for name in names))


def artefacts(cache: Path) -> tuple[Artefact, ...]:
    """List the libraries in `cache`, whether or not they fit this machine."""
    found = []
    for path in sorted(cache.glob("*/manifest.json")):
        try:
            found.append(read_manifest(path.parent))
        except (OSError, ValueError) as error:
            _logger.warning("%s is not readable: %s", path, error)
    return tuple(found)


def _compile(recipe: Recipe, key: str, target: Path) -> str:
    """Compile under the lock: temporary folder, manifest last, rename. Return "" or the problem."""
    prefix = f".{target.name}."
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    failed_log = target.with_name(f"{target.name}.failed.log")
    try:
        problem = _run_compiler(recipe, work)
        if problem:
            (work / "build.log").replace(failed_log)
            return f"{problem}\nfull log: {failed_log}"
        manifest = {
            "name": recipe.name,
            "isa": recipe.isa,
            "key": key,
            "sha256": hashlib.sha256((work / "lib.so").read_bytes()).hexdigest(),
            "compiler": recipe.compiler,
            "sources": [path.name for path in recipe.sources],
        }
        text = json.dumps(manifest, indent=1) + "\n"
        (work / "manifest.json").write_text(text, encoding="utf-8")
        if target.exists():  # moved aside, not overwritten: a process may have it mapped
            target.rename(work.with_name(f"{work.name}.old"))
        work.rename(target)
        failed_log.unlink(missing_ok=True)
        return ""
    finally:  # what killed builds left goes too: we hold the lock, so their makers are dead
        for left_over in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(left_over, ignore_errors=True)


def _run_compiler(recipe: Recipe, work: Path) -> str:
    """Write `lib.so` and `build.log` into `work`; return "" or what went wrong."""
    command = [*recipe.command, *map(str, recipe.sources), "-o", str(work / "lib.so")]
    log = work / "build.log"
    with log.open("w", encoding="utf-8") as stream:
        stream.write(shlex.join(command) + "\n")
        stream.flush()
        try:
            code = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
                timeout=COMPILE_TIMEOUT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"compiling {recipe.name} took longer than {COMPILE_TIMEOUT_S} s"
    if code == 0 and (work / "lib.so").is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    first = next((i for i, line in enumerate(lines) if "error" in line.lower()), 0)
    shown = "\n".join(lines[first : first + SHOWN_LINES])
    return f"compiling {recipe.name} for {recipe.isa} failed with status {code}:\n{shown}"
