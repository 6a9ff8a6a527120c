"""Distil the teacher into the student: phases, batches, and the checks that keep a run honest."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from loom import distributed
from loom.errors import GateMissed
from loom.gates import Baseline, Gate, Invariant
from loom.loop import Every, FitResult, Prefetch, TrainState, fit
from loom.native import cores_for_kernels
from loom.record import EVENTS_FOLDER
from loom.run import Run
from loom.runs import last_metrics
from loom.sampling import Shard
from torch import Tensor

from featdistill.assess import leave_pictures
from featdistill.config import FEATURE_DIM, PROGRESS_NAME, PhaseConfig, TrainConfig
from featdistill.distillation import Distillation
from featdistill.features import FeatureScaling
from featdistill.glance import Glance
from featdistill.models import field, occupancy
from featdistill.models.cell_adam import CellAdam
from featdistill.models.student import Student
from featdistill.supervision import (
    FeaturePointSampler,
    PointBatch,
    PointSampler,
    RayBatch,
    RaySampler,
)
from featdistill.teacher_frames import Foreground, load_frames
from featdistill.teacher_views import Teacher, read_teacher, remember_inputs, with_extra_poses

MASK_COLLAPSE = 0.05
MASK_COLLAPSE_RECORDS = 3

WIDEST_SPACING_PX = 2.0
GOOD_SPACING_PX = 1.5


def new_student(config: TrainConfig, teacher: Teacher, generator: torch.Generator) -> Student:
    """Place a student around the teacher, loosely: training prunes what it never shows."""
    blur = field.screen_blur(teacher.training.focal_px, teacher.typical_distance)
    box = field.bounding_box(teacher.gaussians, blur=blur)
    if config.student.bbox is not None:
        box = torch.tensor(config.student.bbox)
    shape = occupancy.voxel_shape(box, config.student.occupancy_resolution)
    filled = field.solid(teacher.gaussians, occupancy.voxel_centres(box, shape), blur=blur)
    return Student(config.student, box, occupancy.dilate(filled.to(torch.uint8)), generator)


class Supervision:
    """The batches of a run: points in volume phases, rays in image phases."""

    def __init__(
        self, config: TrainConfig, teacher: Teacher, shown: Foreground, student: Student
    ) -> None:
        """Prepare both samplers; the pool of points only if a phase wants it."""
        features = config.feature_pipeline
        per_pixel = features.enabled and features.feature_source == "per_pixel"
        scaling = FeatureScaling.of(teacher.gaussians)
        blur = field.screen_blur(shown.cameras.focal_px, teacher.typical_distance)
        self.phase_at = config.train.phase_at
        self.rays = RaySampler(
            shown,
            teacher.gaussians,
            scaling,
            rays=config.train.rays,
            feature_rays=min(features.rays, config.train.rays) if per_pixel else 0,
            feature_alpha=features.alpha_threshold,
            seed=config.seed,
        )
        low, high = student.box
        self.new_points = functools.cache(
            lambda: PointSampler(
                teacher.gaussians,
                low,
                high,
                student.occupancy,
                points=config.train.points,
                step_length=student.step,
                blur=blur,
                seed=config.seed,
            )
        )
        if any(phase.target == "volume" for phase in config.train.phases):
            self.new_points()  # before pruning changes the occupancy that it draws from
        self.feature_points = None
        if features.enabled and not per_pixel:
            self.feature_points = FeaturePointSampler(
                teacher.gaussians,
                self.new_points().pool,
                scaling,
                points=features.rays,
                alpha_threshold=features.alpha_threshold,
                blur=blur,
                seed=config.seed,
            )

    def batch(self, step: int, shard: Shard) -> RayBatch | PointBatch:
        """This process's part of the batch of a step."""
        if self.phase_at(step).target == "volume":
            return self.new_points().batch(step, shard)
        rays = self.rays.batch(step, shard)
        if self.feature_points is None:
            return rays
        return rays._replace(feature_points=self.feature_points.batch(step, shard))


