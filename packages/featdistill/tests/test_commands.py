"""The commands as a newcomer types them, on the tiny scene."""

from __future__ import annotations

import csv
import html.parser
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from featdistill import assess
from featdistill.config import DataSection, TrainConfig
from featdistill.data.png import read_png
from featdistill.data.renders import by_number, read_rgba
from featdistill.restore import restore_student
from featdistill.teacher_views import teacher_of
from featdistill.training_run import ground_truth
from featdistill.viewer import Viewer
from loom.config import read_yaml
from loom.files import read_json, write_json
from loom.run_directory import claim

CANONICAL = Path(__file__).parent / "canonical.yaml"
NOT_EVALUATED = "metric/lpips was not measured"


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A copy of the trained run that commands may write to."""
    copied = tmp_path_factory.mktemp("commands") / "run"
    shutil.copytree(trained.run, copied)
    return copied


@pytest.fixture(scope="module")
def renders(run, command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("renders") / "student"
    done = command("render", "--checkpoint", run, "--store-rgba", "--output-dir", folder)
    assert done.code == 0, done.err
    assert f"rendered to {folder}" in done.out
    return folder


@pytest.fixture(scope="module")
def teacher_renders(tiny, command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("renders") / "teacher"
    cameras = tiny.scene / "transforms_test.json"
    done = command(
        "teacher", "render", tiny.teacher, "--cameras", cameras, "--output-dir", folder,
        "--features",
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder


# Scenes and teachers ------------------------------------------------------------------------------


def test_a_scene_is_made_once_and_described(command, tmp_path):
    scene = tmp_path / "scene"
    size = ("--width", "16", "--train", "2", "--test", "1")
    assert command("scene", "synth", scene, *size).out == f"{scene}: written\n"
    assert command("scene", "synth", scene, *size).out == f"{scene}: was there already\n"
    command("scene", "synth", scene, "--width", "20", "--train", "2", "--test", "1").holds(
        str(scene), "'width': 16"
    )
    lines = command("scene", "info", scene).out.splitlines()
    assert lines[0].startswith("train: 2 views of 16x16")
    assert lines[1].startswith("test: 1 views of 16x16")
    assert "cameras 4.031 to 4.031 from the origin" in lines[0]
    train, test = json.loads(command("scene", "info", scene, "--json").out)
    assert (train["split"], train["views"], train["width"], train["height"]) == ("train", 2, 16, 16)
    assert test["views"] == 1
    assert train["nearest"] == pytest.approx(4.031, abs=1e-3)


def test_a_teacher_is_described(tiny, command):
    done = command("teacher", "info", tiny.teacher)
    assert done.code == 0
    assert "4000 gaussians" in done.out
    assert "features  52 per gaussian" in done.out
    (facts,) = json.loads(command("teacher", "info", tiny.teacher, "--json").out)
    assert (facts["gaussians"], facts["features"]) == (4000, 52)
    assert facts["low"][0] < facts["high"][0]


def test_a_teacher_s_features_are_blended_with_its_own_opacity(teacher_renders, tiny):
    features = np.load(teacher_renders / "features" / "00000.npy").astype(np.float32)
    rgba = read_rgba(teacher_renders / "rgba_npz" / "00000.npz")
    assert features.shape == (28, 28, 52)
    assert sorted(by_number(teacher_renders / "renders", ".png")) == [0, 1, 2, 3]
    solid = rgba[..., 3] > 0.9
    assert 100 < solid.sum() < 700
    # Feature 48 is opacity: a blend of values near 0.98, times the ray's alpha.
    np.testing.assert_allclose(features[solid][:, 48] / rgba[solid][:, 3], 0.98, atol=0.02)
    assert np.abs(features[rgba[..., 3] == 0]).max() == 0


def test_a_teacher_run_is_fitted_and_exported_as_the_ply_that_it_wrote(tiny, command, tmp_path):
    run, exported = tmp_path / "teacher", tmp_path / "exported.ply"
    small = ("gaussians=200", "start.resolution=12", "--max-steps", "3")
    done = command("teacher", "fit", *small, "--scene", tiny.scene, "--run-dir", run)
    assert done.code == 0, done.err
    assert "teacher against ground truth" in done.out
    done = command("teacher", "export-ply", run, exported)
    assert done.code == 0, done.err
    assert exported.read_bytes() == (run / "point_cloud.ply").read_bytes()
    command("teacher", "export-ply", tiny.scene, exported).holds(str(tiny.scene))
    assert exported.read_bytes() == (run / "point_cloud.ply").read_bytes()


# Renders ------------------------------------------------------------------------------------------


def test_parts_and_chunks_of_a_render_are_the_whole(run, renders, command, tmp_path):
    parts = tmp_path / "parts"
    common = ("render", "--checkpoint", run, "--output-dir", parts, "--store-rgba")
    assert command(*common, "--max-frames", "1", "--chunk", "100").code == 0
    assert sorted(by_number(parts / "rgba_npz", ".npz")) == [0]
    assert command(*common, "--start-frame", "1", "--max-frames", "2").code == 0
    assert command(*common, "--start-frame", "3").code == 0
    for name, suffix in (("renders", ".png"), ("rgba_npz", ".npz"), ("depth", ".npy")):
        whole, split = (by_number(folder / name, suffix) for folder in (renders, parts))
        assert sorted(split) == sorted(whole) == [0, 1, 2, 3]
        for number, path in whole.items():
            assert split[number].read_bytes() == path.read_bytes(), (name, number)


def test_a_render_is_what_the_training_judged_and_stats_lie_beside(run, renders, command, tmp_path):
    judged = next((run / "renders").glob("step_*"))
    for number, path in by_number(renders / "rgba_npz", ".npz").items():
        assert np.array_equal(read_rgba(path), read_rgba(judged / "rgba_npz" / f"{number:05d}.npz"))
    stats = json.loads((renders / "render_stats.json").read_text(encoding="utf-8"))
    assert stats["frames"] == 4
    assert stats["avg_fps"] > 0
    plain = tmp_path / "plain"
    done = command(
        "render", "--checkpoint", run, "--output-dir", plain, "--background", "black",
        "--max-frames", "1",
    )  # fmt: skip
    assert done.code == 0
    assert not (plain / "rgba_npz").exists()
    assert read_png(plain / "renders" / "00000.png", "RGB")[0, 0].tolist() == [0, 0, 0]


def test_a_background_that_is_none_is_refused_before_anything_is_rendered(
    run, tiny, command, files_in, tmp_path
):
    before = files_in(run)
    cameras = tiny.scene / "transforms_test.json"
    for arguments in (
        ("render", "--checkpoint", run),
        ("diagnose", run),
        ("eval", "run", run),
        ("eval", "pipeline", run, "--teacher-renders", run / "teacher"),
        ("teacher", "render", tiny.teacher, "--cameras", cameras, "--output-dir", tmp_path / "t"),
    ):
        done = command(*arguments, "--background", "green")
        assert done.code == 2, done.out
        assert "'white', 'black'" in " ".join(done.err.split()), done.err
    assert files_in(run) == before
    assert not (tmp_path / "t").exists()


def test_a_film_refuses_options_that_it_would_ignore(run, command, tmp_path):
    film = ("render", "--checkpoint", run, "--video", tmp_path / "a.webp", "--video-frames", "2")
    for option in (("--store-rgba",), ("--output-dir", tmp_path), ("--max-frames", "1")):
        done = command(*film, *option)
        assert done.code == 2, done.out
        assert "--video is one turn" in " ".join(done.err.split())
    assert not (tmp_path / "a.webp").exists()
    done = command("render", "--checkpoint", run, "--video-frames", "2", "--output-dir", tmp_path)
    assert done.code == 2
    assert "those of --video" in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


def test_the_speed_of_a_render_leaves_out_what_is_compiled_before_it(monkeypatch, tmp_path, run):
    student = restore_student(run).student
    cameras = Viewer(run).cameras[:1]
    events: list[str] = []
    prepare, render_one, clock = assess.prepare_pictures, assess.render_image, time.perf_counter
    log = lambda name, call: lambda *a, **k: (events.append(name), call(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(assess, "prepare_pictures", log("prepare", prepare))
    monkeypatch.setattr(assess, "render_image", log("draw", render_one))
    monkeypatch.setattr(assess.time, "perf_counter", log("clock", clock))
    assess.render_views(student, cameras, tmp_path / "views")
    assert events == ["prepare", "clock", "draw", "clock"]


def test_a_frame_beyond_the_last_view_is_refused(run, command):
    command("render", "--checkpoint", run, "--start-frame", "4").holds("4 views", "0 to 3")


# Scores -------------------------------------------------------------------------------------------


def scores(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_a_folder_against_itself_is_perfect(teacher_renders, command, tmp_path):
    pictures, results = teacher_renders / "renders", tmp_path / "scores.json"
    done = command("eval", "compare", pictures, pictures, "--output-json", results)
    assert done.code == 0, done.err
    found = scores(done.out)
    assert (found["psnr_db"], found["ssim"], found["lpips"]) == ("inf", "1", "not evaluated")
    again = json.loads(command("eval", "compare", pictures, pictures, "--json").out)
    assert (again["frames"], again["psnr_db"], again["lpips"]) == (4, "inf", None)
    stored = json.loads(results.read_text(encoding="utf-8"))
    assert stored["means"]["psnr_db"] == "inf"
    assert stored["means"]["lpips"] is None
    assert len(stored["frames"]) == 4


def test_the_pipeline_scores_both_backgrounds_into_one_table(
    renders, teacher_renders, command, tmp_path
):
    summary = tmp_path / "metrics_summary.csv"
    for background in ("white", "black"):
        done = command(
            "eval", "pipeline", renders, "--teacher-renders", teacher_renders, "--background",
            background, "--method-name", f"on {background}", "--summary", summary,
            "--output-json", tmp_path / f"{background}.json",
        )  # fmt: skip
        assert done.code == 0, done.err
    with summary.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == ["on white", "on black"]
    for row in rows:
        assert float(row["psnr_db"]) > float(row["blank_psnr_db"]) + 6
        assert row["lpips"] == ""
        assert float(row["avg_fps"]) > 0
    assert rows[0]["psnr_db"] != rows[1]["psnr_db"]


def test_a_run_is_judged_again_with_the_same_scores_and_its_record_stays(run, command):
    """Also one that was stopped, and one that was trained in another checkout."""
    path = run / "evaluation" / "student_against_teacher.json"
    before = read_json(path)["means"]
    status, facts = read_json(run / "status.json"), read_json(run / "run.json")
    stopped = {**status, "state": "stopped", "reason": "interrupted"}
    facts["packages"]["featdistill"]["path"] = "elsewhere/featdistill"
    write_json(run / "status.json", stopped)
    write_json(run / "run.json", facts)
    done = command("eval", "run", run)
    assert done.code == 0, done.err
    after = read_json(path)
    assert after["means"] == before
    assert set(after["sources"]) == {"checkpoint", "config"}
    assert read_json(run / "status.json") == stopped
    assert read_json(run / "run.json") == facts
    training = claim(run, resume=True)
    command("eval", "run", run).holds("is running in it")
    training.lock.release()


# Gates, diagnosis, report -------------------------------------------------------------------------


def test_a_gate_that_was_not_evaluated_is_not_passed(run, command):
    done = command("gate", run)
    assert done.code == 3, done.out + done.err
    verdicts = [line.split("  ")[0] for line in done.out.splitlines() if "metric/" in line]
    assert verdicts.count("not evaluated") == 1
    assert verdicts.count("MISSED") == 0
    assert NOT_EVALUATED in done.out


def test_gates_hold_for_a_file_of_scores_with_all_of_them(run, command, tmp_path):
    source = run / "evaluation" / "student_against_teacher.json"
    content = json.loads(source.read_text(encoding="utf-8"))
    content["means"]["lpips"] = 0.1
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert command("gate", path).code == 0
    content["means"]["psnr_db"] = 22.4
    path.write_text(json.dumps(content), encoding="utf-8")
    done = command("gate", path)
    assert done.code == 3
    assert "MISSED  metric/psnr_db = 22.4 is not >= 22.5" in done.out


@pytest.mark.parametrize("means", [{"psnr_db": "good"}, {"ssim": [1]}, {"ssim": True}, [1], None])
def test_scores_that_are_no_numbers_are_named(means, run, command, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"means": means}), encoding="utf-8")
    command("gate", path).holds(str(path), "means")
    judged = run / "evaluation" / "student_against_teacher.json"
    before = judged.read_text(encoding="utf-8")
    judged.write_text(json.dumps({**json.loads(before), "blank": means}), encoding="utf-8")
    for words in (("gate", run), ("report", run)):
        command(*words).holds(str(judged), "blank")
    judged.write_text(before, encoding="utf-8")


def test_what_is_no_run_is_said_where_a_run_is_wanted(command, tmp_path):
    command("diagnose", tmp_path / "nowhere").holds("nowhere is not a folder")
    command("diagnose", tmp_path).holds("no run's directory", "--teacher-renders")
    command("gate", tmp_path).holds("not judged yet", "loom runs")


def test_a_run_is_diagnosed_on_any_background_whatever_it_was_judged_on(run, command, tmp_path):
    judged = tmp_path / "run"
    shutil.copytree(run, judged)
    for background in ("black", "white"):
        found = json.loads(command("diagnose", run, "--background", background, "--json").out)
        assert found["verdict"] == "healthy", (background, found["findings"])
    assert command("eval", "run", judged, "--background", "black").code == 0
    found = json.loads(command("diagnose", judged, "--json").out)
    assert found["verdict"] == "healthy", found["findings"]


def test_a_good_run_is_diagnosed_as_healthy_in_json(run, command):
    done = command("diagnose", run, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["verdict"] == "healthy"
    assert found["psnr_db"] > found["blank_psnr_db"] + 6
    assert {"flipped", "order", "split"} <= {trial["kind"] for trial in found["trials"]}


class Links(html.parser.HTMLParser):
    """Collects every address that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_file_with_gates_pictures_and_the_empty_picture(run, command):
    (run / "report.html").unlink()
    done = command("report", run)
    assert done.out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert links.addresses
    assert all(address.startswith(("data:", "#")) for address in links.addresses)
    for words in (
        NOT_EVALUATED,
        "baseline/blank/psnr_db",
        "empty picture against teacher",
        "All 4",
    ):
        assert words in page, words
    assert page.count("data:image/png") >= 12  # teacher, student, difference of four views
    assert "8-bit pictures on white" in page


