"""The few layers that every part of a world model is made of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORM_EPS = 1e-3


def mlp(inputs: int, hidden: Sequence[int], outputs: int | None = None) -> nn.Sequential:
    """Return layers of Linear, LayerNorm and SiLU, and a plain Linear at the end if asked for.

    Args:
        inputs: Width of the input.
        hidden: Widths of the layers.
        outputs: Width of the plain layer at the end, None for none.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width, bias=False), nn.LayerNorm(width, eps=NORM_EPS)]
        layers.append(nn.SiLU())
        inputs = width
    if outputs is not None:
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def zero_last(network: nn.Sequential) -> nn.Sequential:
    """Make a network's last layer give zeros, so that it begins without an opinion."""
    last = network[-1]
    if not isinstance(last, nn.Linear):
        raise TypeError(f"the network ends with {type(last).__name__}, not with a plain layer")
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


class NormedGru(nn.Module):
    """A gated recurrent cell with one LayerNorm over its three gates (Hafner 2020, appendix).

        reset, candidate, update = LayerNorm(W [x, h])
        h' = u tanh(sigmoid(reset) candidate) + (1 - u) h,    u = sigmoid(update - 1)

    The bias of -1 makes the cell keep its state at first.
    """

    def __init__(self, inputs: int, width: int) -> None:
        """Make the cell.

        Args:
            inputs: Width of x.
            width: Width of h.
        """
        super().__init__()
        self.gates = nn.Linear(inputs + width, 3 * width, bias=False)
        self.norm = nn.LayerNorm(3 * width, eps=NORM_EPS)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the next state (b, width) of an input (b, inputs) and a state (b, width)."""
        gates = self.norm(self.gates(torch.cat([x, state], -1))).float()
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(state, candidate, torch.sigmoid(update - 1))


def where_first(is_first: Tensor, state: Tensor) -> Tensor:
    """Return a state (b, n) with zeros where an episode begins (b,).

    By selection: a product with zero would keep a NaN of the last episode for ever.
    """
    return torch.where(is_first[:, None], torch.zeros_like(state), state)
