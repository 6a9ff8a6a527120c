"""Archives of arrays come back as they were written, or not at all."""

import zipfile
from io import BytesIO

import numpy as np
import pytest
from loom.arrays import read_npz, write_npz
from loom.errors import UserError

ARRAYS = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "name": np.array("three")}


@pytest.mark.parametrize("compress", [False, True])
def test_numpy_reads_what_is_written_and_the_other_way_round(tmp_path, compress):
    write_npz(tmp_path / "new" / "a.npz", ARRAYS, compress=compress)
    with np.load(tmp_path / "new" / "a.npz") as read:
        assert {name: read[name].tolist() for name in read.files} == {
            name: value.tolist() for name, value in ARRAYS.items()
        }
    np.savez(tmp_path / "theirs.npz", **ARRAYS)
    found = read_npz(tmp_path / "theirs.npz")
    assert found["a"].dtype == np.int16
    assert (found["a"] == ARRAYS["a"]).all()
    assert str(found["name"]) == "three"
    assert list(read_npz(tmp_path / "theirs.npz", ["a"])) == ["a"]


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "a.npz", a=np.array([Trap()], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(ValueError, match="pickle"):
        write_npz(tmp_path / "b.npz", {"a": np.array([None], dtype=object)})
    assert not (tmp_path / "b.npz").exists()


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS, compress=True)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = read_npz(path, ["a", "name"])
            except UserError:
                refused += 1
            else:
                assert all((found[name] == ARRAYS[name]).all() for name in ARRAYS)
    assert 0 < refused < 2 * len(whole)  # some bits of an archive mean nothing


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    stream = BytesIO()
    np.lib.format.write_array(stream, np.zeros(10, np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", stream.getvalue() + bytes(50_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    with pytest.raises(UserError, match="at most 1,000,000 are read"):
        read_npz(tmp_path / "a.npz", largest=1_000_000)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)",
        "__import__('os').system('false')",
        '"""',
        "[" * 200,
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    text = (header + " " * (117 - len(header) % 118) + "\n").encode()
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(UserError, match="not a readable"):
        read_npz(tmp_path / "a.npz")


def test_layouts_of_every_kind_come_back(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "none": np.zeros((0, 3)),
        "words": np.array(["ab", "c"]),
        "big": np.arange(3, dtype=">i4"),
        "flag": np.array(True),
    }
    write_npz(tmp_path / "a.npz", arrays)
    found = read_npz(tmp_path / "a.npz")
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    found["fortran"][0, 0] = 5  # what is read may be changed


def test_a_missing_array_is_named_with_those_that_are_there(tmp_path):
    write_npz(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(UserError, match="has no array b; it has a, name"):
        read_npz(tmp_path / "a.npz", ["b"])
    with pytest.raises(UserError, match="no such file"):
        read_npz(tmp_path / "gone.npz")
