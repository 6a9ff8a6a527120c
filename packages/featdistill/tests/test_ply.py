"""The 3DGS PLY layout against plyfile, and what damaged files end with."""

import numpy as np
import plyfile
import pytest
import torch
from featdistill.data.ply import PROPERTIES, read_ply, write_ply
from featdistill.gaussians import Gaussians
from loom.errors import UserError

N = 16


def gaussians(n=N):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    return Gaussians(normal(n, 3), normal(n, 3), normal(n, 4), normal(n), normal(n, 16, 3))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "point_cloud.ply"
    write_ply(path, gaussians())
    return path


def with_property(path, name, values=None):
    """Write the file again by plyfile with one property dropped, or with other values."""
    data = plyfile.PlyData.read(path, mmap=False)["vertex"].data
    if values is None:
        data = np.lib.recfunctions.drop_fields(data, name)
    else:
        data = data.copy()
        data[name] = values
    plyfile.PlyData([plyfile.PlyElement.describe(data, "vertex")], byte_order="<").write(path)


def damage_found(path):
    try:
        read_ply(path)
    except UserError as error:
        return error.message
    return None


def test_plyfile_reads_what_is_written_in_the_order_of_3dgs(written):
    model = gaussians()
    element = plyfile.PlyData.read(written, mmap=False)["vertex"]
    names = ["x", "y", "z", "nx", "ny", "nz"]
    names += [f"f_dc_{i}" for i in range(3)] + [f"f_rest_{i}" for i in range(45)]
    names += ["opacity"] + [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]
    assert [p.name for p in element.properties] == names == list(PROPERTIES)
    assert {p.val_dtype for p in element.properties} == {"f4"}
    np.testing.assert_array_equal(element["y"], model.means[:, 1])
    np.testing.assert_array_equal(element["nz"], np.zeros(N))
    np.testing.assert_array_equal(element["f_dc_2"], model.sh[:, 0, 2])
    np.testing.assert_array_equal(element["f_rest_0"], model.sh[:, 1, 0])
    np.testing.assert_array_equal(element["f_rest_14"], model.sh[:, 15, 0])
    np.testing.assert_array_equal(element["f_rest_15"], model.sh[:, 1, 1])
    np.testing.assert_array_equal(element["opacity"], model.opacity_logits)
    np.testing.assert_array_equal(element["scale_1"], model.log_scales[:, 1])
    np.testing.assert_array_equal(element["rot_0"], model.rotations[:, 0])


def test_a_gaussian_takes_248_bytes(written):
    content = written.read_bytes()
    assert len(content) == content.index(b"end_header\n") + len(b"end_header\n") + 248 * N


def test_reading_gives_back_every_bit(written):
    for found, expected in zip(read_ply(written).tensors(), gaussians().tensors(), strict=True):
        assert torch.equal(found, expected)


def test_other_orders_and_further_properties_are_read(written):
    data = plyfile.PlyData.read(written, mmap=False)["vertex"].data
    fields = [("label", "u1"), *((name, "f8") for name in reversed(data.dtype.names))]
    turned = np.zeros(N, fields)
    for name in data.dtype.names:
        turned[name] = data[name]
    plyfile.PlyData([plyfile.PlyElement.describe(turned, "vertex")], byte_order="<").write(written)
    for found, expected in zip(read_ply(written).tensors(), gaussians().tensors(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["x", "f_dc_1", "f_rest_44", "opacity", "scale_2", "rot_3"])
def test_a_missing_property_is_named(written, name):
    import numpy.lib.recfunctions  # noqa: F401

    with_property(written, name)
    with pytest.raises(UserError, match=f"point_cloud.ply: property '{name}' is missing"):
        read_ply(written)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(written, value):
    values = np.zeros(N, "f4")
    values[5] = value
    with_property(written, "scale_1", values)
    with pytest.raises(UserError, match="point_cloud.ply: property 'scale_1' of vertex 5"):
        read_ply(written)


def test_a_rotation_of_length_zero_is_named(written):
    for k in range(4):
        with_property(written, f"rot_{k}", np.arange(N))
    with pytest.raises(UserError, match="'rot_0..3' of vertex 0 are all zero"):
        read_ply(written)


@pytest.mark.parametrize("layout", [{"text": True}, {"byte_order": ">"}])
def test_ascii_and_big_endian_files_are_refused(written, layout):
    data = plyfile.PlyData.read(written, mmap=False)["vertex"].data
    plyfile.PlyData([plyfile.PlyElement.describe(data, "vertex")], **layout).write(written)
    with pytest.raises(UserError, match="'format binary_little_endian 1.0' expected"):
        read_ply(written)


def test_no_gaussian_at_all_is_an_error(tmp_path):
    write_ply(tmp_path / "empty.ply", gaussians(0))
    with pytest.raises(UserError, match="no gaussian"):
        read_ply(tmp_path / "empty.ply")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot read the PLY file"):
        read_ply(tmp_path / "absent.ply")


def test_every_truncation_is_an_error(written):
    content = written.read_bytes()
    for part in range(16):
        written.write_bytes(content[: len(content) * part // 16])
        with pytest.raises(UserError, match="point_cloud.ply"):
            read_ply(written)


def test_a_flipped_bit_in_the_header_loads_or_is_an_error(written):
    content = written.read_bytes()
    header = content.index(b"end_header\n") + len(b"end_header\n")
    refused = 0
    for bit in range(0, 8 * header, 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        written.write_bytes(damaged)
        message = damage_found(written)
        assert message is None or "point_cloud.ply" in message
        refused += message is not None
    assert refused > 1000