class Pruning:
    """Drop the voxels that the student itself never shows, at fixed steps."""

    def __init__(self, config: TrainConfig, student: Student, run: Run) -> None:
        """Turn shares of the steps into steps, each with a whole window of a learning student.

        What a few batches did not happen to meet would else be dropped as never shown.
        """
        self.run = run
        self.student = student
        self.threshold = config.prune.threshold
        self.max_weight = student.new_max_weight()
        steps = [int(share * config.train.max_steps) for share in config.prune.at]
        learning = max(config.train.image_start, config.train.student_start)
        whole = learning + config.prune.window
        self.at = frozenset(max(step, whole) for step in steps if step > learning)
        self.begin = frozenset(step - config.prune.window for step in self.at)

    def after_update(self, completed: int) -> None:
        """Start a window, or prune at its end."""
        if completed in self.begin:
            self.max_weight.zero_()
        if completed in self.at:
            # Each process has marched other rays; all of them must drop the same voxels.
            self.max_weight.copy_(distributed.gather(self.max_weight[None]).amax(dim=0))
            share = self.student.prune(self.max_weight, self.threshold)
            self.run.info(f"[occupancy] pruned at step {completed}: {share:.1%} of it is left")

    def state_dict(self) -> dict[str, Tensor]:
        """The window so far, so that a resumed run prunes the same voxels."""
        return {"max_weight": self.max_weight}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue a window."""
        self.max_weight.copy_(state["max_weight"])


def new_optimizer(student: Student) -> CellAdam:
    """Named groups, so that a phase can say which of them learn."""
    return CellAdam(
        [
            {"name": "student", "params": [student.weights, student.head]},
            {
                "name": "projector",
                "params": list(student.projector.parameters()),
                "per_cell": False,
            },
        ],
        betas=(0.9, 0.99),
        eps=1e-12,
    )


def train(config: TrainConfig, run: Run) -> tuple[Student, FitResult]:
    """Distil, writing records, checkpoints and the final state into the run's directory."""
    teacher = read_teacher(config.data, run)
    if run.is_main:
        remember_inputs(config.data, run.dir)
    views = with_extra_poses(teacher.training, config.data.extra_poses, run.generator("poses"))
    shown = load_frames(teacher.gaussians, views, run)
    run.info(f"Loaded teacher frames ({len(views)})")
    run.info(f"[logging] TensorBoard writer initialised → {run.dir / EVENTS_FOLDER}")
    _announce(config, run)

    student = new_student(config, teacher, run.generator("student"))
    low, high = ([round(x, 3) for x in corner.tolist()] for corner in student.box)
    run.info(f"[student] {len(student.weights)} networks in the box from {low} to {high}")
    _announce_spacing(student, teacher, run)
    state = TrainState(student, new_optimizer(student), ema_decay=config.train.ema_decay)
    pruning = Pruning(config, student, run)
    state.extras["pruning"] = pruning
    supervision = Supervision(config, teacher, shown, student)
    spent_s = last_metrics(run.dir).get("perf/cpu_s", 0.0) if run.resumed else 0.0
    glance = Glance(config, teacher, spent_s=spent_s)
    restarts = frozenset(_volume_ends(config.train.phases))

    def before_step(step: int) -> None:
        phase = config.train.phase_at(step)
        if step == config.train.phase_start(phase):
            run.info(f"Enter {phase.name} at step {step}: optimize={list(phase.optimize)}")

    passed = False

    def after_step(step: int) -> None:
        nonlocal passed
        if not passed:  # kernels have been compiled and points drawn: from here on it is fast
            run.info("[init] First KiloNeRF forward pass finished")
        passed = True
        pruning.after_update(step + 1)
        if step + 1 in restarts:  # moments of another loss mislead the first steps of this one
            state.optimizer.state.clear()

    try:
        with cores_for_kernels():
            result = fit(
                run,
                state,
                steps=config.train.max_steps,
                batch=Prefetch(supervision.batch),
                loss=Distillation(config, pruning.max_weight),
                lr=config.train.lr_at,
                trainable=lambda step: config.train.phase_at(step).optimize,
                evaluate=Every(config.evaluation.interval, glance),
                gates=(blank_gate(config), *config.gates),
                invariants=invariants(config),
                before_step=before_step,
                after_step=after_step,
                clip_norm=config.train.gradient_clip_norm,
                log_interval=config.log_interval,
                checkpoint_interval=config.checkpoint_interval,
                metric_for_best="metric/psnr_db",
                progress_name=PROGRESS_NAME,
            )
    except GateMissed:
        if run.is_main:
            cameras = glance.frames.cameras
            leave_pictures(state.ema_model, teacher.gaussians, cameras, run.dir)
            run.info(f"[gate] `featdistill diagnose {run.dir}` looks at what it showed")
        raise
    return state.ema_model, result


