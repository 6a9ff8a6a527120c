"""Importers of folders and tables: what lies in the dataset is what lay in the recording."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from end2race.cli import app
from end2race.data.calibration import IDENTITY, level_camera, write_calibration
from end2race.data.dataset import open_dataset
from end2race.data.importers.clouds import in_order
from end2race.data.importers.pcd import read_pcd, unpack_lzf
from end2race.data.lidar_files import read_points
from end2race.data.validation import validate
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.errors import UserError
from typer.testing import CliRunner


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["import", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def clouds(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-9, 9, (20 + i, 4)).astype(np.float32) for i in range(count)]


def table(path, rows, **columns):
    values = {
        "velocity": [f"{1 + i / 10:.6g}" for i in range(rows)],
        "wheel_angle": [f"{i - 3}" for i in range(rows)],
        **columns,
    }
    lines = [
        ",".join(values),
        *(",".join(map(str, row)) for row in zip(*values.values(), strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def stored(root, split="train"):
    dataset = open_dataset(root, (split,))
    (segment,) = dataset.segments
    return segment, [read_points(segment.directory / name, 4) for name in segment.lidar_files]


# PCD


def pcd_bytes(points, data, types="FFFF", sizes=(4, 4, 4, 4), names="x y z intensity"):
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {names}\nSIZE {' '.join(map(str, sizes))}\n"
        f"TYPE {' '.join(types)}\nCOUNT {' '.join('1' for _ in sizes)}\nWIDTH {len(points)}\n"
        f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {data}\n"
    ).encode()
    kinds = {"F": "f", "U": "u", "I": "i"}
    forms = [f"<{kinds[kind]}{size}" for kind, size in zip(types, sizes, strict=True)]
    layout = np.dtype([(str(i), form) for i, form in enumerate(forms)])
    rows = np.zeros(len(points), layout)
    for i in range(len(sizes)):
        rows[str(i)] = points[:, i]
    if data == "ascii":
        return header + "\n".join(" ".join(repr(v.item()) for v in row) for row in rows).encode()
    if data == "binary":
        return header + rows.tobytes()
    columns = b"".join(rows[str(i)].tobytes() for i in range(len(sizes)))
    packed = pack_lzf(columns)
    return header + struct.pack("<II", len(packed), len(columns)) + packed


def pack_lzf(data):
    """Compress as liblzf's format allows: literals, and matches of three bytes and more."""
    out, literals, seen, position = bytearray(), bytearray(), {}, 0

    def flush():
        for begin in range(0, len(literals), 32):
            part = literals[begin : begin + 32]
            out.extend((len(part) - 1, *part))
        literals.clear()

    while position < len(data):
        start = data[position : position + 3]
        source = seen.get(start) if len(start) == 3 else None
        if len(start) == 3:
            seen[start] = position
        if source is None or position - source > 8192:
            literals.append(data[position])
            position += 1
            continue
        length = 3
        while (
            length < 264
            and position + length < len(data)
            and data[source + length] == data[position + length]
        ):
            length += 1
        flush()
        distance, size = position - source - 1, length - 2
        if size < 7:
            out.append(size << 5 | distance >> 8)
        else:
            out.extend((7 << 5 | distance >> 8, size - 7))
        out.append(distance & 255)
        position += length
    flush()
    return bytes(out)


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize(
    ("types", "sizes"), [("FFFF", (4, 4, 4, 4)), ("FFFF", (8, 8, 8, 4)), ("FFFU", (4, 4, 4, 2))]
)
def test_every_form_of_pcd_gives_the_same_points(tmp_path, data, types, sizes):
    points = clouds(1)[0]
    points[:, 3] = np.arange(len(points))
    path = tmp_path / "a.pcd"
    path.write_bytes(pcd_bytes(points, data, types, sizes))
    assert np.allclose(read_pcd(path), points, atol=1e-6)


def test_a_pcd_with_padding_and_without_intensity_is_read(tmp_path):
    points = clouds(1)[0]
    path = tmp_path / "a.pcd"
    path.write_bytes(
        pcd_bytes(points[:, [0, 1, 2, 3, 3]], "binary", "FFFFF", (4,) * 5, "x y z _ _")
    )
    found = read_pcd(path)
    assert np.array_equal(found[:, :3], points[:, :3])
    assert not found[:, 3].any()


@settings(deadline=None)
@given(st.binary(max_size=2000) | st.lists(st.sampled_from(b"abc")).map(bytes))
def test_lzf_unpacks_what_was_packed(data):
    packed = np.frombuffer(pack_lzf(data), np.uint8)
    out = np.empty(len(data), np.uint8)
    assert unpack_lzf(packed, out) == len(data)
    assert out.tobytes() == data


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_damaged_pcd_files_are_refused_or_read_never_worse(tmp_path, data):
    whole = pcd_bytes(clouds(1)[0], data)
    path = tmp_path / "a.pcd"
    for cut in range(0, len(whole) - 24, 17):  # an ascii file's last number may just lose a digit
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            read_pcd(path)
    rng = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            assert read_pcd(path).shape[1] == 4
        except UserError as error:
            assert "a.pcd" in error.message


