"""Bad input ends with `error:`, `hint:` and code 2, and every file that was there is intact."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from featdistill.data.png import write_png
from featdistill.teacher_config import TeacherConfig
from loom.config import to_yaml
from PIL import Image


@pytest.fixture
def scene(tiny, tmp_path) -> Path:
    """A copy of the scene that a test may damage."""
    return Path(shutil.copytree(tiny.scene, tmp_path / "scene"))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run that a test may damage."""
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


@pytest.fixture
def refused(command, files_in, tmp_path) -> Callable[..., None]:
    """Run a command that must be refused with these words, and spare every file in `tmp_path`."""

    def check(*arguments: str | Path, words: tuple[str, ...]) -> None:
        before = files_in(tmp_path)
        command(*arguments).holds(*words)
        after = files_in(tmp_path)
        assert [path for path, sha in before.items() if after.get(path) != sha] == []

    return check


def truncate(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def edit(path: Path, change: Callable[[dict], None]) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def train(scene: Path, teacher: Path, settings: tuple[str, ...], run: Path) -> tuple[str, ...]:
    data = (f"data.scene={scene}", f"data.teacher={teacher}")
    return ("train", *settings, *data, "--run-dir", str(run))


# Scenes -------------------------------------------------------------------------------------------


def test_a_truncated_picture_is_named(scene, refused):
    damaged = truncate(scene / "test" / "r_1.png")
    refused("scene", "info", scene, words=(str(damaged), "damaged"))


def test_a_picture_without_alpha_is_named(scene, refused):
    path = scene / "train" / "r_3.png"
    Image.open(path).convert("RGB").save(path)
    refused("scene", "info", scene, words=(str(path), "RGBA"))


def test_pictures_of_different_sizes_are_named(scene, refused):
    path = scene / "train" / "r_2.png"
    write_png(path, np.zeros((14, 14, 4), dtype=np.uint8))
    refused("scene", "info", scene, words=(str(path), "14x14", "28x28"))


def test_a_missing_picture_is_named(scene, refused):
    (scene / "test" / "r_0.png").unlink()
    refused("scene", "info", scene, words=("r_0.png",))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_camera_that_is_not_a_number_is_named_before_a_run_begins(
    scene, split, tiny, refused, tmp_path
):
    path = scene / f"transforms_{split}.json"

    def spoil(content: dict) -> None:
        content["frames"][2]["transform_matrix"][1][3] = float("nan")

    edit(path, spoil)
    refused("scene", "info", scene, words=(str(path), "frame 2", "nan"))
    command = train(scene, tiny.teacher, tiny.settings, tmp_path / "new")
    refused(*command, words=(str(path), "frame 2", "nan"))
    fit = ("teacher", "fit", "--scene", scene, "--run-dir", tmp_path / "new")
    refused(*fit, words=(str(path), "frame 2", "nan"))
    assert not (tmp_path / "new").exists()  # the directory is free for the next try


def test_a_truncated_camera_file_is_named_with_its_line(scene, tiny, refused, tmp_path):
    path = truncate(scene / "transforms_train.json")
    refused("scene", "info", scene, words=(f"{path}:", "damaged JSON"))
    refused(*train(scene, tiny.teacher, tiny.settings, tmp_path / "new"), words=(f"{path}:",))


def test_a_scene_without_frames_is_refused(scene, tiny, refused, tmp_path):
    path = edit(scene / "transforms_test.json", lambda content: content.update(frames=[]))
    refused("scene", "info", scene, words=(str(path), "no frames"))
    command = train(scene, tiny.teacher, tiny.settings, tmp_path / "new")
    refused(*command, words=(str(path), "no frames"))


# Teachers -----------------------------------------------------------------------------------------


def test_a_truncated_teacher_is_refused_before_a_run_begins(tiny, refused, tmp_path):
    teacher = truncate(Path(shutil.copy(tiny.teacher, tmp_path / "teacher.ply")))
    refused("teacher", "info", teacher, words=(str(teacher), "4000 vertices"))
    command = train(tiny.scene, teacher, tiny.settings, tmp_path / "new")
    refused(*command, words=(str(teacher), "4000 vertices"))
    assert not (tmp_path / "new").exists()


def test_a_teacher_without_a_property_is_refused_with_its_name(tiny, refused, tmp_path):
    teacher = tmp_path / "teacher.ply"
    content = tiny.teacher.read_bytes()
    teacher.write_bytes(content.replace(b"property float opacity\n", b"property float opaque\n"))
    refused("teacher", "info", teacher, words=(str(teacher), "'opacity'"))
    command = train(tiny.scene, teacher, tiny.settings, tmp_path / "new")
    refused(*command, words=(str(teacher), "'opacity'"))


def test_a_scene_without_a_teacher_is_refused(tiny, refused, tmp_path):
    refused(
        "train", f"data.scene={tiny.scene}", "--run-dir", tmp_path / "new", words=("data.teacher",)
    )


# Renders ------------------------------------------------------------------------------------------


def test_a_frame_on_one_side_only_is_named(run, refused):
    renders = next((run / "renders").glob("step_*"))
    (renders / "rgba_npz" / "00002.npz").unlink()
    teacher = run / "teacher"
    words = (str(renders), "00002")
    refused("eval", "pipeline", renders, "--teacher-renders", teacher, words=words)
    (teacher / "renders" / "00001.png").unlink()
    refused("eval", "compare", renders, teacher, words=(str(teacher), "00001"))


def test_frames_of_different_sizes_are_named(run, refused):
    renders, teacher = next((run / "renders").glob("step_*")), run / "teacher"
    write_png(renders / "renders" / "00003.png", np.zeros((10, 12, 3), dtype=np.uint8))
    refused("eval", "compare", renders, teacher, words=("00003", "12x10", "28x28"))
    against = ("--teacher-renders", run / "teacher")
    refused("diagnose", renders, *against, words=("00003", "12x10"))


def test_folders_without_frames_are_refused(run, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (
        ("eval", "compare", tmp_path / "empty", run / "teacher"),
        ("eval", "pipeline", tmp_path / "empty", "--teacher-renders", run / "teacher"),
        ("diagnose", tmp_path / "empty", "--teacher-renders", run / "teacher"),
        ("gate", tmp_path / "empty"),
        ("render", "--checkpoint", tmp_path / "empty"),
        ("eval", "run", tmp_path / "empty"),
        ("report", tmp_path / "nowhere"),
        ("archive", tmp_path / "nowhere"),
    ):
        refused(*command, words=(str(tmp_path),))


def test_a_truncated_frame_is_named(run, refused):
    renders = next((run / "renders").glob("step_*"))
    damaged = truncate(renders / "rgba_npz" / "00001.npz")
    refused(
        "eval", "pipeline", renders, "--teacher-renders", run / "teacher", words=(str(damaged),)
    )


def test_truncated_scores_are_named(run, refused):
    damaged = truncate(run / "evaluation" / "student_against_teacher.json")
    refused("gate", run, words=(f"{damaged}:", "damaged JSON"))


# Checkpoints and resumes --------------------------------------------------------------------------


def test_a_checkpoint_of_another_configuration_is_refused(run, refused, tmp_path):
    other = tmp_path / "other.yaml"
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert "hidden_dim: 32" in text
    other.write_text(text.replace("hidden_dim: 32", "hidden_dim: 48"), encoding="utf-8")
    refused(
        "render", "--checkpoint", run, "--config", other, words=("student.hidden_dim: 32 -> 48",)
    )


OF_A_RUN = (
    ("view",),
    ("render", "--checkpoint"),
    ("eval", "run"),
    ("gate",),
    ("diagnose",),
    ("train", "--resume", "--run-dir"),
    ("teacher", "fit", "--resume", "--run-dir"),
    ("report",),
)


@pytest.mark.parametrize("words", OF_A_RUN, ids=" ".join)
def test_the_run_of_another_thread_is_named_as_such(run, refused, words):
    edit(run / "run.json", lambda record: record.update(thread="coopcyl"))
    (run / "config.yaml").write_text("panorama: {width: 1008}\n", encoding="utf-8")
    refused(*words, run, words=(f"{run} is a run of coopcyl, not of featdistill",))


@pytest.mark.parametrize("words", OF_A_RUN[:-2], ids=" ".join)
def test_the_run_of_a_teacher_is_named_as_such(run, refused, words):
    (run / "config.yaml").write_text(to_yaml(TeacherConfig()), encoding="utf-8")
    refused(*words, run, words=(f"{run} is the run of a teacher, not of a student",))


def test_the_run_of_a_student_is_named_where_a_teacher_goes_on(run, refused):
    words = (f"{run} is the run of a student, not of a teacher", "featdistill train --resume")
    refused("teacher", "fit", "--resume", "--run-dir", run, words=words)


def test_a_damaged_checkpoint_is_refused(run, refused):
    folder = max((run / "checkpoints").glob("step_*"))
    truncate(folder / "state.pt")
    refused("render", "--checkpoint", folder, words=(str(folder), "damaged"))


def test_a_resume_with_another_setting_names_it(run, refused):
    words = ("train.rays: 512 -> 513",)
    refused("train", "train.rays=513", "--resume", "--run-dir", run, words=words)


def test_a_resume_with_another_teacher_names_both(trained, tiny, command, files_in, tmp_path):
    """The file of the run is replaced: the path is the same, the content is not."""
    teacher = Path(shutil.copy(tiny.teacher, tmp_path / "teacher.ply"))
    run = tmp_path / "run"
    short = (*tiny.settings, "train.max_steps=5", "prune.at=[]")
    assert command(*train(tiny.scene, teacher, short, run)).code == 0
    was = json.loads((run / "run.json").read_text(encoding="utf-8"))["parents"]["teacher"]["sha256"]
    content = bytearray(teacher.read_bytes())
    content[-1] ^= 1
    teacher.write_bytes(content)
    kept = ("checkpoints", "evaluation", "renders", "teacher")
    before = [files_in(run / name) for name in kept]
    done = command("train", "--resume", "--run-dir", run)
    done.holds("teacher:", f"(sha256 {was[:12]}) -> ", str(teacher))
    assert [files_in(run / name) for name in kept] == before


# Places that cannot be written --------------------------------------------------------------------


def test_a_run_that_is_a_file_is_refused(tiny, refused, tmp_path):
    place = tmp_path / "run"
    place.write_text("mine", encoding="utf-8")
    refused(*train(tiny.scene, tiny.teacher, tiny.settings, place), words=(str(place), "file"))


def test_a_folder_with_something_else_in_it_is_refused(tiny, refused, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    (place / "thesis.tex").write_text("mine", encoding="utf-8")
    for more in ((), ("--resume",)):
        command = train(tiny.scene, tiny.teacher, tiny.settings, place)
        refused(*command, *more, words=(str(place),))


def limited(arguments: tuple[str, ...], limit: Callable[[], None]) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, with a limit on what it may do."""
    program = [sys.executable, "-c", "from featdistill.cli import main; main()", *arguments]
    return subprocess.run(
        program,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def require_refusal(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "error: " in done.stderr
    assert "\nhint: " in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_full_disk_ends_a_resumed_run_and_spares_its_checkpoints(
    tiny, command, files_in, tmp_path
):
    run = tmp_path / "run"
    short = (*tiny.settings, "train.max_steps=8", "checkpoint_interval=4", "prune.at=[]")
    phases = "train.phases=[{name: joint_training, end_step: 8, optimize: [student, projector]}]"
    assert command(*train(tiny.scene, tiny.teacher, (*short, phases), run)).code == 0
    final = run / "checkpoints" / "step_000008"
    size = (final / "state.pt").stat().st_size
    shutil.rmtree(final)  # as if the run had been killed after its first checkpoint
    for pointer in ("latest.json", "final.json", "best.json"):
        (run / "checkpoints" / pointer).unlink(missing_ok=True)
    before = files_in(run / "checkpoints")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = limited(("train", "--resume", "--run-dir", str(run)), no_room)
    require_refusal(done, str(run / "checkpoints"))
    assert files_in(run / "checkpoints") == before
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "failed"
    assert command("train", "--resume", "--run-dir", run).code == 0
    assert final.is_dir()


def without_privilege() -> None:
    """Give up what lets root write to a folder whose mode forbids it."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


def test_a_read_only_run_folder_is_refused_and_left_alone(trained, files_in):
    before = files_in(trained.run)
    modes = {path: path.stat().st_mode for path in (trained.run, trained.run / "checkpoints")}
    for path in modes:
        path.chmod(0o555)
    try:
        done = limited(("train", "--resume", "--run-dir", str(trained.run)), without_privilege)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    require_refusal(done, str(trained.run))
    assert files_in(trained.run) == before
