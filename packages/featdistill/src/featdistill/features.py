"""The teacher's 52 features per gaussian, `gaussian_sh_opacity_logscale`, and their scaling.

Order as in the PLY file: f_dc (3), f_rest (45, channel-major), opacity (1, after the sigmoid, as
logits have heavy tails), log scale (3). Raw sizes differ by a factor of a hundred (f_rest about
0.02 to 0.1, log scales about -5), so an unscaled L2 would see the log scales only; each feature is
standardised by its mean and deviation, weighted by opacity so that the invisible does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featdistill.gaussians import SH_COEFFICIENTS, Gaussians

FEATURES = 3 * SH_COEFFICIENTS + 1 + 3
SMALLEST_DEVIATION = 1e-4
"""A feature that hardly varies (f_rest of a model without view dependence) is only centred."""


def gaussian_features(gaussians: Gaussians) -> Tensor:
    """Return the raw features [n, 52]."""
    rest = gaussians.sh[:, 1:].transpose(1, 2).flatten(1)
    parts = [gaussians.sh[:, 0], rest, gaussians.opacities[:, None], gaussians.log_scales]
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class FeatureScaling:
    """Mean and deviation per feature."""

    mean: Tensor  # [52]
    deviation: Tensor  # [52]

    @classmethod
    def of(cls, gaussians: Gaussians) -> FeatureScaling:
        """Measure the scaling of a teacher, weighted by opacity."""
        features = gaussian_features(gaussians).double()
        weights = gaussians.opacities.double()[:, None]
        weights = weights / weights.sum()
        mean = (weights * features).sum(0)
        deviation = (weights * (features - mean).square()).sum(0).sqrt()
        deviation = torch.where(deviation < SMALLEST_DEVIATION, 1.0, deviation)
        return cls(mean.to(gaussians.means.dtype), deviation.to(gaussians.means.dtype))

    def standardise(self, features: Tensor) -> Tensor:
        """Map raw features [..., 52] to mean 0 and deviation 1."""
        return (features - self.mean) / self.deviation

    def restore(self, standardised: Tensor) -> Tensor:
        """Map standardised features [..., 52] back."""
        return standardised * self.deviation + self.mean
