"""Trainings on drives of a few frames: what they write, refuse, repeat and restore."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from end2race.cli import app
from end2race.config import TeacherConfig, TrainSection
from end2race.data.batches import BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.driver import Driver
from end2race.driving import answer
from end2race.restore import ModelFile, begin_from, restore, save_model
from end2race.training import Batches
from end2race.training_run import run_teacher
from loom.errors import UserError
from loom.files import write_json
from loom.loop import Shard
from loom.record import read_records
from typer.testing import CliRunner

SPLITS = {"train": (9, 9), "valid": (7,)}
SHORT = {
    "train.max_steps": 6,
    "train.batch_size": 4,
    "train.validate_interval": 3,
    "data.seq_len": 3,
    "log_interval": 1,
    "checkpoint_interval": 2,
}


def teach(root: Path, directory: Path, resume=False, **flags) -> Path:
    settings = SHORT | {key.replace("__", "."): value for key, value in flags.items()}
    return run_teacher(
        flags={"data.root": root, **settings}, directory=directory, resume=resume, quiet=True
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A dataset, and a teacher that was trained on it for six updates."""
    from importlib import util

    here = Path(__file__).with_name("conftest.py")
    spec = util.spec_from_file_location("end2race_conftest", here)
    conftest = util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    folder = tmp_path_factory.mktemp("taught")
    root = conftest.write_small(folder / "set", SPLITS, target=True)
    return SimpleNamespace(root=root, run=teach(root, folder / "run"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return restore(run).model.state_dict()


def untimed(run: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in read_records(run)
    ]


def test_a_training_leaves_records_a_model_its_judgement_and_a_page(taught):
    rows = read_records(taught.run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss/steer", "loss_share/steer", "loss_share/speed"} <= rows[0].keys()
    assert "metric/overall_weighted_mse" in rows[-1]
    judged = json.loads((taught.run / "evaluation" / "open_loop.json").read_text())
    assert set(judged["drivers"]) == {"model", "blanked", "copycat", "constant"}
    assert judged["samples"] == 5 * 3  # every frame of every window, once
    assert "copycat" in (taught.run / "report.html").read_text(encoding="utf-8")


def test_the_validation_of_the_training_is_that_of_the_judgement(taught):
    judged = json.loads((taught.run / "evaluation" / "open_loop.json").read_text())
    last = read_records(taught.run)[-1]
    for name, value in judged["drivers"]["model"].items():
        assert last[f"metric/{name}"] == pytest.approx(value, rel=1e-6), name


def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(taught, tmp_path):
    run = tmp_path / "killed"
    shutil.copytree(taught.run, run)
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / "step_000006")  # as a kill after step 5 leaves it
    (checkpoints / "final.json").unlink()
    for pointer in ("latest", "best"):
        (checkpoints / f"{pointer}.json").unlink(missing_ok=True)
    teach(taught.root, run, resume=True)
    resumes = json.loads((run / "run.json").read_text())["resumes"]
    assert resumes[-1]["step"] < 6
    for key, value in weights(taught.run).items():
        assert torch.equal(weights(run)[key], value), key
    assert untimed(run) == untimed(taught.run)


def test_another_seed_is_another_training(taught, tmp_path):
    other = teach(taught.root, tmp_path / "other", seed=1)
    assert not torch.equal(
        weights(other)["policy.output_layer.weight"],
        weights(taught.run)["policy.output_layer.weight"],
    )


def test_other_data_is_refused_on_resume(taught, tmp_path):
    root, run = tmp_path / "set", tmp_path / "run"
    shutil.copytree(taught.root, root)
    shutil.copytree(taught.run, run)
    csv = root / "train" / "segment_0000" / "meta" / "data.csv"
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join(lines[:-1]) + "\n")
    config = (run / "config.yaml").read_text().replace(str(taught.root), str(root))
    (run / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"other data|data\.root"):
        teach(root, run, resume=True)


def reader_of(root: Path) -> BatchReader:
    dataset = open_dataset(root)
    return BatchReader(dataset, windows(dataset, "train", 3), images=False, points=True)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_batches(taught, world):
    reader = reader_of(taught.root)
    half = len(reader) // 2
    streams = [(np.arange(half), 4), (np.arange(half, len(reader)), 4)]
    draw = Batches(reader, streams, TrainSection(), seed=3)
    for step in (0, 2):  # within an epoch, so that no window comes twice
        whole = draw(step, Shard())
        parts = [draw(step, Shard(rank, world)) for rank in range(world)]
        assert {len(part.keys) for part in parts} == {8 // world}
        order = {key: row for row, key in enumerate(whole.keys)}
        for part in parts:
            rows = [order[key] for key in part.keys]
            for name in ("speed", "steering_input", "actions"):
                ours, theirs = getattr(part, name), getattr(whole, name)[rows]
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_inputs_are_withheld_for_whole_windows_in_their_share(taught):
    reader = reader_of(taught.root)
    streams = [(np.arange(len(reader)), 8)]
    section = TrainSection(steering_dropout=0.25, speed_dropout=0.0)
    draw = Batches(reader, streams, section, seed=0)
    batches = [draw(step, Shard()) for step in range(60)]
    missing = torch.cat([batch.steering_input.isnan() for batch in batches])
    assert (missing.all(1) == missing.any(1)).all()
    assert 0.18 < missing[:, 0].float().mean() < 0.32
    assert not any(batch.speed.isnan().any() for batch in batches)
    assert not any(batch.actions.isnan().any() for batch in batches)


def test_a_model_file_is_the_model_of_the_run(taught, tmp_path):
    restored = restore(taught.run)
    save_model(tmp_path / "teacher.pt", restored.model, restored.file)
    again = restore(tmp_path / "teacher.pt", "teacher")
    assert again.file == restored.file
    assert again.file.seq_len == 3
    reader = reader_of(taught.root)
    batch = reader.read([0, 3])
    assert torch.equal(answer(again.model, batch)[0], answer(restored.model, batch)[0])


def test_restoring_leaves_the_random_numbers_alone(taught):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    restore(taught.run)
    assert torch.equal(before, torch.get_rng_state())


def test_a_training_begins_from_the_weights_of_another_run(taught, tmp_path):
    fresh = restore(taught.run).model
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(0.5)
    skipped = begin_from(fresh, taught.run, skip_output_layer=True)
    assert skipped == ["policy.output_layer.bias", "policy.output_layer.weight"]
    source = weights(taught.run)
    for key, value in fresh.state_dict().items():
        expected = torch.full_like(value, 0.5) if key in skipped else source[key]
        assert torch.equal(value, expected), key


def test_weights_of_another_preset_are_refused_unless_what_fits_is_enough(taught, tmp_path):
    flags = {"preset": "racing-fine", "init_path": taught.run, "train.validate_interval": None}
    with pytest.raises(UserError, match="do not fit"):
        teach(taught.root, tmp_path / "a", **flags)
    teach(taught.root, tmp_path / "b", **flags, init_strict=False, train__max_steps=1)
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "[init] weights of" in log
    assert "new are" in log


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint"),
        (lambda run: (run / "model.json").unlink(), r"no model\.json"),
        (lambda run: (run / "model.json").write_text('{"kind": "bicycle"}'), "kind"),
        (lambda run: (run / "model.json").write_text('{"kind": '), r"model\.json"),
        (lambda run: write_json(run / "run.json", {"thread": "pinpad"}), "is a run of pinpad"),
    ],
)
def test_a_damaged_run_is_refused_by_name(taught, tmp_path, damage, message):
    run = tmp_path / "run"
    shutil.copytree(taught.run, run)
    damage(run)
    with pytest.raises(UserError, match=message):
        restore(run)


