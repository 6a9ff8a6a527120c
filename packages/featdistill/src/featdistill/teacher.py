"""Fit a 3D Gaussian Splatting teacher to the posed images of a scene.

The gaussians start on the visual hull of the silhouettes, or as another model has them
(`start.model`), as many as the configuration says, and their number stays: gaussians that have
become invisible, or that `start.share` held back, are moved onto others (relocation.py). Each step
renders one training view, at first on smaller images where `train.coarse` says so.
The images are compared over random backgrounds, which alone tells white from empty: the square
error in its closed-form expectation, the absolute error and the SSIM term over one drawn colour.
Learning rates, backgrounds and relocations are pure functions of the seed and the step, so a
resumed fit repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loom.errors import UserError
from loom.files import sha256_file, write_atomic
from loom.loop import Every, FitResult, Losses, Shard, Term, TrainState, fit
from loom.native import cores_for_kernels
from loom.run import Run
from loom.sampling import draw_rng, epoch_indices
from torch import Tensor

from featdistill.cameras import Cameras
from featdistill.data.nerf_synthetic import Views, read_views
from featdistill.data.ply import ply_of, read_ply, write_ply
from featdistill.gaussians import SH_COEFFICIENTS, Gaussians
from featdistill.models.gaussian_model import GaussianModel
from featdistill.models.raster import render
from featdistill.models.relocation import relocate
from featdistill.models.spherical_harmonics import sh_from_color
from featdistill.models.visual_hull import visual_hull
from featdistill.structural_similarity import structural_similarity
from featdistill.teacher_config import StartConfig, TeacherConfig

ADAM_BETAS = (0.9, 0.99)  # the second moment forgets in about an epoch of 100 views
ADAM_EPSILON = 1e-15  # gradients of a mean over pixels are small; 3DGS uses the same
SOLID_LOGIT = 2.2  # opacity 0.9, for finding out which gaussians stand in front
WAITING_LOGIT = -10.0  # opacity 5e-5: no pixel shows it
SEEN_WEIGHT = 1e-3  # in pixels, over all views


class Target(NamedTuple):
    """One training view: what is to be seen, and the background of this step."""

    camera: Cameras  # of one view
    rgb: Tensor  # [h, w, 3] premultiplied
    transmittance: Tensor  # [h, w]
    background: Tensor  # [3]


def fit_teacher(config: TeacherConfig, run: Run) -> tuple[Gaussians, FitResult]:
    """Fit, and write `point_cloud.ply` into the run's directory.

    Raises:
        UserError: the scene is missing or damaged, or its silhouettes have no common volume.
    """
    train, test = read_scene(config, run)
    stages = {1: train} | {
        stage.divisor: _smaller(config, train, stage.divisor) for stage in config.train.coarse
    }
    first = stages[config.train.divisor_at(0)]
    if config.start.model is None:
        start = start_gaussians(config, first, run.rng("start"))
    else:
        start = go_on_from(_own_start_model(config.start.model, run), config.gaussians)
    model = GaussianModel(start)
    optimizer = torch.optim.Adam(
        model.groups(), lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True
    )
    state = TrainState(model, optimizer)
    run.info(f"{config.gaussians} gaussians, {len(train)} training views")

    def announce(step: int) -> None:
        divisor = config.train.divisor_at(step)
        if config.train.coarse and (not step or divisor != config.train.divisor_at(step - 1)):
            cameras = stages[divisor].cameras
            run.info(f"[stage] images of {cameras.width}x{cameras.height} from step {step}")

    samplers = {divisor: TargetSampler(views, config.seed) for divisor, views in stages.items()}
    with cores_for_kernels():
        result = fit(
            run,
            state,
            steps=config.train.max_steps,
            batch=lambda step, shard: samplers[config.train.divisor_at(step)](step, shard),
            loss=TeacherLoss(config),
            lr=config.train.lr_at,
            evaluate=Every(config.evaluation.interval, TestViews(test, config.evaluation.frames)),
            gates=config.gates,
            before_step=announce,
            after_step=Relocation(config, model, optimizer),
            log_interval=config.log_interval,
            checkpoint_interval=config.checkpoint_interval,
        )
    with torch.no_grad():
        gaussians = model()
    if run.is_main:
        write_ply(run.path("point_cloud.ply"), gaussians)
    return gaussians, result


def read_scene(config: TeacherConfig, run: Run) -> tuple[Views, Views]:
    """Read training and test views, and register what the run depends on."""
    if config.data.scene is None:
        raise UserError(
            "data.scene is not set", hint="give the NeRF-synthetic folder: data.scene=FOLDER"
        )
    views = {}
    for split in ("train", "test"):
        views[split] = read_views(config.data.scene, split, width=config.data.width)
        run.use(f"{split}_views", views[split].sha256)
    return views["train"], views["test"]


def _smaller(config: TeacherConfig, train: Views, divisor: int) -> Views:
    """Read the training views at a part of their width."""
    width, rest = divmod(train.cameras.width, divisor)
    if rest or config.data.scene is None:
        raise UserError(
            f"train.coarse: images {train.cameras.width} pixels wide have no whole width at "
            f"divisor {divisor}"
        )
    return read_views(config.data.scene, "train", width=width)


def start_gaussians(config: TeacherConfig, views: Views, rng: np.random.Generator) -> Gaussians:
    """Spread gaussians over the surface, and partly the inside, of the visual hull; colour them.

    Those that `start.share` holds back are too faint for any pixel and wait for their relocation.
    """
    start, n = config.start, config.gaussians
    waiting = config.waiting_at(0)
    n -= waiting
    means, spacing = _hull_points(start, views, n, rng)
    grey = Gaussians(
        means=means,
        log_scales=torch.log(start.scale * spacing)[:, None].repeat(1, 3),
        rotations=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(n, 1),
        opacity_logits=torch.logit(torch.full((n,), start.opacity)),
        sh=torch.zeros(n, SH_COEFFICIENTS, 3),
    )
    sh = grey.sh.clone()
    sh[:, 0] = sh_from_color(seen_colors(grey, views))
    return _with_waiting(replace(grey, sh=sh), config.gaussians)


def _own_start_model(model: Path, run: Run) -> Path:
    """Register and copy what the run goes on from: a resume needs it when its place has changed."""
    copy = run.path("inputs", "start_model.ply")
    source = copy if copy.exists() else ply_of(model)
    run.use("start_model", sha256_file(source))
    if run.is_main and source != copy:
        write_atomic(copy, source.read_bytes())
    return source


def go_on_from(path: Path, count: int) -> Gaussians:
    """Read a model (file, folder or teacher run) to go on from; those beyond its own wait.

    Raises:
        UserError: it cannot be read, or has more than `count` gaussians.
    """
    ply = ply_of(path)
    gaussians = read_ply(ply)
    if len(gaussians) > count:
        raise UserError(
            f"start.model: {ply} has {len(gaussians)} gaussians, more than gaussians={count}",
            hint=f"gaussians={len(gaussians)}, or more: the number does not shrink",
        )
    return _with_waiting(gaussians, count)


def _with_waiting(placed: Gaussians, count: int) -> Gaussians:
    """Repeat gaussians up to `count`, the repeated ones too faint for any pixel."""
    rows = torch.arange(count) % len(placed)
    start_set = placed.map(lambda tensor: tensor[rows])
    start_set.opacity_logits[len(placed) :] = WAITING_LOGIT
    return start_set


def seen_colors(gaussians: Gaussians, views: Views) -> Tensor:
    """Return the mean colour [n, 3] of the pixels that show each gaussian, grey for none.

    The derivative of a blended channel by a gaussian's value is its weight in that pixel, so the
    gradient of sum(channel x image) adds up the image, weighted, over the pixels of the gaussian.
    """
    solid = replace(gaussians, opacity_logits=torch.full((len(gaussians),), SOLID_LOGIT))
    total = torch.zeros(len(gaussians), 4)
    for index in range(len(views)):
        image = views[index].premultiplied()[0]
        channels = torch.zeros(len(gaussians), 4, requires_grad=True)
        shown = render(solid, views.cameras[index], channels=channels).channels
        total += torch.autograd.grad((shown * image).sum(), channels)[0]
    weight = total[:, 3:]
    return torch.where(weight > SEEN_WEIGHT, total[:, :3] / weight.clamp_min(SEEN_WEIGHT), 0.5)


def _hull_points(
    start: StartConfig, views: Views, n: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw n points of the hull [n, 3], and the distance between neighbours of their kind [n]."""
    alpha = views.rgba[..., 3].float() / 255
    widened = torch.nn.functional.max_pool2d(alpha, 2 * start.margin_px + 1, 1, start.margin_px)
    silhouettes = widened > start.alpha
    if silhouettes.all():
        raise UserError(
            "no training view has a transparent pixel, so there are no silhouettes",
            hint="export the pictures with alpha 0 where the object is not",
        )
    hull = visual_hull(views.cameras, silhouettes, start.resolution)
    if not hull.surface.any():
        raise UserError(
            "the silhouettes of the training views have no volume in common",
            hint="check the camera poses (`featdistill scene info`) and that images carry alpha",
        )
    interior = hull.centers[~hull.surface]
    inside = min(int(start.interior * n), n) if len(interior) else 0
    parts, spacings = [], []
    for points, count, dimensions in (
        (hull.centers[hull.surface], n - inside, 2),
        (interior, inside, 3),
    ):
        if not count:
            continue
        rounds = [rng.permutation(len(points)) for _ in range(math.ceil(count / len(points)))]
        chosen = torch.from_numpy(np.concatenate(rounds)[:count])
        jitter = torch.from_numpy(rng.uniform(-0.25, 0.25, (count, 3))).float() * hull.voxel
        parts.append(points[chosen] + jitter)
        spacings.append(torch.full((count,), (len(points) / count) ** (1 / dimensions)))
    return torch.cat(parts), torch.cat(spacings) * hull.voxel


