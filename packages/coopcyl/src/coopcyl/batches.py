"""Batches of sets as tensors: what the network may see on one side, the truth on the other."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from loom.sampling import Shard
from torch import Tensor

from coopcyl.data.sampler import SetSampler
from coopcyl.data.samples import Augmentation, SetSample, read_sample
from coopcyl.data.tree import AgentFrame
from coopcyl.geometry.view import View
from coopcyl.models.inputs import ViewInput, as_input, stack


class Truth(NamedTuple):
    """The truth about b sets of v views, views of a set one after the other, n = b v.

    Attributes:
        range_m: `(n, h, w)`, 0 where there is none.
        surface: `(n, h, w)` bool, the mask that is learned.
        surface_known: `(n,)` bool, whether there is a true mask.
        poses: `(b, v, 4, 4)` float32, from each view to the first of its set.
    """

    range_m: Tensor
    surface: Tensor
    surface_known: Tensor
    poses: Tensor


class SetBatch(NamedTuple):
    """A batch.

    Attributes:
        views: All that a network may see.
        truth: For losses only.
        keys: `(n, h, w)`, which tokens are asked for their partner first.
        per_set: Views in each set.
    """

    views: ViewInput
    truth: Truth
    keys: Tensor
    per_set: int


def collate(samples: Sequence[SetSample]) -> SetBatch:
    """Join samples with the same number of views."""

    def joined(name: str) -> Tensor:
        arrays = [np.ascontiguousarray(getattr(sample, name)) for sample in samples]
        return torch.from_numpy(np.concatenate(arrays))

    inputs = [as_input(s.rgb, s.rays, s.origins, s.covered) for s in samples]
    return SetBatch(
        stack(inputs),
        Truth(
            joined("range_m"),
            joined("surface"),
            joined("surface_known"),
            torch.from_numpy(np.stack([s.poses for s in samples])).float(),
        ),
        joined("keys"),
        len(samples[0].rgb),
    )


class SetLoader:
    """The batch of each step, a pure function of step and shard.

    Args:
        sampler: Chooses the sets.
        read: Reads one view.
        augmentation: Changes of the training samples.
        device: Where the tensors go.
    """

    def __init__(
        self,
        sampler: SetSampler,
        read: Callable[[AgentFrame], View],
        augmentation: Augmentation,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sampler = sampler
        self.read = read
        self.augmentation = augmentation
        self.device = device

    def batch(self, step: int, shard: Shard) -> SetBatch:
        """Return one process's part of a step's batch."""
        seed = self.sampler.seed
        whole = collate(
            [
                read_sample(chosen, self.read, seed, self.augmentation)
                for chosen in self.sampler.sets(step, shard)
            ]
        )
        return SetBatch(
            whole.views.to(self.device),
            Truth(*(tensor.to(self.device) for tensor in whole.truth)),
            whole.keys.to(self.device),
            whole.per_set,
        )
