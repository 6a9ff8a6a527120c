"""NeRF-synthetic folders: exact round trip, right filtering, and bad input named in one line."""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from featdistill.cameras import Cameras, orbit_poses
from featdistill.data import nerf_synthetic
from featdistill.data.nerf_synthetic import Views, read_cameras, read_views, write_views
from featdistill.data.rgba import box_filter, composite, straighten
from loom.errors import UserError
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "views"


def make_views(n: int = 3, width: int = 12, height: int = 8) -> Views:
    generator = torch.Generator().manual_seed(3)
    poses = orbit_poses(n, 4.031, generator)
    rgba = torch.randint(0, 256, (n, height, width, 4), generator=generator, dtype=torch.uint8)
    return Views(Cameras(poses, width, height, 17.0, tuple(f"train/r_{i}" for i in range(n))), rgba)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_views(tmp_path / "scene", "train", make_views())
    return tmp_path / "scene"


def edit(scene: Path, change) -> None:
    """Apply a change to the parsed transforms file."""
    path = scene / "transforms_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refuses(scene: Path, *words: str, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        read_views(scene, "train", **options)
    for word in words:
        assert word in caught.value.message, caught.value.message
    return caught.value


def test_writing_and_reading_gives_the_same_views(scene: Path):
    views, found = make_views(), read_views(scene, "train")
    assert torch.equal(found.rgba, views.rgba)
    assert torch.equal(found.cameras.poses_world_from_camera, views.cameras.poses_world_from_camera)
    assert found.cameras.focal_px == pytest.approx(17.0, rel=1e-12)
    assert found.cameras.names == ("train/r_0", "train/r_1", "train/r_2")


def test_files_are_what_another_reader_of_the_layout_expects(scene: Path):
    content = json.loads((scene / "transforms_train.json").read_text())
    frame = content["frames"][1]
    image = Image.open(scene / (frame["file_path"] + ".png"))
    np.testing.assert_array_equal(np.asarray(image), make_views().rgba[1].numpy())
    assert content["camera_angle_x"] == pytest.approx(2 * math.atan(6 / 17))
    assert frame["transform_matrix"] == make_views().cameras.poses_world_from_camera[1].tolist()


def test_frames_keep_the_order_of_the_file_not_of_their_names(scene: Path):
    edit(scene, lambda c: c["frames"].reverse())
    views = read_views(scene, "train")
    assert views.cameras.names == ("train/r_2", "train/r_1", "train/r_0")
    assert torch.equal(views.rgba, make_views().rgba.flip(0))


def test_skip_and_limit_choose_frames_and_a_skipped_frame_is_not_checked(scene: Path):
    edit(scene, lambda c: c["frames"][1].pop("transform_matrix"))
    assert read_views(scene, "train", skip=[1]).cameras.names == ("train/r_0", "train/r_2")
    assert read_views(scene, "train", limit=1).cameras.names == ("train/r_0",)
    refuses(scene, "no frames", skip=[0, 1, 2])


