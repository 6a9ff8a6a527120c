"""The loss terms against numerical integrals, and at the edges where masks are empty."""

import numpy as np
import pytest
import torch
from featdistill import losses
from featdistill.losses import RayTargets
from scipy.integrate import quad

BACKGROUND = "random"


def errors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return (
        torch.randn(count, 3, generator=draw, dtype=torch.float64) * 0.3,
        torch.randn(count, generator=draw, dtype=torch.float64) * 0.5,
    )


@pytest.mark.parametrize(("loss", "power"), [(losses.color_l2, 2), (losses.color_l1, 1)])
def test_the_random_background_is_the_integral_over_all_backgrounds(loss, power):
    dc, dt = errors(40)
    integrals = [
        quad(lambda b, c=c, t=t: abs(c + t * b) ** power, 0, 1, points=_root(c, t))[0]
        for row, t in zip(dc.tolist(), dt.tolist(), strict=True)
        for c in row
    ]
    assert loss(dc, dt, BACKGROUND).item() == pytest.approx(np.mean(integrals), rel=1e-9)


def _root(c: float, t: float) -> list[float] | None:
    return [-c / t] if t and 0 < -c / t < 1 else None


@pytest.mark.parametrize("loss", [losses.color_l2, losses.color_l1])
def test_a_fixed_background_is_the_error_of_the_composited_picture(loss):
    dc, dt = errors(10)
    white = (dc + dt[:, None]).abs()
    power = 2 if loss is losses.color_l2 else 1
    assert loss(dc, dt, "white").item() == pytest.approx((white**power).mean().item())
    assert loss(dc, dt, "black").item() == pytest.approx((dc.abs() ** power).mean().item())


@pytest.mark.parametrize("loss", [losses.color_l2, losses.color_l1])
def test_a_mixed_background_is_half_white_and_half_random(loss):
    dc, dt = errors(10)
    halves = loss(dc, dt, "white").item() / 2 + loss(dc, dt, BACKGROUND).item() / 2
    assert loss(dc, dt, "mixed").item() == pytest.approx(halves)


def test_opaque_white_and_empty_differ_on_a_random_background_but_not_on_white():
    dc, dt = torch.ones(4, 3), -torch.ones(4)  # white and opaque where the teacher is empty
    assert losses.color_l2(dc, dt, "white").item() == 0
    assert losses.color_l2(dc, dt, BACKGROUND).item() == pytest.approx(1 / 3)


def test_l1_has_finite_gradients_where_the_transmittance_is_right():
    dc = torch.tensor([[0.2, -0.1, 0.0]], requires_grad=True)
    dt = torch.zeros(1, requires_grad=True)
    losses.color_l1(dc, dt, BACKGROUND).backward()
    assert torch.isfinite(dc.grad).all()
    assert torch.isfinite(dt.grad).all()


def targets(alpha: list[float], depth: list[float]) -> RayTargets:
    n = len(alpha)
    return RayTargets(
        torch.zeros(n, 3),
        1 - torch.tensor(alpha),
        torch.tensor(depth),
        torch.zeros(0, 52),
        torch.zeros(0, dtype=torch.bool),
    )


def test_depth_counts_only_where_the_teacher_is_opaque():
    wanted = targets([0.9, 0.5, 0.7], [4.0, 1.0, 2.0])
    value = losses.depth_loss(torch.tensor([4.5, 9.0, 2.0]), wanted, "l1", 0.6)
    assert value.item() == pytest.approx(0.25)
    assert losses.depth_loss(torch.ones(3), wanted, "l1", 0.95).item() == 0


def test_a_constant_opacity_target_spares_the_background():
    teacher = torch.tensor([0.0, 0.04, 0.9])
    alpha = torch.tensor([0.0, 0.04, 0.05])
    assert losses.opacity_loss(alpha, teacher, "l1", 0.05, 0.05).item() == pytest.approx(0)
    follows = losses.opacity_loss(alpha, teacher, "l2", "teacher", 0.05).item()
    assert follows == pytest.approx(0.85**2 / 3)


def test_features_compare_only_where_the_teacher_has_some():
    predicted = torch.tensor([[2.0, 0.0], [5.0, 5.0]])
    wanted = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    l2, cosine = losses.feature_losses(predicted, wanted, torch.tensor([True, False]))
    assert l2.item() == pytest.approx(2.5)
    assert cosine.item() == pytest.approx(1.0)


def test_the_lift_keeps_lengths_and_angles():
    lift = losses.orthonormal_lift(128)
    torch.testing.assert_close(lift @ lift.T, torch.eye(52), rtol=0, atol=1e-5)
    assert torch.equal(lift, losses.orthonormal_lift(128))
