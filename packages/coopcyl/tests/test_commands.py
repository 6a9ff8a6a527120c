"""The commands as a user types them, and the pictures that they write."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coopcyl import embedded, figures
from coopcyl.cli import app
from coopcyl.data.cache import StitchedCache
from coopcyl.data.depth import DepthSource
from coopcyl.data.frame_yaml import read_frame
from coopcyl.data.images import read_png, write_png
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import AgentFrame, read_tree
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import opv2v_rig
from coopcyl.train_config import TrainConfig
from loom.config import resolve
from typer.testing import CliRunner, Result

SMALL_PANORAMA = ["panorama.width=252", "panorama.height=64"]
NPY = DepthSource("npy")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str | int | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def agents(root: Path) -> tuple[AgentFrame, ...]:
    return read_tree(root, "train").frames[0].agents


def test_synth_writes_what_validate_accepts(tmp_path):
    call("synth", "out", "--scenarios", "1", "--width", "80", "--most", "2", "--depth", "npy")
    result = call("validate", "--root", "out", "--json", "-o", "v.json", *SMALL_PANORAMA)
    assert json.loads(result.stdout)["passed"] is True
    assert json.loads((tmp_path / "v.json").read_text()) == json.loads(result.stdout)


def test_commands_without_data_use_the_embedded_one(monkeypatch):
    monkeypatch.setattr(embedded, "OPTIONS", replace(embedded.OPTIONS, scenarios=1, width=80))
    result = call("validate", *SMALL_PANORAMA)
    assert "synthetic vehicle frames were written to data/coopcyl/crossings" in result.stderr
    assert result.stdout.splitlines()[-1] == "passed"
    assert "written" not in call("preview", *SMALL_PANORAMA).stderr


def test_an_interrupted_embedded_data_set_is_made_again_and_whole(monkeypatch):
    small = replace(embedded.OPTIONS, scenarios=2, width=80, vehicles=(1, 1), lidar=(8, 120))
    monkeypatch.setattr(embedded, "OPTIONS", small)
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "write_tree", write_one_and_be_interrupted)
        assert CliRunner().invoke(app, ["preview", *SMALL_PANORAMA]).exit_code == 130
    assert list(embedded.ROOT.iterdir()) == []
    call("preview", *SMALL_PANORAMA)
    assert len({f.scenario for f in read_tree(embedded.ROOT, "train").frames}) == 2


def write_one_and_be_interrupted(root: Path, options: SynthOptions) -> int:
    write_tree(root, replace(options, scenarios=1))
    raise KeyboardInterrupt


def test_of_two_that_make_the_embedded_data_set_at_once_both_get_one(monkeypatch):
    small = replace(embedded.OPTIONS, scenarios=1, width=80, vehicles=(1, 1), lidar=(8, 120))
    monkeypatch.setattr(embedded, "OPTIONS", small)
    monkeypatch.setattr(embedded, "write_tree", write_beside_another)
    call("preview", *SMALL_PANORAMA)
    assert [path.name for path in embedded.ROOT.iterdir()] == ["train"]


def write_beside_another(root: Path, options: SynthOptions) -> int:
    write_tree(embedded.ROOT, options)
    return write_tree(root, options)


def test_a_data_set_that_fails_gives_exit_code_three(small_root):
    result = call(
        "validate", "--root", small_root, "dataset.depth_format=none", *SMALL_PANORAMA, code=3
    )
    assert "no depth at all" in result.stdout
    assert result.stdout.splitlines()[-1] == "failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.split=validate"], "no such split"),
        (["dataset.depth_format=tiff"], "tiff"),
        (["panorama.elevation_min_deg=50"], "must grow"),
        (["dataset.max_range=3"], "max_range_m"),
        (["--frame", "99"], "it has 4"),
    ],
)
def test_wrong_settings_are_two_lines_and_exit_code_two(small_root, arguments, words):
    result = call("preview", "--root", small_root, *arguments, code=2)
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "hint: " in result.stderr


def test_preview_writes_what_the_view_holds(small_root, tmp_path):
    call("preview", "--root", small_root, "-o", "p", *SMALL_PANORAMA)
    agent = agents(small_root)[0]
    view = PanoramaReader(Panorama(252, 64), NPY).read(agent)
    stem = f"p/{agent.time}_{agent.agent}"
    np.testing.assert_array_equal(read_png(tmp_path / f"{stem}_rgb.png", "RGB"), view.rgb)
    np.testing.assert_array_equal(np.load(tmp_path / f"{stem}_range.npy"), view.range_m)
    mask = read_png(tmp_path / f"{stem}_depth_valid.png", "L") > 0
    np.testing.assert_array_equal(mask, view.depth_valid)
    summary = json.loads((tmp_path / "p/summary.json").read_text())
    assert summary[str(agent.agent)]["coverage"] == pytest.approx(view.coverage.mean())


def test_preview_takes_a_time_by_name(small_root):
    frame = read_tree(small_root, "train").frames[-1]
    wanted = f"{frame.scenario}/{frame.time}"
    result = call("preview", "--root", small_root, "--frame", wanted, *SMALL_PANORAMA)
    assert wanted in result.stdout


def test_preview_takes_a_time_by_its_index_from_either_end(small_root):
    frames = read_tree(small_root, "train").frames
    for index in (1, -1):
        result = call("preview", "--root", small_root, "--frame", index, *SMALL_PANORAMA)
        assert f"{frames[index].scenario}/{frames[index].time}" in result.stdout


@pytest.mark.parametrize("wanted", ["99", "-99", "--1", "\u00b2", "gone/000069", ""])
def test_a_time_that_is_not_there_is_refused_with_one_that_is(small_root, wanted):
    words = ("preview", "--root", small_root, f"--frame={wanted}")
    refused = call(*words, *SMALL_PANORAMA, code=2).stderr
    first = read_tree(small_root, "train").frames[0]
    assert f"no time {wanted}; it has 4" in refused
    assert f"{first.scenario}/{first.time}" in refused


def test_damaged_cache_entries_stop_the_command_or_are_made_again_and_counted(small_root, tmp_path):
    call("cache", "c", "--root", small_root, *SMALL_PANORAMA)
    entry = next((tmp_path / "c").rglob("*.pano"))
    entry.write_bytes(entry.read_bytes()[:1000])
    stopped = call("cache", "c", "--root", small_root, *SMALL_PANORAMA, code=2)
    assert entry.name in stopped.stderr
    mended = call("cache", "c", "--rebuild-damaged", "--root", small_root, *SMALL_PANORAMA)
    assert "1 damaged ones made again" in mended.stdout


def test_the_cache_is_filled_once(small_root):
    first = call("cache", "c", "--root", small_root, *SMALL_PANORAMA).stdout
    again = call("cache", "c", "--root", small_root, *SMALL_PANORAMA).stdout
    count = sum(len(f.agents) for f in read_tree(small_root, "train").frames)
    assert f"{count} stitched, 0 were there" in first
    assert f"0 stitched, {count} were there" in again


def test_what_the_help_of_cache_says_fills_the_cache_of_a_training(small_root):
    words = ("panorama.width=256", "panorama.height=64", "panorama.supersample=2")
    assert all(word in call("cache", "--help").stdout for word in words)
    call("cache", "c", "--root", small_root, *words)
    config = resolve(TrainConfig, overrides=[f"dataset.root={small_root}"]).config
    views = StitchedCache(Path("c"), config.reader())
    assert all(views.path(agent).exists() for agent in agents(small_root))


def test_frames_that_are_left_out_are_counted_and_named(small_root, tmp_path):
    root = shutil.copytree(small_root, tmp_path / "data")
    agent = agents(root)[0]
    agent.image("camera3").unlink()
    result = call("preview", "--root", root, "dataset.strict=false", *SMALL_PANORAMA)
    assert f"1 vehicle frames left out; first {agent}: {agent.time}_camera3.png" in result.stderr
    Path("skip.txt").write_text(f"{agent}\n")
    result = call("preview", "--root", root, "dataset.skip=skip.txt", *SMALL_PANORAMA)
    assert "1 vehicle frames left out by skip.txt" in result.stderr


def test_baselines_stand_far_above_true_matches(pairs_root):
    rows = json.loads(call("baselines", "--root", pairs_root, "--json", *SMALL_PANORAMA).stdout)
    errors = {name: row["trans_err_m_median"] for name, row in rows.items()}
    assert errors["identity"] > 5
    assert 0.05 < errors["gps"] < 2
    assert errors["true matches"] < 0.25
    one = ("baselines", "--samples", 1, "--root", pairs_root)
    text = call(*one, *SMALL_PANORAMA).stdout
    assert "trans_err_m_median" in text


def test_baselines_need_two_vehicles(small_root, tmp_path):
    call("synth", "out", "--scenarios", "1", "--width", "80", "--least", 1, "--most", 1)
    result = call("baselines", "--root", "out", *SMALL_PANORAMA, code=2)
    assert "none of 1 times has two vehicles" in result.stderr


# Projections -------------------------------------------------------------------------------------


def test_projected_boxes_enclose_the_vehicle_that_depth_shows(small_root):
    """Around a box's middle the depth is that of the box, in each camera that sees it freely."""
    source = DepthSource("npy")
    checked = 0
    for frame in read_tree(small_root, "train", source).frames:
        for agent in frame.agents:
            reader = PanoramaReader(Panorama(252, 64), source)
            stitched = reader.stitch(agent)
            depths = source.read(agent, stitched.rig.cameras)
            for vehicle in read_frame(agent.yaml).vehicles:
                lines = figures.box_lines(vehicle, stitched.pose_world_from_rig)
                middle = np.concatenate(lines).mean(axis=0)
                for camera, depth in zip(stitched.rig.cameras, depths, strict=True):
                    pixel, z = camera.project(middle)
                    if camera.contains(pixel) and z > 4:
                        found = depth[int(pixel[1]), int(pixel[0])]
                        if found > z - 3:  # nothing stands before it
                            assert z - 3 < found < z
                            checked += 1
    assert checked >= 3


