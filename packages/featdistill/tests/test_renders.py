"""Render folders: what is written is what is read, frames go by number, damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from featdistill.data.renders import (
    by_number,
    find_pictures,
    find_rgba,
    measure_stats,
    parse_driver_line,
    read_rgba,
    write_frame,
    write_stats,
)
from loom.errors import UserError
from PIL import Image


def frame(seed: int = 0, height: int = 12, width: int = 16) -> torch.Tensor:
    rgba = torch.rand(height, width, 4, generator=torch.Generator().manual_seed(seed))
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def test_a_frame_comes_back_as_it_was_rendered(tmp_path: Path):
    depth = torch.rand(12, 16)
    write_frame(tmp_path, 7, frame(), depth=depth)
    found = read_rgba(tmp_path / "rgba_npz" / "00007.npz")
    np.testing.assert_allclose(found, frame().numpy(), atol=2**-11)  # half precision below 1
    assert np.array_equal(np.load(tmp_path / "depth" / "00007.npy"), depth.numpy())


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("black", 0.0)])
def test_the_picture_shows_the_frame_on_its_background(tmp_path: Path, background, value):
    write_frame(tmp_path, 0, frame(), background=background, store_rgba=False)
    picture = np.asarray(Image.open(tmp_path / "renders" / "00000.png"))
    rgba = frame().double().numpy()
    expected = 255 * (rgba[..., :3] + (1 - rgba[..., 3:]) * value)
    np.testing.assert_allclose(picture, expected, atol=0.501)
    assert find_rgba(tmp_path) == {}


def test_frames_go_by_number_not_by_name(tmp_path: Path):
    for number in (0, 1, 2, 10, 11):
        write_frame(tmp_path / "ours", number, frame())
        (tmp_path / "set").mkdir(exist_ok=True)
        shutil.copy(
            tmp_path / "ours" / "renders" / f"{number:05d}.png", tmp_path / f"set/r_{number}.png"
        )
    assert list(find_pictures(tmp_path / "ours")) == [0, 1, 2, 10, 11]
    assert list(find_pictures(tmp_path / "set")) == [0, 1, 2, 10, 11]
    assert list(find_rgba(tmp_path / "ours")) == [0, 1, 2, 10, 11]


def test_pictures_are_found_where_the_notes_looked_for_them(tmp_path: Path):
    write_frame(tmp_path / "run" / "renders", 0, frame())  # .../renders/renders/00000.png
    expected = {0: tmp_path / "run" / "renders" / "renders" / "00000.png"}
    assert find_pictures(tmp_path / "run") == expected
    assert find_pictures(tmp_path / "run" / "renders") == expected
    write_frame(tmp_path / "run" / "second", 0, frame())
    with pytest.raises(UserError, match="several sets"):
        find_pictures(tmp_path / "run")


def test_names_that_are_not_frames_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a folder"):
        find_pictures(tmp_path / "absent")
    with pytest.raises(UserError, match="no PNG files"):
        find_pictures(tmp_path)
    (tmp_path / "r_3.png").touch()
    (tmp_path / "00003.png").touch()
    with pytest.raises(UserError, match="both frame 3"):
        by_number(tmp_path, ".png")
    (tmp_path / "cover.png").touch()
    with pytest.raises(UserError, match=r"cover.png has no frame number"):
        by_number(tmp_path, ".png")


def test_damaged_frames_are_named(tmp_path: Path):
    write_frame(tmp_path, 0, frame())
    path = tmp_path / "rgba_npz" / "00000.npz"
    data = path.read_bytes()
    for sixteenth in range(16):
        path.write_bytes(data[: len(data) * sixteenth // 16])
        with pytest.raises(UserError, match="00000.npz"):
            read_rgba(path)
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[position] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            found = read_rgba(path)
        except UserError:
            continue
        # Names and dates inside the archive carry no check sum; the values do.
        np.testing.assert_allclose(found, frame().numpy(), atol=2**-11)
    damaged = bytearray(data)
    damaged[data.index(b"PK\x01\x02") + 8] ^= 1  # says that it is encrypted
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="00000.npz"):
        read_rgba(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"rgb": np.zeros((2, 2, 4), np.float16)}, "no array rgba"),
        ({"rgba": np.zeros((2, 2, 4), np.uint8)}, "rgba is uint8"),
        ({"rgba": np.zeros((2, 2, 3), np.float16)}, r"\[2, 2, 3\]"),
        ({"rgba": np.full((2, 2, 4), np.nan, np.float16)}, "alpha must be finite"),
        ({"rgba": np.full((2, 2, 4), 1.5, np.float16)}, r"\[1.5, 1.5\]"),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, arrays, words):
    np.savez(tmp_path / "00000.npz", **arrays)
    with pytest.raises(UserError, match=words):
        read_rgba(tmp_path / "00000.npz")


def test_a_frame_that_is_not_finite_is_not_written(tmp_path: Path):
    broken = frame()
    broken[3, 4, 1] = float("nan")
    with pytest.raises(UserError, match="frame 5 has 1 values that are not finite"):
        write_frame(tmp_path, 5, broken)
    assert list(tmp_path.iterdir()) == []


def test_render_stats_state_speed_and_memory(tmp_path: Path):
    write_stats(tmp_path, measure_stats(200, 800, 600, 50.0))
    stats = json.loads((tmp_path / "render_stats.json").read_text())
    assert stats["avg_fps"] == 4.0
    assert (stats["frames"], stats["width"], stats["height"]) == (200, 800, 600)
    assert 20 < stats["peak_memory_mib"] < 100_000
    assert stats["gpu_power_w"] is None


def test_the_driver_s_line_is_read_with_its_gaps():
    line = parse_driver_line("NVIDIA RTX A4500, 3655, 187.60, 99\n")
    assert line == ("NVIDIA RTX A4500", 3655.0, 187.6, 99.0)
    assert parse_driver_line("Some GPU, 10, [N/A], [Not Supported]") == ("Some GPU", 10, None, None)
    assert parse_driver_line("No devices were found") == (None, None, None, None)
