"""What drivers learn from: the expert's actions, and the teacher's answers.

Behaviour cloning is a weighted sum of squared errors: the wheel angle in degrees, the speed in m/s
(End2Race: 1.0 and 0.05), and on demand the squared error of first differences, which asks for
smooth steering. Distillation adds, for every window that the teacher has answered,

    action      smooth L1 between the actions (beta = 1), mean over angle and speed
    bev_vec     1 - cos between the bird's-eye-view vectors
    temporal    squared error between the recurrent states
    bev_feat    squared error between the feature maps

The vectors are compared by their angle, not by a mean over normalised components: that mean is
2 (1 - cos) / D, which disappears beside a loss in squared degrees. Student and teacher may differ
in width; linear adapters bridge that. They belong to the loss, so the student is deployed without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from loom.errors import UserError
from loom.loop import Term
from torch import Tensor, nn
from torch.nn import functional

from end2race.config import ActionWeights, DistillationSection
from end2race.models.presets import Preset

TERM_OF_FIELD = {
    "actions": "kd_action",
    "bev_vec": "kd_bev_vec",
    "gru_out": "kd_temporal",
    "bev_feat": "kd_bev_feat",
}
"""Field of the teacher's answer -> name of the term that uses it."""
AUX_OF_FIELD = {"bev_vec": "bev_vec_seq", "gru_out": "gru_out", "bev_feat": "bev_feat_seq"}
"""Field of the teacher's answer -> what the student returns in its place."""


@dataclass(frozen=True)
class TeacherAnswers:
    """What the teacher said about B windows.

    Attributes:
        fields: `actions` [B, T, 2], `bev_vec` [B, T, D], `gru_out` [B, T, H], `bev_feat`
            [B, T, C, h, w]; only those that are used.
        confidence: How much each window counts, 0 where the teacher has no answer, [B].
    """

    fields: Mapping[str, Tensor]
    confidence: Tensor

    def to(self, device: torch.device) -> TeacherAnswers:
        """Return the answers on a device."""
        moved = {name: values.to(device) for name, values in self.fields.items()}
        return TeacherAnswers(moved, self.confidence.to(device))


def behaviour_cloning(
    actions: Tensor, target: Tensor, labelled: Tensor, weights: ActionWeights
) -> dict[str, Term]:
    """Compare actions with the expert's: means over all windows, zero for those without a label.

    So each window weighs the same, labelled or not: a mean over a few labelled ones would drown
    the distillation in the noise of that few.

    Args:
        actions: wheel angle (degrees) and speed (m/s), [B, T, 2].
        target: The expert's, [B, T, 2].
        labelled: Which windows count, [B] bool; without any the terms are zero.
        weights: Of the terms.
    """
    labelled = labelled.to(actions.device)
    error = (actions - target.to(actions.device)) * labelled[:, None, None]
    terms = {
        "steer": Term(error[..., 0].square().mean(), weights.steer),
        "speed": Term(error[..., 1].square().mean(), weights.speed),
    }
    if weights.smooth > 0:
        change = error.diff(dim=1).square()
        terms["smooth"] = Term(change.sum() / max(change.numel(), 1), weights.smooth)
    return terms


class Distillation(nn.Module):
    """Distillation terms with the adapters from the student's widths to the teacher's.

    Args:
        section: Weights; a term of weight 0 is not computed.
        student: Sizes of the student.
        shapes: Shape of each teacher field for one window: `bev_vec` (T, D) or (D,), `gru_out`
            (T, H), `bev_feat` (C, h, w) with any leading dimensions.
        map_channels: Of the student's feature map.
    """

    def __init__(
        self,
        section: DistillationSection,
        student: Preset,
        shapes: Mapping[str, tuple[int, ...]],
        map_channels: int,
    ) -> None:
        super().__init__()
        self.weights = section.weights
        self.fields = section.fields
        self.adapters = nn.ModuleDict()
        if section.bevvec_weight > 0:
            self.adapters["bev_vec"] = _adapter(student.bev_dim, shapes["bev_vec"][-1])
        if section.temporal_weight > 0:
            self.adapters["gru_out"] = _adapter(student.policy.hidden, shapes["gru_out"][-1])
        if section.bevfeat_weight > 0:
            self.adapters["bev_feat"] = _adapter(map_channels, shapes["bev_feat"][-3])

    @property
    def aux(self) -> tuple[str, ...]:
        """What the student has to return for them."""
        return tuple(AUX_OF_FIELD[name] for name in self.fields if name in AUX_OF_FIELD)

    def terms(
        self, actions: Tensor, aux: Mapping[str, Tensor], teacher: TeacherAnswers
    ) -> dict[str, Term]:
        """Compare a student's answers, [B, T, ...], with its teacher's."""
        errors = {}
        for name in self.fields:
            wanted = teacher.fields[name]
            if name == "actions":
                error = functional.smooth_l1_loss(actions, wanted, reduction="none")
            elif name == "bev_vec":
                own = self.adapters[name](aux["bev_vec_seq"])
                error = 1.0 - functional.cosine_similarity(own, wanted, dim=-1)
            elif name == "gru_out":
                error = (self.adapters[name](aux["gru_out"]) - wanted).square()
            else:  # channels last for the adapter
                own = self.adapters[name](aux["bev_feat_seq"].movedim(2, -1)).movedim(-1, 2)
                _require_one_size(own, wanted)
                error = (own - wanted).square()
            per_window = error.flatten(1).mean(1)
            value = (per_window * teacher.confidence).mean()
            errors[TERM_OF_FIELD[name]] = Term(value, self.weights[name])
        return errors


def _require_one_size(own: Tensor, wanted: Tensor) -> None:
    if own.shape != wanted.shape:
        sizes = [f"{each.shape[-2]} x {each.shape[-1]}" for each in (own, wanted)]
        raise UserError(
            f"the student's map has {sizes[0]} cells, its teacher's {sizes[1]}",
            hint="take presets with maps of one size, or leave --kd-bevfeat-w at 0",
        )


def _adapter(before: int, after: int) -> nn.Linear:
    """Return a linear map that begins as the identity, as far as the widths allow."""
    linear = nn.Linear(before, after)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