def test_the_report_names_the_background_of_the_scores(run, command, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "black"))
    for scores in (copy / "evaluation").glob("*.json"):
        content = json.loads(scores.read_text(encoding="utf-8"))
        scores.write_text(json.dumps(content | {"background": "black"}), encoding="utf-8")
    assert command("report", copy).code == 0
    assert "8-bit pictures on black" in (copy / "report.html").read_text(encoding="utf-8")


def test_the_report_shows_both_sides_on_one_background_after_another_render(run, command, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "rendered"))
    assert command("render", "--checkpoint", copy, "--background", "black").code == 0
    assert command("report", copy).code == 0
    shown = read_png(copy / "pictures.png", "RGB")
    corners = [shown[0, 28 * column].tolist() for column in range(3)]
    assert corners == [[255] * 3, [255] * 3, [0] * 3]  # teacher, student, difference


def test_a_run_that_was_rendered_but_not_judged_has_a_report(run, command, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "unjudged"))
    for folder in ("teacher", "evaluation"):
        shutil.rmtree(copy / folder)
    done = command("report", copy)
    assert done.code == 0, done.err


# Configurations and the rest ----------------------------------------------------------------------


def test_the_teacher_s_settings_and_what_changes_over_its_steps_are_shown(command):
    shown = command("teacher", "config", "show", "train.lr.scale=0.5").out
    assert "start.model" in shown
    assert "gaussians" in shown
    halved = json.loads(command("teacher", "schedule", "train.lr.scale=0.5", "--json").out)
    whole = json.loads(command("teacher", "schedule", "--json").out)
    assert halved.keys() == whole.keys()
    assert halved != whole
    assert any("lr.means" in name for name in whole)


