"""Windows and batches against loops over arrays in memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loom.errors import UserError
from loom.sampling import Shard
from maniflow_overlay.data import pictures
from maniflow_overlay.data.frame_store import FRAMES, FrameStore
from maniflow_overlay.data.path_layers import LAYERS
from maniflow_overlay.data.pictures import read_pictures
from maniflow_overlay.data.windows import Batches, Windows, WindowShape, validation_episodes
from maniflow_overlay.overlay.drawing import draw_path_rgb, path_image_rgb

sys.path.insert(0, str(Path(__file__).parent))
from made_up_store import LENGTHS, attach, content, make_store, some_paths


@pytest.fixture
def store(tmp_path) -> FrameStore:
    return make_store(tmp_path)


def windows_by_loop(shape: WindowShape) -> list[tuple[list[int], int]]:
    """Every window by the definition: start, then row by row, held inside of the episode."""
    found = []
    begin = 0
    for length in LENGTHS:
        for start in range(-shape.before, length - shape.horizon + shape.after + 1):
            rows = [min(max(start + k, 0), length - 1) + begin for k in range(shape.horizon)]
            found.append((rows, begin))
        begin += length
    return found


@pytest.mark.parametrize("shape", [WindowShape(), WindowShape(4, 2, 0, 0), WindowShape(8, 3, 2, 5)])
def test_windows_are_those_of_the_definition(store, shape):
    expected = windows_by_loop(shape)
    windows = Windows(store.begins, store.ends, shape)
    assert len(windows) == len(expected)
    rows, first = windows.rows(np.arange(len(windows)))
    assert rows.tolist() == [rows for rows, _ in expected]
    assert first.tolist() == [begin for _, begin in expected]
    if shape == WindowShape():
        assert len(windows) == sum(length + 1 for length in LENGTHS)


def test_validation_episodes_are_chosen_as_maniflow_does():
    mask = validation_episodes(150, 0.02, 42)
    chosen = np.random.default_rng(42).choice(150, size=3, replace=False)
    assert np.flatnonzero(mask).tolist() == sorted(chosen.tolist())
    assert validation_episodes(150, 0.0, 1).sum() == 0
    assert validation_episodes(2, 0.9, 1).sum() == 1
    assert validation_episodes(50, 0.001, 1).sum() == 1


@pytest.mark.parametrize("way", ["native", "without a compiler"])
@pytest.mark.parametrize("show", ["none", "initial", "current", "initial_current"])
@pytest.mark.parametrize("fuse", ["overlay", "concat6"])
def test_a_batch_shows_what_its_arm_is_to_see(store, monkeypatch, show, fuse, way):
    if way == "native":
        assert pictures._kernel() is not None

        def never(*given):
            raise AssertionError("read slowly")

        monkeypatch.setattr(pictures, "_read_slowly", never)
    else:
        monkeypatch.setattr(pictures, "_kernel", lambda: None)
    layers = attach(store)
    frames, state, action = content()
    shape = WindowShape()
    batches = Batches(store, layers, Windows(store.begins, store.ends, shape), show=show, fuse=fuse)
    windows = np.array([0, 1, 30, 62, 21])
    batch = batches.samples(windows)

    def seen(row: int, drawn: bool) -> np.ndarray:
        path = some_paths()[row]
        raw = frames[row]
        if not drawn:
            return raw[None]
        if fuse == "overlay":
            return (draw_path_rgb(raw.copy(), path) if path else raw)[None]
        alone = path_image_rgb(path, 20, 16) if path else np.zeros_like(raw)
        return np.stack([raw, alone])

    for sample, window in enumerate(windows):
        rows, first = windows_by_loop(shape)[window]
        drawn = show in ("current", "initial_current")
        expected = np.stack([seen(row, drawn) for row in rows[:2]])
        assert np.array_equal(batch.current[sample], expected)
        assert np.array_equal(batch.state[sample], state[rows[:2]])
        assert np.array_equal(batch.action[sample], action[rows])
        if show in ("initial", "initial_current"):
            assert batch.initial is not None
            assert np.array_equal(batch.initial[sample], seen(first, True))
    assert (batch.initial is None) == (show in ("none", "current"))


def test_rows_and_pixels_that_are_not_there_are_named_and_nothing_else_is_written(store):
    layers = attach(store)
    target = np.full((2, 2, 16, 20, 3), 7, np.uint8)
    for rows in ([0, len(store)], [-1, 0]):
        with pytest.raises(IndexError, match="of a store of 59"):
            read_pictures(store, layers, np.array(rows), target)
    assert (target == 7).all()
    with pytest.raises(ValueError, match="for 1 rows"):
        read_pictures(store, layers, np.array([0]), target)
    apart = np.full((4, 2, 16, 20, 3), 7, np.uint8)[::2]  # not contiguous: the slow way takes it
    assert np.array_equal(
        read_pictures(store, layers, np.array([1, 2]), apart),
        read_pictures(store, layers, np.array([1, 2]), target),
    )
    # A layer whose first pixel lies behind the picture: the file was changed after it was opened.
    with (layers.folder / LAYERS).open("r+b") as file:
        file.seek(int(layers.offset[1]))
        file.write((16 * 20).to_bytes(4, "little"))
    with pytest.raises(UserError, match="layers.bin: the path of row 1 is damaged"):
        read_pictures(store, layers, np.array([1]), target[:1])
    os.truncate(layers.folder / LAYERS, int(layers.offset[2]) - 1)
    with pytest.raises(UserError, match="layers.bin: the path of row 1 is damaged"):
        read_pictures(store, layers, np.array([1]), target[:1])
    os.truncate(store.folder / FRAMES, 100)
    with pytest.raises(UserError, match="row 1 cannot be read whole"):
        read_pictures(store, None, np.array([1]), target[:1, :1])


def test_an_epoch_covers_every_window_once_for_any_number_of_processes(store):
    windows = Windows(store.begins, store.ends, WindowShape())
    batches = Batches(store, None, windows, batch=9, seed=3)
    one = [batches(step).action for step in range(7)]
    two = [
        np.concatenate([batches(step, Shard(r, 3)).action for r in range(3)]) for step in range(7)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    everything = batches.samples(np.arange(len(windows))).action
    assert len(windows) == 63
    assert sorted(a.tobytes() for a in np.concatenate(one)) == sorted(
        a.tobytes() for a in everything
    )
    with pytest.raises(UserError, match="needs paths"):
        Batches(store, None, windows, show="current")


def test_a_batch_that_somebody_holds_is_never_written_again(store):
    """Pictures live in buffers that are used again: only those that nobody looks at any more."""
    layers = attach(store)
    windows = Windows(store.begins, store.ends, WindowShape())
    batches = Batches(store, layers, windows, show="initial_current", fuse="concat6", batch=9)
    held = [batches(step) for step in range(12)]
    kept_views = [torch.from_numpy(batches(step).current)[1, 0] for step in range(12, 15)]
    fresh = [
        Batches(store, layers, windows, show="initial_current", fuse="concat6", batch=9)(step)
        for step in range(15)
    ]
    for ours, expected in zip(held, fresh, strict=False):
        assert np.array_equal(ours.current, expected.current)
        assert ours.initial is not None
        assert np.array_equal(ours.initial, expected.initial)
    for view, expected in zip(kept_views, fresh[12:], strict=True):
        assert np.array_equal(view.numpy(), expected.current[1, 0])
    del held, kept_views, ours, view
    first = {id(batches._buffers.take((9, 2, 2, 16, 20, 3)).base) for _ in range(5)}
    assert len(first) == 1
