"""The overlay against a literal loop, recorded drawings and its own layers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.gripper_path import path_from_rows, read_path
from maniflow_overlay.overlay import drawing, layers, recorded
from maniflow_overlay.overlay.pictures import read_picture_bgr
from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.table import PathRow, write_paths
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from literal_overlay import CASES, draw_literally, jet_rgb, noise, random_rows

SIZES = [(224, 224), (320, 240), (640, 480), (1024, 1024), (61, 97)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_drawing_equals_the_literal_loop_byte_for_byte(width, height):
    rng = np.random.default_rng(width * 10_000 + height)
    for number in range(100):
        rows = random_rows(rng, gripper=number % 10 != 0)
        expected = draw_literally(noise(width, height, number), rows)
        drawn = drawing.draw_path_bgr(noise(width, height, number), path_from_rows(rows, "case"))
        assert np.array_equal(drawn, expected), (number, rows)


def test_drawing_equals_the_literal_loop_where_squares_no_longer_fit_float32():
    rng = np.random.default_rng(5)
    for _ in range(4):
        rows = [[*rng.uniform(-3, 3, 2).tolist(), 1] for _ in range(6)]
        expected = draw_literally(np.zeros((3000, 4000, 3), np.uint8), rows)
        path = path_from_rows(rows, "case")
        drawn = drawing.draw_path_bgr(np.zeros((3000, 4000, 3), np.uint8), path)
        assert np.array_equal(drawn, expected)


def test_line_colours_are_those_of_matplotlib():
    assert [tuple(c) for c in drawing.line_colours().tolist()] == [
        jet_rgb(position) for position in np.linspace(0, 1, 100)
    ]
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    jet = matplotlib.colormaps["jet"](np.linspace(0, 1, 100))[:, :3]
    assert np.array_equal(drawing.line_colours(), (jet * 255).astype(np.uint8))


def test_the_line_runs_from_blue_to_red_and_closed_is_red_in_either_channel_order():
    path = path_from_rows([[0.1, 0.5, 0], [0.9, 0.5, 1]], "case")
    rgb = drawing.draw_path_rgb(np.zeros((512, 512, 3), np.uint8), path)
    bgr = drawing.draw_path_bgr(np.zeros((512, 512, 3), np.uint8), path)
    assert np.array_equal(rgb, bgr[..., ::-1])
    start, end = rgb[256, 60].astype(int), rgb[256, 455].astype(int)
    assert start[2] > 100 > start[0]
    assert end[0] > 100 > end[2]
    assert rgb[256 - 7, 51].tolist() == [255, 0, 0]  # closed at the start
    assert rgb[256 - 7, 460].tolist() == [0, 0, 255]  # opened at the end


def test_markers_stand_only_where_the_state_changes():
    rows = [[0.2, 0.2, 1], [0.4, 0.4, 1], [0.6, 0.6, 0], [0.8, 0.8, 0]]
    with_markers = drawing.path_image_rgb(path_from_rows(rows, "case"), 512, 512)
    without = drawing.path_image_rgb(path_from_rows([r[:2] for r in rows], "case"), 512, 512)
    for (x, y, _), marked in zip(rows, [True, False, True, False], strict=True):
        ring = (slice(int(y * 512) - 8, int(y * 512) - 5), int(x * 512))
        assert with_markers[ring].any() == marked
        assert not without[ring].any()


def test_an_empty_path_and_a_path_without_length_leave_the_rest_alone():
    image = noise(64, 64, 1)
    assert np.array_equal(drawing.draw_path_bgr(image.copy(), path_from_rows([], "case")), image)
    still = path_from_rows([[0.5, 0.5], [0.5, 0.5]], "case")
    assert np.array_equal(drawing.draw_path_bgr(image.copy(), still), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8)[:, ::2],
    ],
)
def test_an_image_that_cannot_be_drawn_on_is_refused(image):
    with pytest.raises(ValueError, match="image"):
        drawing.draw_path_bgr(image, path_from_rows([[0.1, 0.1, 1]], "case"))


def test_a_covering_layer_equals_drawing_on_any_background():
    rng = np.random.default_rng(8)
    for number in range(60):
        width, height = [(224, 224), (320, 240), (61, 97)][number % 3]
        path = path_from_rows(random_rows(rng), "case")
        layer = layers.covered_by(path, width, height)
        image = noise(width, height, number)
        assert np.array_equal(layer.apply(image.copy()), drawing.draw_path_rgb(image, path))
    assert drawing.line_colours().any(axis=-1).all()  # no black: that is what makes it exact


def test_a_difference_layer_restores_a_drawing_that_was_scaled_down_with_its_picture():
    rng = np.random.default_rng(9)
    for number in range(30):
        path = path_from_rows(random_rows(rng), "case")
        image = noise(320, 240, number)
        raw = cv2.resize(image, (224, 224))
        drawn = cv2.resize(drawing.draw_path_rgb(image, path), (224, 224))
        layer = layers.difference(raw, drawn)
        assert np.array_equal(layer.apply(raw.copy()), drawn)
        assert len(layer.index) < 224 * 224 / 5


def test_the_path_image_is_the_drawing_on_black():
    path = path_from_rows([[0.1, 0.2, 1], [0.8, 0.5, 0], [0.4, 0.9, 1]], "case")
    expected = draw_literally(np.zeros((240, 320, 3), np.uint8), path.rows())[..., ::-1]
    assert np.array_equal(drawing.path_image_rgb(path, 320, 240), expected)


def test_a_layer_is_refused_by_a_picture_of_another_size():
    layer = layers.covered_by(path_from_rows([[0.1, 0.2], [0.8, 0.5]], "case"), 64, 48)
    with pytest.raises(ValueError, match="64x48"):
        layer.apply(noise(48, 64, 0))


def test_rows_and_paths_are_two_forms_of_the_same(tmp_path):
    rows = [[0.25, 0.5, 1], [0.125, 0.75, 0]]
    assert path_from_rows(rows, "case").rows() == rows
    (tmp_path / "p.json").write_text("[[0.25, 0.5], [1, 0]]", encoding="utf-8")
    assert read_path(tmp_path / "p.json") == path_from_rows([[0.25, 0.5], [1.0, 0.0]], "case")
    assert path_from_rows(rows, "case") != path_from_rows([r[:2] for r in rows], "case")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("points", "expected a list"),
        ([[0.1, 0.2, 1], [0.1]], "point 1"),
        ([[0.1, 0.2, 1], "ab"], "point 1"),
        ([[0.1, float("nan"), 1]], "point 0"),
        ([[0.1, True, 1]], "point 0"),
        ([[0.1, 0.2, 2]], "gripper state 2"),
        ([[0.1, 0.2, 1], [0.1, 0.2]], "some points have a gripper state"),
        ({"path": []}, "expected a list"),
    ],
)
def test_rows_that_are_no_path_are_refused_by_place(rows, named):
    with pytest.raises(UserError, match=named):
        path_from_rows(rows, "file.json")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_recorded_drawings_replay_and_a_changed_one_is_named(tmp_path):
    done = run("overlay", "check", CASES)
    assert done.exit_code == 0, done.output
    assert "12 drawings" in done.output
    content = json.loads(CASES.read_text(encoding="utf-8"))
    content["cases"][7]["path"][0][0] += 0.1
    content["cases"][9]["sha256_bgr"] = "0" * 64
    (tmp_path / "changed.json").write_text(json.dumps(content), encoding="utf-8")
    done = run("overlay", "check", tmp_path / "changed.json")
    assert done.exit_code == 1
    assert "case 7 differs" in done.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 0}, "width is 0"),
        ({"height": 10**9}, "height"),
        ({"width": True}, "width"),
        ({"background_seed": -1}, "background_seed"),
        ({"sha256_bgr": "abc"}, "sha256_bgr"),
        ({"path": None}, "path"),
        ({"path": [[1, 2, 3]]}, "point 0"),
    ],
)
def test_a_case_of_another_form_is_refused_by_number(tmp_path, change, named):
    content = json.loads(CASES.read_text(encoding="utf-8"))
    content["cases"][3] |= change
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=f"case 3.*{named}"):
        recorded.read_cases(tmp_path / "c.json")


@pytest.mark.parametrize("text", ["[]", "{}", '{"cases": []}', '{"cases": [3]}', "{", ""])
def test_a_file_without_cases_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    assert run("overlay", "check", tmp_path / "c.json").exit_code == 2


def test_the_recorded_drawings_of_the_shared_data_replay():
    folder = os.environ.get("LOOM_DATA")
    if not folder:
        pytest.skip("LOOM_DATA does not name a folder of real data")
    cases = recorded.read_cases(Path(folder) / "overlay" / "cases.json")
    assert len(cases) == 60
    assert recorded.first_difference(cases) is None


def test_render_draws_into_a_picture_file(tmp_path):
    image = noise(320, 240, 3)
    (tmp_path / "in.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (tmp_path / "path.json").write_text("[[0.2, 0.3, 1], [0.7, 0.6, 0]]", encoding="utf-8")
    rows = [[0.2, 0.3, 1], [0.7, 0.6, 0]]
    files = [tmp_path / name for name in ("in.png", "path.json", "o.png")]
    for flag, start in (([], image), (["--path-only"], np.zeros_like(image))):
        done = run("overlay", "render", *files, *flag)
        assert done.exit_code == 0, done.output
        expected = draw_literally(start.copy(), rows)
        assert np.array_equal(read_picture_bgr(tmp_path / "o.png"), expected)
    done = run("overlay", "render", *files[:2], tmp_path / "o.jpg")
    assert (done.exit_code, "not a .png file" in done.stderr) == (2, True)
    (tmp_path / "in.png").write_bytes(b"")
    done = run("overlay", "render", *files)
    assert (done.exit_code, "not a picture" in done.stderr) == (2, True)


def test_paths_are_drawn_into_their_own_frames_and_others_stay_as_they_are(tmp_path):
    rows = [[0.2, 0.3, 1], [0.7, 0.6, 0]]
    frames = {}
    for number in (0, 3):
        frames[number] = noise(64, 48, number)
        folder = tmp_path / "in/a/episode_7/frames"
        folder.mkdir(parents=True, exist_ok=True)
        content = cv2.imencode(".png", frames[number])[1].tobytes()
        (folder / f"frame_{number:04d}.png").write_bytes(content)
    drawn = PathRow(FrameKey("a", 7, 3), "ok", path_from_rows(rows, "case"))
    write_paths(tmp_path / "p.jsonl", [PathRow(FrameKey("a", 7, 0), "no_answer", None), drawn])
    for flag in ([], ["--path-only"]):
        done = run(
            "overlay", "frames", tmp_path / "in", tmp_path / "p.jsonl", tmp_path / "o", *flag
        )
        assert done.exit_code == 0, done.output
        assert "2 pictures" in done.stdout
        assert "1 of them with a path" in done.stdout
        start = {n: np.zeros_like(image) if flag else image for n, image in frames.items()}
        written = {n: tmp_path / f"o/a/episode_07/overlay/frame_{n:04d}.png" for n in frames}
        assert np.array_equal(read_picture_bgr(written[0]), start[0])
        assert np.array_equal(read_picture_bgr(written[3]), draw_literally(start[3].copy(), rows))
    write_paths(tmp_path / "p.jsonl", [])
    done = run("overlay", "frames", tmp_path / "in", tmp_path / "p.jsonl", tmp_path / "o")
    assert (done.exit_code, "no path for any of 2 frames" in done.stderr) == (2, True)


def test_a_drawing_that_is_scaled_down_is_the_notes_but_for_its_soft_edge():
    """Drawn into 320x240 and scaled with the picture, as the notes do; then pixel by pixel."""
    rng = np.random.default_rng(4)
    outside, inside, sharp = [], [], 0
    for _ in range(20):
        rows = [[*rng.uniform(0.1, 0.9, 2).tolist(), int(rng.integers(2))] for _ in range(4)]
        path = path_from_rows(rows, "case")
        raw = np.full((240, 320, 3), rng.integers(60, 200, 3), np.uint8)
        notes = cv2.resize(drawing.draw_path_rgb(raw.copy(), path), (224, 224))
        flat = cv2.resize(raw, (224, 224))
        layer = layers.scaled_down(path, (320, 240), 224, 224)
        ours = layer.apply(flat.copy())
        free = (notes == flat).all(-1)
        assert (ours == flat)[free].all()  # nothing is drawn where the notes draw nothing
        mask = np.zeros((240, 320), np.float32)
        mask[drawing.draw_path_rgb(np.zeros_like(raw), path).max(-1) > 0] = 1
        share = cv2.resize(mask, (224, 224))
        assert set(layer.index.tolist()) == set(np.flatnonzero(share >= 0.5).tolist())
        solid = share == 1
        inside.append(np.abs(ours.astype(int) - notes)[solid].max())
        outside.append((share > 0).sum() / len(layer.index))
        sharp += len(layer.index)
    assert max(inside) <= 1
    assert 1.0 < np.mean(outside) < 2.5
    assert sharp > 10_000
    same = layers.scaled_down(path, (224, 224), 224, 224)
    assert np.array_equal(same.value, layers.covered_by(path, 224, 224).value)
