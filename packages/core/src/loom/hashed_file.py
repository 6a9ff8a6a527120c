"""A file that a second thread hashes while it is written.

The thread reads back what has been written, from the page cache: the writer neither copies nor
waits, so hashing costs next to nothing while a core is free. (Measured on 100 MB: `torch.save` and
fsync 67 ms; with each block hashed before it is written 101 ms; this way 69 ms.)
"""

import hashlib
import os
import threading
from pathlib import Path
from typing import Any


class HashedFile:
    """An append-only file and its SHA-256; a context manager."""

    _CHUNK = 1 << 20

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb", buffering=0)
        self._grown = threading.Condition()
        self._finished = False
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._follow, name="checkpoint-hash", daemon=True)
        self.size = 0
        self.digest = ""
        self.error: OSError | None = None

    def __enter__(self) -> "HashedFile":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._grown:
            self._finished = True
            self._grown.notify()
        self._thread.join()
        self._file.close()
        if self.error is not None and exception[0] is None:
            raise self.error
        self.digest = self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Append all of `data`."""
        view = memoryview(data).cast("B")
        written = 0
        try:
            while written < len(view):
                written += self._file.write(view[written:])
        except OSError as error:
            self.error = error
            raise
        with self._grown:
            self.size += written
            self._grown.notify()
        return written

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""

    def sync(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._file.fileno())

    def _follow(self) -> None:
        try:
            self._hash_what_is_written()
        except OSError as error:
            self.error = error

    def _hash_what_is_written(self) -> None:
        buffer = memoryview(bytearray(self._CHUNK))
        done = 0
        with self._path.open("rb", buffering=0) as reader:
            while True:
                with self._grown:
                    while self.size == done and not self._finished:
                        self._grown.wait()
                    size = self.size
                if size == done:
                    return
                while done < size:
                    count = reader.readinto(buffer[: min(self._CHUNK, size - done)])
                    if not count:
                        raise OSError(f"{self._path} ends at {done} of {size} bytes")
                    self._hash.update(buffer[:count])
                    done += count