def _volume_ends(phases: tuple[PhaseConfig, ...]) -> list[int]:
    """Steps after which the target changes."""
    pairs = itertools.pairwise(phases)
    return [before.end_step for before, after in pairs if before.target != after.target]


def _announce_spacing(student: Student, teacher: Teacher, run: Run) -> None:
    """Say how many pixels the samples of a ray lie apart; more than two show as noise at edges."""
    pixel = teacher.typical_distance / teacher.training.focal_px
    spacing_px = student.step / pixel
    run.info(f"[student] samples along a ray lie {spacing_px:.1f} pixels apart")
    if spacing_px > WIDEST_SPACING_PX:
        steps = student.config.steps_per_axis
        enough = math.ceil(steps * spacing_px / GOOD_SPACING_PX / 10) * 10
        run.warn(
            f"student.steps_per_axis={steps} puts the samples of a ray {spacing_px:.1f} pixels "
            f"apart, and what lies between them is missed; {enough} puts them {GOOD_SPACING_PX:g} "
            "apart, for more time per step"
        )


def _announce(config: TrainConfig, run: Run) -> None:
    """Say what is compared with what, in the words that the notes look for."""
    pipeline = config.feature_pipeline
    if not pipeline.enabled:
        run.info("feature pipeline disabled: colour, depth and opacity only")
        return
    ends = f"projector in/out=({pipeline.projector.in_dim}->{pipeline.projector.out_dim})"
    if pipeline.compare_space == "teacher":
        run.info(f"comparison feature dim={FEATURE_DIM}, {ends}")
        run.info("student-space policy bypassed for compare_space='teacher'")
    else:
        width = config.student.feature_dim
        run.info(f"comparison feature dim={width}, teacher lifted ({FEATURE_DIM}->{width})")
    if any(phase.optimize == ("projector",) for phase in config.train.phases):
        run.info("[phase] Projector-only warmup forcing feature loss on.")
    if config.loss.opacity.target != "teacher":
        run.warn(
            f"loss.opacity.target is the constant {config.loss.opacity.target:g}: it pulls every "
            "ray of the object to that opacity; `target: teacher` follows the teacher's alpha"
        )


def blank_gate(config: TrainConfig) -> Gate:
    """A student that shows nothing stops the run early."""
    return Gate(
        "metric/psnr_db",
        ">",
        Baseline("blank", margin=config.evaluation.blank_margin_db),
        at=f"step {config.blank_check_step}",
        otherwise="student is blank",
        fatal=True,
    )


def invariants(config: TrainConfig) -> tuple[Invariant, ...]:
    """What must hold in every record: the feature mask lives, the opacity weight never falls."""
    rising = Invariant(
        "metric/opacity_target_weight_effective",
        monotone=True,
        otherwise="the opacity schedule or a resume is broken",
    )
    if not config.feature_pipeline.enabled:
        return (rising,)
    mask = Invariant(
        "metric/feature_mask_fraction",
        min=MASK_COLLAPSE,
        records=MASK_COLLAPSE_RECORDS,
        otherwise="mask collapse: hardly a ray has a feature target; lower "
        "feature_pipeline.alpha_threshold, or look at the teacher",
    )
    return (rising, mask)
