"""What the teacher shows: rays of its renders, its features, and points of its field.

Each batch is a pure function of (seed, step): nothing is iterated, so a resumed run, another number
of processes or a replay of one step sees the same rays.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from loom.sampling import Shard, draw_rng
from torch import Tensor

from featdistill.features import FeatureScaling, gaussian_features
from featdistill.gaussians import Gaussians
from featdistill.losses import RayTargets
from featdistill.models.field import mix_channels, query_field
from featdistill.models.raster import render_pixels
from featdistill.teacher_frames import Foreground

POINT_POOL = 1_000_000
FEATURE_POOL = 65_536


class FeaturePoints(NamedTuple):
    """Points in space with the features that the teacher's field has there."""

    points: Tensor  # [k, 3]
    features: Tensor  # [k, 52] standardised
    has_features: Tensor  # [k] bool: the teacher is opaque enough for a feature target


class RayBatch(NamedTuple):
    """Rays with the teacher's answer; the first `len(targets.features)` come from one view."""

    origins: Tensor  # [r, 3]
    directions: Tensor  # [r, 3] unit
    jitter: Tensor  # [r] in [0, 1), offset of the samples in steps
    targets: RayTargets
    feature_points: FeaturePoints | None = None


class PointBatch(NamedTuple):
    """Points in space with the teacher's opacity over one reference step and its colour."""

    points: Tensor  # [n, 3]
    directions: Tensor  # [n, 3] unit
    alpha: Tensor  # [n]
    rgb: Tensor  # [n, 3]


