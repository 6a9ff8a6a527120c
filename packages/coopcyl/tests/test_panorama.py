"""Projections, stitch table and coverage against OpenCV's warpers, closed forms and frusta."""

import cv2
import numpy as np
import pytest
from coopcyl.geometry.coverage import expected_coverage
from coopcyl.geometry.panorama import PROJECTIONS, Panorama
from coopcyl.geometry.rig import Camera, Rig, intrinsic_of_fov, opv2v_rig
from coopcyl.geometry.stitch_table import NO_CAMERA, build_table
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

BAND_45 = Panorama(504, 126, "equirect_band", -45, 45)


def one_camera(rotation: np.ndarray, width=640, height=480, fov=80.0, origin=(0, 0, 0)) -> Rig:
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = origin
    return Rig((Camera("only", width, height, intrinsic_of_fov(width, height, fov), pose),))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_pixels_and_directions_are_inverse(projection):
    panorama = Panorama(96, 40, projection, -30, 42)
    directions = panorama.directions()
    pixels = panorama.pixels_of_directions(directions * 7.5)
    u, v = np.meshgrid(np.arange(96) + 0.5, np.arange(40) + 0.5)
    np.testing.assert_allclose(pixels, np.stack([u, v], -1), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-12)


def test_forward_is_the_middle_and_right_is_to_the_right():
    pixels = Panorama(360, 90, "equirect_band", -45, 45).pixels_of_directions(
        np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 1], [-1e-9, 0, -1]])
    )
    np.testing.assert_allclose(pixels, [[180, 45], [270, 45], [180, 0], [0, 45]], atol=1e-6)


@pytest.mark.parametrize(
    ("projection", "warper", "row_of_elevation"),
    [
        ("cylinder", "cylindrical", lambda y: y),
        ("equirect_band", "spherical", lambda y: y - np.pi / 2),
    ],
)
def test_the_table_agrees_with_opencvs_warpers(projection, warper, row_of_elevation):
    """Source pixel -> OpenCV's forward warp must give back the panorama pixel it was taken for."""
    rng = np.random.default_rng(11)
    for _ in range(3):
        rotation = Rotation.from_euler("YXZ", rng.uniform(-25, 25, 3), degrees=True).as_matrix()
        rig = one_camera(rotation, fov=rng.uniform(60, 100))
        panorama = Panorama(400, 160, projection, -40, 35)
        table = build_table(rig, panorama)
        rows, columns = np.nonzero(table.coverage)
        chosen = rng.choice(len(rows), 200, replace=False)
        index_k = rig.cameras[0].intrinsic.astype(np.float32)
        index_k[:2, 2] -= 0.5  # OpenCV counts pixel centres
        oracle = cv2.PyRotationWarper(warper, 1.0)
        for row, column in zip(rows[chosen], columns[chosen], strict=True):
            source = table.pixels[row, column].astype(float) - 0.5
            azimuth, y = oracle.warpPoint(tuple(source), index_k, rotation.astype(np.float32))
            elevation_row = -row_of_elevation(y)
            direction_row = np.tan if projection == "cylinder" else (lambda e: e)
            top, bottom = direction_row(np.radians([35.0, -40.0]))
            found = (
                (azimuth / (2 * np.pi) + 0.5) * 400,
                (elevation_row - top) / (bottom - top) * 160,
            )
            np.testing.assert_allclose(found, (column + 0.5, row + 0.5), atol=0.01)


def coverage_in_closed_form(fov_deg: float, width: float, height: float, limit_deg: float) -> float:
    """OPV2V's level cameras at 0, +-100 and 180 degrees, edge of the image: tan el = a cos az."""
    slope = height / width * np.tan(np.radians(fov_deg) / 2)
    limit = np.radians(limit_deg)

    def seen(azimuth_deg: float) -> float:
        best = 0.0
        for yaw in (0, 100, -100, 180):
            off = (azimuth_deg - yaw + 180) % 360 - 180
            if abs(off) <= fov_deg / 2:
                best = max(best, np.arctan(slope * np.cos(np.radians(off))))
        return min(best, limit) / limit

    breaks = [-150, -140, -130, -100, -50, 0, 50, 100, 130, 140, 150]
    return quad(seen, -180, 180, points=breaks, limit=200)[0] / 360


def test_coverage_of_the_opv2v_rig_is_0_857():
    table = build_table(opv2v_rig(), Panorama(1008, 252, "equirect_band", -45, 45))
    assert table.coverage.mean() == pytest.approx(0.857, abs=0.003)
    assert table.coverage.mean() == pytest.approx(
        coverage_in_closed_form(100, 800, 600, 45), abs=0.003
    )


def test_cropping_each_image_before_stitching_leaves_0_331():
    """What the notes' pipeline did: scale to 1008x756, keep the 252 rows in the middle."""
    rig = Rig(tuple(c.resized_and_cropped(1008, 252) for c in opv2v_rig().cameras))
    table = build_table(rig, Panorama(1008, 252, "equirect_band", -45, 45))
    assert table.coverage.mean() == pytest.approx(0.331, abs=0.003)
    assert table.coverage.mean() == pytest.approx(
        coverage_in_closed_form(100, 1008, 252, 45), abs=0.003
    )


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_expected_coverage_of_tilted_rigs_matches_the_table(projection):
    rng = np.random.default_rng(3)
    for _ in range(3):
        cameras = []
        for index, yaw in enumerate(rng.uniform(-180, 180, 3)):
            rotation = Rotation.from_euler("YXZ", [yaw, *rng.uniform(-15, 15, 2)], degrees=True)
            rig = one_camera(rotation.as_matrix(), fov=rng.uniform(50, 110))
            (camera,) = rig.cameras
            cameras.append(
                Camera(f"c{index}", 640, 480, camera.intrinsic, rig.cameras[0].pose_rig_from_camera)
            )
        rig = Rig(tuple(cameras))
        panorama = Panorama(504, 126, projection, -40, 40)
        counted = build_table(rig, panorama).coverage.mean()
        assert expected_coverage(rig, panorama) == pytest.approx(counted, abs=0.003)


