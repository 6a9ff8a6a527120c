"""A run packed to be kept or sent: what it was made with, what came out, and the code itself.

One zip file that needs no network and no repository to be read: the run's small files (settings,
facts, metrics, gates, evaluation, report), the tree of the commit that it ran from, the changes
that were not committed, the small files that git does not track, and a manifest with the SHA-256 of
every member. Checkpoints are large and come only when asked for.
"""

import hashlib
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.files import explained, read_json
from loom.provenance import git_state
from loom.run_directory import RUN_FILE

FOLDER = "snapshots"
MANIFEST = "manifest.json"
_KEPT = (
    "config.yaml",
    "run.json",
    "status.json",
    "gates.json",
    "metrics.jsonl",
    "training_metrics.csv",
    "log.txt",
    "report.html",
)
_EVALUATION = "evaluation"  # with all that is in it
_LARGEST_UNTRACKED = 1 << 20  # bytes; code is smaller
_TAG = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


def snapshot(
    run: Path, tag: str, folder: Path | None = None, *, checkpoint: bool = False
) -> tuple[Path, list[str]]:
    """Pack a run into `folder/TAG.zip`.

    Args:
        run: The run's directory.
        tag: Name of the snapshot: letters, digits, `.`, `_` and `-`.
        folder: Where it goes, by default `snapshots/` beside the run.
        checkpoint: Take the newest intact checkpoint along.

    Returns:
        The file, and what a reader of it should know (a commit that is not there, code that has
        changed since the run began).

    Raises:
        UserError: There is no run, or a file of it cannot be read; the tag is no name, or a
            snapshot of this name is there.
    """
    facts = _facts(run)
    if not re.fullmatch(_TAG, tag):
        raise UserError(
            f"{tag!r} cannot name a snapshot", hint="use letters, digits, '.', '_' and '-'"
        )
    folder = folder if folder is not None else run.resolve().parent / FOLDER
    target = folder / f"{tag}.zip"
    if target.exists():
        raise UserError(f"{target}: there is a snapshot of this name", hint="choose another tag")
    files, left_out = _members(run)
    if checkpoint:
        files |= _newest_checkpoint(run)
    code, notices = _code(facts)
    if left_out:
        notices.append(f"left out, as they are no files of the run's own: {_listed(left_out)}")
    _write(target, files, code, {"run": run.resolve().name, "tag": tag, "notices": notices})
    return target, notices


def _facts(run: Path) -> Mapping[str, Any]:
    if not (run / RUN_FILE).is_file():
        raise UserError(f"{run}: there is no such run", hint="`loom runs` lists the runs")
    facts = read_json(run / RUN_FILE)
    if not isinstance(facts, Mapping):
        raise UserError(f"{run / RUN_FILE}: is not what Loom wrote", hint="give another run")
    return facts


def _members(run: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the small files of a run, and the names that lead elsewhere or are no files."""
    found = [run / name for name in _KEPT if os.path.lexists(run / name)]
    files, left_out = {}, []
    for path in [*found, *_below(run / _EVALUATION)]:
        name = _printable(path.relative_to(run).as_posix())
        if path.is_symlink() or not path.is_file():
            left_out.append(name)
        else:
            files[name] = path
    return files, left_out


def _printable(name: str) -> str:
    r"""Return a name as text that can be written; bytes that are not UTF-8 become `\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _below(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and its folders, or the path itself where it is none.

    Raises:
        UserError: It cannot be read.
    """
    if not folder.is_dir() or folder.is_symlink():
        if os.path.lexists(folder):
            yield folder
        return
    with explained(folder):
        inside = sorted(folder.iterdir())
    for path in inside:
        yield from _below(path)


def _content(path: Path) -> bytes:
    with explained(path):
        return path.read_bytes()


def _newest_checkpoint(run: Path) -> dict[str, Path]:
    from loom.checkpoint import Checkpoints  # imports torch

    checkpoints = Checkpoints(run / "checkpoints")
    intact = checkpoints.intact_steps()
    if not intact:
        raise UserError(f"{run}: no intact checkpoint to take along", hint="leave out --checkpoint")
    files = (path for path in sorted(checkpoints.folder(intact[-1]).rglob("*")) if path.is_file())
    return {path.relative_to(run).as_posix(): path for path in files}


def _code(facts: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Return the commit's tree and the uncommitted changes, and what is not as it was."""
    began = facts.get("git")
    packages = facts.get("packages")
    paths = [
        str(package["path"])
        for package in (packages if isinstance(packages, Mapping) else {}).values()
        if isinstance(package, Mapping) and package.get("path")
    ]
    if not isinstance(began, Mapping) or not paths:
        return {}, ["the run did not come from a checkout: no code is in this snapshot"]
    checkout = next((path for path in paths if git_state(path) is not None), None)
    commit = str(began.get("commit"))
    tree = None if checkout is None else _git(checkout, "archive", "--format=tar", commit)
    if checkout is None or tree is None:
        return {}, [f"commit {commit[:12]} is not on this machine: no code is in this snapshot"]
    members, notices = {"code.tar": tree}, []
    now = git_state(checkout)
    if now == dict(began):
        if began.get("dirty"):
            members["uncommitted.patch"] = _git(checkout, "diff", "HEAD", "--binary") or b""
            untracked, said = _untracked(checkout)
            members |= untracked
            notices += said
    elif began.get("dirty"):
        notices.append(
            "the run began with uncommitted changes that are no longer in the checkout: "
            f"code.tar is commit {commit[:12]} without them"
        )
    return members, notices


def _untracked(checkout: str) -> tuple[dict[str, bytes], list[str]]:
    """Return the small files that git neither tracks nor ignores, and what to know about them."""
    top = Path(os.fsdecode((_git(checkout, "rev-parse", "--show-toplevel") or b"").strip()))
    listed = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard") or b""
    packed, large = {}, []
    for name in sorted(os.fsdecode(each) for each in listed.split(b"\0") if each):
        path = top / name
        shown = _printable(name)
        if path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size > _LARGEST_UNTRACKED:
            large.append(shown)
        else:
            packed[f"untracked/{shown}"] = path.read_bytes()
    notices = []
    if packed:
        notices.append(f"not tracked by git, packed as they are now: {_listed(packed)}")
    if large:
        notices.append(f"not tracked by git, too large to be packed: {_listed(large)}")
    return packed, notices


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _git(folder: str, *arguments: str) -> bytes | None:
    """Run git at the top of a checkout; None if it refuses."""
    top = subprocess.run(
        ["git", "-C", folder, "rev-parse", "--show-toplevel"], capture_output=True, check=False
    )
    place = os.fsdecode(top.stdout.strip()) or folder
    done = subprocess.run(["git", "-C", place, *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _write(
    target: Path, files: Mapping[str, Path], code: Mapping[str, bytes], about: Mapping[str, Any]
) -> None:
    """Write the zip beside its place and rename it, so that there is a whole one or none."""
    torn = target.with_name(f".{target.name}.tmp")
    digests: dict[str, str] = {}
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(torn, "w", zipfile.ZIP_DEFLATED) as archive:
                contents = ((name, _content(path)) for name, path in files.items())
                for name, content in (*contents, *code.items()):
                    digests[name] = hashlib.sha256(content).hexdigest()
                    archive.writestr(name, content)
                manifest = json.dumps({**about, "sha256": digests}, indent=2, ensure_ascii=False)
                archive.writestr(MANIFEST, _printable(manifest))  # JSON reads it back as it was
            torn.replace(target)
        finally:
            torn.unlink(missing_ok=True)