@pytest.mark.parametrize("factor", [2, 4])
def test_filtering_averages_premultiplied_colours(factor: int):
    straight = make_views(1, 16, 8).rgba[0].numpy()
    straight[:4, :4, 3] = 0  # a transparent block with arbitrary colours
    found = box_filter(straight, factor).astype(np.float64)
    for y in range(8 // factor):
        for x in range(16 // factor):
            block = straight[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            alpha = block[..., 3].astype(np.float64)
            mean = alpha.mean()
            colour = (block[..., :3] * alpha[..., None]).sum((0, 1)) / max(alpha.sum(), 1e-9)
            expected = np.append(colour, mean) if mean >= 0.5 else np.zeros(4)
            np.testing.assert_allclose(found[y, x], expected, atol=0.5 + 1e-9)


def test_a_smaller_width_is_filtered_and_the_field_of_view_stays(scene: Path):
    views = read_views(scene, "train", width=6)
    assert views.rgba.shape == (3, 4, 6, 4)
    assert views.cameras.focal_px == pytest.approx(8.5)
    error = refuses(scene, "12x8", "width 5", width=5)
    assert error.hint == "choose one of 12, 6, 3"


def test_cameras_are_read_without_decoding_images(scene: Path):
    path = scene / "transforms_train.json"
    expected = read_views(scene, "train", width=6).cameras
    (scene / "train" / "r_1.png").unlink()
    found = read_cameras(path, width=6)
    assert torch.equal(found.poses_world_from_camera, expected.poses_world_from_camera)
    assert (found.width, found.height, found.focal_px) == (6, 4, expected.focal_px)
    assert (read_cameras(path).width, read_cameras(path).height) == (12, 8)
    with pytest.raises(UserError, match="no whole height at width 5"):
        read_cameras(path, width=5)

    (scene / "train" / "r_0.png").unlink()
    assert read_cameras(path, width=16).height == 16
    with pytest.raises(UserError, match="no image size"):
        read_cameras(path)
    edit(scene, lambda c: c.update(w=36, h=24))
    assert (read_cameras(path, width=12).width, read_cameras(path, width=12).height) == (12, 8)
    edit(scene, lambda c: c.update(w=36, h=0))
    with pytest.raises(UserError, match="w, h is 36, 0"):
        read_cameras(path)


def test_premultiplied_views_go_over_a_background_like_a_scalar_loop():
    views = make_views(1, 4, 4)
    found = composite(views.premultiplied()[0].double().numpy(), (1.0, 1.0, 1.0))
    for y in range(4):
        for x in range(4):
            *colour, alpha = (int(v) / 255 for v in views.rgba[0, y, x])
            expected = [255 * (c * alpha + 1 - alpha) for c in colour]
            assert found[y, x].tolist() == pytest.approx(expected, abs=0.5001)


def test_straight_colours_survive_premultiplication_unless_invisible():
    views = make_views(2)
    visible = views.rgba[..., 3:] > 0
    found = torch.from_numpy(straighten(views.premultiplied().numpy()))
    assert torch.equal(found, views.rgba * visible)


def test_decoded_images_come_from_the_cache_until_a_file_changes(
    scene: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nerf_synthetic, "_WORTH_CACHING_PIXELS", 0)
    first = read_views(scene, "train")
    (stored,) = own_cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(nerf_synthetic, "_decode", None)  # reading again may not decode
        again = read_views(scene, "train")
    assert torch.equal(first.rgba, again.rgba)
    assert first.sha256 == again.sha256

    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    assert torch.equal(read_views(scene, "train").rgba, first.rgba)

    changed = make_views().rgba[0].numpy()
    changed[0, 0] = 255 - changed[0, 0]
    Image.fromarray(changed).save(scene / "train" / "r_0.png")
    fresh = read_views(scene, "train")
    assert torch.equal(fresh.rgba[0], torch.from_numpy(changed))
    assert fresh.sha256 != first.sha256


def test_an_unwritable_cache_costs_time_only(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nerf_synthetic, "_WORTH_CACHING_PIXELS", 0)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept"):
        assert len(read_views(scene, "train")) == 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "transform_matrix[1][2] is nan"),
        (math.inf, "transform_matrix[1][2] is inf"),
        (10**400, "transform_matrix[1][2] is 1000"),
        ("0.5", "transform_matrix[1][2] is '0.5'"),
        (True, "transform_matrix[1][2] is True"),
        (None, "transform_matrix[1][2] is None"),
        (7.0, "not a rigid camera-to-world matrix"),
    ],
)
def test_a_bad_number_in_a_pose_is_named_with_its_frame_and_place(scene: Path, value, words: str):
    edit(scene, lambda c: c["frames"][2]["transform_matrix"][1].__setitem__(2, value))
    error = refuses(scene, "transforms_train.json: frame 2", words)
    assert "skip=[2]" in error.hint


