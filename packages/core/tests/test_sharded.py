"""A state with sharded weights: its checkpoints are those of whole ones, and load either way.

One process that is a group of its own; two of them train in maniflow_overlay's `dist` test.
"""

import copy

import pytest
import torch
from loom.sharded import is_sharded
from loom.state import TrainState
from torch import distributed as dist
from torch import nn


@pytest.fixture
def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def fresh(mesh=None) -> TrainState[nn.Sequential]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1), ema_decay=0.9)
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        for module in (state.model, state.ema_model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        state.optimizer = torch.optim.AdamW(state.model.parameters(), lr=0.1)
    return state


def update(state: TrainState[nn.Sequential], times: int) -> TrainState[nn.Sequential]:
    for _ in range(times):
        draw = torch.Generator().manual_seed(state.step)
        state.optimizer.zero_grad()
        state.model(torch.randn(5, 3, generator=draw)).square().sum().backward()
        state.optimizer.step()
        state.step += 1
        state.update_ema()
    return state


def require_same(left: TrainState, right: TrainState) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    for section in ("model", "ema", "optimizer"):
        torch.testing.assert_close(dict(ours[section]), dict(theirs[section]))


def test_a_checkpoint_of_sharded_weights_is_that_of_whole_ones_and_loads_either_way(mesh):
    whole, sharded = update(fresh(), 2), update(fresh(mesh), 2)
    assert sharded.sharded
    assert not whole.sharded
    assert not any(map(is_sharded, sharded.state_dict()["model"].values()))
    require_same(whole, sharded)
    kept = [copy.deepcopy(state.state_dict()) for state in (whole, sharded)]
    there, back = fresh(mesh), fresh()
    there.load_state_dict(kept[0])
    back.load_state_dict(kept[1])
    moments = there.optimizer.state_dict()["state"][0]["exp_avg"]
    assert is_sharded(moments)
    for state in (whole, there, back):
        update(state, 2)
    require_same(whole, there)
    require_same(whole, back)
