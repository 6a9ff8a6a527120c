"""What is learned drives: laps on tracks that nobody has seen, and none without eyes."""

import json
import time
from types import SimpleNamespace

import pytest
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.demo import run_demo
from end2race.driver import Driver
from end2race.evaluation_run import teacher_errors
from end2race.exporting import ExportSettings, export_cache
from end2race.race_day import Setting, race_day
from end2race.restore import restore
from end2race.sim.closed_loop import unseen_tracks
from end2race.sim.collect import Collection, collect
from end2race.training_run import run_student, run_teacher

SMALL = {"data.seq_len": 1, "train.max_steps": 60, "train.batch_size": 8}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """480 frames of the simulator, and a teacher after 60 updates of 8 clouds."""
    folder = tmp_path_factory.mktemp("learning")
    root = folder / "set"
    collect(root, "train", Collection(tracks=6, drives=2))
    collect(root, "valid", Collection(tracks=1, drives=2))
    teacher = run_teacher(
        None,
        ["train.validate_interval=null"],
        {"data.root": root, **SMALL},
        directory=folder / "teacher",
        quiet=True,
    )
    return SimpleNamespace(folder=folder, root=root, teacher=teacher)


def laps(checkpoint, tracks, *, blank=False):
    driver = {"it": Driver.load(checkpoint)}
    heat = race_day(driver, Setting(tracks=tracks), blank=blank)["it"]
    return sum(result.completed for result in heat.results)


def test_a_teacher_laps_unseen_tracks_and_none_with_empty_clouds(small_world):
    tracks = unseen_tracks(4, seed=7)
    assert laps(small_world.teacher, tracks) >= 3
    assert laps(small_world.teacher, tracks, blank=True) == 0


def test_a_student_without_any_label_learns_its_teachers_answers(small_world):
    """On drives that it has not seen, to less than half the error of the mean answer."""
    folder, root = small_world.folder, small_world.root
    cache = folder / "cache"
    for split in ("train", "valid"):
        settings = ExportSettings(root, small_world.teacher, cache, split)
        export_cache(settings, lambda line: None)
    student = run_student(
        None,
        ["train.validate_interval=null", f"kd.cache_dir={cache}", "label_fraction=0"],
        {"data.root": root, "init_path": small_world.teacher, "init_strict": False, **SMALL},
        directory=folder / "student",
        quiet=True,
    )
    dataset = open_dataset(root, ("valid",))
    listed = windows(dataset, "valid", 1)
    errors = teacher_errors(restore(student).model, cache, dataset, listed, "valid", 16)
    assert errors.metrics()["steer_mse"] < 0.5 * errors.target_variance[0]


@pytest.mark.slow
def test_the_demo_keeps_its_promises_in_eight_cpu_minutes(tmp_path, monkeypatch):
    """Collect, teach, cache, distil, drive: about 200 CPU-seconds."""
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    run_demo([], tmp_path / "demo")
    assert time.process_time() - began < 480
    found = json.loads((tmp_path / "demo/laps.json").read_text())
    finished = {name: heat["score"]["laps"] for name, heat in found.items()}
    assert finished["expert"] == 8
    assert finished["teacher"] >= 7
    assert finished["KD"] >= finished["BC"]
    assert finished["copycat"] == finished["constant"] == 0
    tracks = unseen_tracks(8)
    for name in ("data/end2race/teacher", "demo/kd"):
        assert laps(tmp_path / name, tracks, blank=True) < 2, name
