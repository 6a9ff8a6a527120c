"""Readers of one file each: what they return, what they refuse, and that no third thing happens."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from coopcyl.data import depth as depth_module
from coopcyl.data.depth import CARLA_FAR_M, encode_carla_rgb24, encode_opv2v_h, project_points
from coopcyl.data.errors import DataError
from coopcyl.data.frame_yaml import parse_frame, read_frame
from coopcyl.data.images import read_png, write_png
from coopcyl.data.pcd import read_pcd, write_pcd
from coopcyl.data.tree import read_tree
from coopcyl.geometry.carla import CV_FROM_UE
from coopcyl.geometry.rig import opv2v_rig
from PIL import Image


@pytest.fixture
def frame_path(small_root: Path) -> Path:
    return read_tree(small_root, "train").frames[0].agents[0].yaml


@pytest.fixture
def content(frame_path: Path) -> dict:
    return yaml.safe_load(frame_path.read_text())


def refused(content: dict | str | bytes, *words: str) -> DataError:
    data = yaml.safe_dump(content) if isinstance(content, dict) else content
    with pytest.raises(DataError) as caught:
        parse_frame(data.encode() if isinstance(data, str) else data, Path("a/000069.yaml"))
    for word in ("a/000069.yaml", *words):
        assert word in caught.value.message, caught.value.message
    assert caught.value.hint
    return caught.value


def is_refused(read: Callable[[], object], path: Path) -> bool:
    """Tell whether a reader raises a DataError that names the file; any other error is a bug."""
    try:
        read()
    except DataError as error:
        if str(path) in error.message:
            return True
        raise
    return False


# One vehicle's YAML ------------------------------------------------------------------------------


def test_a_frame_holds_what_the_file_says(frame_path, content):
    frame = read_frame(frame_path)
    assert list(frame.cameras) == ["camera0", "camera1", "camera2", "camera3"]
    assert list(frame.lidar_cords) == content["lidar_pose"]
    assert frame.cameras["camera2"].intrinsic.tolist() == content["camera2"]["intrinsic"]
    assert {v.number for v in frame.vehicles} == set(content["vehicles"])
    assert frame.speed_kmh == content["ego_speed"]


def test_numbers_may_have_an_exponent_and_no_point(content):
    content["lidar_pose"] = [1.5, -2.5, 3.5, 4.5, 5.5, 6.5]
    text = yaml.safe_dump(content)
    for number, written in (("1.5", "1e-05"), ("-2.5", "-2E+1"), ("3.5", "3e2")):
        assert f"- {number}\n" in text
        text = text.replace(f"- {number}\n", f"- {written}\n")
    lidar = parse_frame(text.encode(), Path("a/000069.yaml")).lidar_cords
    assert lidar == (1e-05, -20.0, 300.0, 4.5, 5.5, 6.5)


def test_corners_of_a_vehicle_stand_on_the_ground_round_its_location(frame_path, content):
    vehicle = read_frame(frame_path).vehicles[0]
    corners = vehicle.corners()
    given = content["vehicles"][vehicle.number]
    np.testing.assert_allclose(corners[::2].mean(axis=0), given["location"], atol=1e-9)
    length = np.linalg.norm(corners[4] - corners[0])
    assert length == pytest.approx(2 * given["extent"][0])


@pytest.mark.parametrize("key", ["lidar_pose", "camera1.cords", "camera0.intrinsic"])
def test_a_missing_key_is_named(content, key):
    section, _, name = key.rpartition(".")
    del (content[section] if section else content)[name]
    refused(content, f"`{key}` is missing")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2, float("nan"), 0, 0, 0], "finite"),
        ([1, 2, float("inf"), 0, 0, 0], "finite"),
        ([1, 2, 10**400, 0, 0, 0], "finite"),
        ([1, 2, "3", 0, 0, 0], "finite"),
        ([1, 2, True, 0, 0, 0], "finite"),
        ([1, 2, 3], "6 numbers"),
        ("here", "6 numbers"),
        ({"x": 1}, "6 numbers"),
    ],
)
def test_an_impossible_pose_is_named_with_its_value(content, value, words):
    content["lidar_pose"] = value
    refused(content, "`lidar_pose`", words)


def test_a_matrix_of_another_shape_is_named(content):
    content["camera3"]["extrinsic"] = [[1, 0], [0, 1]]
    refused(content, "`camera3.extrinsic`", "4x4")


def test_a_vehicle_without_an_extent_is_named(content):
    number = next(iter(content["vehicles"]))
    del content["vehicles"][number]["extent"]
    refused(content, f"`vehicles.{number}.extent` is missing")


@pytest.mark.parametrize(
    "text",
    [
        "lidar_pose: !!python/object/apply:os.system ['true']",
        "lidar_pose: !!python/object/apply:numpy.core.multiarray.scalar [1]",
        "lidar_pose: !!python/tuple [1, 2]",
    ],
)
def test_python_tags_are_refused_by_line_and_never_executed(text):
    error = refused("camera0: {}\n" + text, ":2", "python/")
    assert "safe_dump" in error.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "[1, 2]",
        "camera0: 3",
        "ego_speed: 3",
        "a: [",
        "\x00",
        "a: &x [*x]",
        "{" * 3000,
        "[" * 100_000,
        "? [1]\n: 2",
        b"\xff\xfe\x00",
        b"\x80abc",
        "a: 2021-13-45",
        "camera0: {cords: 2000-01-01}",
        'a: "\\U00110000"',
    ],
)
def test_text_that_is_no_frame_is_refused(text):
    refused(text)


def test_a_file_of_another_kind_is_refused_by_its_size():
    refused(b" " * 8_000_001, "8000001 bytes")


def test_aliases_are_read_and_those_that_multiply_are_refused(content):
    content["camera1"]["cords"] = content["camera0"]["cords"]
    text = yaml.safe_dump(content)
    assert "*id001" in text
    shared = parse_frame(text.encode(), Path("f.yaml")).cameras
    assert shared["camera1"].cords == shared["camera0"].cords
    named = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 24))]
    merged = [
        "m0: &m0 {x: 1}",
        *(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 24)),
    ]
    for bomb in ("\n".join([*named, "lidar_pose: *a23"]), "\n".join(merged)):
        refused("camera0: {}\n" + bomb, "more than 1000000 values")


def test_damaged_yaml_ends_in_a_frame_or_a_data_error(frame_path):
    original = frame_path.read_bytes()
    rng = np.random.default_rng(0)
    refused_count = 0
    for _ in range(150):
        data = bytearray(original[:4000])
        for position in rng.integers(0, len(data), rng.integers(1, 6)):
            data[position] = rng.integers(0, 256)
        if rng.random() < 0.3:
            del data[rng.integers(0, len(data)) :]
        refused_count += is_refused(
            lambda data=data: parse_frame(bytes(data), frame_path), frame_path
        )
    assert refused_count > 50


# Pictures ----------------------------------------------------------------------------------------


def test_pictures_survive_and_alpha_is_dropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png", "RGB"), pixels)
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_png(tmp_path / "b.png", "RGB"), pixels)


def test_damaged_pictures_are_refused_by_name(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(100):
        data = bytearray(good)
        position = rng.integers(0, len(data))
        data[position] ^= rng.integers(1, 256)
        path.write_bytes(bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data))
        with pytest.raises(DataError, match=r"a\.png"):
            read_png(path, "RGB")


def test_a_picture_with_other_channels_is_refused(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="channels L, expected RGB"):
        read_png(tmp_path / "a.png", "RGB")
    with pytest.raises(DataError, match="the image is missing"):
        read_png(tmp_path / "b.png", "RGB")


# Depth -------------------------------------------------------------------------------------------


def test_carlas_coding_is_that_of_its_documentation():
    """Depth = (R + G 256 + B 256^2) / (256^3 - 1) * 1000."""
    code = np.array([[[1, 2, 3]]], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(code).save(stream, "PNG")
    path = Path("x.png")
    expected = (1 + 2 * 256 + 3 * 65536) / (256**3 - 1) * 1000
    assert (depth_module.CARLA_FAR_M, path.suffix) == (1000.0, ".png")
    np.testing.assert_array_equal(encode_carla_rgb24(np.array([[expected]])), code)


@pytest.mark.parametrize(
    ("encode", "reader", "tolerance"),
    [
        (encode_carla_rgb24, depth_module.read_carla_rgb24, 4e-5),
        (encode_opv2v_h, depth_module.read_opv2v_h, 0.5 + 1e-6),
    ],
)
def test_coded_depth_survives_its_file(tmp_path, encode, reader, tolerance):
    z = np.random.default_rng(0).uniform(0.6, 120, (20, 30)).astype(np.float32)
    write_png(tmp_path / "d.png", encode(z))
    np.testing.assert_allclose(reader(tmp_path / "d.png"), z, rtol=0, atol=tolerance)


def test_sky_is_far_or_none_but_never_near(tmp_path):
    sky = np.zeros((2, 2), np.float32)
    write_png(tmp_path / "a.png", encode_carla_rgb24(sky))
    write_png(tmp_path / "b.png", encode_opv2v_h(sky))
    assert (depth_module.read_carla_rgb24(tmp_path / "a.png") == CARLA_FAR_M).all()
    assert (depth_module.read_opv2v_h(tmp_path / "b.png") == 0).all()


def test_float_depth_keeps_only_positive_finite_values(tmp_path):
    values = np.array([[1.5, 0, -1], [np.nan, np.inf, 3]])
    np.save(tmp_path / "d.npy", values)
    np.testing.assert_array_equal(
        depth_module.read_npy(tmp_path / "d.npy"), np.array([[1.5, 0, 0], [0, 0, 3]], np.float32)
    )


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), np.uint16), np.zeros(4), np.array([[{}]], object), np.zeros((2, 2, 3))],
    ids=["integers", "flat", "objects", "three channels"],
)
def test_depth_that_is_no_float_image_is_refused(tmp_path, array):
    np.save(tmp_path / "d.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"d\.npy"):
        depth_module.read_npy(tmp_path / "d.npy")


def test_damaged_depth_ends_in_an_array_or_a_data_error(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.ones((4, 4), np.float32))
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(0, 100)] = rng.integers(0, 256)
        path.write_bytes(bytes(data[: rng.integers(0, len(data) + 1)]))
        is_refused(lambda: depth_module.read_npy(path), path)


def test_points_project_to_the_nearest_of_each_pixel():
    camera = opv2v_rig(80, 60).cameras[0]
    ahead = np.array([[0.0, 0.9, 13.0], [0.0, 0.9, 33.0], [0, 0.9, -5.0], [400.0, 0, 13.0]])
    image = project_points(ahead, camera)
    assert np.count_nonzero(image) == 1
    assert image[30, 40] == pytest.approx(10.0)


# Point clouds ------------------------------------------------------------------------------------


def test_clouds_survive_their_file(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 30
    write_pcd(tmp_path / "a.pcd", points)
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), points)


def test_ascii_clouds_and_other_field_orders_are_read(tmp_path):
    text = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS rgb z y x\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        "WIDTH 3\nHEIGHT 1\nPOINTS 3\nDATA ascii\n9 3 2 1\n9 6 5 4\n9 nan 0 0\n"
    )
    (tmp_path / "a.pcd").write_text(text)
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), [[1, 2, 3], [4, 5, 6]])


def test_binary_clouds_with_other_fields_between_the_coordinates_are_read(tmp_path):
    header = (
        "VERSION 0.7\nFIELDS z ring x intensity y\nSIZE 8 2 4 1 4\nTYPE F U F U F\n"
        "COUNT 1 1 1 1 1\nWIDTH 2\nHEIGHT 1\nPOINTS 2\nDATA binary\n"
    )
    table = np.array(
        [(3.0, 7, 1.0, 9, 2.0), (6.0, 7, 4.0, 9, 5.0)],
        dtype=[("z", "<f8"), ("r", "<u2"), ("x", "<f4"), ("i", "u1"), ("y", "<f4")],
    )
    (tmp_path / "a.pcd").write_bytes(header.encode() + table.tobytes())
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), [[1, 2, 3], [4, 5, 6]])


def test_compressed_clouds_are_refused_with_the_command_that_converts_them(tmp_path):
    write_pcd(tmp_path / "a.pcd", np.zeros((2, 3)))
    data = (tmp_path / "a.pcd").read_bytes().replace(b"DATA binary", b"DATA binary_compressed")
    (tmp_path / "a.pcd").write_bytes(data)
    with pytest.raises(DataError, match="binary_compressed") as caught:
        read_pcd(tmp_path / "a.pcd")
    assert "pcl_convert" in caught.value.hint


def test_damaged_clouds_end_in_points_or_a_data_error(tmp_path):
    path = tmp_path / "a.pcd"
    write_pcd(path, np.ones((9, 3)))
    good = path.read_bytes()
    rng = np.random.default_rng(4)
    for _ in range(300):
        data = bytearray(good)
        for position in rng.integers(0, 180, rng.integers(1, 4)):
            data[position] = rng.integers(32, 127)
        path.write_bytes(bytes(data[: rng.integers(0, len(data) + 1)]))
        is_refused(lambda: read_pcd(path), path)


def test_lidar_points_are_in_unreal_axes(room_root):
    """The floor is 1.9 m below the LiDAR along its own tilted axis."""
    frame = read_tree(room_root, "test").frames[0].agents[0]
    points = read_pcd(frame.pcd) @ CV_FROM_UE[:3, :3].T
    below = points[np.abs(points[:, 1] - 1.9) < 0.6]
    assert len(below) > 0.2 * len(points)
    assert points[:, 1].max() < 2.9
