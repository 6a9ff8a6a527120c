"""The policy network: what is seen becomes context tokens, actions flow towards it.

    context (flat)      one token: for each observed step the pooled features of its pictures, then
                        all states; the initial picture is encoded once and stands at every step
    context (spatial)   one token per place of each picture, then a token per observed state
    with several tasks  one more token, an embedding of the task
    with instructions   the tokens of a frozen text encoder, through two layers

States and actions pass the normalisers, whose limits are saved with the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from maniflow_overlay.policy.ditx import Ditx
from maniflow_overlay.policy.encoder import PictureEncoder
from maniflow_overlay.policy.normaliser import LimitsNormaliser
from maniflow_overlay.policy.presets import PolicyShape
from maniflow_overlay.policy.text_tokens import TextTokens


class Context(NamedTuple):
    """What the transformer attends to.

    Attributes:
        tokens: (B, L, context_dim).
        extra: (B, K, width) behind them, or None.
        there: (B, L + K) bool, which of all these there are; None: every one.
    """

    tokens: Tensor
    extra: Tensor | None
    there: Tensor | None = None

    def part(self, rows: slice) -> Context:
        """Return the context of some samples."""
        extra, there = (None if part is None else part[rows] for part in self[1:])
        return Context(self.tokens[rows], extra, there)


class OverlayPolicy(nn.Module):
    """Encoder, transformer and normalisers of one shape."""

    def __init__(self, shape: PolicyShape, generator: torch.Generator) -> None:
        """Make the layers and draw their weights from `generator`."""
        super().__init__()
        self.shape = shape
        self.encoder = PictureEncoder(shape, generator)
        self.ditx = Ditx(shape.ditx(self.encoder.channels, self.encoder.places), generator)
        self.normalise_state = LimitsNormaliser(shape.state_dim)
        self.normalise_action = LimitsNormaliser(shape.action_dim)
        width = self.ditx.shape.width
        self.state_in: nn.Linear | None = None
        if shape.size.tokens == "spatial":
            self.state_in = nn.Linear(shape.state_dim, width)
            self.state_position = nn.Parameter(torch.zeros(1, shape.observed, width))
            nn.init.xavier_uniform_(self.state_in.weight, generator=generator)
            nn.init.zeros_(self.state_in.bias)
            # As loud as the states: from N(0, 0.02), as ManiFlow has it, pictures are learned later
            # than the shortcuts that the gripper's position offers.
            nn.init.xavier_uniform_(self.ditx.context_in.weight, generator=generator)
        self.task: nn.Embedding | None = None
        if len(shape.tasks) > 1:
            self.task = nn.Embedding(len(shape.tasks), width)
            nn.init.normal_(self.task.weight, std=0.02, generator=generator)
        self.text: TextAdaptor | None = None
        if shape.text_width:
            self.text = TextAdaptor(shape.text_width, width, generator)

    def context(
        self,
        current: Tensor,
        initial: Tensor | None,
        state: Tensor,
        task: Tensor,
        text: TextTokens | None = None,
    ) -> Context:
        """Encode an observation.

        Args:
            current: (B, observed, channels, H, W) in [0, 1].
            initial: (B, channels, H, W), given exactly where the arm sees it.
            state: (B, observed, state_dim), not normalised.
            task: (B,) integers, which task; not looked at where there is only one.
            text: Instructions, given exactly where the policy takes them.
        """
        if (initial is not None) != self.shape.arm.sees_initial:
            raise ValueError(f"mode {self.shape.arm.mode}: initial picture {initial is not None}")
        if (text is not None) != (self.text is not None):
            raise ValueError(f"text_width {self.shape.text_width}: text {text is not None}")
        size = len(state)
        seen, first = self.encoder(current.flatten(0, 1), initial)
        state = self.normalise_state(state)
        extra: list[Tensor] = []
        if self.state_in is None:
            tokens = self._flat(seen, first, state)
        else:
            tokens = seen.flatten(2).transpose(1, 2).reshape(size, -1, self.encoder.channels)
            if first is not None:
                tokens = torch.cat([tokens, first.flatten(2).transpose(1, 2)], dim=1)
            extra.append(self.state_in(state) + self.state_position)
        if self.task is not None:
            extra.append(self.task(task)[:, None])
        there = None
        if self.text is not None and text is not None:
            always = tokens.shape[1] + sum(each.shape[1] for each in extra)
            there = torch.cat([text.there.new_ones(size, always), text.there], dim=1)
            extra.append(self.text(text.tokens))
        return Context(tokens, torch.cat(extra, dim=1) if extra else None, there)

    def _flat(self, seen: Tensor, first: Tensor | None, state: Tensor) -> Tensor:
        pooled = seen.mean((2, 3)).unflatten(0, (-1, self.shape.observed))  # (B, observed, 512)
        parts = [pooled]
        if first is not None:
            parts.append(first.mean((2, 3))[:, None].expand_as(pooled))
        features = torch.cat(parts, dim=-1).flatten(1)
        return torch.cat([features, state.flatten(1)], dim=-1)[:, None]

    def velocity(
        self, actions: Tensor, time: Tensor, step_size: Tensor, context: Context
    ) -> Tensor:
        """Return the velocity of normalised actions; shapes as in `Ditx.forward`, in float32."""
        return self.ditx(actions, time, step_size, *context).float()


class TextAdaptor(nn.Module):
    """Two layers from the text encoder's tokens to the transformer's width, as in ManiFlow."""

    def __init__(self, text_width: int, width: int, generator: torch.Generator) -> None:
        """Make the layers and draw their weights from `generator`."""
        super().__init__()
        self.hidden = nn.Linear(text_width, width)
        self.out = nn.Linear(width, width)
        for linear in (self.hidden, self.out):
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, text_width) to (B, T, width)."""
        return self.out(functional.gelu(self.hidden(tokens), approximate="tanh"))


def parameter_count(module: nn.Module) -> int:
    """Count the numbers that can learn."""
    return sum(parameter.numel() for parameter in module.parameters())
