"""A whole training on a tiny scene: phases, learning, and the checks that stop a bad run."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from featdistill import teacher_frames
from featdistill import train as training
from featdistill.config import (
    DataSection,
    PhaseConfig,
    PruneSection,
    TrainConfig,
    TrainSection,
)
from featdistill.features import FeatureScaling
from featdistill.glance import Glance
from featdistill.models import occupancy
from featdistill.models.student import Student
from featdistill.restore import restore_student
from featdistill.student_config import StudentConfig
from featdistill.supervision import PointSampler, RaySampler
from featdistill.teacher_frames import TeacherFrames, each_frame, foreground, render_frames
from featdistill.teacher_views import teacher_of
from loom.config import read_yaml
from loom.errors import UserError
from loom.files import read_json
from loom.record import read_records
from loom.run import Run
from loom.sampling import Shard
from torch import Tensor

CANONICAL = Path(__file__).parent / "canonical.yaml"


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text(encoding="utf-8"))


# Phases -------------------------------------------------------------------------------------------

PHASES = """train.phases=[
  {name: projector_warmup, end_step: 4, optimize: [projector]},
  {name: student_only, end_step: 8, optimize: [student]},
  {name: joint, end_step: 12, optimize: [student, projector]},
  {name: projector_again, end_step: 16, optimize: [projector]}]"""


def snapshot(state) -> dict[str, list[Tensor]]:
    """Parameters and optimiser state of each group, by name."""
    found = {}
    for group in state.optimizer.param_groups:
        name, parameters = group["name"], group["params"]
        moments = [
            value
            for p in parameters
            for value in state.optimizer.state.get(p, {}).values()
            if isinstance(value, Tensor)
        ]
        found[name] = [p.detach() for p in parameters]
        found[f"state of {name}"] = moments
    return copy.deepcopy(found)


def changed(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
    return {
        name
        for name in before
        if len(before[name]) != len(after[name])
        or not all(torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


def test_each_phase_changes_its_own_parameters_and_optimiser_state_only(
    tiny, command, tmp_path, monkeypatch
):
    seen: dict[int, dict] = {}
    fit = training.fit

    def watched(run, state, **options):
        before_step = options.pop("before_step")

        def watching(step: int) -> None:
            seen[step] = snapshot(state)
            before_step(step)

        result = fit(run, state, before_step=watching, **options)
        seen[result.step] = snapshot(state)
        return result

    monkeypatch.setattr(training, "fit", watched)
    done = command(
        "train", *tiny.settings, PHASES, "train.max_steps=16", "--run-dir", tmp_path / "run"
    )
    assert done.code == 0, done.err
    student = {"student", "state of student"}
    projector = {"projector", "state of projector"}
    for step, expected in ((0, projector), (4, student), (8, student | projector), (12, projector)):
        assert changed(seen[step], seen[step + 4]) == expected, f"phase from step {step}"
    assert "[phase] Projector-only warmup forcing feature loss on." in done.out


# Learning -----------------------------------------------------------------------------------------


def test_a_short_training_ends_ten_decibels_above_an_empty_picture(trained):
    assert trained.outcome.code == 0, trained.outcome.err
    scores = json.loads(
        (trained.run / "evaluation/student_against_teacher.json").read_text(encoding="utf-8")
    )
    means = scores["means"]
    assert means["psnr_db"] > means["blank_psnr_db"] + 10, means
    assert means["alpha_iou"] > 0.85
    assert status(trained.run)["state"] == "finished"
    assert "student against teacher" in trained.outcome.out
    assert "empty picture against teacher" in trained.outcome.out
    assert "pruned at step" in trained.outcome.out


def test_features_are_not_evaluated_where_no_ray_has_a_target(trained, tiny):
    restored = restore_student(trained.run)
    teacher = teacher_of(DataSection(scene=tiny.scene, teacher=tiny.teacher))
    assert 0.2 < Glance(restored.config, teacher)(restored.student)["metric/feature_cosine"] <= 1
    pipeline = restored.config.feature_pipeline.model_copy(update={"alpha_threshold": 1.0})
    blind = restored.config.model_copy(update={"feature_pipeline": pipeline})
    assert Glance(blind, teacher)(restored.student)["metric/feature_cosine"] is None


def test_a_whole_training_that_missed_a_gate_is_judged_all_the_same(tiny, command, tmp_path):
    run = tmp_path / "run"
    gate = "gates=[{metric: metric/psnr_db, op: '>=', threshold: 99}]"
    done = command("train", *tiny.settings, "train.max_steps=20", gate, "--run-dir", run)
    assert done.code == 3, done.out + done.err
    assert "is not >= 99" in done.err
    assert status(run)["state"] == "gate_missed"
    assert (run / "evaluation" / "student_against_teacher.json").is_file()
    assert "This run missed a gate" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("steps", "apart", "enough"), [(20, "2.9", 40), (40, "1.5", None)], ids=["coarse", "fine"]
)
def test_samples_that_lie_too_far_apart_are_named_with_a_remedy(teacher, steps, apart, enough):
    """A pixel is 0.06 wide at a distance of 3 and a focal length of 50; the box is 3.5 long."""
    box = torch.tensor([[-1.75, -1.0, -1.0], [1.75, 1.0, 1.0]])
    config = StudentConfig(steps_per_axis=steps, grid_resolution=2, occupancy_resolution=8)
    occupied = torch.ones(occupancy.voxel_shape(box, 8), dtype=torch.uint8)
    student = Student(config, box, occupied, torch.Generator())
    cameras = replace(teacher.training, focal_px=50.0)
    said: dict[str, list[str]] = {"info": [], "warn": []}

    class Run:
        info, warn = said["info"].append, said["warn"].append

    seen_from = teacher._replace(training=cameras, typical_distance=3.0)
    training._announce_spacing(student, seen_from, Run())
    assert said["info"] == [f"[student] samples along a ray lie {apart} pixels apart"]
    assert bool(said["warn"]) == (enough is not None)
    if enough is not None:
        assert f"; {enough} puts them 1.5 apart" in said["warn"][0]


# Runs that must not go on -------------------------------------------------------------------------


def test_a_blank_student_stops_in_three_percent_of_its_steps_and_is_diagnosed(
    tiny, command, tmp_path
):
    run, steps = tmp_path / "run", 200
    blank = ("student.density_bias=-30", f"train.max_steps={steps}")
    done = command("train", *tiny.settings, *blank, "--run-dir", run)
    assert done.code == 3, (done.out, done.err)
    assert "student is blank" in done.err
    stopped = max(row["step"] for row in read_records(run))
    assert 0 < stopped < 0.03 * steps
    assert status(run)["state"] == "gate_missed"
    assert "student is blank" in status(run)["reason"]
    found = command("diagnose", run)
    assert found.code == 0, found.err
    assert found.out.startswith("verdict: blank\n")


def test_a_blank_student_stops_even_if_only_the_projector_learnt_before(tiny, command, tmp_path):
    """The share counts from where the student first learns, not from step 0."""
    phases = (
        "train.phases=[{name: projector_warmup, end_step: 10, optimize: [projector]}, "
        "{name: joint_training, end_step: 100, optimize: [student, projector]}]"
    )
    run = tmp_path / "run"
    done = command(
        "train", *tiny.settings, phases, "train.max_steps=100", "student.density_bias=-30",
        "--run-dir", run,
    )  # fmt: skip
    assert done.code == 3
    assert "student is blank" in done.err
    assert 10 < max(row["step"] for row in read_records(run)) < 13


def test_a_collapsed_feature_mask_stops_the_run_at_its_third_record(tiny, command, tmp_path):
    run = tmp_path / "run"
    collapsed = ("feature_pipeline.alpha_threshold=1", "log_interval=5", "train.max_steps=60")
    done = command("train", *tiny.settings, *collapsed, "--run-dir", run)
    assert done.code == 3, (done.out, done.err)
    assert "mask collapse" in done.err
    assert "feature_pipeline.alpha_threshold" in done.err
    rows = [row for row in read_records(run) if "metric/feature_mask_fraction" in row]
    assert [row["metric/feature_mask_fraction"] for row in rows] == [0, 0, 0]
    assert status(run)["state"] == "gate_missed"


# The notes' configuration -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def canonical(tiny, command, tmp_path_factory):
    """The notes' file with its data paths pointed at the tiny scene, run for 30 of its steps."""
    folder = tmp_path_factory.mktemp("canonical")
    text = CANONICAL.read_text(encoding="utf-8")
    paths = read_yaml(CANONICAL)["data"]
    text = text.replace(f"scene: {paths['scene']}", f"scene: {tiny.scene}")
    text = text.replace(f"teacher: {paths['teacher']}", f"teacher: {tiny.teacher}")
    source = folder / "canonical.yaml"
    source.write_text(text, encoding="utf-8")
    run = folder / "run"
    done = command(
        "train", "--config", source, "--max-steps", "30", "--log-interval", "10", "--run-dir", run
    )
    return source, run, done


