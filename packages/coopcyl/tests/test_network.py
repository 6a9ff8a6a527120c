"""The network by itself: what wraps, what is independent, and what its outputs mean."""

import numpy as np
import pytest
import torch
from coopcyl.geometry.panorama import Panorama
from coopcyl.models import predict as predict_module
from coopcyl.models.cylnet import CylNet, input_channels, read_range, to_pixels
from coopcyl.models.inputs import ViewInput, stack
from coopcyl.models.options import CylNetOptions
from coopcyl.models.predict import forward_keys, predict, view_tokens
from scipy.spatial.transform import Rotation

ROWS, COLUMNS = 32, 64
SMALL = CylNetOptions(
    widths=(8, 16, 16), token_width=16, descriptor=8, range_bins=12, precision="fp32"
)


def network(**changes) -> CylNet:
    options = SMALL.model_copy(update=changes)
    return CylNet(options, ROWS, COLUMNS, torch.Generator().manual_seed(0)).eval()


def views(n: int, seed: int = 0) -> ViewInput:
    generator = torch.Generator().manual_seed(seed)
    rays = torch.randn(n, 3, ROWS, COLUMNS, generator=generator)
    return ViewInput(
        torch.rand(n, 3, ROWS, COLUMNS, generator=generator),
        torch.nn.functional.normalize(rays, dim=1),
        torch.rand(n, 3, ROWS, COLUMNS, generator=generator),
        torch.ones(n, ROWS, COLUMNS, dtype=torch.bool),
    )


def rolled(given: ViewInput, columns: int) -> ViewInput:
    return ViewInput(*(tensor.roll(columns, dims=-1) for tensor in given))


