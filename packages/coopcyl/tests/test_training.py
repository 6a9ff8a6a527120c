"""Trainings and judgements: small ones through the real files."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coopcyl import judging
from coopcyl.cli import app
from coopcyl.data.frame_yaml import read_frame
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import read_tree
from coopcyl.evaluate import Evaluation, confidence_curve, evaluation_sets, predict_sample
from coopcyl.geometry.carla import cords_from_pose, pose_from_cords
from coopcyl.judging import Question, run_predictions, shuffled
from coopcyl.pages import write_report
from coopcyl.restore import restore_model
from coopcyl.train_config import TrainConfig
from coopcyl.training_run import GROUPS, run_training
from loom.checkpoint import Checkpoints
from loom.config import resolve
from loom.errors import UserError
from loom.record import read_records
from typer.testing import CliRunner

TRAINING = Path(__file__).with_name("train_in_group.py")
TINY = (
    "panorama.width=64",
    "panorama.height=32",
    "model.widths=[8, 8, 16]",
    "model.token_width=16",
    "model.descriptor=8",
    "model.range_bins=12",
    "model.precision=fp32",
    "train_params.warmup_steps=2",
    "train_params.global_batch=2",
    "train_params.epochs=2",
    "train_params.steps_per_epoch=3",
    "dataset.val.max_sets_per_epoch=2",
    "solver.hypotheses=50",
    "log_interval=1",
    "gates=[]",
)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes to learn from and two to judge on, images of 64x48."""
    root = tmp_path_factory.mktemp("town")
    options = SynthOptions(
        scenarios=4, vehicles=(3, 3), width=64, depth=("npy",), lidar=(4, 60), seed=8
    )
    write_tree(root, options)
    write_tree(root, replace(options, split="validate", scenarios=2, seed=9))
    return root


def settings(town: Path, *more: str) -> tuple[str, ...]:
    return (*TINY, f"dataset.root={town}", f"dataset.cache={town.parent / 'cache'}", *more)


