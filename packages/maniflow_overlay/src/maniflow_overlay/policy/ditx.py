"""DiTX: the transformer that gives the velocity of a chunk of actions (ManiFlow, Yan et al. 2025).

The tokens are the noisy actions of the horizon. Each block has self-attention over them, then
cross-attention to what the robot sees, then an MLP, each behind adaLN-zero (Peebles & Xie 2023):

    c = adaptor([e(t), e'(s)])                 t: time of the flow, s: size of the step asked for
    x <- x + gate(c) * f((1 + scale(c)) * LayerNorm(x) + shift(c))        gates begin at zero

Keys and queries of the cross-attention are normalised per head. The output layer begins at zero, so
a fresh network answers exactly zero. With 512 channels, 8 blocks, 8 heads, actions of 14 and a
context of 2 x 512 positions of 2076 numbers there are 55,577,102 parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from maniflow_overlay.policy.presets import DitxShape

_PIECES = 9  # shift, scale and gate for each of three parts of a block
_EPS = 1e-6


class TimeCode(nn.Module):
    """A number in [0, 1] as a vector: sines and cosines, then two layers."""

    def __init__(self, code: int, width: int) -> None:
        """Make the layers; `code` is the number of sines and cosines."""
        super().__init__()
        self.code = code
        self.hidden = nn.Linear(code, 4 * code)
        self.out = nn.Linear(4 * code, width)

    def forward(self, time: Tensor) -> Tensor:
        """Map (B,) to (B, width)."""
        half = self.code // 2
        steps = torch.arange(half, device=time.device, dtype=torch.float32)
        angle = time.float()[:, None] * torch.exp(-math.log(10_000) / (half - 1) * steps)
        code = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.hidden.weight.dtype)
        return self.out(functional.mish(self.hidden(code)))


class SelfAttention(nn.Module):
    """Attention of the actions to each other."""

    def __init__(self, shape: DitxShape) -> None:
        """Make the layers."""
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same."""
        query, key, value = (_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out(_joined(mixed))


class CrossAttention(nn.Module):
    """Attention of the actions to the context."""

    def __init__(self, shape: DitxShape) -> None:
        """Make the layers."""
        super().__init__()
        self.heads = shape.heads
        self.q = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(shape.width, 2 * shape.width)
        self.q_norm = nn.LayerNorm(shape.width // shape.heads)
        self.k_norm = nn.LayerNorm(shape.width // shape.heads)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, context: Tensor, there: Tensor | None) -> Tensor:
        """Map (B, T, width), (B, L, width) and which of L count, (B, L), to (B, T, width)."""
        query = self.q_norm(_heads(self.q(x), self.heads))
        key, value = (_heads(part, self.heads) for part in self.kv(context).chunk(2, dim=-1))
        key = self.k_norm(key)
        mixed = functional.scaled_dot_product_attention(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            attn_mask=None if there is None else there[:, None, None],
        )
        return self.proj(_joined(mixed))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each modulated by the time."""

    def __init__(self, shape: DitxShape) -> None:
        """Make the layers."""
        super().__init__()
        width = shape.width
        self.modulation = nn.Linear(width, _PIECES * width)
        self.self_attention = SelfAttention(shape)
        self.cross_attention = CrossAttention(shape)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, there: Tensor | None) -> Tensor:
        """Map (B, T, width) to the same.

        Args:
            x: The actions' tokens.
            time: (B, width).
            context: (B, L, width).
            there: (B, L) bool, which of them count; None: all.
        """
        pieces = self.modulation(functional.silu(time))[:, None].chunk(_PIECES, dim=-1)
        x = x + pieces[2] * self.self_attention(_modulated(x, pieces[0], pieces[1]))
        seen = self.cross_attention(_modulated(x, pieces[3], pieces[4]), context, there)
        x = x + pieces[5] * seen
        hidden = functional.gelu(self.fc1(_modulated(x, pieces[6], pieces[7])), approximate="tanh")
        return x + pieces[8] * self.fc2(hidden)


class Ditx(nn.Module):
    """The velocity of a chunk of actions, given times and a context."""

    def __init__(self, shape: DitxShape, generator: torch.Generator) -> None:
        """Make the layers and draw their weights from `generator`."""
        super().__init__()
        width = shape.width
        self.shape = shape
        self.action_in = nn.Linear(shape.action_dim, width)
        self.action_position = nn.Parameter(torch.zeros(1, shape.horizon, width))
        self.context_in = nn.Linear(shape.context_dim, width)
        self.context_position = nn.Parameter(torch.zeros(1, shape.context_length, width))
        self.time = TimeCode(shape.time_width, width)
        self.step_size = TimeCode(shape.time_width, width)
        self.adaptor = nn.Linear(2 * width, width)
        blocks = [Block(shape) for _ in range(shape.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.out_norm = nn.RMSNorm(width, eps=_EPS)
        self.out_hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, shape.action_dim)
        self._draw(generator, [*(block.modulation for block in blocks), self.out])

    def forward(
        self,
        actions: Tensor,
        time: Tensor,
        step_size: Tensor,
        context: Tensor,
        extra: Tensor | None = None,
        there: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity.

        Args:
            actions: (B, horizon, action_dim), noisy.
            time: (B,) in [0, 1].
            step_size: (B,) in [0, 1], how far the step will go.
            context: (B, L, context_dim) with L of at most `context_length`.
            extra: (B, K, width), context that has the network's width already.
            there: (B, L + K) bool, which of both there are; None: all.

        Returns:
            (B, horizon, action_dim).
        """
        x = self.action_in(actions) + self.action_position
        seen = self.context_in(context) + self.context_position[:, : context.shape[1]]
        if extra is not None:
            seen = torch.cat([seen, extra.to(seen.dtype)], dim=1)
        code = self.adaptor(torch.cat([self.time(time), self.step_size(step_size)], dim=-1))
        for block in self.blocks:
            x = block(x, code, seen, there)
        return self.out(functional.gelu(self.out_hidden(self.out_norm(x)), approximate="tanh"))

    def _draw(self, generator: torch.Generator, silent: list[nn.Linear]) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        around_zero = [self.action_in, self.context_in, self.adaptor]
        around_zero += [m for code in (self.time, self.step_size) for m in (code.hidden, code.out)]
        for linear in around_zero:
            nn.init.normal_(linear.weight, std=0.02, generator=generator)
        nn.init.normal_(self.action_position, std=0.02, generator=generator)
        for linear in silent:
            nn.init.zeros_(linear.weight)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift


def _heads(x: Tensor, heads: int) -> Tensor:
    """Split (B, T, width) into (B, heads, T, width / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