def test_project_draws_into_every_camera_and_the_panorama(small_root, tmp_path):
    call("project", "--root", small_root, "-o", "q", *SMALL_PANORAMA)
    for agent in agents(small_root):
        for camera in agent.cameras:
            drawn = read_png(tmp_path / f"q/{agent.time}_{agent.agent}_{camera}.png", "RGB")
            assert (drawn != read_png(agent.image(camera), "RGB")).any(axis=-1).mean() > 0.02
        panorama = read_png(tmp_path / f"q/{agent.time}_{agent.agent}_panorama.png", "RGB")
        view = PanoramaReader(Panorama(252, 64), NPY).read(agent)
        changed = (panorama != view.rgb).any(axis=-1)
        assert changed.mean() > 0.02
        assert not changed[0].any()


def test_nearer_points_are_drawn_over_farther_ones():
    image = np.zeros((4, 4, 3), np.uint8)
    two = figures.draw_points(image, np.array([[1.5, 1.5], [1.5, 1.5]]), np.array([3.0, 60.0]))
    near = figures.draw_points(image, np.array([[1.5, 1.5]]), np.array([3.0]))
    np.testing.assert_array_equal(two, near)
    assert near.any()


def test_ranges_have_different_colours_and_none_is_black():
    picture = figures.range_picture(np.array([[0.0, 2.0, 10.0, 100.0]]), 100.0)
    assert not picture[0, 0].any()
    assert len(np.unique(picture[0], axis=0)) == 4


