"""The terms of the distillation loss, on what a ray or a point gives.

All are means, so a weight means the same at any batch size. Colours are premultiplied and T is the
transmittance of the whole ray: over a background b the pixel is c + T b, so its error is linear in
b, and the expectation over a uniformly random b has a closed form. No sampled background adds
noise, and a student that is opaque white where the teacher is empty is never right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from featdistill.config import FEATURE_DIM


class RayTargets(NamedTuple):
    """What the teacher shows along r rays, of which the first k carry features."""

    rgb: Tensor  # [r, 3] premultiplied
    transmittance: Tensor  # [r]
    depth: Tensor  # [r] alpha-weighted mean distance from the camera, world units
    features: Tensor  # [k, 52] standardised
    has_features: Tensor  # [k] bool: the teacher is opaque enough for a feature target


def color_l2(dc: Tensor, dt: Tensor, background: str) -> Tensor:
    """Mean squared colour error.

    Args:
        dc: Error of the premultiplied colour, [r, 3].
        dt: Error of the transmittance, [r].
        background: random (the expectation over [0, 1]), white, black, or mixed: the mean of
            white and random.
    """
    if background == "mixed":
        return (color_l2(dc, dt, "white") + color_l2(dc, dt, "random")) / 2
    dt = dt[:, None]
    if background == "white":
        return (dc + dt).square().mean()
    if background == "black":
        return dc.square().mean()
    return (dc.square() + dc * dt + dt.square() / 3).mean()


def color_l1(dc: Tensor, dt: Tensor, background: str) -> Tensor:
    """Mean absolute colour error; arguments as for `color_l2`.

    The expectation of |dc + dt b| is |dc + dt/2| where the error keeps its sign over [0, 1], and
    (dc^2 + (dc + dt)^2) / (2 |dt|) where it does not.
    """
    if background == "mixed":
        return (color_l1(dc, dt, "white") + color_l1(dc, dt, "random")) / 2
    dt = dt[:, None].expand_as(dc)
    if background == "white":
        return (dc + dt).abs().mean()
    if background == "black":
        return dc.abs().mean()
    ends = dc + dt
    crosses = (dc * ends) < 0
    safe = torch.where(crosses, dt.abs(), 1.0)
    crossing = (dc.square() + ends.square()) / (2 * safe)
    return torch.where(crosses, crossing, (dc + dt / 2).abs()).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries that a mask keeps; zero, with a gradient of zero, if it keeps none."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1.0)


def depth_loss(student: Tensor, targets: RayTargets, kind: str, alpha_threshold: float) -> Tensor:
    """Error of the expected distance where the teacher is opaque.

    Args:
        student: Distance along each ray, [r], world units.
        targets: The teacher's.
        kind: l1, l2 or smooth_l1 (quadratic below 1 unit).
        alpha_threshold: Rays whose teacher alpha is at most this have no depth.
    """
    error = {
        "l1": functional.l1_loss,
        "l2": functional.mse_loss,
        "smooth_l1": functional.smooth_l1_loss,
    }[kind](student, targets.depth, reduction="none")
    return masked_mean(error, 1 - targets.transmittance > alpha_threshold)


def opacity_loss(
    alpha: Tensor,
    teacher_alpha: Tensor,
    kind: str,
    target: str | float,
    background_threshold: float,
) -> Tensor:
    """Error of each ray's opacity.

    Args:
        alpha: The student's, [r].
        teacher_alpha: The teacher's, [r].
        kind: l1 or l2.
        target: "teacher", or a constant opacity for every ray that is not background.
        background_threshold: Teacher alpha up to which a ray is background; it keeps that alpha.
    """
    wanted = teacher_alpha
    if target != "teacher":
        foreground = teacher_alpha > background_threshold
        wanted = torch.where(foreground, float(target), teacher_alpha)
    error = alpha - wanted
    return error.abs().mean() if kind == "l1" else error.square().mean()


def feature_losses(predicted: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared error and one minus the cosine, over the rays that have a target.

    Args:
        predicted: [k, d] in the space of comparison.
        targets: [k, d].
        mask: [k] bool.
    """
    l2 = masked_mean((predicted - targets).square().mean(dim=-1), mask)
    cosine = functional.cosine_similarity(predicted, targets, dim=-1, eps=1e-6)
    return l2, masked_mean(1 - cosine, mask)


def volume_losses(alpha: Tensor, rgb: Tensor, target_alpha: Tensor, target_rgb: Tensor):
    """Return the error of opacity over one reference step, and of colour where there is any.

    Densities have heavy tails; the opacity over a typical step is the quantity that shows
    (Reiser et al. 2021, section 3.2).

    Args:
        alpha: The student's opacity over one reference step, [n].
        rgb: The student's colour, [n, 3].
        target_alpha: The teacher's opacity over the same step, [n].
        target_rgb: The teacher's colour, [n, 3].
    """
    color = (rgb - target_rgb).square().mean(dim=-1)
    return (alpha - target_alpha).square().mean(), (target_alpha * color).mean()


def orthonormal_lift(dim: int) -> Tensor:
    """Return a fixed map [52, dim] with orthonormal rows, from the teacher's space to a wider one.

    Raises:
        ValueError: `dim` is below 52, so no such map exists.
    """
    if dim < FEATURE_DIM:
        raise ValueError(f"cannot lift {FEATURE_DIM} features to {dim} dimensions")
    draw = torch.randn(dim, FEATURE_DIM, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(draw).Q.T.contiguous()
