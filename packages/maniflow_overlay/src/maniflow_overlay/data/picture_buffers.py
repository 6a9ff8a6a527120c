"""Picture arrays that are used again once nobody holds them.

Memory of a fresh batch has to be handed over by the kernel page by page, which takes longer than
reading the frames into it. An array is free again when its buffer is referenced by nothing but this
pool: views of it, and tensors made from them, count, so what a caller still holds is never written.
"""

from __future__ import annotations

import sys
import threading

import numpy as np

_KEPT = 8
_ONLY_HERE = 3  # the pool's list, the loop's variable and the argument of getrefcount


class PictureBuffers:
    """A few byte arrays; can be pickled, and starts empty then."""

    def __init__(self) -> None:
        """Begin without any."""
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[PictureBuffers], tuple[()]]:
        return PictureBuffers, ()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a uint8 array of a shape, its content whatever it was."""
        size = int(np.prod(shape))
        with self._lock:
            for buffer in self._buffers:
                if buffer.size == size and sys.getrefcount(buffer) <= _ONLY_HERE:
                    return buffer.reshape(shape)
            fresh = np.empty(size, np.uint8)
            self._buffers = [*self._buffers[-_KEPT + 1 :], fresh]
            return fresh.reshape(shape)
