"""Zarr stores in and out, missing chunks, damage."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.zarr_files import export_zarr, read_zarr
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
import made_up_store
from made_up_store import attach, content, make_store


@pytest.fixture
def store(tmp_path) -> FrameStore:
    return make_store(tmp_path)


@pytest.mark.parametrize("as_float", [True, False])
def test_zarr_goes_out_in_the_notes_layout_and_comes_back_to_the_byte(tmp_path, store, as_float):
    layers = attach(store)
    export_zarr(store, layers, tmp_path / "a.zarr", as_float=as_float)
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    pictures, ends = root["data/overlay_image"], root["meta/episode_ends"]
    assert isinstance(pictures, zarr.Array)
    assert isinstance(ends, zarr.Array)
    assert (pictures.shape, pictures.dtype) == (
        (59, 3, 16, 20),
        np.float32 if as_float else np.uint8,
    )
    assert np.asarray(ends[:]).tolist() == [20, 27, 28, 59]
    assert root.metadata.zarr_format == 2
    painted = layers.paint(content()[0], np.arange(59))
    if as_float:
        assert np.asarray(pictures[7]) == pytest.approx(painted[7].transpose(2, 0, 1) / 255)
    back = read_zarr(tmp_path / "a.zarr")
    assert np.array_equal(np.concatenate([list(back.pictures(n)) for n in range(4)]), painted)
    assert np.array_equal(back.state, store.state)
    assert np.array_equal(back.action, store.action)
    with pytest.raises(UserError, match="exists"):
        export_zarr(store, None, tmp_path / "a.zarr")


def robotwin_1(path: Path) -> None:
    """A store as RoboTwin 1.0's own converter makes them."""
    frames, state, action = content()
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    data = {"head_camera": frames.transpose(0, 3, 1, 2), "state": state, "action": action}
    data["tcp_action"] = action
    for name, values in data.items():
        chunks = (10, *values.shape[1:])
        root.create_array(f"data/{name}", data=np.ascontiguousarray(values), chunks=chunks)
    root.create_array("meta/episode_ends", data=np.array([20, 27, 28, 59]))


def test_a_robotwin_1_store_becomes_a_frame_store(tmp_path):
    robotwin_1(tmp_path / "old.zarr")
    arguments = ["data", "import-zarr", tmp_path / "old.zarr", tmp_path / "st", "--size", "20x16"]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    frames, state, _ = content()
    store = FrameStore(tmp_path / "st")
    assert np.array_equal(store.read_frames(np.arange(59)), frames)
    assert np.array_equal(store.state, state)
    assert store.ends.tolist() == [20, 27, 28, 59]


@pytest.mark.parametrize("scale", [1, 255])
def test_float_pictures_of_either_range_are_rounded_to_bytes(tmp_path, scale):
    path = tmp_path / "a.zarr"
    robotwin_1(path)
    shape = content()[0].transpose(0, 3, 1, 2).shape
    values = np.arange(np.prod(shape)).reshape(shape) % 256
    shaken = values + np.where(values > 0, -0.4, 0.4)  # rounds back
    root = zarr.open_group(str(path), mode="r+")
    del root["data/head_camera"]
    root.create_array("data/head_camera", data=(shaken * scale / 255).astype(np.float32))
    back = read_zarr(path)
    pictures = np.concatenate([list(back.pictures(number)) for number in range(len(back.ends))])
    assert np.array_equal(pictures, values.transpose(0, 2, 3, 1))


def test_a_missing_chunk_is_refused_and_not_read_as_zeros(tmp_path):
    robotwin_1(tmp_path / "old.zarr")
    (tmp_path / "old.zarr/data/head_camera/3.0.0.0").unlink()
    with pytest.raises(UserError, match="1 of 6 chunks of data/head_camera are missing"):
        read_zarr(tmp_path / "old.zarr")


def test_black_pictures_and_resting_arms_are_no_missing_chunks(tmp_path, monkeypatch):
    nothing = tuple(np.zeros_like(part) for part in content())
    monkeypatch.setattr(made_up_store, "content", lambda: nothing)
    export_zarr(make_store(tmp_path), None, tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert not any(frame.any() for number in range(4) for frame in back.pictures(number))
    assert not back.action.any()


def test_damaged_zarr_stores_end_in_user_errors(tmp_path):
    path = tmp_path / "old.zarr"
    robotwin_1(path)
    rng = random.Random(6)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    for _ in range(60):
        file = rng.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.randint(0, len(damaged))])
        try:
            content = read_zarr(path)
            for number in range(len(content.ends)):
                list(content.pictures(number))
        except UserError:
            pass
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("meta/episode_ends", np.array([20, 27, 27, 59]), "does not rise"),
        ("meta/episode_ends", np.array([20, 58]), "does not rise to 59"),
        ("data/action", np.ones((58, 14), np.float32), "do not match"),
        ("data/state", np.full((59, 14), np.inf, np.float32), "not finite"),
        ("data/state", None, "data/state is missing"),
        ("data/head_camera", None, "neither data/head_camera"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, name, values, named):
    robotwin_1(tmp_path / "old.zarr")
    root = zarr.open_group(str(tmp_path / "old.zarr"), mode="a")
    del root[name]
    if values is not None:
        root.create_array(name, data=values)
    with pytest.raises(UserError, match=named):
        read_zarr(tmp_path / "old.zarr")
