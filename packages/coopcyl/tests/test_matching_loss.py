"""What the network is taught, against slow loops in float64."""

from itertools import product

import numpy as np
import pytest
import torch
from coopcyl.batches import SetBatch, Truth, collate
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.samples import sample_of
from coopcyl.data.tree import read_tree
from coopcyl.geometry.panorama import Panorama
from coopcyl.loss_options import MatchingLossOptions
from coopcyl.matching_loss import (
    matching_losses,
    pair_losses,
    partner_chances,
    token_truth,
    two_hot_loss,
)
from coopcyl.models.cylnet import CylNet
from coopcyl.models.inputs import ViewInput
from coopcyl.models.options import CylNetOptions

PANORAMA = Panorama(64, 32, "equirect_band", -42, 42)
OPTIONS = MatchingLossOptions()


@pytest.fixture(scope="module")
def model() -> CylNet:
    options = CylNetOptions(
        widths=(8, 16, 16), token_width=16, descriptor=8, range_bins=12, precision="fp32"
    )
    return CylNet(options, 32, 64, torch.Generator().manual_seed(1)).eval()


@pytest.fixture(scope="module")
def batch(small_root) -> SetBatch:
    reader = PanoramaReader(PANORAMA, DepthSource("npy"), 90.0)
    frames = read_tree(small_root, "train").frames
    samples = [
        sample_of([reader.read(a) for a in frame.agents[:2]], np.random.default_rng(i))
        for i, frame in enumerate(frames[::2])
    ]
    return collate(samples)


def part(batch: SetBatch, index: int) -> SetBatch:
    views = slice(2 * index, 2 * index + 2)
    return SetBatch(
        ViewInput(*(t[views] for t in batch.views)),
        Truth(*(t[views] for t in batch.truth[:3]), batch.truth.poses[index : index + 1]),
        batch.keys[views],
        2,
    )


def test_points_of_tokens_are_those_of_their_pixels(batch):
    truth = token_truth(batch)
    pose = batch.truth.poses[0, 1].double()
    for row, column in product(range(8), range(16)):
        pixel = (slice(None), 4 * row + 2, 4 * column + 2)
        own = (
            batch.views.origins[1][pixel]
            + batch.truth.range_m[1][pixel[1:]] * (batch.views.rays[1][pixel])
        )
        expected = pose[:3, :3] @ own.double() + pose[:3, 3]
        found = truth.points[1, 16 * row + column].double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_matching_is_the_slow_cross_entropy_of_each_asked_token(model, batch):
    maps, truth = model(batch.views, 2), token_truth(batch)
    options = OPTIONS.model_copy(update={"queries": 40})
    match, covisible = pair_losses(model, maps, truth, 0, 1, options)
    points = truth.points.double().numpy()
    ranges = truth.range_m.double().numpy()
    expected, seen_losses = [], []
    for k, other in ((0, 1), (1, 0)):
        apart = np.linalg.norm(points[k][:, None] - points[other], axis=-1)
        apart[(ranges[k] <= 0) | (ranges[k] >= 60)] = np.inf
        apart[:, (ranges[other] <= 0) | (ranges[other] >= 60)] = np.inf
        near = 0.3 + 0.07 * ranges[k]
        nearest = apart.min(axis=1)
        seen = np.nonzero(nearest < near)[0]
        asked = seen[np.argsort(-truth.keys[k].numpy()[seen])][:40]
        similarity = model.similarity(maps.descriptors[k], maps.descriptors[other])
        log_chance = similarity.detach().double().log_softmax(-1).numpy()
        losses = []
        for i in asked:
            weight = np.exp(-0.5 * ((apart[i] - nearest[i]) / (0.5 * near[i])) ** 2)
            weight[apart[i] >= 2 * near[i]] = 0
            losses.append(-(weight / weight.sum() * log_chance[i]).sum())
        expected.append(np.mean(losses))
        logits = maps.covisible_logits[k].detach().double().flatten().numpy()
        rows = [
            np.log1p(np.exp(-logits[i] if nearest[i] < near[i] else logits[i]))
            for i in range(len(logits))
            if ranges[k][i] > 0 and not near[i] <= nearest[i] <= 2 * near[i]
        ]
        seen_losses.append(np.mean(rows))
    assert match.item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert covisible.item() == pytest.approx(np.mean(seen_losses), rel=1e-4)


def test_the_loss_of_a_batch_is_the_mean_of_its_sets(model, batch):
    whole = matching_losses(model, batch, OPTIONS).terms
    parts = [matching_losses(model, part(batch, i), OPTIONS).terms for i in range(2)]
    for name, term in whole.items():
        mean = sum(each[name].value for each in parts) / 2
        torch.testing.assert_close(term.value, mean, rtol=1e-5, atol=1e-6)


def test_truth_reaches_the_loss_and_never_the_network(model, batch):
    blind = batch._replace(
        truth=batch.truth._replace(
            range_m=torch.rand_like(batch.truth.range_m) * 50,
            poses=batch.truth.poses.flip(1),
        )
    )
    torch.testing.assert_close(
        model(blind.views, 2).log_range, model(batch.views, 2).log_range, rtol=0, atol=0
    )
    changed = matching_losses(model, blind, OPTIONS).terms["match"].value
    assert changed != matching_losses(model, batch, OPTIONS).terms["match"].value


def test_a_target_between_two_bins_is_best_met_by_both():
    bins = torch.linspace(0, 3, 4)
    wanted = torch.tensor([1.25])
    best = torch.tensor([[-30.0, np.log(0.75), np.log(0.25), -30.0]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert two_hot_loss(best, wanted, bins).item() == pytest.approx(entropy, rel=1e-5)
    for other in (0.5, 0.6, 0.9):
        logits = torch.tensor([[-30.0, np.log(other), np.log(1 - other), -30.0]])
        assert two_hot_loss(logits, wanted, bins).item() > entropy
    ends = two_hot_loss(torch.zeros(2, 4), torch.tensor([0.0, 3.0]), bins)
    torch.testing.assert_close(ends, torch.full((2,), float(np.log(4))))


def test_partners_are_soft_round_the_nearest_and_none_without_one():
    apart = torch.tensor([[1.0, 1.2, 3.0], [torch.inf, torch.inf, torch.inf]])
    chances = partner_chances(apart, apart.amin(dim=1), torch.tensor([1.0, 1.0]))
    soft = np.exp(-0.5 * (0.2 / 0.5) ** 2)
    np.testing.assert_allclose(chances[0], [1 / (1 + soft), soft / (1 + soft), 0], rtol=1e-5)
    assert not chances[1].any()


def test_sparse_depth_teaches_no_mask(model, batch):
    unknown = batch._replace(
        truth=batch.truth._replace(surface_known=torch.zeros_like(batch.truth.surface_known))
    )
    assert matching_losses(model, unknown, OPTIONS).terms["mask"].value == 0


def test_a_view_without_any_depth_stays_finite(model, batch):
    empty = batch._replace(
        truth=batch.truth._replace(range_m=torch.zeros_like(batch.truth.range_m))
    )
    losses = matching_losses(model, empty, OPTIONS)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