def test_config_show_names_the_origin_of_each_value(command, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("train:\n  lr: 1e-3\n", encoding="utf-8")
    done = command("config", "show", config, "train.rays=7")
    assert done.code == 0, done.err
    values = dict(line.split("=", 1) for line in done.out.splitlines())
    value, origin = values["train.lr"].split("#")
    assert float(value) == 1e-3
    assert origin.strip() == f"{config}:2"
    value, origin = values["train.rays"].split("#")
    assert int(value) == 7
    assert origin.strip() == "override train.rays=7"
    assert values["train.points"].split("#")[1].strip() == "default"


def test_an_old_configuration_is_migrated(command, tmp_path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    text = CANONICAL.read_text(encoding="utf-8")
    old.write_text(text.replace("[projector] }", "[projector], freeze_student: true }", 1))
    done = command("migrate", old, new)
    assert done.code == 0, done.err
    assert "dropped train.phases.0.freeze_student" in done.out
    assert read_yaml(new) == read_yaml(CANONICAL)


def test_the_shell_has_the_run_s_seed_and_returns_the_code(run, command, capfd):
    seed = json.loads((run / "run.json").read_text(encoding="utf-8"))["seed"]
    done = command("shell", "--run", run, "--command", 'echo "seed $PYTHONHASHSEED"; exit 4')
    assert done.code == 4
    assert f"seed {seed}" in capfd.readouterr().out


def test_a_run_is_archived_beside_itself_with_everything_in_it(run, command, files_in, tmp_path):
    moving = tmp_path / "runs" / "mine"
    shutil.copytree(run, moving)
    before = files_in(moving)
    done = command("archive", moving)
    assert done.code == 0, done.err
    moved = Path(done.out.removeprefix("moved to ").strip())
    assert moved.parent.parent == moving.parent / "archive"
    assert not moving.exists()
    after = {path.replace(str(moved), str(moving)): sha for path, sha in files_in(moved).items()}
    assert after == before


def test_a_run_is_looked_at_and_judged_without_the_files_that_it_was_trained_on(
    tiny, command, tmp_path, monkeypatch
):
    """Named by relative paths, then gone: the run has copies."""
    shutil.copytree(tiny.scene, tmp_path / "here" / "scene")
    shutil.copy(tiny.teacher, tmp_path / "here" / "teacher.ply")
    monkeypatch.chdir(tmp_path / "here")
    names = ("data.scene=scene", "data.teacher=teacher.ply")
    done = command("train", *tiny.settings, *names, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    before = Viewer(tmp_path / "run")
    judged = read_json(tmp_path / "run" / "evaluation" / "student_against_teacher.json")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "run").rename(tmp_path / "moved")
    after = Viewer(tmp_path / "moved")
    assert after.cameras.names == before.cameras.names
    looked = [viewer.frame(viewer.start, 20).pixels for viewer in (before, after)]
    assert (looked[0] == looked[1]).all()
    done = command("eval", "run", tmp_path / "moved")
    assert done.code == 0, done.err
    assert "no ground truth of these views" in done.out
    again = read_json(tmp_path / "moved" / "evaluation" / "student_against_teacher.json")
    assert again["means"] == judged["means"]


def test_ground_truth_is_of_the_run_s_own_views_or_there_is_none(tiny, tmp_path):
    config = TrainConfig(data=DataSection(scene=tiny.scene, teacher=tiny.teacher))
    teacher = teacher_of(config.data)
    assert len(ground_truth(config, teacher)) == 4
    assert ground_truth(config, teacher._replace(evaluation=teacher.evaluation[:3])) is None
