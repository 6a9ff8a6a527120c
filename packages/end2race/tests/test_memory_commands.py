"""`memory build|query|stats`, and the recollection that training asks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from end2race.cache.export import Exporter
from end2race.cache.info import CacheInfo
from end2race.cache.store import TeacherCache
from end2race.cli import app
from end2race.data.batches import BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.memory.bank import MemoryBank
from end2race.memory.recollection import Recollection, excluded_frames
from end2race.memory.stats import memory_stats
from typer.testing import CliRunner

from packages.end2race.tests.fake_teacher import FakeReader, FakeTeacher, T, info_for


def run(*arguments, code=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


class Drives:
    """A small dataset with a cache of the fake teacher."""

    def __init__(self, root, folder):
        self.root, self.folder = root, folder
        dataset = open_dataset(root)
        self.readers = {
            split: BatchReader(dataset, windows(dataset, split, T), images=True, points=False)
            for split in ("train", "valid")
        }
        keys = [window.key for window in self.readers["train"].windows]
        info: CacheInfo = info_for(FakeTeacher(), data={"train": dataset.fingerprint("train")})
        self.cache = TeacherCache.create(folder / "cache", info)
        Exporter(FakeTeacher(), FakeReader(keys), keys, 8).fill(self.cache)

    def build(self, kind="camera", code=0):
        named = ("--cache_dir", self.cache.directory, "--memory_dir", self.folder / kind)
        return run("memory", "build", "--data_root", self.root, *named, "--keys", kind, code=code)


@pytest.fixture
def drives(small, tmp_path):
    return Drives(small({"train": (9, 12, 8), "valid": (7,)}), tmp_path)


@pytest.mark.parametrize("kind", ["camera", "teacher"])
def test_a_memory_is_built_and_judged(drives, kind):
    assert "20 windows" in drives.build(kind)
    shown = json.loads(run("memory", "stats", "--memory-dir", drives.folder / kind, "--json"))
    assert (shown["kind"], shown["windows"], shown["segments"]) == (kind, 20, 3)
    assert [row["name"] for row in shown["answered"]] == [
        "mean of all",
        "random window",
        "nearest window",
        "8 nearest, tau 0.1",
    ]
    assert "is not empty" in drives.build(kind, code=2)


def test_the_wheel_angle_error_of_stats_is_that_of_a_loop_over_other_segments(drives):
    drives.build("teacher")
    bank = MemoryBank.open(drives.folder / "teacher")
    found = {each.name: each for each in memory_stats(bank, 8, 0.1).answered}
    angles = bank.cache.read(bank.windows, ["actions"])["actions"][..., 0]
    errors = []
    for row, key in enumerate(bank.windows):
        others = [i for i, k in enumerate(bank.windows) if k.split(":")[0] != key.split(":")[0]]
        best = max(others, key=lambda i: float(bank.vectors[row].astype(float) @ bank.vectors[i]))
        errors.append(np.square(angles[best] - angles[row]).mean())
    assert found["nearest window"].mse == pytest.approx(np.mean(errors), rel=1e-5)
    pairs = np.square(angles.ravel()[:, None] - angles.ravel()).mean()
    assert found["random window"].mse == pytest.approx(pairs, rel=1e-4)
    halves = found["8 nearest, tau 0.1"]
    assert (halves.confident_mse + halves.unsure_mse) / 2 == pytest.approx(halves.mse, rel=1e-5)


def test_a_query_shows_neighbours_and_the_label(drives):
    drives.build()
    named = ("--memory-dir", drives.folder / "camera", "--data-root", drives.root)
    rows = json.loads(run("memory", "query", *named, "--topk", 3, "--json"))
    assert len(rows) == 5
    batch = drives.readers["valid"].read([0])
    assert rows[0]["window"] == batch.keys[0] == "valid/segment_0003:0"
    assert rows[0]["label_deg"] == pytest.approx(float(batch.actions[0, -1, 0]))
    assert len(rows[0]["neighbours"]) == 3
    one = run("memory", "query", *named, "--split", "train", "--window", "train/segment_0001:2")
    assert "train/segment_0001:2" in one
    refused = run("memory", "query", *named, "--window", "valid/segment_0003:99", code=2)
    assert "valid has no window" in refused


def test_a_memory_of_a_cache_of_every_second_window_is_built(drives):
    keys = [key for key in drives.cache.keys if int(key.rpartition(":")[2]) % 2 == 0]
    info: CacheInfo = replace(drives.cache.info, stride=2)
    cache = TeacherCache.create(drives.folder / "second", info)
    cache.append(keys, drives.cache.read(keys, list(info.fields)))
    drives.cache = cache
    assert f"{len(keys)} windows" in drives.build()


def test_a_memory_of_other_data_or_of_no_cache_is_not_built(drives, tmp_path):
    table = drives.root / "train" / "segment_0000" / "meta" / "data.csv"
    table.write_text(table.read_text().replace(",0,", ",0.5,", 1))
    assert "is stale" in drives.build(code=2)
    missing = ("--cache-dir", tmp_path / "none", "--data-root", drives.root)
    assert "is no teacher cache" in run("memory", "build", *missing, code=2)


@pytest.mark.parametrize("kind", ["camera", "teacher"])
def test_training_recalls_from_other_times_than_its_own(drives, kind):
    drives.build(kind)
    bank = MemoryBank.open(drives.folder / kind)
    remember = Recollection(bank, ("actions", "bev_vec", "gru_out"), k=20)
    batch = drives.readers["train"].read([0, 7, 12])
    recall = remember(batch)
    assert recall.fields["actions"].shape == (3, T, 2)
    assert recall.fields["gru_out"].shape == (3, T, 5)
    for key, rows in zip(batch.keys, recall.rows, strict=True):
        own, start = key.split(":")
        found = [bank.windows[row].split(":") for row in rows if row >= 0]
        assert all(segment != own or abs(int(s) - int(start)) >= T for segment, s in found)
        assert any(segment == own for segment, _ in found)
    assert ((recall.confidence > 0) & (recall.confidence <= 1)).all()


def test_a_camera_memory_answers_windows_that_the_cache_does_not_know(drives):
    drives.build("camera")
    bank = MemoryBank.open(drives.folder / "camera")
    batch = drives.readers["valid"].read([0, 1])
    recall = Recollection(bank, ("actions",))(batch)
    assert (recall.rows >= 0).all()


def test_windows_of_other_data_may_recall_one_of_the_same_key(drives):
    drives.build("camera")
    bank = MemoryBank.open(drives.folder / "camera")
    reader = drives.readers["train"]
    other = replace(reader.dataset, segments=reader.dataset.segments[1:])
    assert excluded_frames(bank, reader.dataset, "train") is None
    assert excluded_frames(bank, other, "train") == 0
    batch = reader.read([0])
    for left_out, itself in ((None, False), (0, True)):
        recall = Recollection(bank, ("actions",), k=1, exclude_frames=left_out)(batch)
        assert (bank.windows[recall.rows[0, 0]] == batch.keys[0]) is itself