def test_a_rig_without_its_right_camera_leaves_that_side_uncovered():
    whole, rig = build_table(opv2v_rig(), BAND_45), opv2v_rig()
    partial = build_table(Rig((rig.cameras[0], *rig.cameras[2:])), BAND_45)
    lost = whole.coverage & ~partial.coverage
    assert partial.coverage.mean() < whole.coverage.mean() - 0.1
    assert (whole.camera[lost] == 1).all()


def test_an_image_that_is_linear_in_its_pixels_stitches_to_exactly_its_coordinates():
    """A shift by half a pixel (0.5) or a wrong image in the mosaic is far outside 0.04."""
    rig = opv2v_rig(200, 150)
    table = build_table(rig, Panorama(256, 64))
    u, v = np.meshgrid(np.arange(200) + 0.5, np.arange(150) + 0.5)
    images = [np.stack([u, v, np.full_like(u, 50.0 * i)], -1) for i in range(4)]
    mosaic = np.concatenate(images, axis=1).astype(np.float32)
    stitched = table.stitch_mosaic(mosaic)
    inner = table.coverage & ((table.pixels > 0.5) & (table.pixels < np.array([199.5, 149.5]))).all(
        -1
    )
    assert inner.mean() > 0.8
    np.testing.assert_allclose(stitched[inner][:, :2], table.pixels[inner], atol=0.04)
    np.testing.assert_allclose(stitched[inner][:, 2], 50.0 * table.camera[inner], atol=1e-4)


def test_no_colour_leaks_between_cameras_or_outside():
    rig = opv2v_rig(64, 48)
    table = build_table(rig, Panorama(300, 80))
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    stitched = table.stitch([np.broadcast_to(c, (48, 64, 3)) for c in colours])
    np.testing.assert_array_equal(stitched[table.coverage], colours[table.camera[table.coverage]])
    assert (stitched[~table.coverage] == 0).all()
    assert (table.camera[~table.coverage] == NO_CAMERA).all()


def test_overlap_goes_to_the_camera_whose_axis_is_nearest():
    table = build_table(opv2v_rig(), BAND_45)
    middle = table.camera[63]
    azimuth = np.degrees(BAND_45.azimuths_rad())
    assert (middle[np.abs(azimuth) < 49.5] == 0).all()
    assert (middle[(azimuth > 51) & (azimuth < 139.5)] == 1).all()
    assert (middle[(azimuth < -51) & (azimuth > -139.5)] == 2).all()
    assert (middle[np.abs(azimuth) > 140.5] == 3).all()


def test_depth_of_a_plane_across_the_camera_becomes_range_by_the_secant():
    rig = one_camera(np.eye(3), 160, 120, 90.0)
    table = build_table(rig, Panorama(200, 60, "cylinder", -30, 30))
    ranges = table.stitch_range([np.full((120, 160), 10.0)])
    z = ranges * table.directions[..., 2]
    np.testing.assert_allclose(z[table.coverage], 10.0, rtol=1e-5)
    assert (ranges[~table.coverage] == 0).all()


@pytest.mark.parametrize("missing", [0.0, -3.0, np.nan, np.inf])
def test_missing_depth_stays_missing_wherever_the_camera_stands(missing):
    rig = opv2v_rig(80, 60)
    table = build_table(rig, BAND_45)
    ranges = table.stitch_range([np.full((60, 80), missing)] * 4)
    assert (ranges == 0).all()


def test_depth_is_never_a_mixture_of_two_surfaces():
    rig = opv2v_rig(80, 60)
    table = build_table(rig, Panorama(333, 77))
    rng = np.random.default_rng(0)
    z = [rng.choice([5.0, 20.0], (60, 80)) for _ in range(4)]
    ranges = table.stitch_range(z)[table.coverage] / table.range_of_z[table.coverage]
    assert set(np.round(ranges, 3)) == {5.0, 20.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("elevation_max_deg", 90.0), ("elevation_max_deg", -50.0), ("projection", "x")],
)
def test_impossible_panoramas_are_refused(field, value):
    with pytest.raises(ValueError, match=str(value).split(".")[0]):
        Panorama(**{field: value})


def test_cameras_with_impossible_numbers_are_refused():
    good = opv2v_rig().cameras[0]
    bad_k = good.intrinsic.copy()
    bad_k[0, 0] = np.nan
    bad_pose = good.pose_rig_from_camera * [1, 1, 1, np.nan]
    with pytest.raises(ValueError, match="camera0: the intrinsic"):
        Camera("camera0", 8, 6, bad_k, good.pose_rig_from_camera)
    with pytest.raises(ValueError, match="camera0: the camera's pose"):
        Camera("camera0", 8, 6, good.intrinsic, bad_pose)
    with pytest.raises(ValueError, match="different names"):
        Rig((good, good))
