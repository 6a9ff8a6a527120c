"""Features at points in space: the teacher's field, the student's head, and what distils them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from featdistill.features import FeatureScaling, gaussian_features
from featdistill.gaussians import Gaussians, rotation_matrices
from featdistill.models import kilo_torch, occupancy
from featdistill.models.field import mix_channels
from featdistill.models.student import Student, query_features
from featdistill.student_config import StudentConfig
from featdistill.supervision import FeaturePointSampler, PointBatch
from loom.sampling import Shard


def some_gaussians(count: int = 6) -> Gaussians:
    draw = torch.Generator().manual_seed(3)
    means = torch.rand(count, 3, generator=draw)
    scales = -1.5 + 0.2 * torch.randn(count, 3, generator=draw)
    rotations = torch.randn(count, 4, generator=draw)
    opacity = torch.randn(count, generator=draw)
    return Gaussians(means, scales, rotations, opacity, torch.randn(count, 16, 3, generator=draw))


@pytest.mark.parametrize("impl", ["cpu", "torch"])
@pytest.mark.parametrize("width", [1, 3, 52])
def test_channels_mix_in_proportion_to_extinction(impl, width):
    gaussians = some_gaussians()
    draw = torch.Generator().manual_seed(4)
    points = torch.rand(9, 3, generator=draw)
    channels = torch.randn(len(gaussians.means), width, generator=draw)
    found = mix_channels(gaussians, points, channels, blur=0.1, impl=impl)
    axes = rotation_matrices(gaussians.rotations).double().numpy()
    for i, point in enumerate(points.double().numpy()):
        total, mixed = 0.0, np.zeros(width)
        for g in range(len(gaussians.means)):
            variances = np.exp(gaussians.log_scales[g].double().numpy()) ** 2 + 0.1**2
            offset = axes[g].T @ (point - gaussians.means[g].double().numpy())
            squared = float((offset**2 / variances).sum())
            opacity = 1 / (1 + math.exp(-gaussians.opacity_logits[g].item()))
            size = math.exp(np.log(variances).mean() / 2)
            if squared < 9:
                sigma = -math.log1p(-min(opacity, 0.99)) / (math.sqrt(2 * math.pi) * size)
                sigma *= math.exp(-squared / 2)
                total += sigma
                mixed += sigma * channels[g].double().numpy()
        assert found[i].numpy() == pytest.approx(mixed / total, abs=2e-5)


def student() -> Student:
    config = StudentConfig(grid_resolution=2, occupancy_resolution=8, steps_per_axis=8)
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    filled = torch.ones(occupancy.voxel_shape(box, 8), dtype=torch.uint8)
    filled[:4, :4, :4] = 0  # one cell has no network
    return Student(config, box, filled, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("impl", ["cpu", "torch"])
def test_features_are_the_head_on_the_trunk_of_the_points_own_cell(impl):
    made = student()
    draw = torch.Generator().manual_seed(1)
    points = 2.4 * torch.rand(40, 3, generator=draw) - 1.2
    features, inside = query_features(made, points, impl=impl)
    cell, _, local = kilo_torch.locate(made.volume, points)
    expected_inside = (points.abs() <= 1).all(dim=1) & ~(points < 0).all(dim=1)
    assert torch.equal(inside, expected_inside)
    assert (features[~inside] == 0).all()
    weights, head = made.weights.double(), made.head.double()
    for i in inside.nonzero()[:, 0].tolist():
        one = local[i : i + 1].double()
        _, z = kilo_torch.network(weights, made.shape, cell[i : i + 1], one, 0 * one)
        matrix = head[int(cell[i])].reshape(-1, 128)
        expected = z[0] @ matrix[:-1] + matrix[-1]
        assert torch.allclose(features[i].double(), expected, atol=2e-5)


def test_both_implementations_give_the_same_gradients():
    gradients = []
    for impl in ("cpu", "torch"):
        made = student()
        points = 2 * torch.rand(30, 3, generator=torch.Generator().manual_seed(2)) - 1
        features, _ = query_features(made, points, impl=impl)
        pull = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
        (features * pull).sum().backward()
        gradients.append((made.weights.grad, made.head.grad))
    for ours, twin in zip(*gradients, strict=True):
        assert ours.abs().max() > 0.1
        assert torch.allclose(ours, twin, atol=1e-4, rtol=1e-4)


def test_points_are_where_the_teacher_is_and_the_same_for_every_number_of_processes():
    gaussians = some_gaussians()
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(6))
    alpha = torch.linspace(0, 1, 500)
    pool = PointBatch(points, points, alpha, points)
    scaling = FeatureScaling.of(gaussians)
    sampler = FeaturePointSampler(
        gaussians, pool, scaling, points=12, alpha_threshold=0.5, blur=0.1, seed=7
    )
    whole = sampler.batch(3, Shard())
    parts = [sampler.batch(3, Shard(rank, 2)) for rank in (0, 1)]
    joined = torch.stack([parts[0].points, parts[1].points], dim=1).flatten(0, 1)
    assert torch.equal(whole.points, joined)
    assert not torch.equal(whole.points, sampler.batch(4, Shard()).points)
    for point, has, row in zip(whole.points, whole.has_features, whole.features, strict=True):
        index = int((points == point).all(dim=1).nonzero()[0])
        assert bool(has) == (alpha[index] > 0.5)
        wanted = scaling.standardise(gaussian_features(gaussians))
        expected = mix_channels(gaussians, point[None], wanted, blur=0.1, impl="torch")[0]
        assert torch.allclose(row, expected, atol=1e-4)


def test_training_on_points_teaches_the_features_of_pixels_too(tiny, command, tmp_path):
    run = tmp_path / "run"
    done = command(
        "train",
        *tiny.settings,
        "feature_pipeline.feature_source=per_sample",
        "feature_pipeline.alpha_threshold=0.1",
        "loss.feature_l2.weight=0.05",
        "loss.feature_cos.weight=0.05",
        "evaluation.interval=60",
        "--run-dir",
        run,
    )
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/feature_cos"] for row in rows if "loss/feature_cos" in row]
    cosines = [row["metric/feature_cosine"] for row in rows if "metric/feature_cosine" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert cosines[-1] > cosines[0] + 0.2  # measured along rays, as for any run
    assert min(row.get("metric/feature_mask_fraction", 1.0) for row in rows) > 0.3