class TargetSampler:
    """The view of a step: every view once per epoch, in an order of its own."""

    def __init__(self, views: Views, seed: int) -> None:
        """Keep the images as they are stored: as floats those of 800x800 take a gigabyte."""
        self.views = views
        self.cameras = [views.cameras[i] for i in range(len(views))]
        self.seed = seed

    def __call__(self, step: int, shard: Shard) -> Target:
        """Return the target of the update after `step` completed ones."""
        world = shard.world
        view = int(epoch_indices(len(self.cameras), self.seed, step, world, shard)[0])
        background = draw_rng(self.seed, step, "background").random(3, dtype=np.float32)
        image = self.views[view].premultiplied()[0]
        return Target(
            self.cameras[view], image[..., :3], 1 - image[..., 3], torch.from_numpy(background)
        )


class TeacherLoss:
    """The difference between a render and a training view, over backgrounds."""

    def __init__(self, config: TeacherConfig) -> None:
        """Take the weights."""
        self.weights = config.loss

    def __call__(self, model: GaussianModel, target: Target, step: int) -> Losses:
        """Return the terms that have a weight."""
        gaussians = model()
        shown = render(gaussians, target.camera)
        difference = shown.rgb - target.rgb
        through = (shown.transmittance - target.transmittance)[..., None]
        # The expectation over a background uniform in [0, 1] of (difference + b through)^2.
        l2 = (difference * (difference + through) + through.square() / 3).mean()
        weights = self.weights
        terms = {"l2": Term(l2, weights.l2)}
        if weights.l1:
            on_background = difference + target.background * through
            terms["l1"] = Term(on_background.abs().mean(), weights.l1)
        if weights.dssim:
            ours = shown.rgb + target.background * shown.transmittance[..., None]
            theirs = target.rgb + target.background * target.transmittance[..., None]
            terms["dssim"] = Term(1 - structural_similarity(ours, theirs), weights.dssim)
        if weights.opacity:
            terms["opacity"] = Term(gaussians.opacities.mean(), weights.opacity)
        if weights.scale:
            terms["scale"] = Term(gaussians.scales.mean(), weights.scale)
        return Losses(terms)


