"""The notes' folder of `.npz` files: taken over and given back, and never believed unread."""

from __future__ import annotations

import io
import os
import re
import zipfile

import numpy as np
import pytest
from end2race.cache import npz_compat
from end2race.cache.export import Exporter
from end2race.cache.store import TeacherCache
from hypothesis import given
from hypothesis import strategies as st
from loom.errors import UserError

from packages.end2race.tests.fake_teacher import FakeReader, FakeTeacher, info_for, window_keys

DATA = {"train": "d" * 64}


def notes_folder(folder, keys, teacher=None):
    """Write files as the notes' script does."""
    folder.mkdir()
    answers = (teacher or FakeTeacher())(FakeReader(keys).read(range(len(keys))))
    for row, key in enumerate(keys):
        name = key.replace("/", "__").replace(":", "_") + ".npz"
        values = {field: array[row] for field, array in answers.items()}
        np.savez_compressed(folder / name, **values)
    return answers


@pytest.mark.parametrize("maps", [False, True])
def test_a_folder_becomes_a_cache_and_comes_back_the_same(tmp_path, maps):
    keys, teacher = window_keys(), FakeTeacher(maps=maps)
    answers = notes_folder(tmp_path / "notes", keys, teacher)
    files = npz_compat.list_folder(tmp_path / "notes")
    assert list(files) == keys
    info = npz_compat.describe(files, DATA, "float32")
    assert (info.seq_len, info.fields) == (3, info_for(teacher).fields)
    cache = TeacherCache.create(tmp_path / "cache", info)
    assert npz_compat.import_folder(files, cache) == len(keys)
    stored = TeacherCache.open(tmp_path / "cache").read(keys, list(answers))
    assert all(np.array_equal(stored[name], answers[name]) for name in answers)

    assert list(npz_compat.export_folder(cache, tmp_path / "back"))[-1] == len(keys)
    for path in (tmp_path / "notes").iterdir():
        with np.load(path) as was, np.load(tmp_path / "back" / path.name) as now:
            assert sorted(was.files) == sorted(now.files)
            assert all(np.array_equal(was[name], now[name]) for name in was.files)


def test_an_import_goes_on_where_it_was_stopped(tmp_path):
    keys = window_keys()
    notes_folder(tmp_path / "notes", keys)
    files = npz_compat.list_folder(tmp_path / "notes")
    cache = TeacherCache.create(tmp_path / "cache", npz_compat.describe(files, DATA, "float32"))
    some = {key: files[key] for key in keys[:7]}
    assert npz_compat.import_folder(some, cache) == 7
    assert npz_compat.import_folder(files, cache) == len(keys) - 7
    assert not cache.missing(keys)


_KEYS = st.from_regex(
    r"[a-z]{1,9}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}:(0|[1-9][0-9]{0,4})", fullmatch=True
)


@given(_KEYS)
def test_a_well_formed_key_comes_back_from_its_file_name(key):
    name = npz_compat.file_name(key)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+\.npz", name)
    assert npz_compat.key_of(name) == key


@pytest.mark.parametrize(
    "name", ["x.npz", "train_segment_1_2.npz", "train__segment_x.npz", "train__segment_1_02.npz"]
)
def test_a_file_that_belongs_to_no_window_is_refused(tmp_path, name):
    notes_folder(tmp_path / "notes", window_keys(1, 4))
    (tmp_path / "notes" / name).write_bytes(b"")
    with pytest.raises(UserError, match="is no key of a window"):
        npz_compat.list_folder(tmp_path / "notes")


def test_an_empty_folder_and_unknown_data_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.npz files"):
        npz_compat.list_folder(tmp_path / "empty")
    notes_folder(tmp_path / "notes", window_keys(1, 4))
    files = npz_compat.list_folder(tmp_path / "notes")
    with pytest.raises(UserError, match="nothing is known of the data of train"):
        npz_compat.describe(files, {"valid": "a"}, "float32")


def archive(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


WHOLE = archive(
    actions=np.zeros((3, 2), np.float32),
    gru_out=np.zeros((3, 5), np.float32),
    bev_vec=np.zeros((3, 6), np.float32),
)


def test_pickled_objects_are_not_unpacked(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was unpacked"),)

    path = tmp_path / "train__segment_0000_0.npz"
    path.write_bytes(archive(actions=np.array([Hostile()], object)))
    with pytest.raises(UserError, match="Python objects"):
        npz_compat.read_entry(path)
    assert not (tmp_path / "was unpacked").exists()


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "train__segment_0000_0.npz"
    rng = np.random.default_rng(0)
    refused = 0
    for cut in range(0, len(WHOLE), 7):
        path.write_bytes(WHOLE[:cut])
        with pytest.raises(UserError):
            npz_compat.read_entry(path)
    for _ in range(300):
        content = bytearray(WHOLE)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            arrays = npz_compat.read_entry(path)
        except UserError:
            refused += 1
        else:  # the flip fell on a name or a date, which no check sum covers
            assert all(not array.any() for array in arrays.values())
    assert refused > 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bev_vec": np.zeros((3, 7))}, r"bev_vec \(3, 7\), the cache has \(3, 6\)"),
        ({"actions": np.zeros((2, 2))}, r"actions \(2, 2\)"),
        ({"gru_out": np.full((3, 5), np.nan)}, "gru_out .* holds nan"),
        ({"gru_out": np.array(["x"] * 3)}, "gru_out is <U1"),
    ],
)
def test_a_file_with_other_arrays_is_refused(tmp_path, wrong, message):
    keys = window_keys(1, 6)
    notes_folder(tmp_path / "notes", keys)
    files = npz_compat.list_folder(tmp_path / "notes")
    cache = TeacherCache.create(tmp_path / "cache", npz_compat.describe(files, DATA, "float32"))
    with np.load(files[keys[2]]) as whole:
        np.savez_compressed(files[keys[2]], **{**dict(whole), **wrong})
    with pytest.raises(UserError, match=message):
        npz_compat.import_folder(files, cache)


@pytest.mark.parametrize("actions", [np.zeros(()), np.zeros((0, 2)), np.zeros((3, 0))])
def test_a_first_file_without_answers_is_refused(tmp_path, actions):
    path = tmp_path / "train__segment_0000_0.npz"
    path.write_bytes(archive(actions=actions))
    with pytest.raises(UserError, match="no answers of a teacher"):
        npz_compat.describe({"train/segment_0000:0": path}, DATA, "float32")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_compat, "_LARGEST_BYTES", 10**6)
    path = tmp_path / "train__segment_0000_0.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("actions.npy", b"\0" * 10**7)
    with pytest.raises(UserError, match="at most 1,000,000"):
        npz_compat.read_entry(path)


def test_what_was_exported_from_shards_can_be_read_by_numpy_alone(tmp_path):
    keys, teacher = window_keys(1, 5), FakeTeacher()
    cache = TeacherCache.create(tmp_path / "cache", info_for(teacher))
    Exporter(teacher, FakeReader(keys), keys, 2).fill(cache)
    list(npz_compat.export_folder(cache, tmp_path / "npz"))
    live = teacher(FakeReader(keys).read([1]))
    with np.load(tmp_path / "npz" / "train__segment_0000_1.npz", allow_pickle=False) as entry:
        assert np.array_equal(entry["gru_out"], live["gru_out"][0])
        assert entry["bev_vec"].shape == (3, 6)