def test_an_intensity_of_several_values_is_none(tmp_path):
    header = "VERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 2\n"
    lines = "WIDTH 2\nHEIGHT 1\nPOINTS 2\nDATA ascii\n1 2 3 4 5\n6 7 8 9 0\n"
    (tmp_path / "a.pcd").write_text(header + lines)
    assert read_pcd(tmp_path / "a.pcd").tolist() == [[1, 2, 3, 0], [6, 7, 8, 0]]


def test_a_folder_of_pcd_becomes_a_segment(tmp_path):
    (tmp_path / "pcd").mkdir()
    given_clouds = clouds(6)
    given_clouds[2][4, 1] = np.nan
    for i, points in enumerate(given_clouds):
        (tmp_path / "pcd" / f"{i:03d}.pcd").write_bytes(pcd_bytes(points, "binary"))
    controls = table(tmp_path / "c.csv", 6, target_velocity=range(6))
    output = run("pcd", "--src", tmp_path / "pcd", "--controls", controls, "--out", tmp_path / "o")
    assert "6 frames" in output
    assert "1 points that are not finite" in output
    segment, points = stored(tmp_path / "o")
    for was, now in zip(given_clouds, points, strict=True):
        assert np.allclose(now, was[np.isfinite(was).all(axis=1)], atol=1e-6)
    assert segment.wheel_angle.tolist() == [-3, -2, -1, 0, 1, 2]
    assert segment.target_velocity.tolist() == list(range(6))
    assert validate(tmp_path / "o").passed


# KITTI


def kitti(folder, count=5, features=4, seed=0):
    folder.mkdir()
    for i, points in enumerate(clouds(count, seed)):
        if features == 8:
            wide = np.zeros((len(points), 8), np.float32)
            wide[:, [0, 1, 2, 4]] = points
            wide[:, 5] = np.arange(len(points)) % 4
            points = wide
        (folder / f"{i:010d}.bin").write_bytes(points.tobytes())
    return folder


@pytest.mark.parametrize("features", [4, 8])
def test_kitti_clouds_of_both_forms_are_read(tmp_path, features):
    source = kitti(tmp_path / "k", features=features)
    controls = table(tmp_path / "c.csv", 5, timestamp_ns=[10**18 + i * 10**8 for i in range(5)])
    run("kitti-bin", "--src", source, "--controls", controls, "--out", tmp_path / "o")
    segment, points = stored(tmp_path / "o")
    assert all(np.array_equal(a, b) for a, b in zip(points, clouds(5), strict=True))
    assert segment.timestamp_ns[1] == 10**18 + 10**8


def test_clouds_and_rows_must_match_and_forms_must_agree(tmp_path):
    source = kitti(tmp_path / "k")
    named = ("--src", source, "--out", tmp_path / "o", "--controls")
    assert "has 4 rows" in run("kitti-bin", *named, table(tmp_path / "c.csv", 4), code=2)
    kitti(tmp_path / "8", features=8)
    (tmp_path / "8" / "0000000004.bin").rename(source / "0000000004.bin")
    good = table(tmp_path / "c.csv", 5)
    assert "looks like 4 numbers per point" in run("kitti-bin", *named, good, code=2)
    (source / "0000000004.bin").write_bytes(b"\0" * 17)
    assert "not a whole number" in run("kitti-bin", *named, good, code=2)
    bad = table(tmp_path / "d.csv", 5, wheel_angle=["0", "x", "1", "2", "3"])
    assert "line 3: wheel_angle is 'x'" in run("kitti-bin", *named, bad, code=2)
    lines = bad.read_text().splitlines()
    bad.write_text("\n".join([lines[0], "", *lines[1:], ""]))
    assert "line 4: wheel_angle is 'x'" in run("kitti-bin", *named, bad, code=2)
    bad.write_text("\n".join([lines[0], "", lines[1] + ",1"]))
    assert "line 3 has" in run("kitti-bin", *named, bad, code=2)
    bad.write_text("velocity,wheel_angle,velocity\n" + "1,2,3\n" * 5)
    assert "2 columns are called velocity" in run("kitti-bin", *named, bad, code=2)
    bad.write_text("velocity\n1\n")
    assert "no column wheel_angle" in run("kitti-bin", *named, bad, code=2)


