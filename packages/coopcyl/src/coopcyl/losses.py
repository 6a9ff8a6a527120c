"""Losses on factored geometry, as MapAnything has them (Keetha et al. 2025, arXiv 2509.13414).

Nothing here is in metres. All points are divided by their own mean distance, large ones are pressed
by a logarithm, and the remainder goes through Barron's robust loss (CVPR 2019) with alpha 0.5 and
c 0.05:

    L(d) = 3 ((d^2 / 0.00375 + 1)^0.25 - 1)

so a translation loss of 7 is an error of 0.68 scene scales, whatever that is in metres. Errors in
units are in `coopcyl.metrics`; the two are recorded under different names.
"""

from typing import NamedTuple

import torch
from loom.update import Term
from torch import Tensor, nn
from torch.nn import functional

from coopcyl.loss_options import PosWeight

ALPHA = 0.5
SCALE = 0.05
_LEAST_DISTANCE = 1e-8


class FactoredGeometry(NamedTuple):
    """The geometry of b sets of v views with h x w pixels, in the frame of the first view.

    Attributes:
        points: `(b, v, h, w, 3)` in the frame of the first view.
        points_own: `(b, v, h, w, 3)` in each view's own frame.
        depth_along_ray: `(b, v, h, w, 1)`.
        ray_directions: `(b, v, h, w, 3)` unit vectors.
        quaternions: `(b, v, 4)` xyzw, unit length.
        translations: `(b, v, 3)`.
        metric_scale: `(b,)` factor that turns the other lengths into metres; 1 for ground truth.
    """

    points: Tensor
    points_own: Tensor
    depth_along_ray: Tensor
    ray_directions: Tensor
    quaternions: Tensor
    translations: Tensor
    metric_scale: Tensor


class GeometryWeights(NamedTuple):
    """Weights of the terms of `geometry_losses`."""

    points: float = 1.0
    points_own: float = 1.0
    depth: float = 1.0
    rays: float = 1.0
    quaternions: float = 1.0
    translations: float = 1.0
    scale: float = 1.0


_EQUAL = GeometryWeights()


class Confidence(NamedTuple):
    """How sure a network says it is of each point.

    Attributes:
        value: `(b, v, h, w)`, at least 1.
        alpha: Reward of confidence; see `confident_loss`.
    """

    value: Tensor
    alpha: float


def robust_loss(error: Tensor, alpha: float = ALPHA, scale: float = SCALE) -> Tensor:
    """Return Barron's general robust loss of error vectors `(..., d)`, `(...)`.

    Args:
        error: Vectors whose squared length counts.
        alpha: Shape, neither 0 nor 2, which are limits of the formula.
        scale: Length at which the loss stops being quadratic.
    """
    bend = abs(alpha - 2)
    squared = error.square().sum(dim=-1) / scale**2
    return bend / alpha * ((squared / bend + 1) ** (alpha / 2) - 1)


def robust_loss_inverse(loss: Tensor, alpha: float = ALPHA, scale: float = SCALE) -> Tensor:
    """Return the length of the error vector that has a given robust loss."""
    bend = abs(alpha - 2)
    squared = ((loss * alpha / bend + 1) ** (2 / alpha) - 1) * bend
    return scale * squared.sqrt()


def log_pressed(vectors: Tensor) -> Tensor:
    """Return vectors `(..., d)` with their direction and `log(1 + length)` as their length."""
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors * (torch.log1p(length) / length.clamp_min(_LEAST_DISTANCE))


def mean_distance(points: Tensor, valid: Tensor) -> Tensor:
    """Return the mean length of the valid points of each set, `(b,)`, over all its views."""
    length = torch.where(valid, points.norm(dim=-1), 0.0)
    count = valid.flatten(1).sum(dim=1)
    return (length.flatten(1).sum(dim=1) / count.clamp_min(1)).clamp_min(_LEAST_DISTANCE)


def quaternion_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the robust loss of quaternions `(..., 4)`; q and -q are the same rotation."""
    return torch.minimum(robust_loss(found - wanted), robust_loss(found + wanted))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of values where a mask holds; 0, with a gradient of 0, where it nowhere does.

    Values outside the mask may be NaN: they take no part in the gradient either.
    """
    chosen = values[mask]
    return chosen.sum() / max(1, chosen.numel())


