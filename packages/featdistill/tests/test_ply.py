"""The 3DGS PLY layout against plyfile, and what damaged files end with."""

import numpy as np
import plyfile
import pytest
import torch
from featdistill.data.ply import PROPERTIES, ply_of, read_ply, write_ply
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


@pytest.mark.parametrize(("degree", "rest"), [(0, 0), (1, 3), (2, 8)])
def test_models_of_a_lower_degree_are_those_with_nothing_in_the_higher_ones(written, degree, rest):
    sh = gaussians().sh
    columns = {f"f_dc_{c}": sh[:, 0, c] for c in range(3)}
    # As 3DGS writes it: features_rest [n, K, 3], transposed and flattened.
    flat = sh[:, 1 : 1 + rest].transpose(1, 2).flatten(1)
    columns |= {f"f_rest_{k}": flat[:, k] for k in range(3 * rest)}
    data = plyfile.PlyData.read(written, mmap=False)["vertex"].data
    names = [name for name in PROPERTIES if not name.startswith(("f_", "n"))] + list(columns)
    low = np.zeros(N, [(name, "f4") for name in names])
    for name in names:
        low[name] = columns[name] if name in columns else data[name]
    plyfile.PlyData([plyfile.PlyElement.describe(low, "vertex")], byte_order="<").write(written)
    found = read_ply(written)
    assert torch.equal(found.sh[:, : 1 + rest], sh[:, : 1 + rest])
    assert not found.sh[:, 1 + rest :].any()
    assert torch.equal(found.rotations, gaussians().rotations)


def test_a_model_whose_filter_is_not_fused_is_refused(written):
    data = plyfile.PlyData.read(written, mmap=False)["vertex"].data
    wider = np.zeros(N, [*data.dtype.descr, ("filter_3D", "f4")])
    for name in data.dtype.names:
        wider[name] = data[name]
    plyfile.PlyData([plyfile.PlyElement.describe(wider, "vertex")], byte_order="<").write(written)
    with pytest.raises(UserError, match="filter_3D") as caught:
        read_ply(written)
    assert "create_fused_ply.py" in caught.value.hint


def test_a_model_folder_means_its_newest_iteration(written, tmp_path):
    for name in ("7000", "30000", "best"):
        place = tmp_path / "model" / "point_cloud" / f"iteration_{name}"
        place.mkdir(parents=True)
        (place / "point_cloud.ply").write_bytes(written.read_bytes())
    assert ply_of(tmp_path / "model").parent.name == "iteration_30000"
    with pytest.raises(UserError, match="holds no point_cloud"):
        ply_of(tmp_path / "model" / "point_cloud")


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