class RaySampler:
    """Random rays over the pixels where the teacher shows something, and a margin around them."""

    def __init__(
        self,
        foreground: Foreground,
        gaussians: Gaussians,
        scaling: FeatureScaling,
        *,
        rays: int,
        feature_rays: int,
        feature_alpha: float,
        seed: int,
    ) -> None:
        """Take the teacher's answers.

        Args:
            foreground: The teacher's renders, as far as rays are drawn from them.
            gaussians: The teacher, which blends its features for the chosen pixels on demand.
            scaling: Standardises the features.
            rays: Rays per step over all processes.
            feature_rays: How many of them come from one view and carry features; 0 for none.
            feature_alpha: Teacher opacity above which a ray has a feature target.
            seed: With the step, decides what is drawn.
        """
        self.foreground = foreground
        self.gaussians = gaussians
        self.features = scaling.standardise(gaussian_features(gaussians))
        self.rays = rays
        self.feature_rays = feature_rays
        self.feature_alpha = feature_alpha
        self.seed = seed

    def batch(self, step: int, shard: Shard) -> RayBatch:
        """This process's part of the rays of a step."""
        draw = draw_rng(self.seed, step, "rays")
        first, pixels = self.foreground.first, self.foreground.pixels
        views = torch.nonzero(first.diff()).flatten()
        view = int(views[draw.integers(len(views))])
        low, high = int(first[view]), int(first[view + 1])
        chosen = torch.cat(
            [
                torch.from_numpy(draw.integers(low, high, self.feature_rays)),
                torch.from_numpy(draw.integers(0, len(pixels), self.rays - self.feature_rays)),
            ]
        )
        jitter = torch.from_numpy(draw.random(self.rays, dtype="float32"))
        carrying = len(range(shard.rank, self.feature_rays, shard.world))
        mine = slice(shard.rank, None, shard.world)
        return self._look_up(chosen[mine], jitter[mine], carrying)

    def _look_up(self, chosen: Tensor, jitter: Tensor, carrying: int) -> RayBatch:
        cameras, held = self.foreground.cameras, self.foreground
        flat = held.pixels[chosen].long()
        per_view = cameras.width * cameras.height
        view, pixel = flat // per_view, flat % per_view
        xy = torch.stack([pixel % cameras.width, pixel // cameras.width], dim=-1)
        rays = cameras.rays(view, xy)
        features = self.features.new_zeros(0, self.features.shape[1])
        opaque = torch.zeros(0, dtype=torch.bool)
        if carrying:
            camera = cameras[int(view[0])]
            shown = render_pixels(self.gaussians, camera, xy[:carrying], self.features)
            alpha = 1 - shown.transmittance
            features = shown.channels / alpha.clamp_min(1e-6)[:, None]
            opaque = alpha > self.feature_alpha
        targets = RayTargets(
            held.rgb[chosen].float(),
            held.transmittance[chosen].float(),
            held.depth[chosen],
            features,
            opaque,
        )
        return RayBatch(rays.origins, rays.directions, jitter.contiguous(), targets)


class FeaturePointSampler:
    """Random points of a fixed pool in the occupied part of the box, with the teacher's features.

    Half of the pool's draws would fall into thin air; so the pool keeps the points of a volume pool
    that the teacher fills most.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        pool: PointBatch,
        scaling: FeatureScaling,
        *,
        points: int,
        alpha_threshold: float,
        blur: float,
        seed: int,
    ) -> None:
        """Choose the points and ask the teacher.

        Args:
            gaussians: The teacher.
            pool: Points with its opacity over one reference step.
            scaling: Standardises the features.
            points: Points per step over all processes.
            alpha_threshold: Opacity over one reference step above which there is a target.
            blur: The rasteriser's blur at the typical distance, world units.
            seed: With the step, decides what is drawn.
        """
        self.points = points
        self.seed = seed
        filled = pool.alpha.argsort(descending=True, stable=True)[:FEATURE_POOL]
        where = pool.points[filled].contiguous()
        values = scaling.standardise(gaussian_features(gaussians))
        mixed = mix_channels(gaussians, where, values, blur=blur)
        self.pool = FeaturePoints(where, mixed, pool.alpha[filled] > alpha_threshold)

    def batch(self, step: int, shard: Shard) -> FeaturePoints:
        """This process's part of the points of a step."""
        draw = draw_rng(self.seed, step, "feature points")
        chosen = torch.from_numpy(draw.integers(0, len(self.pool.points), self.points))
        mine = chosen[shard.rank :: shard.world]
        return FeaturePoints(*(tensor[mine] for tensor in self.pool))


class PointSampler:
    """Random points of a fixed pool inside the occupied part of the box, with the field there."""

    def __init__(
        self,
        gaussians: Gaussians,
        low: Tensor,
        high: Tensor,
        occupancy: Tensor,
        *,
        points: int,
        step_length: float,
        blur: float,
        seed: int,
    ) -> None:
        """Draw the pool and ask the teacher.

        Args:
            gaussians: The teacher.
            low: Corner of the box, [3].
            high: Opposite corner, [3].
            occupancy: [x, y, z] non-zero where the student may have density.
            points: Points per step over all processes.
            step_length: The reference step, world units.
            blur: The rasteriser's blur at the typical distance, world units.
            seed: Decides the pool and, with the step, what is drawn from it.
        """
        self.points = points
        self.seed = seed
        draw = torch.Generator().manual_seed(int(draw_rng(seed, 0, "pool").integers(2**62)))
        voxels = torch.nonzero(occupancy)
        shape = torch.tensor(occupancy.shape)
        chosen = voxels[torch.randint(len(voxels), (POINT_POOL,), generator=draw)]
        inside = (chosen + torch.rand(POINT_POOL, 3, generator=draw)) / shape
        position = low + inside * (high - low)
        directions = torch.randn(POINT_POOL, 3, generator=draw)
        directions[:, 2] = -directions[:, 2].abs()  # seen from the upper hemisphere
        directions = torch.nn.functional.normalize(directions, dim=-1)
        field = query_field(gaussians, position, directions, blur=blur)
        self.pool = PointBatch(
            position, directions, -torch.expm1(-field.extinction * step_length), field.rgb
        )

    def batch(self, step: int, shard: Shard) -> PointBatch:
        """This process's part of the points of a step."""
        draw = draw_rng(self.seed, step, "points")
        chosen = torch.from_numpy(draw.integers(0, POINT_POOL, self.points))
        mine = chosen[shard.rank :: shard.world]
        return PointBatch(*(tensor[mine] for tensor in self.pool))
