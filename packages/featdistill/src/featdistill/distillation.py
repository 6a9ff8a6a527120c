"""The loss of a step: what the student shows against what the teacher shows.

L = color + depth + opacity + feature_l2 + feature_cos          (image phases, per ray)
L = (alpha - alpha_T)^2 + alpha_T |rgb - rgb_T|^2 / 3           (volume phases, per point)
"""

from __future__ import annotations

import torch
from loom.loop import Losses, Term
from torch import Tensor

from featdistill import losses
from featdistill.config import TrainConfig
from featdistill.losses import RayTargets
from featdistill.models.student import Student, query, query_features, render_rays
from featdistill.supervision import FeaturePoints, PointBatch, RayBatch

MIN_ALPHA = 0.05
"""Opacity that a ray's features are divided by at least."""


class Distillation:
    """The loss of one batch at one step."""

    def __init__(self, config: TrainConfig, max_weight: Tensor | None = None) -> None:
        """Keep the weights as schedules.

        Args:
            config: The run's.
            max_weight: Collects the largest rendered weight of each voxel, where one prunes.
        """
        self.loss = config.loss
        self.pipeline = config.feature_pipeline
        self.phase_at = config.train.phase_at
        self.background = config.data.background_color
        self.opacity_weight = config.loss.opacity.weight_at()
        self.max_weight = max_weight
        self.lift = None
        if self.pipeline.compare_space == "student":
            self.lift = losses.orthonormal_lift(config.student.feature_dim)

    def __call__(self, student: Student, batch: RayBatch | PointBatch, step: int) -> Losses:
        """Return the terms with their weights at this step."""
        if isinstance(batch, PointBatch):
            return self._volume(student, batch)
        return self._image(student, batch, step)

    def _volume(self, student: Student, batch: PointBatch) -> Losses:
        raw, inside = query(student, batch.points, batch.directions)
        out = torch.sigmoid(raw)
        alpha, color = losses.volume_losses(out[:, 3] * inside, out[:, :3], batch.alpha, batch.rgb)
        return Losses({"volume_alpha": Term(alpha, 1.0), "volume_color": Term(color, 1.0)})

    def _image(self, student: Student, batch: RayBatch, step: int) -> Losses:
        targets, loss = batch.targets, self.loss
        out = render_rays(
            student,
            batch.origins,
            batch.directions,
            jitter=batch.jitter,
            feature_rays=len(targets.features),
            max_weight=self.max_weight,
        )
        alpha = 1 - out.transmittance
        color = losses.color_l1 if loss.color.type == "l1" else losses.color_l2
        dc, dt = out.rgb - targets.rgb, out.transmittance - targets.transmittance
        terms = {"color": Term(color(dc, dt, self.background), loss.color.weight)}
        if loss.depth.weight:
            distance = out.depth / alpha.clamp_min(1e-3)
            value = losses.depth_loss(
                distance, targets, loss.depth.type, loss.depth.alpha_threshold
            )
            terms["depth"] = Term(value, loss.depth.weight)
        weight = self.opacity_weight.at(step)
        if weight:
            value = losses.opacity_loss(
                alpha,
                1 - targets.transmittance,
                loss.opacity.type,
                loss.opacity.target,
                loss.opacity.background_threshold,
            )
            terms["opacity"] = Term(value, weight)
        metrics: dict[str, float | Tensor] = {"metric/opacity_target_weight_effective": weight}
        if batch.feature_points is not None:
            errors, seen = self.point_errors(student, batch.feature_points)
            terms |= self._feature_terms(*errors, step)
            metrics["metric/feature_mask_fraction"] = seen.float().mean()
        elif len(targets.features):
            terms |= self._feature_terms(
                *self.feature_errors(student, out.features, alpha, targets), step
            )
            metrics["metric/feature_mask_fraction"] = targets.has_features.float().mean()
        return Losses(terms, metrics)

    def feature_errors(
        self, student: Student, composited: Tensor, alpha: Tensor, targets: RayTargets
    ) -> tuple[Tensor, Tensor]:
        """Compare features in the configured space: squared error, and one minus the cosine.

        Args:
            student: Whose projector is asked.
            composited: The student's features along the first k rays, premultiplied, [k, d].
            alpha: Its opacity along all rays, [r].
            targets: The teacher's side.
        """
        seen = composited / alpha[: len(composited), None].clamp_min(MIN_ALPHA)
        return self._compared(student, seen, targets.features, targets.has_features)

    def point_errors(
        self, student: Student, targets: FeaturePoints
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Compare features at points in space; return the two errors, and the mask [k]."""
        features, inside = query_features(student, targets.points)
        mask = targets.has_features & inside
        return self._compared(student, features, targets.features, mask), mask

    def _compared(
        self, student: Student, features: Tensor, wanted: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.lift is None:
            return losses.feature_losses(student.projector(features), wanted, mask)
        return losses.feature_losses(features, wanted @ self.lift, mask)

    def _feature_terms(self, l2: Tensor, cosine: Tensor, step: int) -> dict[str, Term]:
        only_projector = self.phase_at(step).optimize == ("projector",)
        weights = {
            name: config.weight if only_projector else config.weight_at().at(step)
            for name, config in (
                ("feature_l2", self.loss.feature_l2),
                ("feature_cos", self.loss.feature_cos),
            )
        }
        return {
            "feature_l2": Term(l2, weights["feature_l2"]),
            "feature_cos": Term(cosine, weights["feature_cos"]),
        }
