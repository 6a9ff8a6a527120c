"""The k nearest of n unit vectors by inner product, exactly.

A query's similarities to all keys come from one matrix product; what costs then is picking the k
largest of n. The keys are dealt out in turn to groups, the k-th largest of the groups' maxima is a
lower bound of the k-th largest of all, and only the few keys above it are sorted. Equal
similarities are ordered by row.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
from loom.errors import UserError

Backend = Literal["auto", "exact", "faiss"]
FAISS_FROM = 50_000
"""Keys from which `auto` takes faiss, where it is installed."""

_GROUPS_PER_NEIGHBOUR = 24
_BLOCK_VALUES = 2**22


class Neighbours(NamedTuple):
    """The nearest keys of m queries, the nearest first.

    Attributes:
        rows: int64 [m, k], rows of the keys; -1 where there are fewer than k.
        similarity: float32 [m, k], inner products; -inf where there is no neighbour.
    """

    rows: np.ndarray
    similarity: np.ndarray


class Index(Protocol):
    """Something that finds neighbours."""

    def search(self, queries: np.ndarray, k: int, excluded: np.ndarray | None = None) -> Neighbours:
        """Find the k nearest keys.

        Args:
            queries: float32 [m, D], unit vectors.
            k: How many.
            excluded: int64 [m, 2], for each query the range [begin, end) of rows that it must not
                find; None: all may be found.
        """
        ...


def new_index(keys: np.ndarray, backend: Backend = "auto") -> Index:
    """Make an index of unit vectors [n, D].

    Raises:
        UserError: faiss is asked for and not installed.
    """
    if backend == "exact" or (backend == "auto" and len(keys) < FAISS_FROM):
        return ExactIndex(keys)
    try:
        return FaissIndex(keys)
    except ImportError as error:
        if backend == "auto":
            return ExactIndex(keys)
        raise UserError(
            "faiss is not installed", hint="uv pip install 'end2race[faiss]', or --index exact"
        ) from error


class ExactIndex:
    """Exact search with numpy."""

    def __init__(self, keys: np.ndarray) -> None:
        """Take unit vectors [n, D]."""
        self._keys = np.ascontiguousarray(keys, np.float32)

    def search(self, queries: np.ndarray, k: int, excluded: np.ndarray | None = None) -> Neighbours:
        """See `Index.search`."""
        queries = np.asarray(queries, np.float32)
        count, n = len(queries), len(self._keys)
        rows = np.full((count, k), -1, np.int64)
        similarity = np.full((count, k), -np.inf, np.float32)
        block = max(1, _BLOCK_VALUES // max(n, 1))
        for begin in range(0, count if n else 0, block):
            part = slice(begin, begin + block)
            products = queries[part] @ self._keys.T
            if excluded is not None:
                for row, (first, end) in zip(products, excluded[part], strict=True):
                    row[first:end] = -np.inf
            _largest(products, rows[part], similarity[part])
        return Neighbours(rows, similarity)


def _largest(products: np.ndarray, rows: np.ndarray, similarity: np.ndarray) -> None:
    """Write the columns and values of each row's k largest entries, in descending order."""
    k, n = rows.shape[1], products.shape[1]
    bound = _lower_bound(products, k)
    # -inf marks what must not be found; NaN compares as false, so it is never found either.
    bound = np.maximum(bound, np.finfo(np.float32).min)
    candidates = np.flatnonzero(products >= bound[:, None])
    row, column = np.divmod(candidates, n)
    value = products.ravel()[candidates]
    order = np.lexsort((-value, row))  # stable, so equal values stay in the order of columns
    row, column, value = row[order], column[order], value[order]
    first = np.searchsorted(row, np.arange(len(products)))
    place = np.arange(len(row)) - first[row]
    kept = place < k
    rows[row[kept], place[kept]] = column[kept]
    similarity[row[kept], place[kept]] = value[kept]


def _lower_bound(products: np.ndarray, k: int) -> np.ndarray:
    """Return for each row a value that at least k of its entries reach, or -inf."""
    n = products.shape[1]
    if n <= k:
        return np.full(len(products), -np.inf, np.float32)
    groups = min(n, _GROUPS_PER_NEIGHBOUR * k)
    whole = n // groups * groups
    maxima = products[:, :whole].reshape(len(products), -1, groups).max(axis=1)
    return np.partition(maxima, groups - k, axis=1)[:, groups - k]


class FaissIndex:
    """Exact search with faiss, which takes several cores."""

    def __init__(self, keys: np.ndarray) -> None:
        """Take unit vectors [n, D].

        Raises:
            ImportError: faiss is not installed.
        """
        import faiss

        self._index = faiss.IndexFlatIP(keys.shape[1])
        self._index.add(np.ascontiguousarray(keys, np.float32))

    def search(self, queries: np.ndarray, k: int, excluded: np.ndarray | None = None) -> Neighbours:
        """See `Index.search`; which of equal similarities at the k-th place is open here."""
        queries = np.ascontiguousarray(queries, np.float32)
        if excluded is None:
            excluded = np.zeros((len(queries), 2), np.int64)
        # As many more as may have to be left out.
        wanted = min(k + int(np.diff(excluded).max(initial=0)), self._index.ntotal)
        rows = np.full((len(queries), k), -1, np.int64)
        similarity = np.full((len(queries), k), -np.inf, np.float32)
        if not wanted:
            return Neighbours(rows, similarity)
        value, column = self._index.search(queries, wanted)
        barred = (column >= excluded[:, :1]) & (column < excluded[:, 1:])
        value = np.where(barred | (column < 0), -np.inf, value).astype(np.float32)
        order = np.lexsort((column, -value))[:, :k]
        found = np.take_along_axis(value, order, axis=1)
        rows[:, : order.shape[1]] = np.where(
            found > -np.inf, np.take_along_axis(column, order, axis=1), -1
        )
        similarity[:, : order.shape[1]] = found
        return Neighbours(rows, similarity)