@pytest.mark.parametrize(("features", "odd"), [(4, 8), (8, 4)])
@pytest.mark.parametrize("declared", [False, True])
def test_one_file_of_the_other_form_among_many_is_refused(tmp_path, features, odd, declared):
    """Whether or not it is among the few that decide the form of all."""
    source = kitti(tmp_path / "k", count=20, features=features)
    mixed = source / "0000000001.bin"
    right = mixed.read_bytes()
    kitti(tmp_path / "odd", count=20, features=odd)
    other = (tmp_path / "odd" / mixed.name).read_bytes()
    mixed.write_bytes(other[: len(other) // 32 * 32])  # a whole number of points either way
    named = ["--src", source, "--out", tmp_path / "o", "--controls", table(tmp_path / "c.csv", 20)]
    if declared:
        named += ["--lidar_num_features", features]
    output = run("kitti-bin", *named, code=2)
    assert f"{mixed.name}: taken for {features} numbers per point" in " ".join(output.split())
    mixed.write_bytes(right)
    assert "20 frames" in run("kitti-bin", *named)  # what was begun is not in the way


def test_imports_join_one_dataset_and_never_replace_a_segment(tmp_path):
    source, controls = kitti(tmp_path / "k"), table(tmp_path / "c.csv", 5)
    named = ("--src", source, "--controls", controls, "--out", tmp_path / "o")
    run("kitti-bin", *named)
    run("kitti-bin", *named, "--segment", "segment_0002")
    assert "is there already" in run("kitti-bin", *named, code=2)
    assert len(open_dataset(tmp_path / "o").segments) == 2
    info = json.loads((tmp_path / "o" / "dataset.json").read_text())
    info["lidar_num_features"] = 8
    (tmp_path / "o" / "dataset.json").write_text(json.dumps(info))
    assert "imports write 4" in run("kitti-bin", *named, "--segment", "s3", code=2)


def test_an_import_keeps_the_calibration_and_the_rate_of_its_dataset(tmp_path):
    source, controls = kitti(tmp_path / "k"), table(tmp_path / "c.csv", 5)
    first, other = tmp_path / "first.json", tmp_path / "other.json"
    write_calibration(first, level_camera(16, 8, 9.0, (0, 0, 0)), IDENTITY)
    write_calibration(other, level_camera(16, 8, 9.0, (0, 0, 0.1)), IDENTITY)
    named = ("kitti-bin", "--src", source, "--controls", controls, "--out", tmp_path / "o")
    run(*named, "--calibration", other, "--rate-hz", 5, "--segment", "no key", code=2)
    run(*named, "--calibration", first)  # the failed one has begun nothing
    run(*named, "--calibration", first, "--segment", "segment_0002")
    refused = run(*named, "--calibration", other, "--segment", "segment_0003", code=2)
    assert "begun with another calibration" in refused
    refused = run(*named, "--rate-hz", 20, "--segment", "segment_0003", code=2)
    assert "has 10 frames per second, not 20" in refused


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--split", "trian", "no split 'trian'"),
        ("--split", "..", "no split"),
        ("--segment", "../../elsewhere", "makes no key"),
        ("--segment", "drive 1", "makes no key"),
    ],
)
def test_a_segment_goes_into_a_split_under_a_name_that_makes_a_key(tmp_path, option, value, said):
    source, controls = kitti(tmp_path / "k"), table(tmp_path / "c.csv", 5)
    named = ("kitti-bin", "--src", source, "--controls", controls, "--out", tmp_path / "o" / "o")
    assert said in run(*named, option, value, code=2)
    assert not list(tmp_path.rglob("data.csv"))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["frame_10", "frame_9"], ["frame_9", "frame_10"]),
        (["12.5", "12.25"], ["12.25", "12.5"]),  # seconds
        (["000010", "000009"], ["000009", "000010"]),
        (["b2", "a10"], ["a10", "b2"]),
        (["left", "10"], ["10", "left"]),
        (["1", "._1"], ["1"]),  # what macOS leaves beside a file
    ],
)
def test_clouds_are_frames_in_the_order_of_their_numbers(names, order):
    assert [path.stem for path in in_order(Path(f"{name}.pcd") for name in names)] == order


def test_clouds_whose_time_stands_or_goes_back_are_refused_with_the_line(tmp_path):
    source, controls = kitti(tmp_path / "k"), tmp_path / "c.csv"
    rows = [f"{stamp},1,2" for stamp in (100, 200, 200, 300, 400)]
    controls.write_text("timestamp_ns,velocity,wheel_angle\n" + "\n".join(rows) + "\n")
    named = ("kitti-bin", "--src", source, "--controls", controls, "--out", tmp_path / "o")
    assert "line 4: timestamp_ns 200 is not after" in run(*named, code=2)


# End2Race


def episode(path, rows=4, beams=5):
    lines = ["time,steer,desired_speed," + ",".join(f"lidar_{i}" for i in range(beams))]
    for row in range(rows):
        ranges = [30.0 if beam == 0 else 1.0 + beam + row for beam in range(beams)]
        lines.append(f"{row / 10},{0.1 * row},{5 + row}," + ",".join(map(str, ranges)))
    path.write_text("\n".join(lines) + "\n")


