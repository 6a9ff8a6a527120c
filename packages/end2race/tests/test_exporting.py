"""`export-cache` and the cache commands, on a small dataset and a teacher with drawn weights."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from end2race import embedded
from end2race.cache.fingerprint import teacher_sha256
from end2race.cache.store import TeacherCache
from end2race.cli import app
from end2race.data.batches import BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.driving import answer
from end2race.restore import ModelFile, build, restore, save_model
from loom.files import write_json
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two teachers that differ in one weight."""
    folder = tmp_path_factory.mktemp("teachers")
    file = ModelFile(kind="teacher", preset="racing", seq_len=3, lidar_beams=8)
    torch.manual_seed(0)
    model = build(file)
    save_model(folder / "teacher.pt", model, file)
    with torch.no_grad():
        model.policy.output_layer.bias[0] += 1e-6
    save_model(folder / "other.pt", model, file)
    return folder


class Command:
    """The command line, with the data and the teacher filled in."""

    def __init__(self, root, teachers, cache):
        self.root, self.teachers, self.cache = root, teachers, cache

    def export(self, *arguments, teacher="teacher.pt", code=0):
        named = ("--data_root", self.root, "--teacher_ckpt", self.teachers / teacher)
        return self.run("export-cache", *named, "--cache_dir", self.cache, *arguments, code=code)

    def run(self, *arguments, code=0):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == code, done.output
        return done.output


@pytest.fixture
def command(small, teachers, tmp_path):
    root = small({"train": (7, 9), "valid": (6,)})
    facts = json.loads((root / "dataset.json").read_text())
    write_json(root / "dataset.json", facts | {"lidar_beams": 16})
    return Command(root, teachers, tmp_path / "cache")


def test_exported_answers_are_the_live_teachers(command):
    output = command.export("--split", "train", "--seq_len", 3, "--batch_size", 4, "--verify")
    assert "10 windows of 3 frames" in output
    assert "[lidar] the clouds of" in output
    assert "have 16 beams, the teacher learned from 8" in output
    assert re.search(r"\(export-cache\) \[10/10\]", output)
    assert "0 damaged shards" in output
    dataset = open_dataset(command.root, ("train",))
    chosen = windows(dataset, "train", 3)
    reader = BatchReader(dataset, chosen, images=False, points=True)
    cache = TeacherCache.open(command.cache)
    model = restore(command.teachers / "teacher.pt").model
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]):
        with torch.no_grad():
            actions, _, aux = answer(model, reader.read(rows), True)
        stored = cache.read([chosen[row].key for row in rows], ["actions", "gru_out", "bev_vec"])
        assert np.array_equal(stored["actions"], actions.numpy())
        assert np.array_equal(stored["gru_out"], aux["gru_out"].numpy())
        # A frame is stored from the first window that shows it, maybe of another batch.
        assert np.allclose(stored["bev_vec"], aux["bev_vec_seq"].numpy(), rtol=0, atol=1e-5)


def test_kebab_case_and_feature_maps_in_half_precision(command):
    command.export("--save-bev-feat", "--dtype", "fp16", "--seq-len", 2, "--num-workers", 0)
    info = TeacherCache.open(command.cache).info
    assert info.seq_len == 2
    assert info.fields["bev_feat"] == (64, 8, 8)
    assert info.dtype == "float16"


def test_an_export_that_is_complete_has_nothing_to_do(command):
    command.export()
    assert "0 windows written" in command.export()


def test_a_partial_export_goes_on_with_resume_only(command):
    command.export("--stride", 1)
    cache = TeacherCache.open(command.cache)
    index = json.loads((command.cache / "shard-000000.json").read_text())
    assert len(index["windows"]) == len(cache) == 10
    longer = command.root / "train" / "segment_0009"
    assert not longer.exists()
    # What a killed export leaves: some windows of the split are not there.
    values = cache.read(index["windows"][:4], list(cache.info.fields))
    for path in command.cache.glob("shard*"):
        path.unlink()
    TeacherCache.open(command.cache).append(index["windows"][:4], values)
    output = command.export(code=2)
    assert "holds 4 of 10 windows" in output
    assert "--resume" in output
    assert "6 windows written" in command.export("--resume")
    assert len(TeacherCache.open(command.cache)) == 10


def test_splits_go_into_one_cache(command):
    command.export("--split", "train")
    command.export("--split", "valid")
    facts = json.loads(command.run("cache", "inspect", command.cache, "--json"))
    rows = [
        (row["split"], row["segment"], row["windows"], row["frames"]) for row in facts["segments"]
    ]
    assert rows == [  # of n frames the last one is only a label
        ("train", "segment_0000", 4, 6),
        ("train", "segment_0001", 6, 8),
        ("valid", "segment_0002", 3, 5),
    ]


