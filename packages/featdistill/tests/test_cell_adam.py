"""Claims about the optimiser: Adam where a cell is touched, stillness where it is not."""

import io

import pytest
import torch
from featdistill.models.cell_adam import CellAdam
from torch import nn

IMPLS = ["auto", "torch"]
STEPS = 7


def gradients(rows, columns=37):
    """Gradients of several scales; 37 columns leave a tail behind every vector width."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(STEPS, rows, columns, generator=generator)
    return noise * torch.logspace(-4, 2, rows)[:, None]


def start(rows, columns=37):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def torch_adam(parameter, rate):
    return torch.optim.Adam([parameter], lr=rate, betas=(0.9, 0.99), eps=1e-12)


def train(optimiser, parameter, sequence):
    for gradient in sequence:
        parameter.grad = gradient.clone()
        optimiser.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("per_cell", [True, False])
def test_cells_that_are_always_touched_move_as_under_torch_adam(impl, per_cell):
    ours, theirs = nn.Parameter(start(5)), nn.Parameter(start(5))
    optimiser = CellAdam([ours], lr=3e-3, per_cell=per_cell, impl=impl)
    mine = train(optimiser, ours, gradients(5))
    reference = train(torch_adam(theirs, 3e-3), theirs, gradients(5))
    assert not torch.allclose(mine, start(5), atol=1e-3)
    assert torch.allclose(mine, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_cell_moves_as_if_the_steps_without_a_gradient_had_not_been(impl):
    sequence = gradients(3)
    sequence[2:5, 1] = 0.0  # the middle cell is not met for three steps
    sequence[:, 2, 1:] = 0.0  # one number is enough to be touched
    parameter, seldom = nn.Parameter(start(3)), nn.Parameter(start(3)[1:2])
    optimiser = CellAdam([parameter], impl=impl)
    moved = train(optimiser, parameter, sequence)
    expected = train(torch_adam(seldom, 4e-3), seldom, sequence[[0, 1, 5, 6], 1:2])
    assert torch.allclose(moved[1], expected[0], rtol=1e-5, atol=1e-6)
    assert optimiser.state[parameter]["step"].tolist() == [7, 4, 7]
    assert torch.equal(moved[2, 1:], start(3)[2, 1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_ordinary_parameters_also_move_without_a_gradient_as_under_torch_adam(impl):
    sequence = gradients(4)
    sequence[3:] = 0.0
    ours, theirs = nn.Parameter(start(4)), nn.Parameter(start(4))
    mine = train(CellAdam([ours], per_cell=False, lr=1e-2, impl=impl), ours, sequence)
    reference = train(torch_adam(theirs, 1e-2), theirs, sequence)
    assert torch.allclose(mine, reference, rtol=1e-4, atol=1e-6)


def test_the_kernel_and_its_twin_agree():
    sequence = gradients(6)
    sequence[1:4, 2] = 0.0
    results = []
    for impl in IMPLS:
        parameter = nn.Parameter(start(6))
        results.append(train(CellAdam([parameter], impl=impl), parameter, sequence))
    assert torch.allclose(*results, rtol=1e-5, atol=1e-6)


def test_resuming_from_a_state_dict_is_bit_equal():
    sequence = gradients(4)
    sequence[1, 2] = 0.0
    straight = nn.Parameter(start(4))
    expected = train(CellAdam([straight]), straight, sequence)

    first = nn.Parameter(start(4))
    optimiser = CellAdam([first])
    train(optimiser, first, sequence[:3])
    saved = io.BytesIO()
    torch.save({"model": first.detach(), "optimiser": optimiser.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    second = nn.Parameter(state["model"])
    resumed = CellAdam([second], lr=77.0)
    resumed.load_state_dict(state["optimiser"])
    assert torch.equal(train(resumed, second, sequence[3:]), expected)
    assert resumed.state[second]["step"].dtype == torch.int32


def test_groups_have_their_own_names_rates_and_counters():
    grid, layer = nn.Parameter(start(3)), nn.Linear(4, 2)
    optimiser = CellAdam(
        [
            {"params": [grid], "name": "student", "lr": 1e-2},
            {"params": list(layer.parameters()), "name": "projector", "per_cell": False},
        ],
        lr=1e-3,
    )
    assert [group["name"] for group in optimiser.param_groups] == ["student", "projector"]
    before = layer.weight.detach().clone()
    grid.grad = torch.ones_like(grid)
    layer(torch.ones(4)).sum().backward()
    optimiser.step()
    assert torch.allclose(grid.detach(), start(3) - 1e-2, atol=1e-6)  # a first step is lr long
    assert torch.allclose(layer.weight.detach(), before - 1e-3, atol=1e-6)
    optimiser.zero_grad()
    frozen = grid.detach().clone()
    layer(torch.ones(4)).sum().backward()
    optimiser.step()
    assert torch.equal(grid.detach(), frozen)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_gradient_that_is_not_a_number_is_not_taken_for_an_untouched_cell(impl):
    parameter = nn.Parameter(start(2))
    gradient = torch.zeros(2, 37)
    gradient[1, 36 if impl == "torch" else 0] = torch.nan
    train(CellAdam([parameter], impl=impl), parameter, [gradient])
    assert torch.equal(parameter.detach()[0], start(2)[0])
    assert parameter.detach()[1].isnan().any()
