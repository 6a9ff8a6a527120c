"""The objective against closed forms and a slow loop in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loom.sampling import Shard
from maniflow_overlay.policy.flow import (
    between,
    consistency_part,
    consistency_target,
    draw_flow,
    draw_times,
    euler,
)
from maniflow_overlay.policy.objective import FlowObjective, TrainingBatch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from small_policy import stirred


def case(seed: int = 0, count: int = 6) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    noise, actions = torch.randn(2, count, 4, 3, generator=draw, dtype=torch.float64)
    time = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 0.9], dtype=torch.float64)
    delta = torch.tensor([0.0, 0.5, 0.2, 0.9, 0.1, 1.0], dtype=torch.float64)
    return noise, actions, time, delta


def test_a_silent_teacher_leads_to_the_share_of_the_way_that_it_looked_ahead():
    noise, actions, time, delta = case()
    target = consistency_target(lambda x, t, s: torch.zeros_like(x), noise, actions, time, delta)
    later = (time + delta).clamp(max=1)
    for k in range(6):
        share = (later[k] - time[k]) / (1 - time[k])
        torch.testing.assert_close(target[k], share * (actions[k] - noise[k]), rtol=0, atol=1e-12)


def test_an_exact_teacher_leads_straight_to_the_actions():
    noise, actions, time, delta = case()
    target = consistency_target(lambda x, t, s: actions - noise, noise, actions, time, delta)
    torch.testing.assert_close(target, actions - noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "told"), [("relative", [0.5, 0.2]), ("absolute", [1.1, 0.7])])
def test_the_teacher_is_asked_at_the_later_time_about_the_step(kind, told):
    noise, actions, time, delta = (x[1:3] for x in case())
    asked = []

    def teacher(x, t, s):
        asked.append((x, t, s))
        return x

    consistency_target(teacher, noise, actions, time, delta, kind)
    (x, t, s), *_ = asked
    assert t.tolist() == pytest.approx([0.6, 0.5])
    assert s.tolist() == pytest.approx(told)
    torch.testing.assert_close(x, between(noise, actions, t))
    torch.testing.assert_close(x[0], 0.4 * noise[0] + 0.6 * actions[0])


def gaussian_velocity(deviation: float):
    """E[a - x0 | x_t = x] where a ~ N(0, deviation^2) and x0 ~ N(0, 1)."""

    def velocity(x, t, s):
        t = t.view(-1, *[1] * (x.ndim - 1))
        return x * (t * deviation**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * deviation**2)

    return velocity


def test_euler_carries_a_gaussian_to_a_gaussian_with_an_error_of_the_first_order():
    noise, deviation = torch.randn(50, 1, 1, dtype=torch.float64), 0.3
    errors = []
    for steps in (20, 40, 80, 160):
        end = euler(gaussian_velocity(deviation), noise, steps)
        errors.append((end - deviation * noise).abs().max().item())
    ratios = [a / b for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert errors[0] < 0.2
    assert all(1.85 < ratio < 2.3 for ratio in ratios), ratios


@pytest.mark.parametrize(
    ("kind", "told"), [("relative", [0.25] * 4), ("absolute", [0.25, 0.5, 0.75, 1])]
)
def test_euler_asks_at_equal_times_from_zero(kind, told):
    asked = []

    def velocity(x, t, s):
        asked.append((t.item(), s.item()))
        return torch.ones_like(x)

    end = euler(velocity, torch.zeros(1, 2, 2), 4, kind)
    assert asked == [(k / 4, told[k]) for k in range(4)]
    assert torch.equal(end, torch.ones(1, 2, 2))


def test_times_are_drawn_as_published():
    rng = np.random.default_rng(0)
    times = draw_times("beta", 200_000, rng)
    assert times.mean() == pytest.approx(0.999 / 2.5, abs=2e-3)
    variance = 0.999**2 * 1.5 / (2.5**2 * 3.5)
    assert times.var() == pytest.approx(variance, abs=1e-3)
    assert times.max() <= 0.999
    draws = draw_flow(40_000, 1, 1, rng)
    taught = draws.consistency
    assert set(np.round(draws.time[taught] * 10, 5).tolist()) == set(range(10))
    assert draws.delta[taught].mean() == pytest.approx(0.5, abs=0.01)
    assert (draws.delta[~taught] == 0).all()
    assert draws.noise.std() == pytest.approx(1, abs=0.02)
    assert draw_times("uniform", 10_000, rng).mean() == pytest.approx(0.5, abs=0.02)
    lognorm = draw_times("lognorm", 10_000, rng)
    assert np.log(lognorm / (1 - lognorm)).std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5])
def test_every_part_of_a_batch_has_its_share_of_the_consistency_part(share):
    chosen = consistency_part(60, share)
    assert chosen.sum() == int(60 * share + 1e-9)
    for world in (2, 3, 4):
        parts = [chosen[slice(*Shard(r, world).bounds(60))].sum() for r in range(world)]
        assert max(parts) - min(parts) <= 1
    assert consistency_part(64, 0.25).reshape(16, 4).tolist() == [[False] * 3 + [True]] * 16


def made_batch(count: int, taught: int, seed: int = 0) -> TrainingBatch:
    draw = torch.Generator().manual_seed(seed)
    delta = torch.rand(count, generator=draw)
    delta[: count - taught] = 0
    return TrainingBatch(
        current=torch.randint(0, 256, (count, 2, 1, 16, 20, 3), generator=draw, dtype=torch.uint8),
        initial=torch.randint(0, 256, (count, 1, 16, 20, 3), generator=draw, dtype=torch.uint8),
        state=torch.randn(count, 2, 14, generator=draw),
        action=3 * torch.randn(count, 8, 14, generator=draw) + 1,
        task=torch.zeros(count, dtype=torch.int64),
        noise=torch.randn(count, 8, 14, generator=draw),
        time=torch.randint(0, 10, (count,), generator=draw) / 10,
        delta=delta,
        flow_samples=count - taught,
        flow_count=float(count - taught),
        consistency_count=float(taught),
        augment=None,
    )


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_the_loss_is_that_of_a_loop_over_samples_in_float64(kind):
    model, teacher = stirred(seed=1).double().eval(), stirred(seed=2).double().eval()
    values = np.random.default_rng(0).normal(2, 3, (50, 14))
    model.normalise_action.fit(values)
    batch = made_batch(6, 2)
    batch = batch._replace(**{
        name: getattr(batch, name).double()
        for name in ("state", "action", "noise", "time", "delta")
    })  # fmt: skip
    low, high = values.min(0), values.max(0)
    sums = {"flow": 0.0, "consistency": 0.0}
    for k in range(6):
        action = torch.from_numpy(2 * (batch.action[k].numpy() - low) / (high - low) - 1)
        x0, t, d = batch.noise[k], batch.time[k], batch.delta[k]
        context = model.context(
            batch.current[k : k + 1, :, 0].movedim(-1, -3).double() / 255,
            batch.initial[k : k + 1, 0].movedim(-1, -3).double() / 255,
            batch.state[k : k + 1], batch.task[k : k + 1],
        )  # fmt: skip

        def ask(network, x, time, step, context=context):
            return network.velocity(x[None], time[None], step[None], context)[0].double()

        x_t, later = (1 - t) * x0 + t * action, min(t + d, torch.tensor(1.0).double())
        told, teacher_told = (d, d) if kind == "relative" else (later, later + d)
        target, name = action - x0, "flow"
        if k >= 4:
            ahead = (1 - later) * x0 + later * action
            end = ahead + (1 - later) * ask(teacher, ahead, later, teacher_told)
            target, name = (end - x_t) / (1 - t), "consistency"
        sums[name] += (ask(model, x_t, t, told) - target).square().mean().item()
    losses = FlowObjective(teacher, kind)(model, batch, 0)
    # The network's answer is rounded to float32 before it is compared.
    assert losses.terms["flow"].value.item() == pytest.approx(sums["flow"] / 4, rel=1e-5)
    assert losses.terms["consistency"].value.item() == pytest.approx(
        sums["consistency"] / 2, rel=1e-5
    )
    assert losses.total.item() == pytest.approx(
        sums["flow"] / 4 + sums["consistency"] / 2, rel=1e-5
    )


def test_the_teacher_gets_no_gradient_and_the_student_s_encoder_does():
    model, teacher = stirred(seed=1), stirred(seed=2)
    FlowObjective(teacher)(model, made_batch(4, 4), 0).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.encoder.trunks[0].patches.weight.grad.abs().max() > 0


def test_a_small_network_learns_the_velocity_of_a_gaussian():
    """Flow part alone, 1-D: least squares on a - x0 is the conditional mean, a closed form."""
    torch.manual_seed(0)
    deviation = 0.5
    net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 400)
        noise, actions = torch.randn(2, 2048, 1, 1)
        actions, time = deviation * actions, torch.rand(2048)
        x = between(noise, actions, time)
        predicted = net(torch.stack([x[:, 0, 0], time], 1))
        loss = (predicted - (actions - noise)[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, time = torch.meshgrid(
        torch.linspace(-1, 1, 9), torch.linspace(0.05, 0.95, 10), indexing="ij"
    )
    x, time = x.flatten(), time.flatten()
    exact = gaussian_velocity(deviation)(x[:, None, None], time, time).flatten()
    found = net(torch.stack([x, time], 1)).flatten()
    assert (found - exact).square().mean().sqrt() < 0.05
    assert exact.abs().max() > 0.9
