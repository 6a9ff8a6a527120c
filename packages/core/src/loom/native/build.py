"""Compile sources to a shared library in a cache that is keyed by everything the result depends on.

A finished library is a directory `<name>-<isa>-<key>/` with `lib.so`, `build.log` and, written
last, `manifest.json`. It is built in a temporary directory beside it and renamed into place under
a file lock, so a killed build leaves nothing that could be taken for a library: the lock goes with
its process and the next build removes what the dead one left.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from loom.native.toolchain import Unavailable

INCLUDE_DIR = Path(__file__).parent / "include"
LOCK_TIMEOUT_S = 600
COMPILE_TIMEOUT_S = 600
LOG_TAIL_LINES = 30
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
        described = [self.name, self.isa, list(self.command), self.compiler]
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
    compiler: str


def build(recipe: Recipe, cache: Path, levels: Iterable[str]) -> Artefact | Unavailable:
    """Return the library of `recipe` from `cache`, compiling it where it is absent or damaged.

    Args:
        recipe: What to compile.
        cache: Folder of the built libraries.
        levels: The levels that may be loaded here; a library of another one is refused.
    """
    if recipe.isa not in (levels := tuple(levels)):
        return Unavailable(f"{recipe.name} is for {recipe.isa}, which this machine has not")
    missing = [str(path) for path in recipe.sources if not path.is_file()]
    if missing:
        return Unavailable(f"native source not found: {', '.join(missing)}")
    key = recipe.key()
    target = cache / f"{recipe.name}-{recipe.isa}-{key}"
    if not inspect(target, recipe.isa, key, levels):
        return read_artefact(target)
    lock = cache / f"{target.name}.lock"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=LOCK_TIMEOUT_S):
            if not inspect(target, recipe.isa, key, levels):
                return read_artefact(target)  # another process built it meanwhile
            return _compile(recipe, key, target)
    except Timeout:
        return Unavailable(
            f"another process has been building {recipe.name} for {LOCK_TIMEOUT_S} s "
            f"and holds {lock}; end it, or set LOOM_CACHE to another folder"
        )
    except (OSError, NotImplementedError) as error:
        return Unavailable(
            f"cannot build in {cache}: {error}; set LOOM_CACHE to a writable folder with space"
        )


def inspect(directory: Path, isa: str, key: str, levels: Sequence[str]) -> str:
    """Say why the library in `directory` may not be loaded, or "" when it may.

    The manifest must be there and name this key and this level, the level must be one of `levels`,
    and the library must have the recorded sha256.
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((directory / "lib.so").read_bytes()).hexdigest()
    except FileNotFoundError:
        return "not built"
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"
    if not isinstance(manifest, dict) or manifest.get("key") != key:
        return "its manifest belongs to another build"
    if manifest.get("isa") != isa or isa not in levels:
        return f"it was built for {manifest.get('isa')}"
    if manifest.get("sha256") != digest:
        return "its content does not match the manifest (damaged)"
    return ""


def read_artefact(directory: Path) -> Artefact:
    """Read the manifest of a library that `inspect` accepted."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return Artefact(
        path=directory / "lib.so",
        name=manifest["name"],
        isa=manifest["isa"],
        key=manifest["key"],
        compiler=manifest["compiler"],
    )


def _compile(recipe: Recipe, key: str, target: Path) -> Artefact | Unavailable:
    """Compile under the lock: temporary directory, manifest last, rename into place."""
    prefix = f".{target.name}."
    for left_over in target.parent.glob(f"{prefix}*"):  # we hold the lock: their builders are dead
        shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        problem = _run_compiler(recipe, work)
        if problem:
            failed_log = target.with_name(f"{target.name}.failed.log")
            (work / "build.log").replace(failed_log)
            return Unavailable(f"{problem}\nfull log: {failed_log}")
        digest = hashlib.sha256((work / "lib.so").read_bytes()).hexdigest()
        manifest = {
            "name": recipe.name,
            "isa": recipe.isa,
            "key": key,
            "sha256": digest,
            "compiler": recipe.compiler,
            "sources": [path.name for path in recipe.sources],
        }
        text = json.dumps(manifest, indent=1) + "\n"
        (work / "manifest.json").write_text(text, encoding="utf-8")
        if target.exists():  # a damaged one; moved aside first, since a process may have it mapped
            target.rename(work.with_name(f"{work.name}.damaged"))
        work.rename(target)
        target.with_name(f"{target.name}.failed.log").unlink(missing_ok=True)
        return read_artefact(target)
    finally:
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
    tail = "\n".join(lines[:LOG_TAIL_LINES])
    return f"compiling {recipe.name} for {recipe.isa} failed with status {code}:\n{tail}"