class Relocation:
    """Moves dead gaussians onto living ones, drawn by opacity, at the steps of its schedule."""

    def __init__(
        self, config: TeacherConfig, model: GaussianModel, optimizer: torch.optim.Optimizer
    ) -> None:
        """Work on the model and the optimiser's state of it."""
        self.config, self.model, self.optimizer = config, model, optimizer

    def __call__(self, step: int) -> None:
        """Relocate after the update of `step`, if it is due."""
        config, rule = self.config, self.config.relocation
        done, steps = step + 1, config.train.max_steps
        if done % rule.interval or not rule.begin * steps <= done <= rule.end * steps:
            return
        opacity = torch.sigmoid(self.model.opacity_logits.detach()).double()
        alive = opacity >= rule.opacity
        dead = (~alive).nonzero()[:, 0]
        dead = dead[: max(0, len(dead) - config.waiting_at(done))]
        if not len(dead) or not alive.any():
            return
        chances = torch.where(alive, opacity, 0.0).numpy()
        rng = draw_rng(config.seed, step, "relocation")
        onto = rng.choice(len(chances), size=len(dead), p=chances / chances.sum())
        relocate(self.model, self.optimizer, dead, torch.from_numpy(onto))


class TestViews:
    """Mean PSNR of the model on test views over white, in 8-bit values as they are stored."""

    def __init__(self, views: Views, frames: int) -> None:
        """Choose `frames` views spread evenly over all."""
        count = min(frames, len(views))
        self.views = views[[i * len(views) // count for i in range(count)]]

    def __call__(self, model: GaussianModel) -> dict[str, float | None]:
        """Return `metric/psnr_db`."""
        return {"metric/psnr_db": psnr_on_white(model(), self.views)}


@torch.no_grad()
def psnr_on_white(gaussians: Gaussians, views: Views) -> float:
    """Return the mean over views of the PSNR on white."""
    from loom.evaluation.images import psnr_db

    values = []
    for index in range(len(views)):
        shown = render(gaussians, views.cameras[index])
        truth = views[index].premultiplied()[0]
        ours = _eight_bit(shown.rgb + shown.transmittance[..., None])
        theirs = _eight_bit(truth[..., :3] + 1 - truth[..., 3:])
        values.append(psnr_db(ours, theirs))
    return float(np.mean(values))


def _eight_bit(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
