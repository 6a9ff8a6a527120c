"""Weights that torch's `fully_shard` has spread over the processes.

The loop trains such a model as any other: its gradients arrive averaged, so nobody averages them
again. A checkpoint holds whole tensors, those of one process, and loads in any number of them,
sharded or not. Each function here is for all processes to call; plain tensors pass as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def is_sharded(value: Any) -> bool:
    """Tell whether a process holds only its part of a tensor (a `DTensor`)."""
    return hasattr(value, "full_tensor")  # without importing its module, which takes a second


def whole(value: Any) -> Any:
    """Return a value, or a tree of dictionaries and lists, with every tensor in full."""
    if is_sharded(value):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def spread_like(value: Any, own: Any) -> Any:
    """Spread a whole tensor as `own` is spread, if it is and they have the same shape."""
    fits = torch.is_tensor(value) and torch.is_tensor(own) and value.shape == own.shape
    if not fits or not is_sharded(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def spread_model(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's whole state spread as the model's own state is."""
    return {name: spread_like(value, own.get(name)) for name, value in state.items()}


def spread_optimizer(
    state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return an optimiser's whole state with each parameter's part spread as the parameter is.

    Args:
        state: As `Optimizer.state_dict` gives it, by the number of the parameter.
        groups: The optimiser's `param_groups`.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not any(map(is_sharded, parameters)):
        return dict(state)
    by_number = {
        number: {name: spread_like(value, parameters[number]) for name, value in own.items()}
        for number, own in state["state"].items()
    }
    return {**state, "state": by_number}
