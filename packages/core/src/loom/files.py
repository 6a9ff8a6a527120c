"""Files that are either whole or not there.

A run is killed at any moment, so a file that others read is never written in place: the bytes go to
a temporary file beside it, are forced to the disk, and take the name in one `rename`. A disk that
is full or read-only ends in a `UserError`, with the file that was there before untouched.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loom.errors import UserError

_NO_LOCKS = "no locks on this file system: take another, or mount it with them (Lustre: -o flock)"
_HINTS = {
    errno.ENOSPC: "free some space on this disk, or give another folder",
    errno.EDQUOT: "your quota on this disk is used up: remove old runs, or give another folder",
    errno.EFBIG: "the limit for the size of a file is reached: raise it with `ulimit -f unlimited`",
    errno.EROFS: "the file system is read-only: give a folder that can be written",
    errno.EACCES: "you may not do this here: check the owner and mode, or give another folder",
    errno.EPERM: "you may not do this here: check the owner and mode, or give another folder",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ELOOP: "this link leads to itself: remove it, or give what it was meant to lead to",
    errno.EEXIST: "something of this name is in the way: move it, or give another path",
    errno.EISDIR: "this is a folder, a file was expected",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n 4096`",
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}


def disk_error(error: OSError, path: Path | str | None = None) -> UserError | None:
    """Return the `UserError` that explains a failure of the disk, or None for any other cause."""
    hint = _HINTS.get(error.errno or 0)
    if hint is None:
        return None
    place = path if path is not None else error.filename
    where = f"{place}: " if place is not None else ""
    return UserError(f"{where}{(error.strerror or str(error)).lower()}", hint=hint)


@contextmanager
def explained(path: Path | str) -> Generator[None]:
    """Turn a failure of the disk inside the block into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        explanation = disk_error(error, path)
        if explanation is None:
            raise
        raise explanation from error


def sync_directory(directory: Path) -> None:
    """Force a directory's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse fsync on directories
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str, *, sync: bool = True) -> None:
    """Replace a file in one step: readers see the old content or the new one, never a part.

    Args:
        path: The file. Its folder must exist.
        data: Its new content; text is written as UTF-8.
        sync: Force it to the disk, so that a power cut cannot lose it either. Thousands of small
            files that can be made again are written much faster without.

    Raises:
        UserError: The disk refused; the old content is intact.
    """
    path = Path(path)
    content = _encoded(data) if isinstance(data, str) else data
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    with explained(path):
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if sync:
            sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append one line in one system call.

    A last line that a killed process left torn is closed first, so the new one stands by itself.

    Args:
        path: The file, made if it is not there.
        line: The text without its newline.
        sync: Whether to wait until the disk has it.
    """
    if "\n" in line:
        raise ValueError(f"{path}: one line was expected, not {line.count(chr(10)) + 1}")
    with explained(path), Path(path).open("ab+", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        torn = False
        if size > 0:
            stream.seek(size - 1)
            torn = stream.read(1) != b"\n"
        stream.write((b"\n" if torn else b"") + _encoded(line) + b"\n")
        if sync:
            os.fsync(stream.fileno())


def _encoded(text: str) -> bytes:
    r"""Return text as UTF-8.

    A file name of bytes that are not UTF-8 comes in as lone surrogates (PEP 383). They are written
    as `\udcff`, which JSON reads back as what it was.
    """
    return text.encode("utf-8", "backslashreplace")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits."""
    with explained(path), Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """Read a UTF-8 file; a missing, unreadable or binary one is a `UserError`."""
    with explained(path):
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8 text",
            hint="save the file as UTF-8, or check that it is the file you meant",
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names the place."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: damaged JSON, {error.msg.lower()} (column {error.colno})",
            hint="the file was cut short or edited; restore it or remove it",
        ) from error
    except (RecursionError, ValueError) as error:
        raise UserError(
            f"{path}: JSON nested too deeply or with a number too long",
            hint="this is not a file that Loom wrote; restore it or remove it",
        ) from error