@pytest.mark.parametrize("matrix", [None, [], [[1.0] * 4] * 3, [[1.0] * 3] * 4, [1.0] * 16, "x"])
def test_a_pose_that_is_not_4x4_is_refused(scene: Path, matrix):
    edit(scene, lambda c: c["frames"][0].update(transform_matrix=matrix))
    refuses(scene, "frame 0", "expected 4x4")


def test_mirrored_scaled_and_remote_cameras_are_refused(scene: Path):
    def scaled(row: int, factor: float):
        def change(content):
            matrix = content["frames"][0]["transform_matrix"]
            matrix[row][:3] = [factor * number for number in matrix[row][:3]]

        return change

    edit(scene, scaled(0, -1))
    refuses(scene, "frame 0", "determinant -1")
    edit(scene, scaled(0, -1.1))
    refuses(scene, "frame 0", "not a rigid")
    edit(scene, scaled(0, 1 / 1.1))
    edit(scene, lambda c: c["frames"][0]["transform_matrix"][0].__setitem__(3, 1e9))
    refuses(scene, "frame 0", "further than")
    edit(scene, lambda c: c["frames"][0]["transform_matrix"].__setitem__(3, [0, 0, 0, 2]))
    refuses(scene, "frame 0", "last row")


@pytest.mark.parametrize(
    "file_path", ["../../etc/passwd", "/etc/passwd", "train/../../x", "..", ".", "a\0b", "", 5]
)
def test_a_hostile_file_path_never_leaves_the_folder(scene: Path, file_path):
    edit(scene, lambda c: c["frames"][1].update(file_path=file_path))
    refuses(scene, "frame 1", "file_path")


@pytest.mark.parametrize("angle", [None, 0, -1.0, math.pi, math.nan, "wide", [0.7]])
def test_a_bad_field_of_view_is_refused(scene: Path, angle):
    edit(scene, lambda c: c.update(camera_angle_x=angle))
    refuses(scene, "camera_angle_x is")


def test_the_focal_length_of_nerfstudio_stands_in_for_the_angle(scene: Path):
    expected = read_views(scene, "train").cameras
    lens = {"fl_x": 17.0, "fl_y": 17.0, "cx": 6.0, "cy": 4.0, "k1": 0.0, "w": 12, "h": 8}
    edit(scene, lambda c: (c.pop("camera_angle_x"), c.update(lens)))
    edit(scene, lambda c: c["frames"][1].update(fl_x=17.0))  # repeated, as nerfstudio does
    found = read_views(scene, "train").cameras
    assert found.focal_px == pytest.approx(expected.focal_px, rel=1e-12)
    found = read_cameras(scene / "transforms_train.json", width=6)
    assert found.focal_px == pytest.approx(expected.focal_px / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("lens", "word"),
    [({"k1": 0.02}, "k1"), ({"p2": -1e-3}, "p2"), ({"cx": 5.0}, "cx"), ({"cy": 5.0}, "cy"),
     ({"fl_x": 17.0, "fl_y": 20.0}, "fl_y")],
)  # fmt: skip
def test_a_lens_that_would_be_ignored_is_refused(scene: Path, lens, word):
    edit(scene, lambda c: c.update({"w": 12, "h": 8, **lens}))
    assert "undistort" in refuses(scene, f"{word} is", "pinhole").hint


@pytest.mark.parametrize("size", [(0, 8), (12, -8), (12.0, 8), (10**400, 8), ("12", 8), (12, None)])
def test_a_size_that_no_picture_has_is_refused(scene: Path, size):
    edit(scene, lambda c: c.update(w=size[0], h=size[1]))
    refuses(scene, "the image size w, h is")


def test_frames_of_two_cameras_are_refused(scene: Path):
    edit(scene, lambda c: c.update(fl_x=17.0))
    edit(scene, lambda c: c["frames"][2].update(fl_x=18.0))
    refuses(scene, "frame 2 has its own fl_x")


def test_folders_of_other_tools_are_told_what_is_missing(scene: Path):
    path = scene / "transforms_train.json"
    path.rename(scene / "transforms.json")
    assert "divide its frames" in refuses(scene, "is missing").hint
    (scene / "transforms.json").unlink()
    (scene / "sparse").mkdir()
    assert "COLMAP" in refuses(scene, "is missing").hint


