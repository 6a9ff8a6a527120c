"""Films: every suffix, their pictures in their order, what is missing."""

import subprocess
import sys

import numpy as np
import pytest
from loom.errors import UserError
from loom.film import write_film
from PIL import Image


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".WEBP"])
def test_a_film_shows_its_pictures_in_their_order(tmp_path, suffix):
    pictures = [np.full((10, 12, 3), 80 * k, np.uint8) for k in range(4)]
    with Image.open(write_film(tmp_path / "new" / f"a{suffix}", pictures, 5.0)) as film:
        assert film.n_frames == 4
        assert film.size == (12, 10)
        for k in range(4):
            film.seek(k)
            assert np.abs(np.asarray(film.convert("RGB")).astype(int) - 80 * k).max() < 8
            assert film.info["duration"] == 200


def test_a_name_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="no film"):
        write_film(tmp_path / "a.avi", [np.zeros((4, 4, 3), np.uint8)], 1.0)


def test_a_film_as_mp4_shows_its_pictures_in_their_order(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pictures = [np.full((34, 50, 3), 40 * k, np.uint8) for k in range(6)]
    pictures[3][:, 25:] = 255
    write_film(tmp_path / "new" / "a.mp4", pictures, 6.0)
    done = subprocess.run(
        [ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "new" / "a.mp4", "-f", "rawvideo",
         "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert b" 6 fps" in done.stderr
    shown = np.frombuffer(done.stdout, np.uint8).reshape(-1, 34, 50, 3).astype(int)
    assert len(shown) == 6
    assert max(np.abs(a - b).mean() for a, b in zip(shown, pictures, strict=True)) < 8


def test_mp4_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="imageio-ffmpeg"):
        write_film(tmp_path / "a.mp4", [np.zeros((4, 4, 3), np.uint8)], 1.0)
