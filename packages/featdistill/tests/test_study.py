"""A study trains every condition with every seed, and its table says what the runs measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from featdistill import study
from featdistill.config import TrainConfig
from featdistill.study import REFERENCE, Settings, folder_name, markdown, plan, write_study
from loom.config import resolve
from loom.errors import UserError
from loom.files import write_json
from scipy import stats

SETTINGS = Settings(seeds=(3, 4, 5))


def config_of(job) -> TrainConfig:
    words = job.command[job.command.index("--archive") + 1 :]
    return resolve(TrainConfig, overrides=words).config


def test_conditions_differ_in_the_term_that_they_name_and_nothing_else(tmp_path):
    jobs = plan(SETTINGS, ("train.max_steps=7",), tmp_path).jobs
    assert len(jobs) == 9 * 3
    first = {job.name: config_of(job) for job in jobs if job.name.endswith("seed-3")}
    assert [config_of(job).seed for job in jobs[::9]] == [3, 4, 5]
    assert all(config.train.max_steps == 7 for config in first.values())

    def terms(name: str) -> tuple:
        config = first[f"{folder_name(name)}.seed-3"]
        pipeline, loss = config.feature_pipeline, config.loss
        if not pipeline.enabled:
            return (None, loss.opacity.weight, loss.opacity.target)
        weights = (loss.feature_l2.weight, loss.feature_cos.weight)
        return (pipeline.feature_source, *weights, loss.opacity.weight)

    assert terms(REFERENCE) == (None, 0.0, "teacher")
    assert terms("L2, per pixel") == ("per_pixel", 0.05, 0.0, 0.0)
    assert terms("cos, per pixel") == ("per_pixel", 0.0, 0.01, 0.0)
    assert terms("L2+cos, per sample") == ("per_sample", 0.05, 0.01, 0.0)
    assert terms("opacity towards teacher") == (None, 0.05, "teacher")
    assert terms("opacity towards 0.05") == (None, 0.05, 0.05)
    named = ("name", "seed", "feature_pipeline", "loss")
    rest = [config.model_dump(exclude=set(named)) for config in first.values()]
    assert all(each == rest[0] for each in rest)


def test_what_the_study_sets_cannot_be_set_twice(tmp_path):
    with pytest.raises(UserError, match="seed is set by the study"):
        plan(SETTINGS, ("seed=1",), tmp_path)


@pytest.mark.parametrize("seeds", ["0,0", "1,-1"])
def test_seeds_that_cannot_be_run_are_named_before_anything_is_made(
    seeds, command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    command("study", "--seeds", seeds).holds(f"--seeds {seeds}")
    assert list(tmp_path.iterdir()) == []


def write_run(root: Path, condition: str, seed: int, psnr: float, cosine: float | None) -> None:
    run = root / study.RUNS / folder_name(condition) / f"seed-{seed}"
    means = {"psnr_db": psnr, "ssim": 0.9, "alpha_iou": 0.99}
    write_json_in(
        run / "evaluation" / "student_against_teacher.json", {"means": means, "blank": {}}
    )
    row = {"step": 9, "time": 0, "perf/cpu_s": 12.0}
    if cosine is not None:
        row["metric/feature_cosine"] = cosine
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def write_json_in(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True)
    write_json(path, value)


def test_the_table_holds_means_intervals_and_gains_within_seeds(tmp_path):
    plain, better = [30.0, 31.0, 33.0], [30.5, 31.4, 33.6]
    for seed, a, b in zip(SETTINGS.seeds, plain, better, strict=True):
        write_run(tmp_path, REFERENCE, seed, a, None)
        write_run(tmp_path, "L2, per pixel", seed, b, 0.9)
    write_run(tmp_path, "cos, per pixel", 4, 31.0, 0.5)  # its other seeds have not ended
    page = write_study(SETTINGS, (), tmp_path).read_text()
    content = json.loads((tmp_path / study.STUDY_FILE).read_text())
    rows = {row["condition"]: row for row in content["conditions"]}
    assert rows["L2, per pixel"]["psnr_gain_db"] == pytest.approx([0.5, 0.4, 0.6])
    assert rows["cos, per pixel"]["psnr_gain_db"] == pytest.approx([None, 0.0, None])
    assert rows[REFERENCE]["feature_cosine"] == [None, None, None]
    low, high = stats.t.interval(0.95, 2, 0.5, stats.sem([0.5, 0.4, 0.6]))
    lines = {line.split("|")[1].strip(): line for line in markdown(tmp_path).splitlines()}
    assert f"| +0.50 [{low:+.2f}, {high:+.2f}] |" in lines["L2, per pixel"]
    assert "| 0.900 [0.900, 0.900] |" in lines["L2, per pixel"]
    assert lines["cos, per pixel"].split("|")[2].strip() == "31.00"
    assert lines["opacity towards 0.05"].replace(" ", "").endswith("||||||")
    assert "not evaluated" in page


@pytest.mark.slow
def test_a_study_of_one_seed_trains_every_condition(tiny, command, tmp_path):
    root = tmp_path / "study"
    done = command("study", *tiny.settings[1:], "--root", root, "--seeds", "1")
    assert done.code == 0, done.out + done.err
    rows = json.loads((root / study.STUDY_FILE).read_text())["conditions"]
    assert len(rows) == 9
    assert all(row["psnr_db"][0] > 5 for row in rows)
    again = command("study", *tiny.settings[1:], "--root", root, "--seeds", "1", "--resume")
    assert again.code == 0
    assert ".seed-1: started" not in again.out
