"""The loss of a training batch: both parts of the consistency flow in one pass of the network.

Each term is the mean over its part of the *whole* batch: a process, or an accumulated part, divides
its own sum by its share of the count, so the mean over processes is exact whatever they hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from loom.loop import Losses, Term
from torch import Tensor

from maniflow_overlay.policy.augmentation import AugmentTensors
from maniflow_overlay.policy.flow import StepKind, asked_step, between, consistency_target
from maniflow_overlay.policy.model import OverlayPolicy
from maniflow_overlay.policy.pictures import plain, varied
from maniflow_overlay.policy.text_tokens import TextTokens


class TrainingBatch(NamedTuple):
    """A process's part of a step on its device; samples of the flow part come first.

    Attributes:
        current: (B, observed, P, H, W, 3) bytes.
        initial: (B, P, H, W, 3) bytes, or None.
        state: (B, observed, state_dim).
        action: (B, horizon, action_dim).
        task: (B,) which task.
        noise: (B, horizon, action_dim), x0.
        time: (B,), t.
        delta: (B,), d.
        flow_samples: How many samples belong to the flow part.
        flow_count: By what its sum is divided.
        consistency_count: By what the other one is divided.
        augment: How pictures are changed; None leaves them as they are.
        text: Instructions, for a policy that takes them.
    """

    current: Tensor
    initial: Tensor | None
    state: Tensor
    action: Tensor
    task: Tensor
    noise: Tensor
    time: Tensor
    delta: Tensor
    flow_samples: int
    flow_count: float
    consistency_count: float
    augment: AugmentTensors | None
    text: TextTokens | None = None


class FlowObjective:
    """The loss; the teacher is the averaged copy of what learns."""

    def __init__(self, teacher: OverlayPolicy, kind: StepKind = "relative") -> None:
        """Take the teacher and what the network is told about a step."""
        self.teacher, self.kind = teacher, kind

    def __call__(self, model: OverlayPolicy, batch: TrainingBatch, step: int) -> Losses:
        """Return the terms `flow` and `consistency`."""
        with torch.no_grad():
            pictures = _pictures(model, batch)
            actions = model.normalise_action(batch.action)
        context = model.context(*pictures, batch.state, batch.task, batch.text)
        taught = slice(batch.flow_samples, None)
        target = actions - batch.noise
        if batch.consistency_count:
            teaching = context.part(taught)
            target = torch.cat(
                [
                    target[: batch.flow_samples],
                    consistency_target(
                        lambda x, t, s: self.teacher.velocity(x, t, s, teaching),
                        batch.noise[taught],
                        actions[taught],
                        batch.time[taught],
                        batch.delta[taught],
                        self.kind,
                    ),
                ]
            )
        predicted = model.velocity(
            between(batch.noise, actions, batch.time),
            batch.time,
            # A step ends at 1 at the latest; as published, a teacher's may be told to go beyond.
            asked_step(batch.time, batch.delta, self.kind).clamp(max=1.0),
            context,
        )
        error = (predicted - target).square().mean(dim=(1, 2))
        terms = {"flow": Term(error[: batch.flow_samples].sum() / batch.flow_count)}
        if batch.consistency_count:
            terms["consistency"] = Term(error[taught].sum() / batch.consistency_count)
        return Losses(terms)


def _pictures(model: OverlayPolicy, batch: TrainingBatch) -> tuple[Tensor, Tensor | None]:
    arm = model.shape.arm
    if batch.augment is None:
        return plain(batch.current, batch.initial, arm)
    with torch.autocast(batch.current.device.type, enabled=False):
        return varied(batch.current, batch.initial, arm, batch.augment)