def test_an_episode_of_the_paper_has_the_speed_of_the_row_before(tmp_path):
    (tmp_path / "s").mkdir()
    episode(tmp_path / "s" / "o_ol1_e3_o3_s0.6.csv")
    output = run("f1tenth-csv", "--src", tmp_path / "s", "--out", tmp_path / "o", "--fov-rad", 4)
    assert "3 frames" in output
    segment, points = stored(tmp_path / "o")
    assert segment.name == "segment_o_ol1_e3_o3_s0.6"
    assert segment.velocity.tolist() == [5, 6, 7]
    assert segment.target_velocity.tolist() == [6, 7, 8]
    assert np.allclose(segment.wheel_angle, np.rad2deg([0.1, 0.2, 0.3]), atol=1e-4)
    # Beam 2 of 5 looks straight ahead, beam 4 to the left by half of 4 rad; beam 0 met nothing.
    assert len(points[0]) == 4
    assert np.allclose(points[0][1], [4, 0, 0, 0], atol=1e-6)
    assert np.allclose(points[0][3], [6 * math.cos(2), 6 * math.sin(2), 0, 0], atol=1e-6)


def test_an_episode_with_a_missing_beam_or_a_clock_that_stands_is_refused(tmp_path):
    path = tmp_path / "e.csv"
    episode(path)
    whole = path.read_text()
    path.write_text(whole.replace("lidar_3", "lidar_9"))
    named = ("f1tenth-csv", "--src", path, "--out", tmp_path / "o")
    assert "lidar_3 is missing" in run(*named, code=2)
    path.write_text(whole.replace("0.2,", "0.1,", 1))
    assert "does not go forward" in run(*named, code=2)
    path.write_text(whole[: len(whole) // 2])
    assert "the header has" in run(*named, code=2)
    path.write_bytes(b"\xff\xfe\0")
    assert "UTF-8" in run(*named, code=2)


# MORAI


def test_the_notes_layout_is_taken_over_with_one_form_for_all(small, tmp_path):
    root = small({"train": (6, 7), "valid": (5,)})
    was = open_dataset(root)
    (root / "dataset.json").unlink()
    points = {}
    for segment in was.segments:
        for name in segment.lidar_files:
            path = segment.directory / name
            cloud = np.resize(read_points(path, 4), (16, 4))
            points[path.relative_to(root)] = cloud
            wide = np.zeros((16, 8), np.float32)
            wide[:, [0, 1, 2, 4]], wide[:, 5] = cloud, np.arange(16) % 8
            path.write_bytes(wide.tobytes())
    named = ("--src", root, "--out", tmp_path / "o", "--calibration", root / "calibration.json")
    assert "18 frames" in run("morai", *named)
    now = open_dataset(tmp_path / "o")
    assert [(s.split, s.name, len(s)) for s in now.segments] == [
        (s.split, s.name, len(s)) for s in was.segments
    ]
    for before, after in zip(was.segments, now.segments, strict=True):
        assert np.array_equal(before.velocity, after.velocity)
        assert np.array_equal(before.timestamp_ns, after.timestamp_ns)
        assert after.image_files is not None
        for name, path in zip(before.lidar_files, after.lidar_files, strict=True):
            expected = points[(before.directory / name).relative_to(root)]
            assert np.array_equal(read_points(after.directory / path, 4), expected)
    assert validate(tmp_path / "o").passed


def test_angles_that_look_like_radians_must_be_named(small, tmp_path):
    root = small({"train": (60, 60)})
    (root / "dataset.json").unlink()
    for segment in ("segment_0000", "segment_0001"):
        path = root / "train" / segment / "meta" / "data.csv"
        names, *lines = path.read_text().splitlines()
        place = names.split(",").index("wheel_angle")
        rows = [line.split(",") for line in lines]
        for row in rows:
            row[place] = f"{float(row[place]) / 100:.6g}"
        path.write_text("\n".join([names, *(",".join(row) for row in rows)]) + "\n")
    named = ("morai", "--src", root, "--out")
    assert "looks like radians" in run(*named, tmp_path / "o", code=2)
    run(*named, tmp_path / "r", "--angle-unit", "radians")
    found = open_dataset(tmp_path / "r").segments[0].wheel_angle
    assert found[5] == pytest.approx(np.rad2deg(0.05), rel=1e-5)
    run(*named, tmp_path / "d", "--angle-unit", "degrees")
    assert open_dataset(tmp_path / "d").segments[0].wheel_angle[5] == pytest.approx(0.05)


def test_a_source_without_segments_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    output = run("morai", "--src", tmp_path / "empty", "--out", tmp_path / "o", code=2)
    assert "no segment with clouds" in output
