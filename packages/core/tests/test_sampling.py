"""The sample order: exact cover, the same union on any number of processes."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.errors import UserError
from loom.sampling import Prefetch, Shard, draw_rng, epoch_indices, permuted


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**31))
def test_every_epoch_is_an_exact_cover(n, batch, seed):
    epochs = 3
    steps = -(-epochs * n // batch)
    stream = np.concatenate([epoch_indices(n, seed, s, batch) for s in range(steps)])
    for epoch in stream[: epochs * n].reshape(epochs, n):
        assert sorted(epoch) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 6), st.integers(0, 1000), st.integers(0, 99))
def test_the_ranks_together_see_the_batch_of_one_process_in_order(n, world, step, seed):
    batch = 60
    whole = epoch_indices(n, seed, step, batch)
    parts = [epoch_indices(n, seed, step, batch, Shard(r, world)) for r in range(world)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_micro_batches_are_shards_of_a_larger_world():
    whole = epoch_indices(100, 0, 3, 24)
    parts = [
        epoch_indices(100, 0, 3, 24, Shard(rank, 2).split(micro, 3))
        for rank in range(2)
        for micro in range(3)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = (epoch_indices(1000, 0, step, 1000) for step in (0, 1))
    other = epoch_indices(1000, 1, 0, 1000)
    for a, b in ((first, second), (first, other), (first, np.arange(1000))):
        assert (a == b).sum() < 20  # 1 is expected of random orders


def test_where_a_sample_lands_is_uniform():
    n, keys = 16, 4000
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), permuted(np.arange(n), n, key * 0x9E3779B97F4A7C15 % 2**64)] += 1
    expected = keys / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_in_the_order_are_unrelated():
    order = epoch_indices(20_000, 5, 0, 20_000).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.03


def test_the_halves_of_an_index_do_not_show_in_its_place():
    """A network of too few rounds carries differences of one half into the other."""
    order = permuted(np.arange(4096), 4096, key=11)
    for step in (64, 1):  # the same low half, the same high half
        pairs = np.arange(4096 - step)
        before, after = pairs ^ (pairs + step), order[pairs] ^ order[pairs + step]
        for shift_in in (0, 6):
            for shift_out in (0, 6):
                same = (before >> shift_in & 63) == (after >> shift_out & 63)
                assert same.mean() < 3 / 64  # 1 / 64 is expected of random orders


def test_a_huge_data_set_costs_a_batch():
    indices = epoch_indices(10**12, 0, 10**6, 4096)
    assert len(set(indices.tolist())) == 4096
    assert indices.max() > 9e11


def test_a_batch_that_cannot_be_split_evenly_is_refused():
    with pytest.raises(UserError, match="10 cannot be split evenly over 4"):
        epoch_indices(100, 0, 0, 10, Shard(1, 4))
    with pytest.raises(UserError, match="no samples"):
        epoch_indices(0, 0, 0, 10)


def test_draws_depend_on_step_and_name_only():
    def first(*key):
        return draw_rng(*key).random()

    assert first(1, 2, "jitter") == first(1, 2, "jitter")
    assert (
        len({first(1, 2, "jitter"), first(2, 2, "jitter"), first(1, 3, "jitter"), first(1, 2, "x")})
        == 4
    )


def test_prefetch_returns_what_the_function_returns_in_any_order():
    calls = []

    def batch(step, shard):
        calls.append((step, shard, threading.current_thread() is threading.main_thread()))
        return step * 100 + shard.rank

    prefetch = Prefetch(batch, ahead=2)
    shards = [Shard(0, 2), Shard(1, 2)]
    for step in (0, 1, 2, 3, 50, 51, 7):
        for shard in shards:
            assert prefetch(step, shard) == step * 100 + shard.rank
    prefetch.close()
    assert not any(on_main for *_, on_main in calls)
    counted = [call for call in calls if call[0] in (1, 2, 3)]
    assert len(counted) == 6  # each was computed once, ahead of its step


def test_prefetch_raises_where_the_batch_is_wanted():
    def batch(step, shard):
        if step == 2:
            raise UserError("frame 2 is cut short")
        return step

    prefetch = Prefetch(batch)
    assert [prefetch(0), prefetch(1)] == [0, 1]
    with pytest.raises(UserError, match="frame 2"):
        prefetch(2)
    prefetch.close()