def test_another_teacher_other_data_and_another_window_length_are_refused(command):
    command.export()
    assert "teacher_sha256" in command.export(teacher="other.pt", code=2)
    assert "seq_len 3, expected 2" in command.export("--seq_len", 2, code=2)
    table = command.root / "train" / "segment_0000" / "meta" / "data.csv"
    lines = table.read_text().splitlines()
    assert lines[1].count(",")
    table.write_text("\n".join([lines[0], lines[1].replace(",0,", ",0.5,", 1), *lines[2:]]) + "\n")
    assert "data of train" in command.export(code=2)


def test_wrong_calls_say_what_to_do(command, tmp_path):
    assert "no --cache-dir" in command.run("export-cache", "--data-root", command.root, code=2)
    assert "declares 4 numbers" in command.export("--lidar_num_features", 8, code=2)
    assert "does not exist" in command.export(teacher="none.pt", code=2)
    assert "is no teacher cache" in command.run("cache", "verify", tmp_path, code=2)
    if not torch.cuda.is_available():
        assert "no CUDA device" in command.export("--device", "cuda", code=2)


def test_a_segment_whose_name_makes_no_key_is_refused_by_name(command):
    (command.root / "train" / "segment_0000").rename(command.root / "train" / "my drive")
    output = command.export(code=2)
    assert "'train/my drive:0' is no key" in output
    assert "rename" in output


def test_verify_finds_damage_and_repair_removes_it(command):
    command.export()
    assert "10 windows" in command.run("cache", "verify", command.cache)
    found = json.loads(command.run("cache", "verify", command.cache, "--json"))
    assert (found["windows"], found["damages"]) == (10, [])
    path = command.cache / "shard-000000.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "differs from its SHA-256" in command.run("cache", "verify", command.cache, code=2)
    assert "1 shards removed" in command.run("cache", "verify", "--repair", command.cache)
    assert "10 windows written" in command.export("--resume")


def test_a_cache_goes_out_to_npz_and_comes_back(command, tmp_path):
    command.export()
    folder, again = tmp_path / "npz", tmp_path / "again"
    command.run("cache", "convert", "--npz-compat", command.cache, folder)
    assert (folder / "train__segment_0000_0.npz").is_file()
    assert "no --data-root" in command.run("cache", "convert", folder, again, code=2)
    command.run("cache", "convert", folder, again, "--data-root", command.root)
    first, second = TeacherCache.open(command.cache), TeacherCache.open(again)
    assert second.info.data == first.info.data
    fields = list(first.info.fields)
    was, now = first.read(first.keys, fields), second.read(first.keys, fields)
    assert all(np.array_equal(was[name], now[name]) for name in fields)


def test_without_options_the_embedded_data_and_teacher_are_taken(
    command, teachers, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "default_dataset", lambda say: command.root)
    monkeypatch.setattr(embedded, "default_teacher", lambda say: teachers / "teacher.pt")
    assert "10 windows written" in command.run("export-cache")
    assert len(TeacherCache.open(tmp_path / "data" / "end2race" / "teacher-cache")) == 10


def test_the_embedded_teacher_is_trained_once(tmp_path, monkeypatch):
    begun = []

    def run_teacher(overrides, flags, directory, resume):
        assert overrides == embedded.TEACHER_SETTINGS
        begun.append((flags["data.root"], resume))
        directory.mkdir(exist_ok=True)
        state = "failed" if len(begun) == 1 else "finished"
        write_json(directory / "status.json", {"state": state})

    monkeypatch.setattr("end2race.training_run.run_teacher", run_teacher)
    monkeypatch.setattr(embedded, "default_dataset", lambda say, folder: folder)
    for _ in range(3):
        said = []
        found = embedded.default_teacher(said.append, tmp_path / "teacher", tmp_path / "data")
        assert found == tmp_path / "teacher"
    assert begun == [(tmp_path / "data", False), (tmp_path / "data", True)]
    assert said == []


def test_a_teacher_is_known_by_weights_and_settings_not_by_its_file():
    state = {"b": torch.arange(3.0), "a": torch.tensor([[1, 2]])}
    digest = teacher_sha256(state, {"preset": "racing"})
    assert digest == teacher_sha256(dict(reversed(state.items())), {"preset": "racing"})
    assert digest != teacher_sha256(state, {"preset": "kitti"})
    assert digest != teacher_sha256(
        {**state, "b": torch.tensor([0.0, 1.0, 2.5])}, {"preset": "racing"}
    )
    assert digest != teacher_sha256({**state, "a": torch.tensor([1, 2])}, {"preset": "racing"})
    assert digest != teacher_sha256({"c": state["b"], "a": state["a"]}, {"preset": "racing"})
    transposed = torch.arange(6.0).reshape(2, 3).T
    assert teacher_sha256({"w": transposed}, {}) == teacher_sha256(
        {"w": transposed.contiguous()}, {}
    )
    assert teacher_sha256({"w": torch.ones(2, dtype=torch.bfloat16)}, {}) != digest
