"""The whole way from files to points, held against a room known in closed form.

Each of the six faults of the notes' pipeline is then put in on purpose, and must be noticed.
"""

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from coopcyl.data import panoramas
from coopcyl.data.depth import DepthFormat, DepthSource
from coopcyl.data.images import read_png, write_png
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.tree import read_tree
from coopcyl.geometry import rig as rig_module
from coopcyl.geometry import stitch_table
from coopcyl.geometry.coverage import expected_coverage
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Rig, opv2v_rig
from coopcyl.geometry.stitch_table import StitchTable
from coopcyl.geometry.view import View, central_targets
from scipy.spatial.transform import Rotation

DENSE: list[DepthFormat] = ["npy", "carla_rgb24", "opv2v_h"]
PANORAMA = Panorama(512, 128, "equirect_band", -45, 45)
FOCAL = 200 / np.tan(np.radians(50))  # of the room's images, 400 pixels wide
ROOM_HALF_M = np.array([14.0, 9.0])
TILT = ([120.0, -40.0, 3.0], [25.0, 6.0, -5.0])  # position; yaw, pitch, roll


def read_room(root: Path, depth: DepthFormat = "npy") -> View:
    source = DepthSource(depth)
    (frame,) = read_tree(root, "test", source).frames
    return PanoramaReader(PANORAMA, source, 60.0).read(frame.agents[0])


def distance_to_the_room(points: np.ndarray) -> np.ndarray:
    """Distance of points in the room's own coordinates to its floor, walls and screen."""
    x, y, z = np.moveaxis(points, -1, 0)
    screen_centre, screen_half = np.array([5.2, 0, 1.25]), np.array([0.2, 2.5, 1.25])
    beyond = np.abs(points - screen_centre) - screen_half
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
    screen = np.where((beyond < 0).all(-1), -beyond.max(-1), outside)
    planes = [np.abs(z), np.abs(np.abs(x) - 14.0), np.abs(np.abs(y) - 9.0), screen]
    return np.min(planes, axis=0)


def room_points(view: View) -> np.ndarray:
    """The view's points in the room's coordinates, by scipy's Euler angles only."""
    position, (yaw, pitch, roll) = TILT
    tilt = Rotation.from_euler("ZYX", [yaw, -pitch, -roll], degrees=True)
    pose = view.pose_world_from_rig
    world_cv = view.points()[view.depth_valid].astype(float) @ pose[:3, :3].T + pose[:3, 3]
    world = np.stack([world_cv[:, 2], world_cv[:, 0], -world_cv[:, 1]], axis=-1)
    return tilt.inv().apply(world - position)


def check_points_lie_on_surfaces(root: Path) -> None:
    """Each point is off its surface by at most one pixel's width at its range."""
    view = read_room(root)
    away = distance_to_the_room(room_points(view))
    allowed = view.range_m[view.depth_valid] / FOCAL + 0.002
    assert view.depth_valid.mean() > 0.6
    assert (away <= allowed).all(), f"{(away > allowed).mean():.3f} off, up to {away.max():.2f} m"


def check_coverage(root: Path) -> None:
    view = read_room(root)
    assert view.coverage.mean() == pytest.approx(expected_coverage(opv2v_rig(), PANORAMA), abs=0.01)


def check_no_depth_gives_no_depth(root: Path) -> None:
    view = read_room(root, "none")
    assert not view.depth_valid.any()
    assert not view.range_m.any()


def check_colours_come_from_their_pixels(root: Path) -> None:
    """Images that grow linearly along rows and columns; half a pixel is a bias of 0.3."""
    ramp = np.zeros((300, 400, 3), np.uint8)
    ramp[..., 0] = np.arange(400)[None] * 0.6
    ramp[..., 1] = np.arange(300)[:, None] * 0.8
    (frame,) = read_tree(root, "test").frames
    for camera in frame.agents[0].cameras:
        write_png(frame.agents[0].image(camera), ramp)
    view = read_room(root)
    inner = view.coverage & (
        (view.table.pixels > 1) & (view.table.pixels < np.array([399, 299]))
    ).all(-1)
    expected = (view.table.pixels[inner] - 0.5) * [0.6, 0.8] - 0.5 * (1 - np.array([0.2, 0.2]))
    bias = (view.rgb[inner][:, :2] - expected).mean(axis=0)
    assert np.abs(bias).max() < 0.12, bias


