"""Losses: value tables, float64 loops, invariances and gradients."""

import math

import numpy as np
import pytest
import torch
from coopcyl.losses import (
    FactoredGeometry,
    NonAmbiguousMaskLoss,
    confident_loss,
    geometry_losses,
    log_pressed,
    masked_mean,
    mean_distance,
    quaternion_loss,
    robust_loss,
    robust_loss_inverse,
)
from scipy.spatial.transform import Rotation


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_robust_loss_has_the_values_of_its_formula_and_is_not_in_metres():
    """A loss of 7 is 0.678 scene scales, 8 is 0.821."""
    for length in (0.0, 0.01, 0.05, 0.3, 1.0, 4.0):
        expected = 3 * ((length**2 / 0.00375 + 1) ** 0.25 - 1)
        vector = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) * length
        assert robust_loss(vector).item() == pytest.approx(expected, rel=1e-12)
    lengths = robust_loss_inverse(torch.tensor([7.0, 8.0], dtype=torch.float64))
    np.testing.assert_allclose(lengths.numpy(), [0.6776, 0.8212], atol=5e-4)
    table = torch.linspace(0, 3, 20, dtype=torch.float64)
    back = robust_loss_inverse(robust_loss(table[:, None]))
    torch.testing.assert_close(back, table)


def test_robust_loss_is_quadratic_near_and_a_square_root_far():
    near = robust_loss(torch.tensor([[1e-4], [2e-4]], dtype=torch.float64))
    assert (near[1] / near[0]).item() == pytest.approx(4, rel=1e-4)
    far = robust_loss(torch.tensor([[1e4], [4e4]], dtype=torch.float64))
    assert (far[1] / far[0]).item() == pytest.approx(2, rel=1e-2)