def test_the_run_of_another_thread_is_not_resumed_and_is_named_as_such(tmp_path):
    (tmp_path / "config.yaml").write_text("panorama: {width: 1008}\n")
    write_json(tmp_path / "run.json", {"thread": "coopcyl"})
    for name in ("train-teacher", "train-student"):
        done = CliRunner().invoke(app, [name, "--resume", "--run-dir", str(tmp_path)])
        assert done.exit_code == 2
        assert f"{tmp_path} is a run of coopcyl, not of end2race" in done.stderr


def test_any_bytes_as_a_model_file_are_refused(taught, tmp_path):
    path = tmp_path / "model.pt"
    save_model(path, restore(taught.run).model, restore(taught.run).file)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for content in (b"", b"PK\x03\x04", rng.bytes(2000), whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a model"):
            restore(path)


def test_a_teacher_in_place_of_a_student_is_refused(taught):
    with pytest.raises(UserError, match="holds a teacher, not a student"):
        restore(taught.run, "student")


def seen(cars: int, seed: int) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    points = [rng.uniform(-2, 6, (30, 4)).astype(np.float32) for _ in range(cars)]
    return SimpleNamespace(
        points=points, images=None, speed=rng.uniform(0, 6, cars), previous_steering=np.zeros(cars)
    )


def test_a_driver_answers_as_the_model_does_on_its_last_window(taught):
    restored = restore(taught.run)
    driver = Driver(restored.model, seq_len=3)
    driver.reset([None, None])
    moments = [seen(2, step) for step in range(5)]
    commands = [driver.act(moment) for moment in moments]
    for last, first in ((4, 2), (1, 0)):  # a full window, and the shorter one at the start
        window = moments[first : last + 1]
        for car in range(2):
            clouds = [moment.points[car] for moment in window]
            frame = np.repeat(np.arange(len(window)), [len(cloud) for cloud in clouds])
            speed = torch.tensor([[moment.speed[car]] for moment in window], dtype=torch.float32)
            actions = restored.model(
                torch.from_numpy(np.concatenate(clouds)),
                torch.from_numpy(frame),
                1,
                len(window),
                speed[None],
                torch.zeros(1, len(window), 1),
            )[0]
            expected = actions[0, -1].detach().numpy()
            np.testing.assert_allclose(commands[last][car], expected, rtol=1e-4, atol=1e-4)


def test_a_driver_that_carries_its_state_remembers_more_than_a_window(taught):
    model = restore(taught.run).model
    commands = {}
    for mode in ("window", "carry"):
        for first in (0, 9):
            driver = Driver(model, seq_len=2, hidden_mode=mode)
            driver.reset([None])
            for moment in [seen(1, first), seen(1, 1), seen(1, 2)]:
                commands[mode, first] = driver.act(moment)
    np.testing.assert_array_equal(commands["window", 0], commands["window", 9])
    assert (commands["carry", 0] != commands["carry", 9]).any()


def test_a_driver_without_any_point_still_answers(taught):
    driver = Driver.load(taught.run)
    driver.reset([None])
    nothing = seen(1, 0)
    nothing.points = [np.empty((0, 4), np.float32)]
    assert np.isfinite(driver.act(nothing)).all()
    with pytest.raises(ValueError, match="reset for 1"):
        driver.act(seen(2, 0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data_root", "nowhere"], "nowhere"),
        (["--resume_path", "nowhere"], "no run to go on with"),
        (["--data_root", "SET", "--lidar_num_features", "8"], "declares 4"),
        (["--data_root", "SET", "--lidar_num_features", "5"], "4, 8 or auto"),
        (["--data_root", "SET", "--preset", "racy"], "racy"),
        (["--data_root", "SET", "--init_path", "nowhere"], "nowhere"),
        (["--data_root", "SET", "--seq_len", "50"], "no window of 50 frames"),
        (["--data_root", "SET", "--target_shift", "0"], "target"),
        (["--data_root", "SET", "--batch_size", "0"], "batch"),
        (["--data_root", "SET", "train.lr=fast"], "fast"),
        (["--data_root", "SET", "--device", "cuda"], "no CUDA device"),
        (["--log_dir", "a", "--checkpoint_path", "b"], "one directory here, not a and b"),
    ],
)
def test_wrong_arguments_are_named(taught, tmp_path, monkeypatch, arguments, said):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has one")
    monkeypatch.chdir(tmp_path)
    given = [str(taught.root) if each == "SET" else each for each in arguments]
    done = CliRunner().invoke(app, ["train-teacher", *given, "train.max_steps=1"])
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_the_command_takes_the_options_of_the_notes(taught, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("train: {max_steps: 500}\n")
    done = CliRunner().invoke(
        app,
        [
            *("train-teacher", "--data_root", str(taught.root), "--epochs", "1"),
            *("--config", "settings.yaml"),
            *("--lr", "1e-4", "--batch_size", "8", "--seq_len", "3", "--num_workers", "1"),
            *("--steer_loss_weight", "1.0", "--speed_loss_weight", "0.05"),
            *("--smooth_weight", "0.1", "--lidar_num_features", "auto", "--log_dir", "run"),
            *("--save_path", "teacher.pt", "--val_log_path", "val.csv"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "copycat" in done.output
    assert restore(tmp_path / "teacher.pt").file.kind == "teacher"
    assert "overall_weighted_mse" in (tmp_path / "val.csv").read_text().splitlines()[0]
    rows = read_records(tmp_path / "run")
    assert rows[-1]["step"] == round(14 / 8)
    assert rows[0]["loss/smooth"] >= 0


def test_an_evaluation_asks_for_the_speed_that_the_training_did(small, tmp_path):
    root = small(SPLITS)  # no commanded speed: the label is a later velocity
    run = teach(root, tmp_path / "run", data__target_shift=3, train__max_steps=3)
    said = ["--data-root", str(root), "--json-path", str(tmp_path / "e.json")]
    done = CliRunner().invoke(app, ["eval-teacher", "--teacher-ckpt", str(run), *said])
    assert done.exit_code == 0, done.output
    judged = json.loads((run / "evaluation" / "open_loop.json").read_text())["drivers"]
    found = json.loads((tmp_path / "e.json").read_text())["drivers"]
    for driver in ("model", "copycat"):
        assert found[driver]["speed_mse"] == pytest.approx(judged[driver]["speed_mse"], rel=1e-6)
    same = {**vars(restore(run).file), "target_shift": 1}
    assert replace(restore(run), file=ModelFile(**same)).settings() == restore(run).settings()


def test_an_evaluation_on_clouds_of_other_beams_than_the_teacher_knows_says_so(small, tmp_path):
    def declare(beams):
        write_json(root / "dataset.json", facts | {"lidar_beams": beams})

    root = small(SPLITS)
    facts = json.loads((root / "dataset.json").read_text())
    declare(8)
    run = teach(root, tmp_path / "run", train__max_steps=1)
    asked = ["eval-teacher", "--teacher-ckpt", str(run), "--data-root", str(root)]
    assert "[lidar]" not in CliRunner().invoke(app, asked).output
    declare(32)
    told = f"[lidar] the clouds of {root} have 32 beams, the teacher learned from 8"
    assert told in CliRunner().invoke(app, asked).output
    known = restore(run).file
    assert known.lidar_beams == 8
    unknown = replace(restore(run), file=ModelFile(**vars(known) | {"lidar_beams": None}))
    assert unknown.settings() == restore(run).settings()  # caches of its answers stay valid
    assert unknown.other_lidar(32, root) is None


def test_epochs_are_passes_over_the_windows():
    assert TrainSection(epochs=8, batch_size=16).steps(864) == 432
    assert TrainSection(epochs=8, max_steps=5).steps(864) == 5
    config = TeacherConfig()
    assert replace(config.train.rate(100)).at(0) < config.train.lr
