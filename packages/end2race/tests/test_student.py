"""Student trainings on drives of a few frames: labels, teacher cache, what is refused."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from end2race.cache.info import CacheInfo
from end2race.cache.store import TeacherCache
from end2race.cli import app
from end2race.config import DataSection, StudentConfig, TrainSection
from end2race.data.batches import BatchReader
from end2race.data.calibration import level_camera
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.driver import Driver
from end2race.evaluation_run import same_camera
from end2race.memory.bank import MemoryBank
from end2race.memory.recollection import describe_all
from end2race.restore import camera_file, restore
from end2race.teaching import CachedTeacher, RememberingTeacher
from end2race.train_student import labelled_segments, window_streams
from end2race.training_run import run_student
from loom.errors import UserError
from loom.record import read_records
from typer.testing import CliRunner

T = 3
FIELDS = {"actions": (T, 2), "gru_out": (T, 24), "bev_vec": (20,)}
SHORT = {
    "train.max_steps": 2,
    "train.batch_size": 4,
    "train.validate_interval": None,
    "data.seq_len": T,
    "log_interval": 1,
}
DAY = "a" * 64


def learn(root: Path, directory: Path, overrides=(), **flags) -> Path:
    settings = {key.replace("__", "."): value for key, value in flags.items()}
    settings = {"data.root": root} | SHORT | settings
    without = [] if settings["train.validate_interval"] else ["train.validate_interval=null"]
    return run_student(None, [*without, *overrides], settings, directory=directory, quiet=True)


def write_cache(directory: Path, root: Path, splits=("train",), windows_left_out=0) -> Path:
    """A cache of random answers to every window."""
    dataset = open_dataset(root)
    data = {split: dataset.fingerprint(split) for split in splits}
    cache = TeacherCache.create(directory, CacheInfo(DAY, data, T, 1, "float32", FIELDS))
    for split in splits:
        keys = [window.key for window in windows(dataset, split, T)]
        keys = keys[: len(keys) - windows_left_out]
        rng = np.random.default_rng(0)
        cache.append(
            keys,
            {
                "actions": rng.normal(size=(len(keys), T, 2)).astype(np.float32),
                "gru_out": rng.normal(size=(len(keys), T, 24)).astype(np.float32),
                "bev_vec": np.stack([frame_vectors(key) for key in keys]),
            },
        )
    return directory


def frame_vectors(key: str) -> np.ndarray:
    """The vectors of a window's frames: each follows from its frame alone."""
    start = int(key.rpartition(":")[2])
    seed = sum(map(ord, key.rpartition(":")[0]))
    return np.stack(
        [np.random.default_rng((seed, start + t)).normal(size=20) for t in range(T)]
    ).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of three training segments and a cache of all its answers."""
    from importlib import util

    spec = util.spec_from_file_location("helpers", Path(__file__).with_name("conftest.py"))
    helpers = util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    folder = tmp_path_factory.mktemp("student")
    root = helpers.write_small(folder / "set", {"train": (8, 8, 8), "valid": (6,)}, target=True)
    return SimpleNamespace(root=root, cache=write_cache(folder / "cache", root))


def log(run: Path) -> str:
    return (run / "log.txt").read_text(encoding="utf-8")


def test_a_student_learns_from_labels_and_from_its_teacher(made, tmp_path):
    run = learn(made.root, tmp_path / "run", kd__cache_dir=made.cache)
    row = read_records(run)[-1]
    shares = [row[f"loss_share/{t}"] for t in ("steer", "kd_action", "kd_bev_vec", "kd_temporal")]
    assert all(share > 0 for share in shares)
    assert row["metric/kd_confidence"] == 1.0
    assert "the cache answers 18 of 18 windows" in log(run)
    parents = json.loads((run / "run.json").read_text())["parents"]
    assert parents["teacher"]["sha256"] == DAY
    driver = Driver.load(run)
    driver.reset([None])
    image = np.zeros((1, 8, 16, 3), np.uint8)
    seen = SimpleNamespace(images=image, speed=np.ones(1), previous_steering=np.ones(1))
    assert np.isfinite(driver.act(seen)).all()


@pytest.mark.parametrize("labels", ["", "segment_0001"], ids=["all", "few"])
def test_distillation_with_weights_of_zero_is_behaviour_cloning_to_the_bit(made, tmp_path, labels):
    none = {"kd__action_weight": 0.0, "kd__bevvec_weight": 0.0, "kd__temporal_weight": 0.0}
    given = [f"labelled_segments=[{labels}]"]
    alone = learn(made.root, tmp_path / "alone", given)
    beside = learn(made.root, tmp_path / "beside", given, kd__cache_dir=made.cache, **none)
    assert "every weight is 0" in log(beside)
    for key, value in restore(alone).model.state_dict().items():
        assert torch.equal(restore(beside).model.state_dict()[key], value), key


def test_the_teacher_changes_what_is_learned(made, tmp_path):
    alone = learn(made.root, tmp_path / "alone")
    taught = learn(made.root, tmp_path / "taught", kd__cache_dir=made.cache)
    ours, theirs = (restore(run).model.state_dict() for run in (alone, taught))
    assert not torch.equal(ours["policy.output_layer.weight"], theirs["policy.output_layer.weight"])


def test_only_the_labelled_segments_teach_by_label(made, tmp_path):
    one = learn(made.root, tmp_path / "run", ["labelled_segments=[segment_0001]"])
    assert "6 of 18 training windows" in log(one)
    root = tmp_path / "set"
    shutil.copytree(made.root, root)
    for name in ("segment_0000", "segment_0002"):  # their labels turn to nonsense
        path = root / "train" / name / "meta" / "data.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        for row in rows:
            row["wheel_angle"] = "17"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    other = learn(root, tmp_path / "other", ["labelled_segments=[segment_0001]"])
    for key, value in restore(one).model.state_dict().items():
        assert torch.equal(restore(other).model.state_dict()[key], value), key


def test_with_a_teacher_each_batch_has_its_share_of_labelled_windows(made, tmp_path):
    run = learn(
        made.root,
        tmp_path / "run",
        ["labelled_segments=[segment_0001]", "labelled_share=0.25"],
        kd__cache_dir=made.cache,
    )
    assert "6 of 18 training windows" in log(run)
    assert read_records(run)[-1]["loss/steer"] > 0


def test_another_camera_is_refused_on_resume(made, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(made.root, root)
    run = learn(root, tmp_path / "run")
    path = root / "calibration.json"
    content = json.loads(path.read_text())
    content["cameras"]["front"]["translation"][2] += 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="other data\n  camera: "):
        run_student(directory=run, resume=True, quiet=True)


def test_no_label_at_all_leaves_the_teacher(made, tmp_path):
    run = learn(made.root, tmp_path / "run", kd__cache_dir=made.cache, label_fraction=0.0)
    row = read_records(run)[-1]
    assert row["loss/steer"] == 0.0
    assert row["loss_share/kd_action"] > 0


def test_a_fraction_of_labels_takes_whole_segments_drawn_by_the_seed(made, tmp_path):
    run = learn(made.root, tmp_path / "run", label_fraction=0.34)
    assert "12 of 18 training windows" in log(run)  # two segments of three: a third is not enough


SEEDED = SimpleNamespace(rng=lambda name: np.random.default_rng(0))


def test_seven_hundredths_of_a_hundred_segments_are_seven(monkeypatch, tmp_path):
    names = SimpleNamespace(segments=[SimpleNamespace(name=f"s{i}") for i in range(100)])
    listed = [SimpleNamespace(segment=i) for i in range(100)]
    monkeypatch.setattr("end2race.train_student.open_dataset", lambda root, splits: names)
    monkeypatch.setattr("end2race.train_student.windows", lambda *_: listed)
    config = StudentConfig(label_fraction=0.07, data=DataSection(root=tmp_path))
    assert len(labelled_segments(config, SEEDED)) == 7


def test_a_segment_too_short_for_a_window_is_not_drawn_for_its_labels(small):
    root = small({"train": (2, 8, 2, 2)})
    config = StudentConfig(label_fraction=0.5, data=DataSection(root=root, seq_len=T))
    assert labelled_segments(config, SEEDED) == ("segment_0001",)


def test_a_share_of_labels_that_processes_cannot_divide_is_refused():
    drives = SimpleNamespace(labelled=np.arange(20) < 5)
    config = StudentConfig(labelled_share=0.125, train=TrainSection(batch_size=16, accumulate=4))
    with pytest.raises(UserError, match="2 labelled windows of a batch of 16 .* 4 parts"):
        window_streams(config, drives, distils=True)
    whole = StudentConfig(labelled_share=0.25, train=TrainSection(batch_size=16, accumulate=4))
    assert [count for _, count in window_streams(whole, drives, distils=True)] == [4, 12]


def test_the_constant_driver_knows_the_labels_that_the_student_had(made, tmp_path):
    given = ["labelled_segments=[segment_0002]"]
    run = learn(made.root, tmp_path / "run", given, train__validate_interval=2)
    constant = json.loads((run / "evaluation/open_loop.json").read_text())["drivers"]["constant"]
    dataset = open_dataset(made.root)
    labels = {
        split: np.concatenate(
            [
                dataset.segments[w.segment].wheel_angle[w.start : w.start + T]
                for w in windows(dataset, split, T)
                if split == "valid" or "segment_0002" in w.key
            ]
        )
        for split in ("train", "valid")
    }
    expected = np.square(labels["valid"] - labels["train"].mean()).mean()
    assert constant["steer_mse"] == pytest.approx(expected, rel=1e-5)


def test_a_window_without_an_answer_is_an_error_or_left_out(made, tmp_path):
    partial = write_cache(tmp_path / "partial", made.root, windows_left_out=3)
    with pytest.raises(UserError, match="answers only 15 of 18 windows"):
        learn(made.root, tmp_path / "a", kd__cache_dir=partial)
    run = learn(made.root, tmp_path / "b", kd__cache_dir=partial, kd__missing="skip")
    assert "15 of 18 windows" in log(run)
    cache = TeacherCache.open(partial)
    keys = [window.key for window in windows(open_dataset(made.root), "train", T)]
    answers = CachedTeacher(cache, ("actions",), skip_missing=True)([keys[-1], keys[0]])
    assert answers.confidence.tolist() == [0.0, 1.0]
    assert (answers.fields["actions"][0] == 0).all()
    with pytest.raises(UserError, match="has nothing on"):
        CachedTeacher(cache, ("actions",), skip_missing=False)([keys[-1]])


def test_a_window_without_an_answer_is_told_what_similar_ones_had(made, tmp_path):
    """The memory knows two segments; the third one has its images alone."""
    partial = write_cache(tmp_path / "partial", made.root, windows_left_out=6)
    bank, cache = tmp_path / "bank", TeacherCache.open(partial)
    dataset = open_dataset(made.root)
    held = [window for window in windows(dataset, "train", T) if window.key in cache]
    reader = BatchReader(dataset, held, images=True, points=False)
    MemoryBank.build(cache, describe_all(reader, "camera", cache), "camera").save(bank)
    run = learn(
        made.root,
        tmp_path / "run",
        kd__cache_dir=partial,
        kd__memory="topk",
        kd__memory_dir=bank,
        kd__topk=3,
    )
    assert "the cache answers 12 of 18 windows" in log(run)
    assert "the memory of 12 windows is asked about 6" in log(run)
    assert 0 < read_records(run)[-1]["metric/kd_confidence"] <= 1.0

    memory = MemoryBank.open(bank)
    keys = [window.key for window in windows(dataset, "train", T)]
    asked = {keys[-1]: memory.vectors[0]}  # as if it looked like the first window of the memory
    cached = CachedTeacher(memory.cache, ("actions", "bev_vec"), skip_missing=True)
    ask = RememberingTeacher(cached, memory, asked, ("actions", "bev_vec"), k=1, tau=0.1)
    told = ask([keys[0], keys[-1]])
    same = memory.cache.read([memory.windows[0]], ["actions", "bev_vec"])
    assert told.confidence.tolist() == [1.0, 1.0]  # one neighbour agrees with itself
    for name, values in told.fields.items():
        np.testing.assert_allclose(values[1], same[name][0], rtol=1e-6)
        np.testing.assert_allclose(values[0], memory.cache.read(keys[:1], [name])[name][0])


def test_a_cache_without_any_answer_and_a_memory_of_another_teacher_are_refused(made, tmp_path):
    empty = write_cache(tmp_path / "empty", made.root, ("valid",))
    with pytest.raises(UserError, match="answers only 0 of 18"):
        learn(made.root, tmp_path / "a", kd__cache_dir=empty, kd__missing="skip")

    other = write_cache(tmp_path / "other", made.root)
    path = other / "cache.json"
    path.write_text(path.read_text().replace(DAY, "b" * 64))
    cache, dataset = TeacherCache.open(other), open_dataset(made.root)
    reader = BatchReader(dataset, windows(dataset, "train", T), images=True, points=False)
    MemoryBank.build(cache, describe_all(reader, "camera", cache), "camera").save(tmp_path / "bank")
    partial = write_cache(tmp_path / "partial", made.root, windows_left_out=6)
    asked = {"kd__cache_dir": partial, "kd__memory": "topk", "kd__memory_dir": tmp_path / "bank"}
    with pytest.raises(UserError, match="not those of the teacher"):
        learn(made.root, tmp_path / "b", **asked)
    learn(made.root, tmp_path / "c", kd__allow_stale=True, **asked)


def test_a_memory_needs_a_bank_and_a_bank_needs_the_memory(made, tmp_path):
    for flags in ({"kd__memory": "topk"}, {"kd__memory_dir": tmp_path}):
        with pytest.raises(UserError, match="topk needs a bank"):
            learn(made.root, tmp_path / "run", kd__cache_dir=made.cache, **flags)


def test_a_cache_of_other_data_or_windows_is_refused(made, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(made.root, root)
    path = root / "train" / "segment_0000" / "meta" / "data.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="stale: data of train"):
        learn(root, tmp_path / "a", kd__cache_dir=made.cache)
    with pytest.raises(UserError, match="seq_len 3, expected 2"):
        learn(made.root, tmp_path / "b", kd__cache_dir=made.cache, data__seq_len=2)
    with pytest.raises(UserError, match="holds no bev_feat"):
        learn(made.root, tmp_path / "c", kd__cache_dir=made.cache, kd__bevfeat_weight=1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher_cache_dir", "nowhere"], "nowhere"),
        (["--label_fraction", "0"], "nothing to learn from"),
        (["labelled_segments=[segment_0009]"], "segment_0009"),
        (["--view_transform", "magic"], "magic"),
        (["--kd_missing", "maybe"], "maybe"),
        (["--train_split", "lost"], "lost"),
    ],
)
def test_wrong_arguments_are_named(made, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = ["--data_root", str(made.root), "--seq_len", "3", "--max_steps", "1", *arguments]
    done = CliRunner().invoke(app, ["train-student", *given])
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_the_commands_take_the_options_of_the_notes(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = write_cache(tmp_path / "cache", made.root, ("train", "valid"))
    data = ["--data_root", str(made.root), "--seq_len", "3", "--batch_size", "4"]
    done = CliRunner().invoke(
        app,
        [
            *("train-student", *data, "--train_split", "train", "--val_split", "valid"),
            *("--epochs", "0.5", "--lr", "1e-4", "--num_workers", "1"),
            *("--teacher_cache_dir", str(cache), "--kd_action_w", "0.5", "--kd_bevvec_w", "0.5"),
            *("--kd_temporal_w", "0.1", "--kd_missing", "error", "--label_fraction", "1.0"),
            *("--save_path", "student.pt", "--csv_log_path", "log.csv", "--view_transform"),
            *("identity", "--checkpoint_path", "run"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert read_records(tmp_path / "run")[-1]["step"] == round(0.5 * 18 / 4)
    assert "loss_share" in (tmp_path / "log.csv").read_text().splitlines()[0]
    assert restore(tmp_path / "student.pt").file.view_transform == "identity"

    evaluation = ["eval-student", *data, "--student_ckpt", "student.pt", "--csv_path", "e.csv"]
    for more in ((), ("--teacher_cache_dir", str(cache), "--json_path", "e.json")):
        done = CliRunner().invoke(app, [*evaluation, "--overall_weights", "1.0,0.5", *more])
        assert done.exit_code == 0, done.output
    assert "[constant] gives the mean of these windows' own labels" in done.output
    rows = list(csv.DictReader((tmp_path / "e.csv").read_text().splitlines()))
    assert [row["split"] for row in rows] == ["valid", "valid"]
    assert rows[0]["steer_mse"] == rows[1]["steer_mse"]
    assert rows[0]["kd_steer_mse"] == "" != rows[1]["kd_steer_mse"]
    weighted = float(rows[0]["steer_mse"]) + 0.5 * float(rows[0]["speed_mse"])
    assert float(rows[0]["overall_weighted_mse"]) == pytest.approx(weighted)
    drivers = json.loads((tmp_path / "e.json").read_text())["drivers"]
    assert set(drivers) == {"model", "blanked", "copycat", "constant", "to teacher"}
    printed = json.loads(CliRunner().invoke(app, [*evaluation, "--json"]).stdout)
    assert printed[0]["steer_mse"] == pytest.approx(float(rows[0]["steer_mse"]))


def test_an_evaluation_with_the_images_of_another_camera_says_so():
    own = level_camera(16, 8, 10.0, (0.2, 0.0, 0.2))
    assert same_camera(camera_file(own), own)
    assert not same_camera(camera_file(own), level_camera(16, 8, 10.0, (0.2, 0.0, 0.3)))
    assert not same_camera(camera_file(own), None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--overall_weights", "1.0"], "overall_weights has 1"),
        (["--overall_weights", "one,two"], "not a list of numbers"),
        (["--action_names", "a,b,c"], "action_names has 3"),
        (["--split", "lost"], "lost"),
        (["--student_ckpt", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_of_an_evaluation_are_named(made, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = ["--data_root", str(made.root), "--student_ckpt", "x.pt", *arguments]
    if "--split" in arguments:
        learn(made.root, tmp_path / "x.pt", train__max_steps=1)
    done = CliRunner().invoke(app, ["eval-student", *given])
    assert done.exit_code == 2, done.output
    assert said in done.output
