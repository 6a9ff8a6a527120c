"""Exact top-k of the memory bank beside faiss' flat index and torch, in one run.

    uv run --with faiss-cpu python benchmarks/end2race_memory.py [--keys 10000] [--dimension 256]

Unit vectors that vary in twelve directions and some noise, k = 8, 1,000 queries in one call, one
thread. CPU time, best of the repeats, which take turns; all of them must find the same rows.
"""

from __future__ import annotations

import argparse
import time

import faiss
import numpy as np
import torch
from end2race.memory.search import ExactIndex

K, QUERIES, DIRECTIONS = 8, 1000, 12


def vectors(count: int, dimension: int, rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Draw unit vectors near a curved surface of few dimensions."""
    places = rng.standard_normal((count, DIRECTIONS), np.float32)
    noise = 0.1 * rng.standard_normal((count, dimension), np.float32)
    drawn = np.tanh(places @ base) + noise
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    base = rng.standard_normal((DIRECTIONS, given.dimension), np.float32)
    keys = vectors(given.keys, given.dimension, rng, base)
    queries = vectors(QUERIES, given.dimension, rng, base)
    flat = faiss.IndexFlatIP(given.dimension)
    flat.add(keys)
    exact = ExactIndex(keys)
    tensors = torch.from_numpy(keys), torch.from_numpy(queries)
    searches = {
        "faiss IndexFlatIP": lambda: flat.search(queries, K)[1],
        "torch mm + topk": lambda: (tensors[1] @ tensors[0].T).topk(K).indices.numpy(),
        "numpy mm + argpartition": lambda: _argpartition(keys, queries),
        "ExactIndex (ours)": lambda: exact.search(queries, K).rows,
        "the matrix product alone": lambda: queries @ keys.T,
    }
    times: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(given.repeats):
        for name, search in searches.items():
            began = time.process_time()
            found = search()
            times[name].append(time.process_time() - began)
            if found.shape == (QUERIES, K):
                assert (found == searches["faiss IndexFlatIP"]()).mean() > 0.999, name
    print(f"{given.keys} keys of {given.dimension}, k {K}; queries per CPU-second")
    for name, seconds in times.items():
        print(f"{name:<28}{QUERIES / min(seconds):>10,.0f}")
    ratio = min(times["ExactIndex (ours)"]) / min(times["faiss IndexFlatIP"])
    print(f"ours takes {ratio:.2f} times as long as faiss")


def _argpartition(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    products = queries @ keys.T
    some = np.argpartition(-products, K, axis=1)[:, :K]
    order = np.take_along_axis(-products, some, axis=1).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


if __name__ == "__main__":
    main()