def test_the_notes_configuration_trains_and_says_the_notes_lines(canonical):
    _, run, done = canonical
    assert done.code == 0, done.err
    for line in (
        "loaded gaussian teacher features with dimension 52",
        "comparison feature dim=52, projector in/out=(128->52)",
        "student-space policy bypassed for compare_space='teacher'",
        "[phase] Projector-only warmup forcing feature loss on.",
        "Enter projector_warmup at step 0: optimize=['projector']",
        "Loaded teacher frames (308)",
        "[config] max_steps override 30 is below config max_steps",
        f"[logging] TensorBoard writer initialised → {run / 'tensorboard'}",
        "(特徴蒸留_教師52d) [30/30]: 100%",
    ):
        assert line in done.out, line
    assert done.out.count("[init] First KiloNeRF forward pass finished") == 1
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert max(row["step"] for row in read_records(run)) == 30


def test_a_constant_opacity_target_warns(canonical):
    _, run, done = canonical
    assert "loss.opacity.target is the constant 0.05" in done.out
    warnings = json.loads((run / "run.json").read_text(encoding="utf-8"))["warnings"]
    assert any("loss.opacity.target" in warning for warning in warnings)


def test_an_override_that_shortens_the_run_is_never_silent(canonical):
    _, run, done = canonical
    line = "[config] max_steps override 30 is below config max_steps 50000"
    assert line in done.out
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["shortened"] == [{"key": "train.max_steps", "was": 50_000, "now": 30}]
    assert any(warning.startswith(line) for warning in facts["warnings"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "shortened: train.max_steps is 30 where the configuration says 50000" in page


def test_the_table_has_the_notes_columns_once(canonical):
    _, run, _ = canonical
    with (run / "training_metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"feature_mask_fraction", "opacity_target_weight_effective"} <= rows[0].keys()
    assert [row["step"] for row in rows] == ["1", "10", "20", "30"]
    assert {row["opacity_target_weight_effective"] for row in rows} == {"0.25"}
    assert all(float(row["feature_mask_fraction"]) > 0.2 for row in rows)


def test_the_notes_configuration_with_a_removed_key_is_refused(canonical, command, tmp_path):
    source, _, _ = canonical
    old = tmp_path / "old.yaml"
    text = source.read_text(encoding="utf-8")
    old.write_text(
        text.replace("optimize: [projector]", "optimize: [projector], freeze_student: true")
    )
    done = command("train", "--config", old, "--run-dir", tmp_path / "run")
    done.holds("train.phases.0.freeze_student", "removed", "optimize")
    assert not (tmp_path / "run").exists()


# What a step sees ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tiny):
    return teacher_of(DataSection(scene=tiny.scene, teacher=tiny.teacher))


def union(parts: list[Tensor]) -> Tensor:
    """Rank r of w has the elements r, r + w, ... of the whole."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("step", [0, 7])
def test_the_rays_of_all_processes_are_those_of_one(teacher, step, world):
    sampler = RaySampler(
        foreground(teacher.training, each_frame(teacher.gaussians, teacher.training)),
        teacher.gaussians,
        FeatureScaling.of(teacher.gaussians),
        rays=61,
        feature_rays=13,
        feature_alpha=0.5,
        seed=3,
    )
    whole = sampler.batch(step, Shard())
    parts = [sampler.batch(step, Shard(rank, world)) for rank in range(world)]
    for name in ("origins", "directions", "jitter"):
        assert torch.equal(union([getattr(p, name) for p in parts]), getattr(whole, name)), name
    for name in whole.targets._fields:
        here = union([getattr(p.targets, name) for p in parts])
        torch.testing.assert_close(here, getattr(whole.targets, name), msg=name)
    assert len(whole.targets.features) == 13
    other = sampler.batch(step + 1, Shard())
    assert not torch.equal(other.directions, whole.directions)


def test_the_points_of_both_processes_are_those_of_one(teacher):
    sampler = PointSampler(
        teacher.gaussians,
        torch.full((3,), -1.0),
        torch.full((3,), 1.0),
        torch.ones(4, 4, 4, dtype=torch.uint8),
        points=33,
        step_length=0.05,
        blur=0.01,
        seed=3,
    )
    whole = sampler.batch(5, Shard())
    parts = [sampler.batch(5, Shard(rank, 2)) for rank in range(2)]
    for name in whole._fields:
        assert torch.equal(union([getattr(p, name) for p in parts]), getattr(whole, name)), name


def test_a_voxel_that_any_process_has_shown_is_kept_by_all(monkeypatch):
    """Each process marches other rays, and must end with the same occupancy."""
    here, there = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    here[0, 0, 0], there[3, 3, 3] = 0.5, 0.5
    dropped: list[Tensor] = []

    class Seen:
        def new_max_weight(self) -> Tensor:
            return here

        def prune(self, max_weight: Tensor, threshold: float) -> float:
            dropped.append(max_weight < threshold)
            return 0.0

    class Silent:
        def info(self, message: str) -> None:
            pass

    monkeypatch.setattr(
        training.distributed, "gather", lambda own: torch.cat([own, there.expand_as(own)])
    )
    config = TrainConfig(prune=PruneSection(at=(0.5,)))
    training.Pruning(config, Seen(), Silent()).after_update(config.train.max_steps // 2)
    kept = ~dropped[0]
    assert torch.nonzero(kept).tolist() == [[0, 0, 0], [3, 3, 3]]


def test_rays_are_drawn_where_the_teacher_shows_something_and_just_around(teacher):
    frames = render_frames(teacher.gaussians, teacher.training)
    corner = torch.ones_like(frames.transmittance)
    corner[2, 10, 20] = 0.0  # one opaque pixel in one view
    sampler = RaySampler(
        foreground(
            frames.cameras, [TeacherFrames(frames.cameras, frames.rgb, corner, frames.depth)]
        ),
        teacher.gaussians,
        FeatureScaling.of(teacher.gaussians),
        rays=200,
        feature_rays=20,
        feature_alpha=0.5,
        seed=0,
    )
    drawn = sampler.batch(0, Shard())
    width = frames.cameras.width
    near = [(x, y) for y in range(8, 13) for x in range(18, 23)]
    flat = [2 * width * width + y * width + x for x, y in near]
    assert sampler.foreground.pixels.tolist() == sorted(flat)
    assert torch.equal(drawn.origins.unique(dim=0), frames.cameras.centres[2:3])


def test_the_foreground_holds_what_the_frames_show_to_half_precision(teacher):
    frames = render_frames(teacher.gaussians, teacher.training)
    kept = foreground(teacher.training, each_frame(teacher.gaussians, teacher.training))
    flat = kept.pixels.long()
    assert len(kept.first) == len(teacher.training) + 1
    assert 0 < len(flat) < frames.transmittance.numel()
    view = torch.repeat_interleave(torch.arange(len(teacher.training)), kept.first.diff())
    assert torch.equal(flat // frames.transmittance[0].numel(), view)
    for name, channels in (("rgb", 3), ("transmittance", 1)):
        exact = getattr(frames, name).reshape(-1, channels)[flat]
        found = getattr(kept, name).float().reshape(-1, channels)
        torch.testing.assert_close(found, exact, rtol=2**-11, atol=1e-7)
    assert torch.equal(kept.depth, frames.depth.flatten()[flat])


def test_frames_that_memory_cannot_hold_are_announced_before_they_are_rendered(
    teacher, tmp_path, monkeypatch
):
    """A machine says how much it has; the same frames are kept in either case."""
    kept, warned = [], []
    for kilobytes in (10, 10**9):
        memory = tmp_path / "meminfo"
        memory.write_text(f"MemTotal: 1 kB\nMemAvailable:   {kilobytes} kB\n")
        monkeypatch.setattr(teacher_frames, "MEMORY_FILE", memory)
        with Run.open("featdistill", TrainConfig, directory=tmp_path / str(kilobytes)) as run:
            kept.append(teacher_frames.load_frames(teacher.gaussians, teacher.training, run))
        warned.append(read_json(run.dir / "run.json")["warnings"])
        assert "(teacher frames) [8/8]: 100%" in (run.dir / "log.txt").read_text(encoding="utf-8")
    assert all(torch.equal(a, b) for a, b in zip(kept[0][1:], kept[1][1:], strict=True))
    (warning,) = warned[0]
    assert warned[1] == []
    assert "8 views of 28x28" in warning
    assert "data.extra_poses" in warning
    assert 8 * 28 * 28 * 5 < kept[0].size_bytes == 16 * len(kept[0].pixels) < 8 * 28 * 28 * 16
    monkeypatch.setattr(teacher_frames, "MEMORY_FILE", tmp_path / "none")
    assert teacher_frames.available_bytes() is None


def test_more_pixels_than_their_numbers_can_hold_are_refused(teacher):
    huge = teacher.training.resized(50_000, 50_000)
    with pytest.raises(UserError, match="8 views of 50000x50000") as caught:
        foreground(huge, [])
    assert "data.extra_poses" in caught.value.hint


class Unseen:
    def new_max_weight(self) -> Tensor:
        return torch.zeros(2, 2, 2)


def test_nothing_is_pruned_before_the_student_has_learned():
    phases = [
        {"name": "projector_warmup", "end_step": 50, "optimize": ("projector",)},
        {"name": "joint", "end_step": 100, "optimize": ("student", "projector")},
    ]
    section = TrainSection(max_steps=100, phases=tuple(PhaseConfig(**p) for p in phases))
    config = TrainConfig(train=section, prune=PruneSection(at=(0.12, 0.45, 0.8), window=30))
    assert training.Pruning(config, Unseen(), None).at == {80}


def test_pruning_waits_until_its_window_is_whole():
    """At 12 % of 1,500 steps a student has followed pictures for 20 steps, not for 150."""
    for steps, expected in ((1_500, {310, 675}), (5_000, {600, 2_250})):
        config = TrainConfig(train=TrainSection(max_steps=steps))
        pruning = training.Pruning(config, Unseen(), None)
        assert pruning.at == expected
        assert min(pruning.begin) >= config.train.image_start
