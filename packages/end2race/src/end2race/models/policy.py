"""The recurrent head that teacher and student share: what is seen and felt, to actions.

Speed and the previous wheel angle enter through small embeddings; where one is NaN, a learned
vector stands for "not known". Training withholds them at random that way (the notes' `mask_prob`),
because a driver that may read its own last command learns to repeat it (Wen et al. 2020).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from end2race.models.presets import PolicyPreset

AUX_FIELDS = ("bev_vec_seq", "bev_feat_seq", "gru_out")


class Driven(NamedTuple):
    """What a policy answers for B sequences of T frames."""

    actions: Tensor  # [B, T, 2] wheel angle (degrees), target speed (m/s)
    last_hidden: Tensor  # [1, B, H]
    gru_out: Tensor  # [B, T, H]


class Known(nn.Module):
    """The embedding of a number that may be missing (NaN)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(1, width)
        self.unknown = nn.Parameter(torch.zeros(width))

    def forward(self, value: Tensor) -> Tensor:
        """Return [..., width] of values [..., 1]."""
        missing = value.isnan()
        embedded = torch.relu(self.linear(value.nan_to_num(0.0) / self.scale))
        return torch.where(missing, self.unknown, embedded)


class RecurrentPolicy(nn.Module):
    """GRU over bird's-eye-view vectors, speed and previous steering."""

    action_scale: Tensor
    action_offset: Tensor

    def __init__(self, bev_dim: int, preset: PolicyPreset) -> None:
        super().__init__()
        self.speed = Known(preset.embedding, scale=5.0)
        self.steering = Known(preset.embedding, scale=10.0)
        self.gru = nn.GRU(bev_dim + 2 * preset.embedding, preset.hidden, batch_first=True)
        self.output_layer = nn.Linear(preset.hidden, len(preset.action_scale))
        self.register_buffer("action_scale", torch.tensor(preset.action_scale), persistent=False)
        self.register_buffer("action_offset", torch.tensor(preset.action_offset), persistent=False)

    def forward(
        self, bev_vec: Tensor, speed: Tensor, steering_input: Tensor, hidden: Tensor | None = None
    ) -> Driven:
        """Drive sequences.

        Args:
            bev_vec: [B, T, D].
            speed: m/s, NaN where not known, [B, T, 1].
            steering_input: The wheel angle one frame earlier in degrees, NaN where not known,
                [B, T, 1].
            hidden: State to go on from, [1, B, H]; zero if None.
        """
        inputs = torch.cat([bev_vec, self.speed(speed), self.steering(steering_input)], -1)
        gru_out, last_hidden = self.gru(inputs, hidden)
        actions = self.output_layer(gru_out) * self.action_scale + self.action_offset
        return Driven(actions, last_hidden, gru_out)
