"""The teacher cache: what is read is what the teacher said, and nothing else is let in."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from end2race.cache import export, shards, store
from end2race.cache.export import Exporter
from end2race.cache.info import CacheInfo, Expected, read_info
from end2race.cache.keys import parse_key
from end2race.cache.store import TeacherCache, repair
from hypothesis import given
from hypothesis import strategies as st
from loom.errors import UserError

from packages.end2race.tests.fake_teacher import (
    FakeReader,
    FakeTeacher,
    T,
    info_for,
    of_frame,
    window_keys,
)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(export, "SHARD_WINDOWS", 4)


def filled(folder, teacher=None, keys=None, dtype="float32", batch_size=2) -> TeacherCache:
    teacher = teacher or FakeTeacher()
    keys = keys or window_keys()
    cache = TeacherCache.create(folder, info_for(teacher, dtype))
    Exporter(teacher, FakeReader(keys), keys, batch_size).fill(cache)
    return cache


@pytest.mark.parametrize("maps", [False, True])
def test_entries_are_bit_equal_to_the_live_teacher_in_any_order(tmp_path, small_shards, maps):
    teacher, keys = FakeTeacher(maps=maps), window_keys()
    filled(tmp_path / "cache", teacher, keys)
    cache = TeacherCache.open(tmp_path / "cache", info_for(teacher))
    order = np.random.default_rng(0).permutation(len(keys))
    live = teacher(FakeReader(keys).read(order))
    stored = cache.read([keys[i] for i in order], list(live))
    assert set(stored) == set(cache.info.fields)
    for name, values in live.items():
        assert stored[name].dtype == np.float32
        assert np.array_equal(stored[name], values), name
        one = cache.read([keys[order[3]]], [name])[name][0]
        assert np.array_equal(one, values[3]), name


def test_a_frame_that_windows_share_is_stored_once(tmp_path, small_shards):
    cache = filled(tmp_path / "cache", keys=window_keys(2, 12))
    assert cache.frame_count == 24
    assert len(cache) == 20
    per_frame, per_window = 6 * 4, (T * 2 + T * 5) * 4
    assert cache.size == 24 * per_frame + 20 * per_window
    on_disk = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.bin"))
    assert on_disk == cache.size


def test_windows_appended_in_any_order_are_read_right(tmp_path, small_shards):
    keys = [window_keys()[i] for i in np.random.default_rng(1).permutation(20)]
    cache = filled(tmp_path / "cache", keys=keys)
    live = FakeTeacher()(FakeReader(keys).read(range(20)))
    stored = cache.read(keys, list(live))
    assert all(np.array_equal(stored[name], live[name]) for name in live)


def test_float16_halves_the_features_and_keeps_actions_exact(tmp_path):
    teacher, keys = FakeTeacher(), window_keys()
    cache = filled(tmp_path / "cache", teacher, keys, dtype="float16")
    live = teacher(FakeReader(keys).read(range(len(keys))))
    stored = cache.read(keys, list(live))
    assert np.array_equal(stored["actions"], live["actions"])
    for name in ("gru_out", "bev_vec"):
        assert np.array_equal(stored[name], live[name].astype(np.float16).astype(np.float32))


def test_a_value_beyond_float16_is_refused_with_its_key(tmp_path):
    def loud(batch):
        answers = FakeTeacher()(batch)
        answers["gru_out"][-1, 1, 2] = 1e6
        return answers

    keys = window_keys()
    cache = TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher(), "float16"))
    with pytest.raises(UserError, match=r"gru_out of train/segment_0000:1 holds 1000000") as error:
        Exporter(loud, FakeReader(keys), keys, 2).fill(cache)
    assert "fp32" in error.value.hint


def test_features_that_depend_on_the_window_are_refused(tmp_path):
    def contextual(batch):
        answers = FakeTeacher()(batch)
        answers["bev_vec"] = np.cumsum(answers["bev_vec"], axis=1)
        return answers

    keys = window_keys()
    cache = TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher()))
    with pytest.raises(UserError, match="depend on more than the frame"):
        Exporter(contextual, FakeReader(keys), keys, 4).fill(cache)
    assert len(TeacherCache.open(tmp_path / "cache")) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher_sha256": "f" * 64}, "teacher_sha256 000000000000, expected ffffffffffff"),
        ({"data": {"train": "e" * 64}}, "data of train dddddddddddd, expected eeeeeeeeeeee"),
        ({"stride": 2}, "stride 1, expected 2"),
        ({"dtype": "float16"}, "dtype float32, expected float16"),
    ],
)
def test_a_stale_cache_is_refused_unless_allowed(tmp_path, changed, message):
    filled(tmp_path / "cache")
    with pytest.raises(UserError, match=message) as error:
        TeacherCache.open(tmp_path / "cache", info_for(FakeTeacher(), **changed))
    assert "--allow-stale" in error.value.hint
    wanted = info_for(FakeTeacher(), **changed)
    assert len(TeacherCache.open(tmp_path / "cache", wanted, allow_stale=True)) == 20


@pytest.mark.parametrize(
    "wanted", [Expected(seq_len=T + 1), Expected(fields={"bev_feat": (2, 3, 3)})]
)
def test_a_cache_of_another_shape_cannot_be_allowed(tmp_path, wanted):
    filled(tmp_path / "cache")
    with pytest.raises(UserError):
        TeacherCache.open(tmp_path / "cache", wanted)
    with pytest.raises(UserError, match="cannot be used"):
        TeacherCache.open(tmp_path / "cache", wanted, allow_stale=True)


def test_what_is_not_named_is_not_compared(tmp_path):
    filled(tmp_path / "cache")
    wanted = Expected(data={"train": "d" * 64, "valid": "a" * 64}, seq_len=T)
    cache = TeacherCache.open(tmp_path / "cache", wanted)
    coverage = cache.coverage([*window_keys(), "valid/segment_0000:0"])
    assert (coverage.found, coverage.wanted) == (20, 21)
    assert cache.missing(["valid/segment_0000:0", window_keys()[0]]) == ["valid/segment_0000:0"]
    with pytest.raises(UserError, match="nothing on valid/segment_0000:0"):
        cache.read(["valid/segment_0000:0"], ["actions"])
    with pytest.raises(UserError, match="holds no bev_feat"):
        cache.read(window_keys()[:1], ["bev_feat"])


HOSTILE = [
    "../x",
    "train/../../x:1",
    "train/segment_1:1\0",
    "train/segment_" + "a" * 300 + ":1",
    "train/segment_1:01",
    "train/segment_1:-1",
    "train/segment_1:١",
    "train/segment_1:1\n",
    "train/segment_1/2:1",
    "train/..:1",
    "train/.hidden:1",
    "train/세그먼트_1:1",
    "/etc/segment_1:1",
    "train/segment_1",
    "TRAIN/segment_1:1",
    "",
    7,
    None,
]


@pytest.mark.parametrize("key", HOSTILE, ids=repr)
def test_a_hostile_key_writes_nothing(tmp_path, key):
    cache = TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher()))
    answers = FakeTeacher()(FakeReader(window_keys()).read([0]))
    with pytest.raises(UserError, match="is no key of a window"):
        cache.append([key], answers)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "cache.json"]
    with pytest.raises(UserError):
        cache.read([key], ["actions"])


def test_keys_that_the_notes_wrote_to_one_file_stay_apart(tmp_path):
    keys = ["train/segment_a_b:1", "train/segment_a__b:1", "train/segment_a:1", "train/segment_A:1"]
    cache = filled(tmp_path / "cache", keys=keys, batch_size=1)
    live = FakeTeacher()(FakeReader(keys).read(range(4)))
    stored = cache.read(keys, ["bev_vec"])["bev_vec"]
    assert np.array_equal(stored, live["bev_vec"])
    assert len({row.tobytes() for row in stored}) == 4


@given(st.text(max_size=40) | st.from_regex(r"[a-z]+/[A-Za-z0-9_.-]+:\d+", fullmatch=True))
def test_a_key_that_is_accepted_is_spelt_in_one_way(text):
    try:
        place = parse_key(text)
    except UserError:
        return
    assert f"{place.segment}:{place.frame}" == text


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_byte_is_refused(tmp_path, position):
    keys = window_keys()
    filled(tmp_path / "cache", keys=keys)
    path = tmp_path / "cache" / "shard-000000.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    cache = TeacherCache.open(tmp_path / "cache")
    with pytest.raises(UserError, match=r"shard-000000.bin: the (window|frame) .* is damaged"):
        cache.read(keys, list(cache.info.fields))
    assert [number for number, _ in cache.damages()] == [0]


def test_repair_drops_damaged_shards_and_an_export_fills_the_gap(tmp_path, small_shards):
    keys, folder = window_keys(), tmp_path / "cache"
    filled(folder, keys=keys)
    (folder / "shard-000001.bin").write_bytes(b"short")
    (folder / "shard-000002.json").write_text('{"windows": ')
    content = bytearray((folder / "shard-000003.bin").read_bytes())
    content[5] ^= 1
    (folder / "shard-000003.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"shard-000001.bin has 5 bytes") as error:
        TeacherCache.open(folder)
    assert "verify --repair" in error.value.hint
    complaints = repair(folder)
    assert len(complaints) == 3
    cache = TeacherCache.open(folder)
    lost = cache.missing(keys)
    # Windows 4 to 15, and the two of shard 4 whose first frames lay in shard 3.
    assert set(keys[4:16]) <= set(lost)
    assert len(lost) == 14
    Exporter(FakeTeacher(), FakeReader(keys), keys, 2).fill(cache)
    live = FakeTeacher()(FakeReader(keys).read(range(len(keys))))
    stored = TeacherCache.open(folder).read(keys, list(live))
    assert all(np.array_equal(stored[name], live[name]) for name in live)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"windows": ["../../x"], "frames": [], "sha256": "", "crc32": [0]}',
        '{"windows": ["train/segment_0:0"], "frames": [], "sha256": "", "crc32": [-1]}',
        '{"windows": ["train/segment_0:0"], "frames": [], "sha256": "", "crc32": []}',
        '{"windows": 3, "frames": [], "sha256": "", "crc32": []}',
        '{"windows": ["train/segment_0:0", "train/segment_0:0"], "frames": [], "sha256": "",'
        ' "crc32": [1, 2]}',
        '{"windows": [{}], "frames": [], "sha256": "", "crc32": [1]}',
        '{"windows": [], "frames": [], "sha256": 1, "crc32": []}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path, content):
    filled(tmp_path / "cache")
    (tmp_path / "cache" / "shard-000000.json").write_text(content)
    with pytest.raises(UserError, match="damaged index"):
        TeacherCache.open(tmp_path / "cache")


def test_a_damaged_description_is_refused(tmp_path):
    filled(tmp_path / "cache")
    path = tmp_path / "cache" / "cache.json"
    whole = json.loads(path.read_text())
    for name in ("teacher_sha256", "data", "seq_len", "stride", "dtype", "fields", "origin"):
        for wrong in (None, -1, "x", [1], {"x": 1}, {"actions": [0]}):
            path.write_text(json.dumps({**whole, name: wrong}))
            with pytest.raises(UserError, match="damaged description"):
                read_info(tmp_path / "cache")
    path.write_text(json.dumps({**whole, "version": 2}))
    with pytest.raises(UserError, match="version 2"):
        read_info(tmp_path / "cache")
    path.unlink()
    with pytest.raises(UserError, match="is no teacher cache"):
        TeacherCache.open(tmp_path / "cache")


def test_an_existing_cache_or_folder_is_not_written_over(tmp_path):
    filled(tmp_path / "cache")
    with pytest.raises(UserError, match="already holds a teacher cache"):
        TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher()))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="already holds other files"):
        TeacherCache.create(tmp_path / "home", info_for(FakeTeacher()))


def test_two_exports_into_one_cache_are_refused(tmp_path):
    cache = filled(tmp_path / "cache")
    other = TeacherCache.open(tmp_path / "cache")
    with (
        cache.writing(),
        pytest.raises(UserError, match="another process writes"),
        other.writing(),
    ):
        pass
    with other.writing():  # it is free again
        pass


def test_a_writer_sees_what_another_has_committed_meanwhile(tmp_path):
    keys = window_keys()
    late = TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher()))
    early = TeacherCache.open(tmp_path / "cache")
    Exporter(FakeTeacher(), FakeReader(keys), keys, 2).fill(early)
    idle = FakeTeacher()
    assert Exporter(idle, FakeReader(keys), keys, 2).fill(late).written == 0
    assert idle.batches == []


def test_splits_share_a_cache_and_keep_their_data_apart(tmp_path):
    cache = filled(tmp_path / "cache")
    valid = window_keys(1, 6, "valid")
    cache.add_split("valid", "b" * 64)
    Exporter(FakeTeacher(), FakeReader(valid), valid, 2).fill(cache)
    again = TeacherCache.open(tmp_path / "cache", Expected(data={"valid": "b" * 64}))
    assert not again.missing([*window_keys(), *valid])
    with pytest.raises(UserError, match="holds train of other data"):
        again.add_split("train", "c" * 64)
    with pytest.raises(UserError, match="data of valid"):
        TeacherCache.open(tmp_path / "cache", Expected(data={"valid": "c" * 64}))


class Crash(Exception):
    """Stands for the process that ends here."""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_crash_at_any_call_to_the_disk_and_a_resume_give_the_same_bytes(
    tmp_path, small_shards, monkeypatch
):
    keys, teacher = window_keys(1, 12), FakeTeacher()
    filled(tmp_path / "whole", teacher, keys)
    expected = contents(tmp_path / "whole")
    calls = 0
    crash_at = 0
    real = {"fsync": os.fsync, "replace": os.replace}

    def counting(name):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise Crash
            result = real[name](*arguments, **options)
            calls += 1
            if calls == crash_at:
                raise Crash
            return result

        return call

    for name in real:
        monkeypatch.setattr(os, name, counting(name))
    # A crash leaves temporary files behind: nothing cleans up after SIGKILL.
    remove = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)
    points = 0
    while True:
        folder = tmp_path / f"crash{points}"
        calls, crash_at = 0, points + 1
        try:
            filled(folder, teacher, keys)
        except Crash:
            crash_at = 0
        else:
            break
        with monkeypatch.context() as whole:
            whole.setattr(Path, "unlink", remove)
            begun = (folder / "cache.json").is_file()
            start = TeacherCache.open if begun else TeacherCache.create
            cache = start(folder, info_for(teacher))
            Exporter(teacher, FakeReader(keys), keys, 2).fill(cache)
        assert contents(folder) == expected, points
        points += 1
    assert points >= (1 + 3 * 2) * 4  # shards, files, moments around each call


def test_a_resumed_export_asks_the_teacher_for_nothing_twice(tmp_path, small_shards):
    keys, teacher = window_keys(), FakeTeacher()
    cache = filled(tmp_path / "cache", teacher, keys[:8])
    teacher.batches.clear()
    told = []
    done = Exporter(teacher, FakeReader(keys), keys, 3, ahead=2).fill(cache, told.append)
    assert (done.written, done.found) == (12, 8)
    assert sorted(key for batch in teacher.batches for key in batch) == sorted(keys[8:])
    assert [len(batch) for batch in teacher.batches] == [3, 1] * 3
    assert told == [11, 12, 15, 16, 19, 20]


def test_verify_finds_an_answer_of_another_teacher(tmp_path):
    keys, teacher = window_keys(), FakeTeacher()
    cache = filled(tmp_path / "cache", teacher, keys)
    same = Exporter(teacher, FakeReader(keys), keys, 2).verify(cache)
    assert same == dict.fromkeys(cache.info.fields, 0.0)
    other = Exporter(FakeTeacher(seed=1), FakeReader(keys), keys, 2).verify(cache)
    assert min(other.values()) > 0.1


def test_a_shard_holds_as_many_windows_as_64_mebibytes():
    small = info_for(FakeTeacher())
    large = info_for(
        FakeTeacher(), fields={**small.fields, "bev_feat": (384, 248, 216)}, dtype="float16"
    )
    assert export.shard_windows(small) == 512
    assert export.shard_windows(large) == 1


def test_more_shards_than_may_be_mapped_at_once_can_be_read(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(store, "_OPEN_SHARDS", 2)
    keys = window_keys()
    filled(tmp_path / "cache", keys=keys)
    cache = TeacherCache.open(tmp_path / "cache")
    for _ in range(2):
        for key in reversed(keys):
            row = cache.read([key], ["bev_vec"])["bev_vec"][0, 0]
            assert np.array_equal(row, of_frame(key, 12)[:6])
    assert sum("columns" in vars(shard) for shard in cache._shards) <= 2


def test_check_sums_are_those_of_zlib_over_each_record(tmp_path):
    filled(tmp_path / "cache")
    index = json.loads((tmp_path / "cache" / "shard-000000.json").read_text())
    content = (tmp_path / "cache" / "shard-000000.bin").read_bytes()
    size = (T * 2 + T * 5) * 4
    windows = [content[i : i + size] for i in range(0, 20 * size, size)]
    assert index["crc32"][:20] == [zlib.crc32(row) for row in windows]
    frames = [content[20 * size + i : 20 * size + i + 24] for i in range(0, 24 * 24, 24)]
    assert index["crc32"][20:] == [zlib.crc32(row) for row in frames]
    first = np.frombuffer(frames[0], "<f4")
    assert np.array_equal(first, of_frame("train/segment_0000:0", 12)[:6])


@pytest.mark.parametrize("wrong", [{"seq_len": 0}, {"dtype": "float64"}, {"fields": {}}])
def test_a_cache_that_makes_no_sense_cannot_be_described(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).rstrip("s")):
        info_for(FakeTeacher(), **wrong)
    assert isinstance(info_for(FakeTeacher()), CacheInfo)


def test_appended_arrays_must_fit_the_cache(tmp_path):
    cache = TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher()))
    keys = window_keys()
    answers = FakeTeacher()(FakeReader(keys).read([0, 1]))
    with pytest.raises(ValueError, match="a key stands twice"):
        cache.append([keys[0], keys[0]], answers)
    with pytest.raises(ValueError, match="fields"):
        cache.append(keys[:2], {name: answers[name] for name in ("actions", "bev_vec")})
    with pytest.raises(ValueError, match="actions"):
        cache.append(keys[:2], {**answers, "actions": answers["actions"][:, :2]})
    assert shards.shard_numbers(tmp_path / "cache") == []