CHECKS = [
    check_points_lie_on_surfaces,
    check_coverage,
    check_no_depth_gives_no_depth,
    check_colours_come_from_their_pixels,
]


def crop_before_stitching(patch: pytest.MonkeyPatch) -> None:
    """R1: scale each image to the panorama's width and keep the rows in the middle."""
    width, height = PANORAMA.width, PANORAMA.height

    def cropped_image(path: Path, mode: str) -> np.ndarray:
        image = read_png(path, mode)
        scaled = cv2.resize(image, (width, width * 3 // 4))
        top = (scaled.shape[0] - height) // 2
        return scaled[top : top + height]

    def cropped_rig(record, names, sizes) -> Rig:
        whole = original(record, names, [(300, 400)] * len(names))
        return Rig(tuple(c.resized_and_cropped(width, height) for c in whole.cameras))

    original = panoramas.frame_rig
    patch.setattr(panoramas, "read_png", cropped_image)
    patch.setattr(panoramas, "frame_rig", cropped_rig)
    patch.setattr(
        DepthSource, "read", lambda self, frame, cs: [np.zeros((c.height, c.width)) for c in cs]
    )


def take_z_for_range(patch: pytest.MonkeyPatch) -> None:
    """R2."""

    def build(*arguments) -> StitchTable:
        table = stitch_table.build_table(*arguments)
        return dataclasses.replace(table, range_of_z=table.coverage.astype(np.float32))

    patch.setattr(panoramas, "build_table", build)


def make_up_missing_depth(patch: pytest.MonkeyPatch) -> None:
    """R3: the length of the ray's part along the camera's offset, also where there is no depth."""
    original = StitchTable.stitch_range

    def made_up(self: StitchTable, depths: list[np.ndarray]) -> np.ndarray:
        origins = opv2v_rig().origins[np.maximum(self.camera, 0)]
        along = (origins * self.directions).sum(-1).clip(min=0) * self.coverage
        return (original(self, depths) + along).astype(np.float32)

    patch.setattr(StitchTable, "stitch_range", made_up)


def drop_the_cameras_offsets(patch: pytest.MonkeyPatch) -> None:
    """R4: all rays from the LiDAR."""
    patch.setattr(Rig, "origins", property(lambda self: np.zeros((len(self.cameras), 3))))


def interpolate_depth(patch: pytest.MonkeyPatch) -> None:
    """R5a: bilinear depth."""

    def bilinear(self: StitchTable, depths: list[np.ndarray]) -> np.ndarray:
        mosaic = np.concatenate(depths, axis=1)
        z = cv2.remap(mosaic, *self._remap, cv2.INTER_LINEAR)
        return z * self.range_of_z

    patch.setattr(StitchTable, "stitch_range", bilinear)


def shift_colours_by_half_a_pixel(patch: pytest.MonkeyPatch) -> None:
    """R5b: edge coordinates given to a function that counts centres."""
    original = stitch_table._source_addresses

    def shifted(camera, pixels, sizes):
        return original(camera, pixels + 0.5, sizes)

    patch.setattr(stitch_table, "_source_addresses", shifted)


def use_another_euler_order(patch: pytest.MonkeyPatch) -> None:
    """R6: scipy's lower-case zyx with the angles as they are."""

    def wrong(cords) -> np.ndarray:
        x, y, z, roll, yaw, pitch = cords
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("zyx", [yaw, pitch, roll], degrees=True).as_matrix()
        pose[:3, 3] = x, y, z
        return pose

    patch.setattr(panoramas, "pose_from_cords", wrong)
    patch.setattr(rig_module, "pose_from_cords", wrong)


BUGS = [
    (crop_before_stitching, check_coverage),
    (take_z_for_range, check_points_lie_on_surfaces),
    (make_up_missing_depth, check_no_depth_gives_no_depth),
    (drop_the_cameras_offsets, check_points_lie_on_surfaces),
    (interpolate_depth, check_points_lie_on_surfaces),
    (shift_colours_by_half_a_pixel, check_colours_come_from_their_pixels),
    (use_another_euler_order, check_points_lie_on_surfaces),
]


@pytest.fixture
def own_room(room_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(room_root, tmp_path / "room")


@pytest.mark.parametrize("check", CHECKS)
def test_the_way_from_files_to_points_is_right(check, own_room):
    check(own_room)


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_each_fault_of_the_notes_pipeline_is_noticed(bug, check, own_room, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        check(own_room)


def test_ranges_are_those_of_rays_from_the_own_camera(room_root):
    """Brute force: from the camera's centre along the ray to the nearest of the room's planes."""
    view = read_room(room_root)
    yaw, pitch, roll = 130.0, -3.0, 2.0
    vehicle = Rotation.from_euler("ZYX", [yaw, -pitch, -roll], degrees=True)
    mounts = np.array([[3.0, 0, -0.9], [0.5, 0.3, -0.1], [0.5, -0.3, -0.1], [-1.5, 0, -0.4]])
    rng = np.random.default_rng(2)
    rows, columns = np.nonzero(view.depth_valid)
    chosen = rng.choice(len(rows), 2000, replace=False)
    for row, column in zip(rows[chosen], columns[chosen], strict=True):
        azimuth = 2 * np.pi * ((column + 0.5) / 512 - 0.5)
        elevation = np.radians(45 - 90 * (row + 0.5) / 128)
        forward, right = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
        direction = vehicle.apply([forward, right, np.sin(elevation)])
        lidar = np.array([-1.0, 1.5, 0]) + vehicle.apply([-0.5, 0, 1.9])
        origin = lidar + vehicle.apply(mounts[view.table.camera[row, column]])
        hit = origin + float(view.range_m[row, column]) * direction
        assert distance_to_the_room(hit[None])[0] <= view.range_m[row, column] / FOCAL + 0.002


def test_central_targets_describe_the_same_points(room_root):
    view = read_room(room_root)
    central = central_targets(view)
    points = central.directions * central.depth_along_ray_m[..., None]
    np.testing.assert_allclose(
        points[view.depth_valid], view.points()[view.depth_valid], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(np.linalg.norm(central.directions, axis=-1), 1, atol=1e-5)
    assert (central.depth_along_ray_m[~view.depth_valid] == 0).all()
    parallax = np.linalg.norm(central.directions - view.table.directions, axis=-1)
    assert parallax[view.depth_valid].max() > 0.3  # the front camera stands 3 m from the LiDAR


def test_all_dense_depth_formats_give_the_same_view(room_root):
    exact, coded, coarse = map(read_room, [room_root] * 3, DENSE)
    valid = exact.depth_valid
    assert (coded.depth_valid == valid).all()
    np.testing.assert_allclose(coded.range_m[valid], exact.range_m[valid], atol=2e-3)
    z_error = (coarse.range_m - exact.range_m)[valid] / exact.table.range_of_z[valid]
    assert np.abs(z_error).max() < 0.502  # whole metres


def test_the_lidar_agrees_with_the_cameras_where_it_has_points(room_root):
    exact, sparse = read_room(room_root), read_room(room_root, "lidar")
    both = exact.depth_valid & sparse.depth_valid
    error = np.abs(sparse.range_m - exact.range_m)[both]
    assert 0.002 < sparse.depth_valid.mean() < 0.5
    assert np.median(error) < 0.05
    assert sparse.non_ambiguous is None


def test_the_learned_mask_is_surface_without_sky_and_own_vehicle(small_root):
    source = DepthSource("npy")
    frame = read_tree(small_root, "train", source).frames[0].agents[0]
    view = PanoramaReader(PANORAMA, source, 40.0).read(frame)
    mask = view.non_ambiguous
    assert mask is not None
    assert (mask <= (view.coverage & view.depth_valid)).all()
    assert view.range_m.max() <= 40.0
    sky_rows = view.table.directions[..., 1] < -0.69
    assert mask[sky_rows].mean() < mask[~sky_rows].mean()