# Loose images ------------------------------------------------------------------------------------

RIG = """
origin: [-0.5, 0, 1.9]
cameras:
  - {name: front, image: f.png, fov_deg: 100, position: [2.5, 0, 1.0], depth: f.npy}
  - {name: right, image: r.png, fov_deg: 100, position: [0, 0.3, 1.8],
     rotation: [0, 100, 0], depth: r.npy}
"""


def write_rig(folder: Path, text: str = RIG) -> Path:
    for name, grey in (("f", 50), ("r", 200)):
        write_png(folder / f"{name}.png", np.full((60, 80, 3), grey, np.uint8))
        np.save(folder / f"{name}.npy", np.full((60, 80), 10.0, np.float32))
    (folder / "rig.yaml").write_text(text)
    return folder / "rig.yaml"


def test_loose_images_are_stitched_by_their_rig(tmp_path):
    result = call("stitch", write_rig(tmp_path), "-o", "s", *SMALL_PANORAMA)
    panorama = read_png(tmp_path / "s/panorama.png", "RGB")
    azimuth = np.degrees(Panorama(252, 64).azimuths_rad())
    assert (panorama[32, np.abs(azimuth) < 49] == 50).all()
    assert (panorama[32, (azimuth > 52) & (azimuth < 148)] == 200).all()
    assert (panorama[32, azimuth < -52] == 0).all()
    assert np.load(tmp_path / "s/range.npy")[32, 126] == pytest.approx(10.0, rel=1e-3)
    assert "coverage" in result.stdout


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fov_deg: 100, position: [2.5", "position: [2.5", "either fov_deg or intrinsic"),
        ("name: right", "name: front", "different names"),
        (", depth: r.npy", "", "1 of 2 cameras have a depth"),
        ("f.png", "gone.png", "gone.png: the image is missing"),
        ("[2.5, 0, 1.0]", "[2.5, .nan, 1.0]", "position"),
    ],
)
def test_a_wrong_rig_file_is_named(tmp_path, old, new, words):
    assert old in RIG
    path = write_rig(tmp_path, RIG.replace(old, new, 1))
    assert words in call("stitch", path, *SMALL_PANORAMA, code=2).stderr


def test_a_folder_in_place_of_a_rig_file_is_named(tmp_path):
    assert "is a folder, and a rig is a YAML file" in call("stitch", tmp_path, code=2).stderr


def test_the_rig_file_means_the_same_as_the_opv2v_rig(tmp_path):
    from coopcyl.data.rig_file import read_rig_file

    rig, _, depths = read_rig_file(write_rig(tmp_path))
    for camera, expected in zip(rig.cameras, opv2v_rig(80, 60).cameras, strict=False):
        np.testing.assert_allclose(camera.pose_rig_from_camera, expected.pose_rig_from_camera)
        np.testing.assert_allclose(camera.intrinsic, expected.intrinsic)
    assert depths is not None