@torch.no_grad()
def test_what_leaves_at_the_right_edge_comes_in_at_the_left():
    model, given = network(), views(1)
    here, there = model(given), model(rolled(given, 24))
    for name, columns in (("log_range", 6), ("pixel_log_range", 24), ("covisible_logits", 6)):
        torch.testing.assert_close(
            getattr(here, name).roll(columns, dims=-1), getattr(there, name), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_views_are_independent_without_attention_and_not_with_it():
    pair, other = views(2), views(2, seed=1)
    mixed = stack([ViewInput(*(t[:1] for t in pair)), ViewInput(*(t[1:] for t in other))])
    for rounds, equal in ((0, True), (1, False)):
        model = network(attention=rounds)
        first, second = model(pair, 2).descriptors[0], model(mixed, 2).descriptors[0]
        assert torch.allclose(first, second, atol=1e-6) is equal


@torch.no_grad()
def test_attention_stays_within_a_set():
    model = network(attention=1)
    pairs = views(4)
    alone = model(ViewInput(*(t[:2] for t in pairs)), 2)
    torch.testing.assert_close(model(pairs, 2).descriptors[:2], alone.descriptors)


def test_every_weight_learns():
    model = network(attention=1).train()
    maps = model(views(2), 2)
    total = sum(
        part.square().sum() + part.sum()
        for part in (
            maps.bin_logits,
            maps.pixel_log_range,
            maps.pixel_surface_logits,
            maps.covisible_logits,
            model.similarity(maps.descriptors[0], maps.descriptors[1].roll(1, dims=0)),
        )
    )
    total.backward()
    dead = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # A head that ends in zeros passes no gradient to what is before it in the first step.
    assert set(dead) <= {"scale.0.weight", "scale.0.bias"}


def test_the_road_channel_is_the_range_of_a_flat_road():
    panorama = Panorama(COLUMNS, ROWS, "equirect_band", -42, 42)
    rays = torch.from_numpy(panorama.directions()).float().permute(2, 0, 1)[None]
    origin = torch.tensor([0.5, 0.9, 3.0]).view(1, 3, 1, 1).expand_as(rays)
    given = ViewInput(torch.zeros_like(rays), rays, origin, torch.ones(1, ROWS, COLUMNS).bool())
    log_range = input_channels(given)[0, 9] + 2.5
    depression = np.radians(42 - 84 * (np.arange(ROWS) + 0.5) / ROWS)
    with np.errstate(divide="ignore"):
        expected = np.where(depression < 0, 1.0 / np.sin(-depression), np.inf).clip(1, 90)
    np.testing.assert_allclose(log_range[:, 0].exp(), expected, rtol=1e-4)


def test_a_range_with_two_peaks_is_one_of_them_and_its_sigma_tells():
    bins = torch.linspace(0, 4, 41)
    chance = torch.full((41,), 1e-6)
    chance[[9, 10, 11]] = torch.tensor([0.15, 0.3, 0.15])
    chance[35] = 0.39
    value, sigma = read_range(chance.log(), bins)
    assert value.item() == pytest.approx(3.5, abs=0.01)
    chance[10] = 0.5
    value, sigma = read_range(chance.log(), bins)
    assert value.item() == pytest.approx(1.0, abs=0.01)
    assert sigma.item() > 1
    chance[35] = 0
    assert read_range(chance.clamp_min(1e-9).log(), bins)[1].item() < 0.1


def test_pixels_are_convex_combinations_of_the_tokens_around_them():
    tokens = torch.arange(12.0).view(1, 3, 4)
    weights = torch.zeros(1, 9, 16, 3, 4)
    weights[:, 4] = 1  # the own token
    nearest = tokens.repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(to_pixels(tokens, weights), nearest)
    weights = weights.roll(-1, dims=1)  # the left neighbour, which wraps
    torch.testing.assert_close(to_pixels(tokens, weights), nearest.roll(4, dims=-1))
    free = torch.rand(1, 9, 16, 3, 4).softmax(dim=1)
    torch.testing.assert_close(to_pixels(torch.ones(1, 3, 4), free), torch.ones(1, 12, 16))


def test_outputs_have_mapanythings_keys_and_agree_with_each_other():
    model, given = network(), views(3)
    found = predict(model, given)
    assert len(found.views) == 3
    np.testing.assert_array_equal(found.poses[0], np.eye(4))
    for pose, view in zip(found.poses, found.views, strict=True):
        assert view["pts3d"].shape == (1, ROWS, COLUMNS, 3)
        assert view["depth_along_ray"].shape == (1, ROWS, COLUMNS, 1)
        assert view["conf"].shape == view["non_ambiguous_mask"].shape == (1, ROWS, COLUMNS)
        assert view["conf"].min() >= 1
        assert view["metric_scaling_factor"].shape == (1, 1)
        own = view["ray_origins"] + view["depth_along_ray"] * view["ray_directions"]
        torch.testing.assert_close(own, view["pts3d_cam"])
        rotation = Rotation.from_quat(view["cam_quats"][0].numpy()).as_matrix()
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-6)
        moved = own.numpy() @ rotation.T + view["cam_trans"].numpy()
        np.testing.assert_allclose(moved, view["pts3d"], atol=1e-3)


def test_the_solver_is_told_the_mean_of_both_directions_and_half_the_bins_deviation(monkeypatch):
    model, given = network(), views(2)
    asked = []
    monkeypatch.setattr(predict_module, "align", lambda points, *_: asked.append(points))
    with torch.no_grad():
        maps = model(given, 2)
        similarity = model.similarity(*maps.descriptors).double().numpy()
    chances = [np.exp(similarity) / np.exp(similarity).sum(k, keepdims=True) for k in (0, 1)]
    seen = (maps.covisible_logits.sigmoid() * maps.surface_logits.sigmoid()).flatten(1).numpy()
    mean = np.sqrt(chances[0] * chances[1] * seen[0][:, None] * seen[1])
    predict(model, given)
    (points,) = asked
    np.testing.assert_allclose(points.weights[0], mean.max(), rtol=1e-4)
    for tokens, sigma in zip(view_tokens(maps, given), maps.sigma.flatten(1), strict=True):
        np.testing.assert_allclose(tokens.sigma, (0.5 * sigma).clamp(0.015, 0.25) + 0.02)


def test_uncovered_pixels_are_never_in_the_mask():
    model, given = network(), views(1)
    covered = given.covered.clone()
    covered[:, :, 20:40] = False
    given = given._replace(covered=covered)
    with torch.no_grad():
        (view,) = forward_keys(model(given), given, np.eye(4)[None])
    assert not view["non_ambiguous_mask"][..., 20:40].any()


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        CylNet(SMALL, 30, 64, torch.Generator())
