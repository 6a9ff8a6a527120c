from copy import deepcopy

import numpy as np
import pytest
import torch
from pinpad.models.exploration import Disagreement
from pinpad.models.laprop import LaProp
from pinpad.models.policy import Actor, Critic, ReturnScale, lambda_returns

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95, 1.0])
def test_lambda_returns_are_the_weighted_sum_of_all_n_step_returns(lam, generator):
    steps, discount = 7, 0.9
    reward = torch.randn(steps, 3, generator=generator, dtype=torch.float64)
    value = torch.randn(steps + 1, 3, generator=generator, dtype=torch.float64)

    def n_step(t, n):
        earned = sum(discount**k * reward[t + k] for k in range(n))
        return earned + discount**n * value[t + n]

    for t in range(steps):
        left = steps - t
        expected = lam ** (left - 1) * n_step(t, left)
        for n in range(1, left):
            expected = expected + (1 - lam) * lam ** (n - 1) * n_step(t, n)
        torch.testing.assert_close(lambda_returns(reward, value, discount, lam)[t], expected)


def test_the_return_scale_is_the_range_between_percentiles_and_never_below_one(generator):
    scale = ReturnScale(decay=0.0)
    returns = torch.randn(40, 50, generator=generator) * 30
    low, high = np.quantile(returns.numpy(), [0.05, 0.95])
    assert float(scale.update(returns)) == pytest.approx(high - low, rel=1e-5)
    assert float(ReturnScale().update(returns)) == pytest.approx(max(1.0, 0.01 * (high - low)))
    assert float(ReturnScale(decay=0.0).update(returns * 1e-3)) == 1.0


def test_no_action_is_ever_excluded(generator):
    actor = Actor(4, 8, 2, 5, mix=0.05)
    with torch.no_grad():
        actor.network[-1].bias.copy_(torch.tensor([100.0, 0, 0, 0, 0]))
    probability = actor(torch.zeros(4)).exp()
    np.testing.assert_allclose(probability.detach(), [0.96, 0.01, 0.01, 0.01, 0.01], rtol=1e-5)
    drawn = actor.draw(torch.zeros(20_000, 4), generator).mean(0)
    np.testing.assert_allclose(drawn, probability.detach(), atol=0.004)


def test_the_critic_is_drawn_to_returns_and_to_its_slow_copy(generator):
    torch.manual_seed(0)
    critic, feature = Critic(4, 8, 2, follow=0.25), torch.randn(6, 4, generator=generator)
    with torch.no_grad():
        for parameter in critic.slow.parameters():
            parameter.normal_(generator=generator)
    target = torch.randn(6, generator=generator) * 20
    logits = critic.network(feature)
    slow = critic.two_hot.mean(critic.slow(feature))
    both = critic.two_hot.loss(logits, target) + critic.two_hot.loss(logits, slow)
    torch.testing.assert_close(critic.loss(logits, feature, target), both)
    before = [parameter.clone() for parameter in critic.slow.parameters()]
    critic.follow()
    for was, now, goal in zip(
        before, critic.slow.parameters(), critic.network.parameters(), strict=True
    ):
        torch.testing.assert_close(now, was + 0.25 * (goal - was))


def test_laprop_is_the_written_rule_in_double_precision(generator):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.zeros(2))]
    optimizer = LaProp(weights, lr=0.01, betas=(0.8, 0.95), eps=1e-8, clip=0.3)
    own = [w.detach().double().clone() for w in weights]
    momentum, square = [torch.zeros_like(w) for w in own], [torch.zeros_like(w) for w in own]
    for step in range(1, 6):
        for i, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=generator) * 10 ** (step - 3)
            weight.grad = gradient.clone()
            g = gradient.double()
            largest = 0.3 * max(float(own[i].norm()), 1e-3)
            g = g * min(1.0, largest / float(g.norm()))
            square[i] = 0.95 * square[i] + 0.05 * g**2
            size = (square[i] / (1 - 0.95**step)).sqrt() + 1e-8
            momentum[i] = 0.8 * momentum[i] + 0.2 * g / size
            own[i] = own[i] - 0.01 * momentum[i] / (1 - 0.8**step)
        optimizer.step()
        for weight, expected in zip(weights, own, strict=True):
            torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_laprop_leaves_what_has_no_gradient_and_goes_on_from_its_state():
    idle, busy = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    copy = torch.nn.Parameter(torch.ones(2))
    one, two = (
        LaProp([idle, busy], lr=0.1),
        LaProp([torch.nn.Parameter(idle.clone()), copy], lr=0.1),
    )
    for step in range(4):
        if step == 2:
            copy.data.copy_(busy.data)
            two.load_state_dict(deepcopy(one.state_dict()))
        for optimizer, parameter in ((one, busy), (two, copy)):
            if optimizer is one or step >= 2:
                parameter.grad = torch.tensor([1.0 + step, -2.0])
                optimizer.step()
    assert torch.equal(busy, copy)
    assert idle.tolist() == [1, 1]


def test_members_agree_where_data_are_plenty_and_disagree_elsewhere(generator):
    torch.manual_seed(0)
    ensemble = Disagreement(2, 3, units=32, members=5)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=3e-3)
    action = torch.eye(3)[torch.zeros(2, 256, dtype=torch.long)]
    first = torch.zeros(2, 256, dtype=torch.bool)
    for _ in range(150):
        here = torch.rand(256, 2, generator=generator)
        loss = ensemble.loss(torch.stack([here, 1 - here]), action, first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen = ensemble.bonus(torch.rand(200, 2, generator=generator), action[0, :200])
    far = ensemble.bonus(torch.rand(200, 2, generator=generator) * 5 + 5, action[0, :200])
    other = torch.eye(3)[torch.ones(200, dtype=torch.long)]
    new = ensemble.bonus(torch.rand(200, 2, generator=generator), other)
    assert seen.mean() * 3 < far.mean()
    assert seen.mean() * 3 < new.mean()


def test_nothing_is_predicted_across_the_beginning_of_an_episode(generator):
    torch.manual_seed(0)
    ensemble = Disagreement(2, 3, units=8, members=2)
    feature, action = (
        torch.randn(3, 4, 2, generator=generator),
        torch.zeros(3, 4, 3),
    )
    first = torch.zeros(3, 4, dtype=torch.bool)
    first[2] = True
    changed = feature.clone()
    changed[2] += 100
    one, two = (ensemble.loss(each, action, first) for each in (feature, changed))
    assert torch.equal(one, two)