def geometry_losses(
    found: FactoredGeometry,
    wanted: FactoredGeometry,
    valid: Tensor,
    covered: Tensor,
    weights: GeometryWeights = _EQUAL,
    confidence: Confidence | None = None,
) -> dict[str, Term]:
    """Return the terms of the factored-geometry loss.

    A view without any depth has no scale, so its translation takes no part; nor does the scale of a
    set in which no view has one.

    Args:
        found: The prediction.
        wanted: The truth, in metres.
        valid: `(b, v, h, w)` where the truth has a depth.
        covered: `(b, v, h, w)` where a camera looks: rays are supervised there.
        weights: Of the terms.
        confidence: Weighs the points in the first view's frame by it, where it is given.
    """
    scale_found = mean_distance(found.points, valid)
    scale_wanted = mean_distance(wanted.points, valid)

    def per_scale(tensor: Tensor, scale: Tensor) -> Tensor:
        return tensor / scale.view(-1, *[1] * (tensor.ndim - 1))

    def difference(name: str, *, pressed: bool) -> Tensor:
        scaled = [
            per_scale(getattr(geometry, name), scale)
            for geometry, scale in ((found, scale_found), (wanted, scale_wanted))
        ]
        if pressed:
            scaled = [log_pressed(each) for each in scaled]
        return robust_loss(scaled[0] - scaled[1])

    metric_found = torch.log1p(found.metric_scale * scale_found.detach())
    metric_wanted = torch.log1p(wanted.metric_scale * scale_wanted)
    rays = robust_loss(found.ray_directions - wanted.ray_directions)
    has_depth = valid.flatten(2).any(dim=-1)
    points = difference("points", pressed=True)
    return {
        "points": Term(
            masked_mean(points, valid)
            if confidence is None
            else confident_loss(points, confidence.value, valid, confidence.alpha),
            weights.points,
        ),
        "points_own": Term(
            masked_mean(difference("points_own", pressed=True), valid), weights.points_own
        ),
        "depth": Term(
            masked_mean(difference("depth_along_ray", pressed=True), valid), weights.depth
        ),
        "rays": Term(masked_mean(rays, covered), weights.rays),
        "quaternions": Term(
            quaternion_loss(found.quaternions, wanted.quaternions).mean(), weights.quaternions
        ),
        "translations": Term(
            masked_mean(difference("translations", pressed=False), has_depth), weights.translations
        ),
        "scale": Term(
            masked_mean(
                robust_loss((metric_found - metric_wanted)[..., None]), has_depth.any(dim=1)
            ),
            weights.scale,
        ),
    }


class MaskLoss(NamedTuple):
    """A mask's loss and what has to be watched beside it.

    Attributes:
        value: The loss.
        metrics: `mask/pred_mean`, `mask/gt_mean`, `mask/valid_ratio`, `mask/pos_weight`.
    """

    value: Tensor
    metrics: dict[str, Tensor]


class NonAmbiguousMaskLoss(nn.Module):
    """Binary cross-entropy of the mask of surfaces, over the pixels that a camera sees.

    Pixels without a camera are left out: there the mask is a constant of the rig, which a network
    memorises, and a loss that falls by it says nothing. A positive pixel counts `pos_weight` times;
    `auto` takes the batch's negatives over positives, so both sides weigh the same.

    Args:
        pos_weight: `auto` or a number.
        largest: Limit of the automatic weight, for batches with hardly a positive pixel.
    """

    def __init__(self, pos_weight: PosWeight = 1.0, largest: float = 20.0) -> None:
        super().__init__()
        if pos_weight != "auto" and not 0 < pos_weight < float("inf"):
            raise ValueError(f"pos_weight {pos_weight}: `auto` or a positive number")
        self.pos_weight = pos_weight
        self.largest = largest

    def forward(self, logits: Tensor, wanted: Tensor, covered: Tensor, valid: Tensor) -> MaskLoss:
        """Return the loss.

        Args:
            logits: `(...)` of the predicted mask.
            wanted: `(...)` bool, the true mask.
            covered: `(...)` bool, where a camera looks.
            valid: `(...)` bool, where the truth has a depth; only reported.
        """
        here, truth = logits[covered], wanted[covered].to(logits.dtype)
        positives = truth.sum()
        if self.pos_weight == "auto":
            weight = ((truth.numel() - positives) / positives.clamp_min(1)).clamp(
                1 / self.largest, self.largest
            )
        else:
            weight = torch.tensor(self.pos_weight, dtype=logits.dtype, device=logits.device)
        each = functional.binary_cross_entropy_with_logits(
            here, truth, pos_weight=weight, reduction="none"
        )
        count = max(1, truth.numel())
        metrics = {
            "mask/pred_mean": here.detach().sigmoid().sum() / count,
            "mask/gt_mean": positives / count,
            "mask/valid_ratio": valid.to(logits.dtype).mean(),
            "mask/pos_weight": weight,
        }
        return MaskLoss(each.sum() / count, metrics)


def confident_loss(values: Tensor, confidence: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Return `confidence * loss - alpha log confidence`, the mean over a mask.

    Args:
        values: Losses per pixel.
        confidence: At least 1, the same shape.
        mask: Where both count.
        alpha: Reward of confidence; the best one for a loss l is `max(1, alpha / l)`.
    """
    return masked_mean(confidence * values - alpha * confidence.log(), mask)
