"""RoboTwin episodes: both layouts written by hand here, bad files by name, paths by projection."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.data import robotwin
from maniflow_overlay.data.robotwin import Arm, Camera, EpisodeFile, find_episodes, read_episode
from maniflow_overlay.data.synthetic import CLOSED_RGB, OPEN_RGB, Scene, write_episode, write_task
from maniflow_overlay.paths import oracle
from maniflow_overlay.paths.table import read_paths
from typer.testing import CliRunner

T = 6
RED = (250, 10, 20)


def jpeg_of_rgb(rgb: np.ndarray) -> bytes:
    """Encode as RoboTwin does: the RGB array goes to OpenCV as it is."""
    return cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def pictures() -> list[bytes]:
    shades = np.linspace(0, 200, T).astype(np.uint8)
    images = []
    for shade in shades:
        image = np.full((24, 32, 3), RED, np.uint8)
        image[:12] = (shade, 128, 240)
        images.append(jpeg_of_rgb(image))
    return images


VECTOR = np.random.default_rng(1).normal(size=(T, 14))


def write_old(path: Path) -> EpisodeFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    jpegs = pictures()
    with h5py.File(path, "w") as file:
        width = max(map(len, jpegs)) + 7  # wider than any: the file pads with zeros
        file["observation/head_camera/rgb"] = np.array(jpegs, dtype=f"S{width}")
        file["observation/front_camera/rgb"] = np.array(jpegs[::-1], dtype=f"S{width}")
        file["joint_action/vector"] = VECTOR
        for part, columns in (
            ("left_arm", slice(0, 6)),
            ("left_gripper", 6),
            ("right_arm", slice(7, 13)),
            ("right_gripper", 13),
        ):
            file[f"joint_action/{part}"] = VECTOR[:, columns]
    return EpisodeFile("click_bell", 3, path)


def write_new(path: Path, *, columns: bool = False) -> EpisodeFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    jpegs = pictures()
    with h5py.File(path, "w") as file:
        file["vision/cam_head/colors"] = np.array(jpegs, dtype=f"S{max(map(len, jpegs))}")
        file["instructions"] = json.dumps("ring it")
        for group, rows in (("state", VECTOR[:-1]), ("action", VECTOR[1:])):
            for side, first in (("left", 0), ("right", 7)):
                file[f"{group}/{side}_arm_joint_states"] = rows[:, first : first + 6]
                ee = rows[:, first + 6]
                file[f"{group}/{side}_ee_joint_states"] = ee[:, None] if columns else ee
    return EpisodeFile("click_bell", 3, path)


@pytest.mark.parametrize("writer", [write_old, write_new, lambda p: write_new(p, columns=True)])
def test_a_row_is_a_picture_in_true_colours_a_state_and_the_next_state_as_action(tmp_path, writer):
    episode = read_episode(writer(tmp_path / "e.hdf5"))
    assert len(episode.jpegs) == T - 1
    assert np.array_equal(episode.state, VECTOR[:-1].astype(np.float32))
    assert np.array_equal(episode.action, VECTOR[1:].astype(np.float32))
    for row, shade in enumerate(np.linspace(0, 200, T).astype(int)[:-1]):
        image = episode.picture_rgb(row).astype(int)
        assert np.abs(image[18, 16] - RED).max() < 12
        assert np.abs(image[5, 16] - (shade, 128, 240)).max() < 12


def test_the_vector_is_put_together_from_its_parts_when_it_is_missing(tmp_path):
    file = write_old(tmp_path / "e.hdf5")
    with h5py.File(file.path, "a") as content:
        del content["joint_action/vector"]
    assert np.array_equal(read_episode(file).state, VECTOR[:-1].astype(np.float32))


def test_another_camera_is_another_picture_and_an_unknown_one_is_refused(tmp_path):
    file = write_old(tmp_path / "e.hdf5")
    front = read_episode(file, "front").picture_rgb(0).astype(int)
    assert np.abs(front[5, 16] - (200, 128, 240)).max() < 12
    with pytest.raises(UserError, match="left_camera/rgb is missing"):
        read_episode(file, "left")
    with pytest.raises(UserError, match="no camera is called"):
        read_episode(file, "top")


def test_instructions_are_read_beside_the_old_file_and_inside_the_new_one(tmp_path):
    old = write_old(tmp_path / "click_bell/demo/data/episode3.hdf5")
    assert read_episode(old).instructions == ()
    (tmp_path / "click_bell/demo/instructions").mkdir()
    texts = tmp_path / "click_bell/demo/instructions/episode3.json"
    texts.write_text('{"seen": ["a", "b"], "unseen": ["c"]}', encoding="utf-8")
    assert read_episode(old).instructions == ("a", "b")  # unseen ones are kept back
    texts.write_text('{"unseen": ["c"]}', encoding="utf-8")
    assert read_episode(old).instructions == ("c",)
    texts.write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="episode3.json"):
        read_episode(old)
    assert read_episode(write_new(tmp_path / "n.hdf5")).instructions == ("ring it",)


def spoil(path: Path, name: str, value) -> None:
    with h5py.File(path, "a") as content:
        del content[name]
        if value is not None:
            content[name] = value


NAN = VECTOR.copy()
NAN[2, 5] = np.nan


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("observation/head_camera/rgb", None, "head_camera/rgb is missing"),
        ("observation/head_camera/rgb", np.zeros((T, 24, 32, 3), np.uint8), "not a list of JPEG"),
        ("observation", None, "neither /observation nor /vision"),
        ("joint_action/vector", VECTOR[:-2], r"lengths do not match: .*rgb has 6, .*vector has 4"),
        ("joint_action/vector", NAN, r"vector\[2, 5\] is not finite"),
        ("joint_action/vector", VECTOR[:, :13], r"shape \(6, 13\)"),
        ("joint_action/vector", np.array([b"x"] * T), "vector is"),
        ("joint_action", None, "left_arm is missing"),
    ],
)
def test_a_damaged_episode_is_refused_by_file_and_data_set(tmp_path, name, value, named):
    file = write_old(tmp_path / "e.hdf5")
    spoil(file.path, name, value)
    with pytest.raises(UserError, match=f"e.hdf5.*{named}"):
        read_episode(file)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("action/left_arm_joint_states", VECTOR[:2, :6], "lengths do not match"),
        ("state/right_arm_joint_states", VECTOR[1:, :5], "has 13 joints"),
        ("vision/cam_head/colors", np.array(pictures()[:3]), "colors has 3, /state has 5"),
        ("instructions", "{", "not JSON"),
    ],
)
def test_a_damaged_episode_of_the_new_layout_is_refused(tmp_path, name, value, named):
    file = write_new(tmp_path / "e.hdf5")
    spoil(file.path, name, value)
    with pytest.raises(UserError, match=f"e.hdf5.*{named}"):
        read_episode(file)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no JPEG"),
        (b"\x89PNG", "no JPEG"),
        (pictures()[0][:-40], "cut short"),
        (b"\xff\xd8\xff\xd9", "cannot be decoded"),
    ],
)
def test_a_picture_that_is_damaged_is_refused_by_row(tmp_path, content, named):
    file = write_old(tmp_path / "e.hdf5")
    jpegs = pictures()
    jpegs[2] = content
    spoil(file.path, "observation/head_camera/rgb", np.array(jpegs))
    episode = read_episode(file)
    episode.picture_rgb(1)
    with pytest.raises(UserError, match=f"e.hdf5: picture 2 .*{named}"):
        episode.picture_rgb(2)


def test_random_damage_ends_in_user_errors(tmp_path):
    whole = write_old(tmp_path / "e.hdf5").path.read_bytes()
    rng = random.Random(2)
    file = EpisodeFile("click_bell", 0, tmp_path / "d.hdf5")
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 60)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged))]
        file.path.write_bytes(damaged)
        try:
            episode = read_episode(file)
            for row in range(len(episode.jpegs)):
                episode.picture_rgb(row)
        except UserError:
            refused += 1
    assert refused > 50


def test_episodes_are_found_in_both_layouts_and_twice_the_same_is_refused(tmp_path):
    scene = Scene(32, 24, 4)
    write_task(tmp_path / "old", "b_task", 2, scene)
    write_task(tmp_path / "old", "a_task", 1, scene)
    write_task(tmp_path / "new", "a_task", 1, scene, "new")
    found = [(file.task, file.number) for file in find_episodes(tmp_path / "old")]
    assert found == [("a_task", 0), ("b_task", 0), ("b_task", 1)]
    assert [file.task for file in find_episodes(tmp_path / "new")] == ["a_task"]
    with pytest.raises(UserError, match="there twice"):
        find_episodes(tmp_path)
    with pytest.raises(UserError, match="no episodes of c"):
        find_episodes(tmp_path / "old", ["c"])
    with pytest.raises(UserError, match="no such folder"):
        find_episodes(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["old", "new"])
def test_the_projected_tip_is_where_the_gripper_was_painted(tmp_path, layout):
    write_episode(tmp_path / "e.hdf5", Scene(seed=4), 1, layout)
    episode = read_episode(EpisodeFile("t", 1, tmp_path / "e.hdf5"))
    assert episode.camera
    assert episode.arms
    tip = oracle.tip_positions(oracle.active_arm(episode.arms))
    for row in range(0, 39, 4):
        image = episode.picture_rgb(row).astype(int)
        colour = OPEN_RGB if episode.arms[0].opening[row] > 0.5 else CLOSED_RGB
        ys, xs = np.nonzero(np.abs(image - colour).sum(axis=-1) < 90)
        x, y = oracle.project(tip[row : row + 1], episode.camera, row, (320, 240))[0] * [320, 240]
        assert np.hypot(xs.mean() - x, ys.mean() - y) < 1


def test_projection_equals_the_pinhole_algebra():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        shift = np.array([0.1, -0.2, 4.0])
        intrinsic = np.array([[300.0, 0.5, 150], [0, 310, 110], [0, 0, 1]])
        camera = Camera(intrinsic[None], np.concatenate([rotation, shift[:, None]], 1)[None])
        point = rng.uniform(-1, 1, 3)
        x, y, z = rotation @ point + shift
        expected = [(300 * x / z + 0.5 * y / z + 150) / 320, (310 * y / z + 110) / 240]
        assert oracle.project(point[None], camera, 0, (320, 240))[0] == pytest.approx(expected)
    behind = rotation.T @ (np.array([0, 0, -1.0]) - shift)
    assert np.isnan(oracle.project(behind[None], camera, 0, (320, 240))).all()


def test_the_tip_is_moved_along_the_poses_own_x_axis():
    half = np.sqrt(0.5)
    quaternions = np.array([[1.0, 0, 0, 0], [half, 0, 0, half], [half, 0, -half, 0], [0, 0, 0, 3]])
    arm = Arm(np.zeros((4, 3)), quaternions, np.zeros(4))
    expected = [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [-0.5, 0, 0]]
    assert oracle.tip_positions(arm, 0.5) == pytest.approx(np.array(expected), abs=1e-12)


def distance_to_piece(point, start, end) -> float:
    """Distance of a point to a segment, by trying many points on it."""
    shares = np.linspace(0, 1, 2001)[:, None]
    return float(np.linalg.norm(start + shares * (end - start) - point, axis=1).min())


def test_simplification_keeps_every_point_within_the_tolerance_and_what_it_must_keep():
    rng = np.random.default_rng(3)
    for _ in range(25):
        points = np.cumsum(rng.normal(0, 0.02, (40, 2)), axis=0)
        keep = rng.random(40) < 0.05
        chosen = oracle.simplify(points, keep, 0.03)
        assert {0, 39, *np.flatnonzero(keep).tolist()} <= set(chosen.tolist())
        for first, last in zip(chosen[:-1], chosen[1:], strict=True):
            for middle in range(first + 1, last):
                assert distance_to_piece(points[middle], points[first], points[last]) < 0.03 + 1e-4
    line = np.linspace([0, 0], [1, 1], 30)
    assert oracle.simplify(line, np.zeros(30, bool), 1e-6).tolist() == [0, 29]
    still = np.zeros((5, 2))
    assert oracle.simplify(still, np.zeros(5, bool), 0.01).tolist() == [0, 4]


def test_an_oracle_path_keeps_the_grasp_and_the_release(tmp_path):
    write_episode(tmp_path / "e.hdf5", Scene(seed=7), 0)
    episode = read_episode(EpisodeFile("t", 0, tmp_path / "e.hdf5"))
    path = oracle.oracle_path(episode, 0, (320, 240))
    assert path.gripper is not None
    assert path.gripper.tolist() == [1, 0, 1, 1]
    rng = np.random.default_rng(0)
    noisy = [oracle.oracle_path(episode, 0, (320, 240), noise=0.01, rng=rng) for _ in range(200)]
    spread = np.stack([p.points for p in noisy]) - path.points
    assert spread.std() == pytest.approx(0.01, rel=0.15)
    assert len(oracle.oracle_path(episode, 38, (320, 240))) == 1
    with pytest.raises(UserError, match="no camera"):
        oracle.oracle_path(read_episode(write_old(tmp_path / "o.hdf5")), 0, (32, 24))


def test_oracle_and_extraction_as_commands(tmp_path):
    write_task(tmp_path / "episodes", "click_bell", 2, Scene(steps=5))

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    done = run("paths", "oracle", tmp_path / "episodes", tmp_path / "p.jsonl")
    assert done.exit_code == 0, done.output
    rows = read_paths(tmp_path / "p.jsonl")
    assert [row.key[1:] for row in rows] == [(e, f) for e in (0, 1) for f in range(4)]
    assert {row.status for row in rows} == {"oracle"}
    done = run("data", "extract-frames", tmp_path / "episodes", tmp_path / "frames")
    assert "8 frames of 2 episodes" in done.output
    again = run("data", "extract-frames", tmp_path / "episodes", tmp_path / "frames")
    assert "0 frames of 2 episodes" in again.output
    picture = cv2.imread(str(tmp_path / "frames/click_bell/episode_01/frames/frame_0002.png"))
    episode = read_episode(find_episodes(tmp_path / "episodes")[1])
    assert picture is not None
    assert np.array_equal(picture[..., ::-1], episode.picture_rgb(2))
    assert robotwin.VECTOR == 14
