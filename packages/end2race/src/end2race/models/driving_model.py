"""What teacher and student have in common: a view of each frame, then the recurrent policy."""

from collections.abc import Collection

from torch import Tensor, nn

from end2race.models.bev import new_backbone
from end2race.models.policy import AUX_FIELDS, RecurrentPolicy
from end2race.models.presets import Preset

Answer = tuple[Tensor, Tensor, dict[str, Tensor]]


class DrivingModel(nn.Module):
    """A backbone on the bird's-eye view, and the policy.

    A sensor's model adds the layers that make the view, and `encode`.

    Attributes:
        preset: Sizes.
    """

    def __init__(self, view_channels: int, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.backbone = new_backbone(view_channels, preset)
        self.policy = RecurrentPolicy(preset.bev_dim, preset.policy)

    def drive(
        self,
        encoded: tuple[Tensor, Tensor],
        speed: Tensor,
        steering_input: Tensor,
        hidden: Tensor | None,
        return_aux: bool | Collection[str],
    ) -> Answer:
        """Run the policy over encoded frames, map [B T, c, h, w] and vector [B T, D]."""
        feature_map, vector = encoded
        shape = speed.shape[:2]
        bev_vec = vector.unflatten(0, shape)
        driven = self.policy(bev_vec, speed, steering_input, hidden)
        wanted = wanted_fields(return_aux)
        aux = {}
        if "bev_vec_seq" in wanted:
            aux["bev_vec_seq"] = bev_vec
        if "bev_feat_seq" in wanted:
            aux["bev_feat_seq"] = feature_map.unflatten(0, shape)
        if "gru_out" in wanted:
            aux["gru_out"] = driven.gru_out
        return driven.actions, driven.last_hidden, aux


def wanted_fields(return_aux: bool | Collection[str]) -> frozenset[str]:
    """Return the names of the intermediate results that are asked for; True means all."""
    if isinstance(return_aux, bool):
        return frozenset(AUX_FIELDS if return_aux else ())
    unknown = sorted(set(return_aux) - set(AUX_FIELDS))
    if unknown:
        raise ValueError(
            f"return_aux names {', '.join(unknown)}; there are {', '.join(AUX_FIELDS)}"
        )
    return frozenset(return_aux)
