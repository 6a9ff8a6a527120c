"""The validator: a good data set passes, and each fault put into it is named."""

import dataclasses
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import yaml
from coopcyl.data import panoramas
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import AgentFrame, read_tree
from coopcyl.geometry.covisibility import appear, overlap, seen
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import intrinsic_of_fov
from coopcyl.geometry.stitch_table import StitchTable, build_table
from coopcyl.measure import Measurer
from coopcyl.validate import Check, Validation, validate
from PIL import Image

PANORAMA = Panorama(252, 64, elevation_min_deg=-45, elevation_max_deg=45)
NPY = DepthSource("npy")
OPTIONS = SynthOptions(
    scenarios=1, vehicles=(2, 2), width=160, depth=("npy", "carla_rgb24"), lidar=(24, 360), seed=2
)


@pytest.fixture(scope="module")
def pair_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two vehicles at one time."""
    root = tmp_path_factory.mktemp("pair")
    write_tree(root, OPTIONS)
    return root


@pytest.fixture
def root(pair_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pair_root, tmp_path / "pair")


def run(root: Path, depth: DepthSource = NPY) -> Validation:
    tree = read_tree(root, "train", depth, strict=False)
    return validate(tree, PanoramaReader(PANORAMA, depth), 0)


def check(root: Path, name: str, depth: DepthSource = NPY) -> Check:
    (found,) = [each for each in run(root, depth).checks if each.name == name]
    return found


def frames(root: Path) -> tuple[AgentFrame, ...]:
    return read_tree(root, "train").frames[0].agents


def edit(frame: AgentFrame, change) -> None:
    content = yaml.safe_load(frame.yaml.read_text())
    change(content)
    frame.yaml.write_text(yaml.safe_dump(content))


def change_depth(root: Path, change) -> None:
    for path in root.rglob("*_depth.npy"):
        np.save(path, change(np.load(path)).astype(np.float32))


def test_a_good_data_set_passes_every_check(pair_root):
    result = run(pair_root)
    assert [(c.name, c.level, c.detail) for c in result.checks if c.level != "ok"] == []
    assert result.passed
    values = {c.name: c.values for c in result.checks}
    assert values["coverage"]["measured"] == pytest.approx(0.857, abs=0.01)
    assert values["depth unit"]["scale"] == pytest.approx(1.0, abs=0.05)
    assert values["LiDAR"]["ratio_as_z"] == pytest.approx(1.0, abs=0.01)
    assert values["extrinsic"]["worst_m"] < 1e-6
    np.testing.assert_allclose(values["true_ego_pos"]["lidar_in_vehicle_m"], [-0.5, 0, 1.9])
    assert json.loads(result.to_json())["passed"] is True


def test_only_the_views_of_one_time_are_in_memory(small_root, monkeypatch):
    views: list[weakref.ref] = []
    alive = []
    measure = Measurer.measure

    def counted(self: Measurer, frame: AgentFrame) -> tuple:
        alive.append(sum(view() is not None for view in views))
        numbers, view = measure(self, frame)
        views.append(weakref.ref(view))
        return numbers, view

    monkeypatch.setattr(Measurer, "measure", counted)
    tree = read_tree(small_root, "train", NPY)
    validate(tree, PanoramaReader(Panorama(64, 16), NPY), 0)
    assert alive == [number for frame in tree.frames for number in range(len(frame.agents))]


def test_range_instead_of_z_is_noticed_by_the_road_and_by_the_lidar(root):
    rays = np.meshgrid(np.arange(160) + 0.5 - 80, np.arange(120) + 0.5 - 60)
    focal = intrinsic_of_fov(160, 120, 100)[0, 0]
    secant = np.sqrt((rays[0] ** 2 + rays[1] ** 2) / focal**2 + 1)
    change_depth(root, lambda z: z * secant)
    assert "hold range" in check(root, "depth unit").detail
    assert "hold range" in check(root, "LiDAR").fix


@pytest.mark.parametrize(("factor", "remedy"), [(100, 0.01), (0.001, 1000)])
def test_another_unit_is_noticed_with_its_factor(root, factor, remedy):
    change_depth(root, lambda z: z * factor)
    found = check(root, "depth unit")
    assert found.level == "fail"
    assert float(found.fix.split()[4].rstrip(",")) == pytest.approx(remedy, rel=0.05)
    assert check(root, "LiDAR").level == "fail"


def test_depth_of_another_time_is_noticed_by_the_lidar(root):
    change_depth(root, lambda z: z * 1.1)
    assert check(root, "LiDAR").level == "fail"


def test_missing_depth_is_noticed(root):
    change_depth(root, np.zeros_like)
    assert check(root, "masks").level == "fail"
    change_depth(root, lambda z: z + 5.0 * (np.random.default_rng(0).random(z.shape) < 0.02))
    assert "depth covers" in check(root, "masks").detail


def test_an_inverted_extrinsic_is_recognised(root):
    def invert(content: dict) -> None:
        for i in range(4):
            camera = content[f"camera{i}"]
            camera["extrinsic"] = np.linalg.inv(camera["extrinsic"]).tolist()

    edit(frames(root)[0], invert)
    found = check(root, "extrinsic")
    assert found.level == "fail"
    assert "it is the inverse" in found.fix
    assert found.places == (str(frames(root)[0]),)


def test_an_extrinsic_that_contradicts_the_cords_is_noticed(root):
    def shift(content: dict) -> None:
        content["camera2"]["extrinsic"][1][3] += 0.1

    edit(frames(root)[1], shift)
    assert check(root, "extrinsic").values["worst_m"] == pytest.approx(0.1, abs=1e-3)
    assert check(root, "extrinsic").level == "fail"


def test_images_that_were_cropped_with_their_intrinsics_are_recognised(root):
    """Coverage then follows from the rig, but it is that of the notes' crop."""
    for frame in frames(root):

        def crop(content: dict) -> None:
            for i in range(4):
                content[f"camera{i}"]["intrinsic"][1][2] = 20.0

        for name in frame.cameras:
            path = frame.image(name)
            Image.fromarray(np.asarray(Image.open(path))[40:80]).save(path)
            depth = NPY.path(frame, name)
            assert depth
            np.save(depth, np.load(depth)[40:80])
        edit(frame, crop)
    found = check(root, "coverage")
    assert found.level == "fail"
    assert "0.33" in found.detail
    assert "whole images" in found.fix