@pytest.fixture(scope="module")
def trained(town, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return run_training(None, settings(town), directory=folder)


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded = Checkpoints(run / "checkpoints").load_newest()
    assert loaded is not None
    return loaded.state["model"]


def test_a_training_leaves_metres_beside_their_baselines(trained):
    rows = read_records(trained)
    assert [row["step"] for row in rows] == list(range(1, 7))
    last = rows[-1]
    for baseline in ("identity", "mean_translation", "gps"):
        assert last[f"baseline/{baseline}/trans_err_m_median"] >= 0
    assert last["baseline/gps/trans_err_m_median"] < last["metric/trans_err_m_median"]
    for key in ("mask/pred_mean", "mask/gt_mean", "mask/valid_ratio", "perf/data_wait_share"):
        assert 0 <= rows[0][key] <= 1
    assert {"loss/range", "loss_weighted/match", "metric/valid_mask_ratio"} <= last.keys()
    results = json.loads((trained / "evaluation" / "results.json").read_text())
    assert results["metrics"]["trans_err_m_median"] == last["metric/trans_err_m_median"]
    page = (trained / "report.html").read_text()
    assert "identity" in page
    assert "Judged on 2 sets of validate" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.fixture
def of_another_thread(trained, tmp_path) -> Path:
    """A run of pinpad, with settings that mean nothing here."""
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    facts = other / "run.json"
    facts.write_text(facts.read_text().replace('"thread": "coopcyl"', '"thread": "pinpad"'))
    (other / "config.yaml").write_text("env: {layout: four}\n")
    return other


@pytest.mark.parametrize("command", ["eval", "predict", "render", "parity"])
def test_the_run_of_another_thread_is_refused_by_its_name(of_another_thread, command):
    for path in (of_another_thread, max((of_another_thread / "checkpoints").glob("step_*"))):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 2
        assert f"{of_another_thread} is a run of pinpad, not of coopcyl" in result.stderr
        assert "coopcyl train" in result.stderr


def test_the_run_of_another_thread_is_not_resumed(of_another_thread):
    words = ["train", "--resume", "--run-dir", str(of_another_thread)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "is a run of pinpad, not of coopcyl" in result.stderr


def test_the_page_of_another_threads_run_or_of_no_run_is_not_touched(of_another_thread, tmp_path):
    (of_another_thread / "report.html").write_text("its own")
    with pytest.raises(UserError, match="is a run of pinpad"):
        write_report(of_another_thread)
    assert (of_another_thread / "report.html").read_text() == "its own"
    with pytest.raises(UserError, match="no run.s directory"):
        write_report(tmp_path)


def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(trained, town, tmp_path):
    def stop(step: int) -> str | None:
        return "enough for today" if step == 4 else None

    from coopcyl import train as module

    fit = module.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", lambda *a, **k: fit(*a, stop=stop, **k))
        run_training(None, settings(town), directory=tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4]
    run_training(None, None, directory=tmp_path / "run", resume=True)
    for name, value in weights(trained).items():
        assert torch.equal(value, weights(tmp_path / "run")[name]), name


def test_a_resume_with_other_settings_is_refused_with_both_values(trained, town):
    with pytest.raises(UserError, match=r"train_params.lr: 0.0015 -> 0.5"):
        run_training(None, settings(town, "train_params.lr=0.5"), directory=trained, resume=True)


def test_without_depth_nothing_is_trained_and_poses_are_predicted(trained, town, tmp_path):
    with pytest.raises(UserError, match="nothing to learn from"):
        run_training(None, settings(town, "dataset.depth_format=none"), directory=tmp_path / "run")
    with_depth, without = tmp_path / "with.jsonl", tmp_path / "without.jsonl"
    run_predictions(Question(trained), with_depth)
    run_predictions(Question(trained, ["dataset.depth_format=none"]), without)
    assert with_depth.read_text() == without.read_text()


def test_learning_rate_and_steps_follow_from_the_settings_alone():
    config = resolve(
        TrainConfig,
        overrides=[
            "dataset.max_sets_per_epoch=5000",
            "train_params.epochs=4",
            "train_params.warmup_steps=100",
            "train_params.lr=1e-3",
            "train_params.min_lr=1e-5",
        ],
    ).config
    assert (config.steps_per_epoch, config.max_steps) == (1250, 5000)
    rate = config.lr()
    golden = {
        0: 1e-5,
        49: 5e-4,
        99: 1e-3,
        100: 1e-3,
        2550: (1e-3 + 1e-5) / 2,  # the middle of the cosine
        5000: 1e-5,
        9000: 1e-5,
    }
    assert {step: rate.at(step) for step in golden} == pytest.approx(golden)


WORDS = [
    "machine=local3090",
    "dataset=opv2v_cyl_coop_ft",
    "model=mapanything",
    "loss=overall_loss",
    "train_params=opv2v_cyl_coop",
    "dataset.max_sets_per_epoch=5000",
]


def test_the_notes_words_are_groups_and_overrides():
    four = resolve(TrainConfig, overrides=WORDS, groups=GROUPS).config
    assert (four.model.name, four.loss.name) == ("mapanything", "overall_loss")
    assert (four.view_panorama.width, four.view_panorama.height) == (1008, 252)
    assert four.dataset.views == (2, 4)
    assert (four.train_params.epochs, four.train_params.lr) == (30, 5e-5)
    assert four.warmup_steps == 2 * four.steps_per_epoch == 2500
    words = [w.replace("coop_ft", "coop_ft_5gpu") for w in WORDS]
    five = resolve(TrainConfig, overrides=words, groups=GROUPS).config
    assert five == four  # the number of accelerators changes nothing


def test_a_loss_of_another_model_is_refused():
    with pytest.raises(UserError, match="model=cylnet is taught by loss=matching"):
        resolve(TrainConfig, overrides=["loss=overall_loss"], groups=GROUPS)


@pytest.mark.parametrize(("model", "size"), [("cylnet", 60), ("mapanything", 64)])
def test_panoramas_that_do_not_divide_are_refused(model, size):
    words = [f"model={model}", f"panorama.width={size}"]
    words += ["loss=overall_loss"] if model == "mapanything" else []
    with pytest.raises(UserError, match="multiples of"):
        resolve(TrainConfig, overrides=words, groups=GROUPS)


def test_more_warm_up_than_steps_is_refused():
    with pytest.raises(UserError, match="warmup_steps is 60, but there are only 25"):
        resolve(TrainConfig, overrides=["train_params.epochs=1", "dataset.max_sets_per_epoch=100"])


def spoil_the_truth(root: Path) -> None:
    """Put every vehicle somewhere else, rig and all, and fill the depth files with noise."""
    rng = np.random.default_rng(3)
    for frame in read_tree(root, "validate").frames:
        for agent in frame.agents:
            record = read_frame(agent.yaml)
            away = pose_from_cords([*rng.normal(0, 50, 3), *rng.normal(0, 40, 3)])
            text = agent.yaml.read_text()
            for cords in (record.lidar_cords, *(c.cords for c in record.cameras.values())):
                moved = cords_from_pose(away @ pose_from_cords(cords))
                for was, now in zip(cords, moved, strict=True):
                    text = text.replace(f"- {was!r}\n", f"- {float(now)!r}\n", 1)
            agent.yaml.write_text(text)
            assert read_frame(agent.yaml).lidar_cords != record.lidar_cords
            for path in agent.folder.glob("*_depth.npy"):
                np.save(path, rng.uniform(1, 80, np.load(path).shape).astype(np.float32))


def test_predictions_are_bit_identical_when_true_poses_and_depths_are_noise(
    trained, town, tmp_path
):
    spoiled = shutil.copytree(town, tmp_path / "spoiled")
    spoil_the_truth(spoiled)
    asked = [
        Question(trained, [f"dataset.cache={tmp_path / root.name}"], root).open()
        for root in (town, spoiled)
    ]
    here, there = (each.evaluate() for each in asked)
    assert np.abs(here.truths - there.truths).max() > 10
    np.testing.assert_array_equal(here.poses, there.poses)
    np.testing.assert_array_equal(here.confidence, there.confidence)
    np.testing.assert_array_equal(here.views["pred_mask_mean"], there.views["pred_mask_mean"])


def test_a_network_judged_again_gives_the_numbers_of_its_training(trained):
    asked = Question(trained).open()
    metrics = asked.evaluate().metrics()
    recorded = read_records(trained)[-1]
    for name, value in metrics.items():
        assert recorded[f"metric/{name}"] == value, name


def test_a_network_is_only_read_with_its_own_size(trained):
    with pytest.raises(UserError, match="model was"):
        Question(trained, ["model.descriptor=16"]).open()
    with pytest.raises(UserError, match="panorama was"):
        Question(trained, ["panorama.width=128"]).open()


def test_oracles_replace_what_they_name(trained):
    unknown = CliRunner().invoke(app, ["eval", str(trained), "--oracle", "dept"])
    assert unknown.exit_code == 2
    assert "there is no oracle dept" in unknown.stderr
    result = CliRunner().invoke(app, ["eval", str(trained), "--ladder", "--oracle", "pose"])
    assert result.exit_code == 2
    assert "--ladder and --oracle" in result.stderr
    asked = Question(trained).open()
    exact = asked.evaluate(frozenset({"pose"})).metrics()
    assert exact["trans_err_m_median"] == 0
    found = asked.evaluate(frozenset({"depth", "match"}))
    floor, identity = found.metrics(), found.baselines()["identity"]
    assert floor["trans_err_m_median"] < 0.25 * identity["trans_err_m_median"]  # huge tokens
    assert floor["absrel"] == asked.evaluate().metrics()["absrel"]


def test_restoring_takes_the_averaged_weights(trained):
    restored = restore_model(trained)
    loaded = Checkpoints(trained / "checkpoints").load(restored.checkpoint)
    for name, value in restored.model.state_dict().items():
        torch.testing.assert_close(value, loaded.state["ema"][name], rtol=0, atol=0)


def rows(errors: list[float], confidence: list[float]) -> Evaluation:
    count = len(errors)
    poses, truths = np.tile(np.eye(4), (count, 1, 1)), np.tile(np.eye(4), (count, 1, 1))
    truths[:, 0, 3] = 10 * np.arange(1, count + 1)
    poses[:, 0, 3] = truths[:, 0, 3] + errors
    return Evaluation(
        poses, truths, np.full_like(poses, np.nan), np.array(confidence), np.arange(count), {}
    )


def test_the_confidence_curve_takes_the_most_confident_first():
    found = rows([1.0, 2.0, 3.0, 4.0], [0.9, 0.1, 0.8, 0.2])
    assert confidence_curve(found, (0.25, 0.5, 1.0)) == [(0.25, 1.0), (0.5, 2.0), (1.0, 2.5)]


def test_predictions_beside_the_poses_of_others_are_no_better_than_chance():
    found = shuffled(rows([0.0, 0.0, 0.0], [1, 1, 1]))
    np.testing.assert_array_equal(found.trans_err_m(), [20, 10, 10])


def test_shuffled_poses_are_of_another_set_with_several_vehicles_too():
    found = replace(rows([0.0] * 5, [1] * 5), sets=np.array([0, 0, 1, 1, 2]))
    beside = shuffled(found)
    for row, true in enumerate(beside.truths):
        origin = np.nonzero(found.truths[:, 0, 3] == true[0, 3])[0][0]
        assert found.sets[origin] != found.sets[row]
    with pytest.raises(UserError, match="1 sets are too few"):
        shuffled(replace(found, sets=np.zeros(5, int)))


def test_predictions_are_of_all_vehicles_at_every_time_unless_asked_for_less(trained, tmp_path):
    everything, some = tmp_path / "new" / "all.jsonl", tmp_path / "some.jsonl"
    run_predictions(Question(trained, split="train"), everything)
    run_predictions(Question(trained, ["dataset.val.max_sets_per_epoch=1"]), some)
    header, *lines = map(json.loads, everything.read_text().splitlines())
    assert header["split"] == "train"
    assert [len(each["vehicles"]) for each in lines] == [3, 3, 3, 3]
    for each in lines:
        assert each["vehicles"][str(each["reference"])]["cam_trans"] == [0, 0, 0]
    assert len(some.read_text().splitlines()) == 2


def test_parity_holds_and_a_prediction_of_another_path_is_noticed(trained, monkeypatch):
    result = CliRunner().invoke(app, ["parity", str(trained), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["equal"]

    def darker(model, sample, solver):
        return predict_sample(model, replace(sample, rgb=0.9 * sample.rgb), solver)

    monkeypatch.setattr(judging, "predict_sample", darker)
    result = CliRunner().invoke(app, ["parity", str(trained), "--json"])
    assert result.exit_code == 3
    assert not json.loads(result.stdout)["equal"]


def test_gps_is_left_out_where_one_vehicle_has_none():
    assert set(rows([1.0, 2.0], [1, 1]).baselines()) == {"identity", "mean translation"}


def test_sets_to_judge_on_begin_with_the_ego_vehicle(town):
    sets = evaluation_sets(read_tree(town, "train").frames, (2, 3), 2)
    assert [len(each.agents) for each in sets] == [3, 3]
    for each in sets:
        numbers = [agent.agent for agent in each.agents]
        assert numbers == sorted(numbers)


def test_too_few_vehicles_are_refused_before_anything_runs(town):
    with pytest.raises(UserError, match="none of 2 times has 4 vehicles"):
        evaluation_sets(read_tree(town, "validate").frames, (4, 5), None)
    for views in ("[1, 2]", "[3, 2]"):
        with pytest.raises(UserError, match="a pose needs 2"):
            resolve(TrainConfig, overrides=[f"dataset.val.views={views}"])


def train_in_group(folder: Path, town: Path, processes: int, *arguments: str) -> Path:
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command = [sys.executable, *launcher, str(TRAINING), str(folder), *arguments]
    done = subprocess.run(
        [*command, *settings(town, "train_params.parts=2")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_parts_are_shared_out_evenly_or_refused():
    def config(parts: int | None) -> TrainConfig:
        overrides = ["train_params.global_batch=4"]
        overrides += [f"train_params.parts={parts}"] if parts else []
        return resolve(TrainConfig, overrides=overrides).config

    assert [config(None).accumulate(n) for n in (1, 2, 4)] == [1, 1, 1]
    assert [config(4).accumulate(n) for n in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(UserError, match="2, which 4 processes cannot share"):
        config(2).accumulate(4)
    with pytest.raises(UserError, match="8 parts of 4 sets"):
        config(8).accumulate(2)


@pytest.mark.dist
def test_two_processes_and_a_resume_on_one_give_the_weights_of_one_process(town, tmp_path):
    alone = train_in_group(tmp_path / "alone", town, 1)
    both = train_in_group(tmp_path / "both", town, 2)
    train_in_group(tmp_path / "mixed", town, 2, "--stop", "3")
    mixed = train_in_group(tmp_path / "mixed", town, 1, "--resume")
    expected = [(row["step"], row["lr/network"]) for row in read_records(alone)]
    for other in (both, mixed):
        assert [(row["step"], row["lr/network"]) for row in read_records(other)] == expected
        apart = {
            name: float((value - weights(other)[name]).abs().max())
            for name, value in weights(alone).items()
        }
        assert max(apart.values()) <= 1e-7, apart
        here, there = (
            json.loads((run / "evaluation" / "results.json").read_text())["trans_err_m"]
            for run in (alone, other)
        )
        assert len(here) == len(there)