def test_gradients_agree_with_finite_differences(generator):
    error = torch.randn(5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(robust_loss, (error,))
    assert torch.autograd.gradcheck(log_pressed, (error,))


def test_log_pressing_keeps_directions_and_survives_zero():
    vectors = torch.tensor([[3.0, 0, 4], [0, 0, 0]], requires_grad=True)
    pressed = log_pressed(vectors)
    assert pressed[0].norm().item() == pytest.approx(math.log1p(5))
    torch.testing.assert_close(pressed[0] / pressed[0].norm(), torch.tensor([0.6, 0, 0.8]))
    pressed.sum().backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_mean_distance_is_that_of_a_slow_loop(generator):
    points = torch.randn(2, 3, 4, 5, 3, generator=generator)
    valid = torch.rand(2, 3, 4, 5, generator=generator) < 0.4
    for b, found in enumerate(mean_distance(points, valid)):
        lengths = [
            points[b, v, i, j].norm().item()
            for v in range(3)
            for i in range(4)
            for j in range(5)
            if valid[b, v, i, j]
        ]
        assert found.item() == pytest.approx(sum(lengths) / len(lengths), rel=1e-5)


def test_both_signs_of_a_quaternion_are_one_rotation(generator):
    q = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    assert quaternion_loss(q, -q).max().item() == 0
    assert quaternion_loss(q, q.flip(-1)).min().item() > 0


def made_up(generator: torch.Generator, b=2, v=2, h=3, w=4) -> FactoredGeometry:
    directions = torch.nn.functional.normalize(
        torch.randn(b, v, h, w, 3, generator=generator), dim=-1
    )
    depth = 5 + 20 * torch.rand(b, v, h, w, 1, generator=generator)
    own = directions * depth
    quaternions = torch.nn.functional.normalize(torch.randn(b, v, 4, generator=generator), dim=-1)
    quaternions[:, 0] = torch.tensor([0.0, 0, 0, 1])
    translations = 10 * torch.randn(b, v, 3, generator=generator)
    translations[:, 0] = 0
    turns = Rotation.from_quat(quaternions.reshape(-1, 4).numpy()).as_matrix()
    rotation = torch.tensor(turns, dtype=torch.float32).view(b, v, 1, 1, 3, 3)
    points = (rotation @ own[..., None])[..., 0] + translations[:, :, None, None]
    return FactoredGeometry(
        points, own, depth, directions, quaternions, translations, torch.ones(b)
    )


MASK = torch.ones(2, 2, 3, 4, dtype=torch.bool)


def test_the_truth_costs_nothing(generator):
    truth = made_up(generator)
    for name, term in geometry_losses(truth, truth, MASK, MASK).items():
        assert term.value.item() == pytest.approx(0, abs=1e-6), name


def test_a_wrong_scale_is_seen_by_the_scale_term_only(generator):
    truth = made_up(generator)
    bigger = truth._replace(
        points=truth.points * 3,
        points_own=truth.points_own * 3,
        depth_along_ray=truth.depth_along_ray * 3,
        translations=truth.translations * 3,
    )
    for name, term in geometry_losses(bigger, truth, MASK, MASK).items():
        if name == "scale":
            assert term.value.item() > 1
        else:
            assert term.value.item() == pytest.approx(0, abs=1e-5), name
    mended = bigger._replace(metric_scale=torch.full((2,), 1 / 3))
    assert geometry_losses(mended, truth, MASK, MASK)["scale"].value.item() == pytest.approx(
        0, abs=1e-6
    )


def test_each_term_sees_its_own_quantity(generator):
    truth = made_up(generator)
    changes = {
        "rays": truth._replace(ray_directions=truth.ray_directions.flip(-1)),
        "quaternions": truth._replace(quaternions=truth.quaternions.flip(-1)),
        "translations": truth._replace(translations=truth.translations + 1),
        "depth": truth._replace(depth_along_ray=truth.depth_along_ray.flip(2)),
        "points_own": truth._replace(points_own=truth.points_own.flip(2)),
    }
    for changed, geometry in changes.items():
        terms = geometry_losses(geometry, truth, MASK, MASK)
        seen = {name for name, term in terms.items() if term.value.item() > 1e-4}
        assert seen == {changed}


def test_translations_are_compared_in_scene_scales(generator):
    """By hand: the distance over the mean distance of the points, through the formula."""
    truth = made_up(generator)
    moved = truth._replace(translations=truth.translations + torch.tensor([3.0, 0, 4]))
    scale = mean_distance(truth.points, MASK)
    expected = (3 * (((5 / scale) ** 2 / 0.00375 + 1) ** 0.25 - 1)).mean()
    found = geometry_losses(moved, truth, MASK, MASK)["translations"].value
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_pixels_without_truth_take_no_part_even_if_they_are_nan(generator):
    truth = made_up(generator)
    valid = MASK.clone()
    valid[:, :, 0] = False
    points = truth.points.clone()
    points[:, :, 0] = 1e6
    depth = truth.depth_along_ray.clone().requires_grad_()
    wrong = truth._replace(points=points, depth_along_ray=depth)
    terms = geometry_losses(wrong, truth, valid, MASK)
    assert terms["points"].value.item() == pytest.approx(0, abs=1e-6)
    assert masked_mean(torch.tensor([1.0, math.nan]), torch.tensor([True, False])).item() == 1
    assert masked_mean(torch.tensor([math.nan]), torch.tensor([False])).item() == 0


# The mask ----------------------------------------------------------------------------------------


def mask_case(generator: torch.Generator):
    logits = torch.randn(3, 8, 9, dtype=torch.float64, generator=generator)
    wanted = torch.rand(3, 8, 9, generator=generator) < 0.2
    covered = torch.rand(3, 8, 9, generator=generator) < 0.8
    return logits, wanted & covered, covered


@pytest.mark.parametrize("pos_weight", [1.0, 2.5, "auto"])
def test_mask_loss_is_that_of_a_slow_loop(generator, pos_weight):
    logits, wanted, covered = mask_case(generator)
    result = NonAmbiguousMaskLoss(pos_weight)(logits, wanted, covered, wanted)
    here = list(zip(logits[covered].tolist(), wanted[covered].tolist(), strict=True))
    positives = sum(w for _, w in here)
    weight = (len(here) - positives) / positives if pos_weight == "auto" else pos_weight
    total = 0.0
    for logit, is_true in here:
        p = 1 / (1 + math.exp(-logit))
        total -= weight * math.log(p) if is_true else math.log(1 - p)
    assert result.value.item() == pytest.approx(total / len(here), rel=1e-9)
    shares = {name: value.item() for name, value in result.metrics.items()}
    assert shares["mask/gt_mean"] == pytest.approx(positives / len(here))
    mean = sum(1 / (1 + math.exp(-logit)) for logit, _ in here) / len(here)
    assert shares["mask/pred_mean"] == pytest.approx(mean)
    assert shares["mask/valid_ratio"] == pytest.approx(wanted.double().mean().item())
    assert shares["mask/pos_weight"] == pytest.approx(weight)


def test_uncovered_pixels_have_no_gradient(generator):
    logits, wanted, covered = mask_case(generator)
    logits.requires_grad_()
    NonAmbiguousMaskLoss("auto")(logits, wanted, covered, wanted).value.backward()
    assert logits.grad is not None
    assert (logits.grad[~covered] == 0).all()
    assert (logits.grad[covered] != 0).all()


def test_automatic_weights_make_a_constant_prediction_balance_at_one_half(generator):
    """All zeros is then no cheap answer: the best constant is 0.5, not the rare side's share."""
    _, wanted, covered = mask_case(generator)
    loss = NonAmbiguousMaskLoss("auto")
    values = {
        p: loss(
            torch.full_like(wanted, math.log(p / (1 - p)), dtype=torch.float64),
            wanted,
            covered,
            wanted,
        ).value.item()
        for p in (0.01, 0.2, 0.5, 0.8)
    }
    assert min(values, key=lambda p: values[p]) == 0.5
    assert values[0.01] > 2 * values[0.5]


def test_masks_without_a_positive_or_a_covered_pixel_stay_finite():
    logits = torch.zeros(4, 4, requires_grad=True)
    nothing, everything = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    loss = NonAmbiguousMaskLoss("auto")
    for covered in (everything, nothing):
        result = loss(logits, nothing, covered, nothing)
        result.value.backward()
        assert all(torch.isfinite(value) for value in result.metrics.values())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="pos_weight"):
        NonAmbiguousMaskLoss(wrong)


def test_the_best_confidence_is_alpha_over_the_loss():
    values = torch.tensor([0.02, 0.1], dtype=torch.float64)
    confidence = torch.tensor([10.0, 2.0], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, dtype=torch.bool)
    confident_loss(values, confidence, mask, 0.2).backward()
    assert confidence.grad is not None
    assert confidence.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
