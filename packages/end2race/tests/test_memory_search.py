"""Top-k search against faiss and a full sort, and with rows that must not be found."""

from __future__ import annotations

import numpy as np
import pytest
from end2race.memory import search
from end2race.memory.search import ExactIndex, FaissIndex, new_index
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.errors import UserError


def unit_vectors(n, dimension, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sorted_in_python(keys, queries, k, excluded=None):
    """The definition: all rows by falling similarity, then by number."""
    found = []
    for m, query in enumerate(queries):
        first, end = (0, 0) if excluded is None else excluded[m]
        allowed = [row for row in range(len(keys)) if not first <= row < end]
        products = {row: float(query.astype(np.float64) @ keys[row]) for row in allowed}
        best = sorted(allowed, key=lambda row: (-products[row], row))[:k]
        found.append(best + [-1] * (k - len(best)))
    return np.array(found)


@pytest.mark.parametrize("kind", [ExactIndex, FaissIndex])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 8), (40, 8), (700, 1), (700, 9)])
def test_neighbours_are_those_of_a_full_sort(kind, n, k):
    if kind is FaissIndex:
        pytest.importorskip("faiss")
    keys, queries = unit_vectors(n, 16, 0), unit_vectors(11, 16, 1)
    found = kind(keys).search(queries, k)
    assert np.array_equal(found.rows, sorted_in_python(keys, queries, k))
    valid = found.rows >= 0
    products = np.einsum("md,mkd->mk", queries, keys[found.rows])
    assert np.allclose(found.similarity[valid], products[valid], atol=1e-6)
    assert np.all(np.isneginf(found.similarity[~valid]))


def test_exact_search_and_faiss_agree_on_ten_thousand_keys():
    faiss = pytest.importorskip("faiss")
    keys, queries = unit_vectors(10_000, 64, 2), unit_vectors(200, 64, 3)
    index = faiss.IndexFlatIP(64)
    index.add(keys)
    values, rows = index.search(queries, 8)
    found = ExactIndex(keys).search(queries, 8)
    assert np.array_equal(found.rows, rows)
    assert np.allclose(found.similarity, values, atol=1e-6)


def small_integers(shape, seed):
    """Vectors whose products are exact in float32 and often equal."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 2**32))
def test_equal_similarities_are_ordered_by_row(n, k, seed):
    keys, queries = small_integers((n, 3), seed), small_integers((4, 3), seed + 1)
    found = ExactIndex(keys).search(queries, k)
    assert np.array_equal(found.rows, sorted_in_python(keys, queries, k))


@pytest.mark.parametrize("kind", [ExactIndex, FaissIndex])
def test_excluded_rows_are_never_found_and_the_others_as_if_they_were_not_there(kind):
    if kind is FaissIndex:
        pytest.importorskip("faiss")
    keys = unit_vectors(120, 8, 4)
    queries = keys[:30]
    excluded = np.array([[max(0, i - 3), min(120, i + 4 + 5 * (i % 4))] for i in range(30)])
    excluded[0], excluded[1], excluded[2] = (0, 120), (0, 118), (5, 5)
    found = kind(keys).search(queries, 6, excluded)
    assert np.array_equal(found.rows, sorted_in_python(keys, queries, 6, excluded))
    assert (found.rows[0] == -1).all()
    assert (found.rows[1] >= 0).sum() == 2
    assert found.rows[2, 0] == 2


def test_blocks_of_queries_do_not_change_what_is_found(monkeypatch):
    keys, queries = unit_vectors(300, 8, 5), unit_vectors(70, 8, 6)
    excluded = np.stack([np.arange(70), np.arange(70) + 9], axis=1)
    whole = ExactIndex(keys).search(queries, 5, excluded)
    monkeypatch.setattr(search, "_BLOCK_VALUES", 900)
    parts = ExactIndex(keys).search(queries, 5, excluded)
    assert np.array_equal(whole.rows, parts.rows)


def test_a_query_that_is_not_a_number_finds_nothing():
    queries = unit_vectors(2, 8, 7)
    queries[1, 0] = np.nan
    found = ExactIndex(unit_vectors(50, 8, 8)).search(queries, 3)
    assert (found.rows[0] >= 0).all()
    assert (found.rows[1] == -1).all()


def test_an_index_of_nothing_finds_nothing():
    found = new_index(np.empty((0, 8), np.float32)).search(unit_vectors(2, 8, 0), 3)
    assert (found.rows == -1).all()


def test_without_faiss_auto_searches_exactly_and_asking_for_it_is_an_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    monkeypatch.setattr(search, "FAISS_FROM", 10)
    keys = unit_vectors(50, 8, 9)
    assert isinstance(new_index(keys), ExactIndex)
    with pytest.raises(UserError, match="faiss is not installed"):
        new_index(keys, "faiss")
