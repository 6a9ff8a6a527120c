"""Where a number comes from: code, versions, settings, machine and data, as in `run.json`.

Everything here is found without importing torch, in a few milliseconds; what cannot be found (no
git, no /proc) is None, never a guess. `continued` holds a resumed run to what it began with.
"""

import hashlib
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

from loom.config import (
    Config,
    Resolved,
    completed,
    config_hash,
    differences,
    flatten,
    plain,
)
from loom.errors import UserError
from loom.files import sha256_file
from loom.processors import usable_processors
from loom.record import json_safe

_CORE = "loom"
_DISTRIBUTIONS = {"loom": "loom-core"}


def facts(thread: str, resolved: Resolved[Any], *, seed: int, world_size: int) -> dict[str, Any]:
    """Return the content of `run.json` for a run that begins now."""
    found = packages(thread)
    own = found.get(thread.replace("-", "_"), found[_CORE])
    return {
        "thread": thread,
        "command": shlex.join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "working_directory": str(Path.cwd()),
        "config": json_safe(plain(resolved.config)),
        "config_hash": config_hash(resolved.config),
        "config_source": resolved.source,
        "config_origins": resolved.origins,
        "git": git_state(own["path"]),
        "packages": found,
        **machine(),
        "torch": torch_in_use(),
        "seed": seed,
        "world_size": world_size,
        "parents": {},
        "shortened": [],
        "warnings": [],
        "resumes": [],
    }


def continued(
    saved: Mapping[str, Any], now: Mapping[str, Any], config: Config, directory: Path
) -> dict[str, Any]:
    """Return the content of `run.json` for a run that goes on.

    Args:
        saved: what the file holds.
        now: the facts of this process.
        config: the settings of this process. A key that they have gained since the run began is no
            difference while it stands at its default: the run had no other value.
        directory: the run's, for the message.

    Raises:
        UserError: it is not the same run: other settings or another checkout, each named
            `key: was -> now`.
    """
    try:
        before = json_safe(completed(type(config), saved["config"]))
        changes = differences(before, now["config"])
        free = config.free_on_resume
        allowed = [change for change in changes if _is_free(change.partition(": ")[0], free)]
        refused = [change for change in changes if change not in allowed]
        if saved["thread"] != now["thread"]:
            refused.append(f"thread: {saved['thread']} -> {now['thread']}")
        refused += differences(_paths(saved), _paths(now))
        allowed += differences(_surroundings(saved), _surroundings(now))
        resumes = [*saved["resumes"]]
        gained = dict(flatten(before)).keys() - dict(flatten(saved["config"])).keys()
        gained -= {change.partition(": ")[0] for change in allowed}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{directory}/run.json: is not what Loom wrote: {error!r}",
            hint="archive the directory and start anew",
        ) from error
    if refused:
        raise UserError(
            f"{directory}: cannot go on, this has changed since the run began:\n  "
            + "\n  ".join(refused),
            hint="go back to what it began with, or start a new run",
        )
    kept = ("command", "began", "git", "packages", "host", "device", "threads", "world_size")
    changes = {"changed": allowed, "gained": sorted(gained)}
    resumes.append({key: now[key] for key in kept} | changes)
    return {
        **saved,
        "config": now["config"],
        "config_hash": now["config_hash"],
        "resumes": resumes,
    }


def packages(thread: str) -> dict[str, dict[str, str | None]]:
    """Return version and path of the core, the thread's package and torch, as they would import.

    Args:
        thread: name of the thread's distribution; a name that is no package is left out.
    """
    found: dict[str, dict[str, str | None]] = {}
    for name in dict.fromkeys((_CORE, thread.replace("-", "_"), "torch")):
        spec = util.find_spec(name) if name.isidentifier() else None
        if spec is not None and spec.origin is not None:
            path = str(Path(spec.origin).resolve().parent)
            found[name] = {"version": _version(_DISTRIBUTIONS.get(name, name)), "path": path}
    return found


def git_state(package_path: str | None) -> dict[str, str | None] | None:
    """Return commit and digest of the uncommitted changes of the checkout that holds a package.

    Returns:
        {"commit": ..., "dirty": sha256, None, or "unknown" where git does not answer in time}, or
        None where there is no checkout.
    """
    if package_path is None:
        return None
    commit = _git(package_path, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(package_path, "diff", "HEAD", "--binary")
    status = _git(package_path, "status", "--porcelain")
    if changes is None or status is None:
        dirty = "unknown"  # a slow disk is no clean checkout
    else:
        dirty = hashlib.sha256(changes + status).hexdigest() if changes + status else None
    return {"commit": commit.decode().strip(), "dirty": dirty}


def shown_changes(dirty: object) -> str:
    """Write in words what `git_state` says of uncommitted changes."""
    if dirty == "unknown":
        return "changes unknown, git did not answer"
    return "with uncommitted changes" if dirty else "clean"


def machine() -> dict[str, Any]:
    """Return host, processor, accelerators and the number of threads a computation may use."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "host": socket.gethostname(),
        "cpu": _proc_value(Path("/proc/cpuinfo"), "model name") or platform.processor() or None,
        "device": _accelerators() or "cpu",
        "threads": int(threads) if threads.isdecimal() else usable_processors(),
    }


def torch_in_use() -> dict[str, Any] | None:
    """Return what torch says of device and threads, or None while it is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "device": "cpu"}
    if torch.cuda.is_initialized():
        found["device"] = torch.cuda.get_device_name()
    return found


def fingerprint(source: Path | str) -> tuple[str, str | None]:
    """Return (sha256, path) of a file or a folder; a string of 64 hex digits is its own digest.

    A folder's digest covers the relative name and the content of every file in it.

    Raises:
        UserError: there is no such file or folder.
    """
    if isinstance(source, str) and len(source) == 64 and set(source) <= set("0123456789abcdef"):
        return source, None
    path = Path(source)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
        return digest.hexdigest(), str(path.resolve())
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder", hint="check the path")
    return sha256_file(path), str(path.resolve())


def _program(script: Path) -> str:
    """Return what the user called: `pinpad` for the script and for `python -m pinpad`."""
    return script.parent.name if script.name == "__main__.py" else script.name


def _paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the code of a run lies; torch is told by its version alone."""
    return {f"package {k}": v["path"] for k, v in facts["packages"].items() if k != "torch"}


def _surroundings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may differ after a resume but should be known to whoever compares numbers."""
    versions = {name: package["version"] for name, package in facts["packages"].items()}
    keys = ("git", "python", "host", "cpu", "device", "threads", "world_size")
    return {key: facts[key] for key in keys} | {"version": versions}


def _is_free(key: str, free: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: str, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _accelerators() -> str | None:
    names = [
        _proc_value(file, "Model")
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    ]
    return ", ".join(name for name in names if name) or None


def _proc_value(file: Path, key: str) -> str | None:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return next((value.strip() for name, value in pairs if name.strip() == key), None)
