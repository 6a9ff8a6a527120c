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
_PROBE = [np.empty(1, np.uint8)]
_ALONE = sys.getrefcount(_PROBE[0])  # of an array in a list: differs between Pythons


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
            for number in range(len(self._buffers)):
                alone = sys.getrefcount(self._buffers[number]) <= _ALONE
                if alone and self._buffers[number].size == size:
                    return self._buffers[number].reshape(shape)
            fresh = np.empty(size, np.uint8)
            self._buffers = [*self._buffers[-_KEPT + 1 :], fresh]
            return fresh.reshape(shape)
