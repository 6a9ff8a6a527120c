"""The step that optimisers share: who is updated, with what, and what a closure may do."""

import pytest
import torch
from loom.optimizer import GroupOptimizer


class Descent(GroupOptimizer):
    """Plain descent, as `torch.optim.SGD` has it."""

    def update(self, parameters, gradients, group):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= group["lr"] * gradient


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3)) for _ in range(3)]


def test_groups_have_their_rates_and_a_parameter_without_a_gradient_stands_still():
    ours, theirs = parameters(), parameters()
    groups = [{"params": ours[:1], "lr": 0.5}, {"params": ours[1:]}]
    optimizer = Descent(groups, {"lr": 0.1})
    peer = torch.optim.SGD([{"params": theirs[:1], "lr": 0.5}, {"params": theirs[1:]}], lr=0.1)
    for given in (ours, theirs):
        (given[0].square().sum() + given[1].sum()).backward()
    assert optimizer.step() is None
    peer.step()
    assert ours[2].grad is None
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    (weight, *_) = parameters()
    optimizer = Descent([weight], {"lr": 0.1})
    before = weight.detach().clone()

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(before.square().sum().item())
    assert torch.equal(weight, before - 0.1 * (2 * before))
