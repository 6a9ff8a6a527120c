"""Quick looks during training: a few evaluation views, with an empty picture beside them."""

from __future__ import annotations

import time

import torch
from loom.evaluation.images import psnr_db
from loom.sampling import Shard
from torch import Tensor

from featdistill.config import TrainConfig
from featdistill.distillation import Distillation
from featdistill.features import FeatureScaling
from featdistill.models.student import Student, render_image, render_rays
from featdistill.supervision import RaySampler
from featdistill.teacher_frames import foreground, render_frames
from featdistill.teacher_views import Teacher

FEATURE_RAYS, FEATURE_VIEWS = 512, 4


class Glance:
    """Scores of a student on white against its teacher; also the cosine of their features."""

    def __init__(self, config: TrainConfig, teacher: Teacher, *, spent_s: float = 0.0) -> None:
        """Render the teacher's side once.

        Args:
            config: The run's.
            teacher: What the student is compared with.
            spent_s: CPU-seconds of the processes that the run was resumed from.
        """
        self.spent_s = spent_s
        count = min(config.evaluation.frames, len(teacher.evaluation))
        chosen = [i * len(teacher.evaluation) // count for i in range(count)]
        self.frames = render_frames(teacher.gaussians, teacher.evaluation[chosen])
        self.wanted = self.frames.on_background(1.0).numpy()
        blank = torch.full_like(self.frames.on_background(1.0)[0], 255).numpy()
        self.blank_db = sum(psnr_db(blank, w) for w in self.wanted) / count
        self.compare = Distillation(config)
        self.feature_batches = []
        if config.feature_pipeline.enabled:
            sampler = RaySampler(
                foreground(self.frames.cameras, [self.frames]),
                teacher.gaussians,
                FeatureScaling.of(teacher.gaussians),
                rays=FEATURE_RAYS,
                feature_rays=FEATURE_RAYS,
                feature_alpha=config.feature_pipeline.alpha_threshold,
                seed=config.seed,
            )
            self.feature_batches = [sampler.batch(i, Shard()) for i in range(FEATURE_VIEWS)]

    def __call__(self, student: Student) -> dict[str, float | None]:
        """Return the mean scores, that of an empty picture, and the CPU time so far."""
        scores = []
        for index, wanted in enumerate(self.wanted):
            rgba, _ = render_image(student, self.frames.cameras[index])
            scores.append(psnr_db(on_white(rgba).numpy(), wanted))
        found: dict[str, float | None] = {
            "metric/psnr_db": sum(scores) / len(scores),
            "baseline/blank/psnr_db": self.blank_db,
            "perf/cpu_s": self.spent_s + time.process_time(),
        }
        if self.feature_batches:
            found["metric/feature_cosine"] = self._feature_cosine(student)
        return found

    def _feature_cosine(self, student: Student) -> float | None:
        """Mean over the views with feature targets; None where no view has any."""
        cosines = []
        for batch in self.feature_batches:
            if not batch.targets.has_features.any():
                continue
            out = render_rays(student, batch.origins, batch.directions, feature_rays=FEATURE_RAYS)
            alpha = 1 - out.transmittance
            error = self.compare.feature_errors(student, out.features, alpha, batch.targets)[1]
            cosines.append(1 - error.item())
        return sum(cosines) / len(cosines) if cosines else None


def on_white(rgba: Tensor) -> Tensor:
    """Composite a premultiplied picture [h, w, 4] on white, 8 bits [h, w, 3]."""
    rgb = rgba[..., :3] + (1 - rgba[..., 3:])
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