def test_a_picture_of_another_format_is_named_as_it_is(scene: Path):
    image = scene / "train" / "r_1.jpg"
    edit(scene, lambda c: c["frames"][1].update(file_path="./train/r_1.jpg"))
    refuses(scene, "r_1.jpg is missing")
    Image.new("RGB", (12, 8)).save(image)
    assert "PNG" in refuses(scene, "r_1.jpg cannot be read (no PNG file)").hint


def test_other_damage_to_the_transforms_file_is_named(scene: Path):
    path = scene / "transforms_train.json"
    edit(scene, lambda c: c["frames"][2].update(file_path="./train/r_0.png"))
    refuses(scene, "frames 0 and 2 both name train/r_0")
    edit(scene, lambda c: c["frames"].__setitem__(1, 5))
    refuses(scene, "frame 1 is 5")
    for text, words in [
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected an object"),
        ('{"camera_angle_x": 0.7}', "frames is None"),
        ('{"camera_angle_x": 0.7, "frames": []}', "no frames to read (0 in the file"),
    ]:
        path.write_text(text)
        refuses(scene, "transforms_train.json", words)
    path.write_bytes(b"\xff\xfe")
    refuses(scene, "not UTF-8")
    path.rename(scene / "transforms_test.json")
    assert "transforms_test.json" in refuses(scene, "is missing").hint


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check


def test_images_with_wrong_channels_or_size_are_named(scene: Path):
    image = scene / "train" / "r_1.png"
    good = Image.open(image).copy()
    good.convert("RGB").save(image)
    assert "alpha" in refuses(scene, "r_1.png has channels RGB, expected RGBA").hint
    good.convert("P").save(image)
    refuses(scene, "r_1.png has channels P")
    good.resize((6, 4)).save(image)
    refuses(scene, "r_1.png (frame 1) has 6x4 pixels", "r_0.png has 12x8")
    image.write_bytes(png_header(100_000, 100_000))
    refuses(scene, "100000x100000")
    image.write_bytes(png_header(10_000, 10_000))  # Pillow would only warn
    refuses(scene, "10000x10000")
    image.write_bytes(b"GIF89a" + bytes(100))
    refuses(scene, "r_1.png cannot be read (no PNG file)")
    image.unlink()
    refuses(scene, "r_1.png is missing")
    image.mkdir()
    refuses(scene, "r_1.png cannot be read")


def test_every_truncation_and_bit_flip_of_an_image_is_refused(scene: Path):
    image = scene / "train" / "r_2.png"
    data = image.read_bytes()
    for sixteenth in range(16):
        image.write_bytes(data[: len(data) * sixteenth // 16])
        refuses(scene, "r_2.png")
    generator = np.random.default_rng(0)
    for position in [*range(0, 60), *generator.integers(0, len(data) - 12, 60)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << generator.integers(8)
        image.write_bytes(damaged)
        refuses(scene, "r_2.png")


def test_damaged_transforms_load_or_are_refused_but_never_crash(scene: Path):
    path = scene / "transforms_train.json"
    data = path.read_bytes()
    for sixteenth in range(16):
        path.write_bytes(data[: len(data) * sixteenth // 16])
        refuses(scene, "transforms_train.json")
    generator = np.random.default_rng(1)
    refused = 0
    for position in generator.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[position] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            read_views(scene, "train")
        except UserError:
            refused += 1
    assert refused > 30


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "scene").write_text("a file in the way")
    with pytest.raises(UserError, match="scene"):
        write_views(tmp_path / "scene", "train", make_views())


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    scene: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(self, target):
        raise OSError(28, "No space left on device")

    before = {p: p.read_bytes() for p in scene.rglob("*") if p.is_file()}
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="no space left"):
        write_views(scene, "train", make_views())
    assert {p: p.read_bytes() for p in scene.rglob("*") if p.is_file()} == before