def test_a_stitch_that_loses_pixels_contradicts_the_rig(root, monkeypatch):
    def lossy(*arguments) -> StitchTable:
        table = build_table(*arguments)
        middle = np.abs(table.directions[..., 1]) < 0.3
        return dataclasses.replace(table, coverage=table.coverage & middle)

    monkeypatch.setattr(panoramas, "build_table", lossy)
    found = check(root, "coverage")
    assert found.level == "fail"
    assert "do not belong to these intrinsics" in found.fix


def test_a_missing_camera_is_a_warning_with_the_share_it_costs(root):
    for path in root.rglob("*_camera1*"):
        path.unlink()
    found = check(root, "cameras")
    assert found.level == "warn"
    assert "2 of 2 vehicle frames" in found.detail
    assert check(root, "coverage").level == "ok"


def test_missing_and_damaged_files_are_counted_and_named(root):
    first, second = frames(root)
    first.image("camera0").write_bytes(b"no picture")
    found = check(root, "files")
    assert found.level == "fail"
    assert found.values == {"read": 1, "unreadable": 1}
    assert found.places == (str(first),)
    depth = NPY.path(second, "camera2")
    assert depth
    depth.unlink()
    assert check(root, "tree").places == (str(second),)


def test_copied_vehicles_are_noticed(root):
    first, second = frames(root)
    shutil.rmtree(second.folder)
    shutil.copytree(first.folder, second.folder)
    assert check(root, "duplicates").level == "fail"
    assert check(root, "relative poses").level == "fail"


def test_vehicles_out_of_sight_of_each_other_are_named(root):
    def away(content: dict) -> None:
        for section in (*(content[f"camera{i}"]["cords"] for i in range(4)),):
            section[0] += 500
        content["lidar_pose"][0] += 500
        content["true_ego_pos"][0] += 500

    edit(frames(root)[1], away)
    found = check(root, "overlap")
    assert found.level == "warn"
    assert len(found.places) == 1


def test_one_vehicle_only_cannot_teach_poses(root):
    shutil.rmtree(frames(root)[1].folder)
    assert check(root, "vehicles per time").level == "fail"


def test_a_pose_of_another_time_is_noticed(root):
    def late(content: dict) -> None:
        content["true_ego_pos"][0] += 5

    edit(frames(root)[0], late)
    assert check(root, "true_ego_pos").level == "fail"


# Who sees what -----------------------------------------------------------------------------------


def test_each_point_appears_in_its_own_pixel(pair_root):
    view = PanoramaReader(PANORAMA, NPY).read(frames(pair_root)[0])
    rows, columns = np.nonzero(view.depth_valid)
    where = appear(view, view.points()[rows, columns].astype(float))
    np.testing.assert_allclose(where.pixels, np.stack([columns, rows], -1) + 0.5, atol=2e-3)
    np.testing.assert_allclose(where.range_m, view.range_m[rows, columns], rtol=1e-4)
    assert seen(view, where).all()
    assert overlap(view, view) == 1.0


def test_points_above_the_band_and_behind_walls_are_not_seen(pair_root):
    view = PanoramaReader(PANORAMA, NPY).read(frames(pair_root)[0])
    above = appear(view, np.array([[0.0, -50.0, 0.1]]))
    assert not above.inside.any()
    rows, columns = np.nonzero(view.depth_valid & (view.range_m < 40))
    origins, directions = view.ray_origins()[rows, columns], view.table.directions[rows, columns]
    behind = origins + directions * (view.range_m[rows, columns, None] * 1.2 + 2)
    assert not seen(view, appear(view, behind.astype(float))).any()
