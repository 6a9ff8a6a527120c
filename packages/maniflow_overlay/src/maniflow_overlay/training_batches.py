"""Batches as the objective takes them: windows of a store, what is drawn at random, on a device.

Order, noise, times and augmentation are drawn for the whole batch from (seed, step), and each
process keeps its part: a step is the same on any number of processes and after any resume.
"""

from __future__ import annotations

import numpy as np
import torch
from loom.sampling import Shard, draw_rng
from torch import Tensor

from maniflow_overlay.config import TrainConfig
from maniflow_overlay.data.windows import Batches
from maniflow_overlay.policy.augmentation import AugmentTensors, draw_augmentation
from maniflow_overlay.policy.flow import draw_flow
from maniflow_overlay.policy.objective import TrainingBatch
from maniflow_overlay.policy.presets import PolicyShape
from maniflow_overlay.policy.text_tokens import Instructions, TextTokens


class TrainingBatches:
    """`batch(step, shard)` of a training; pure, so it can be called ahead by another thread."""

    def __init__(
        self,
        batches: Batches,
        config: TrainConfig,
        shape: PolicyShape,
        device: torch.device,
        instructions: Instructions | None = None,
    ) -> None:
        """Take the windows' batches and what is drawn beside them.

        Args:
            batches: With the frame and its path apart where pictures are augmented.
            config: Of the run.
            shape: Of the policy.
            device: Where the batch goes.
            instructions: Their tokens, for a policy that takes them.
        """
        self._batches, self._config, self._shape = batches, config, shape
        self._device, self._instructions = device, instructions

    def __call__(self, step: int, shard: Shard) -> TrainingBatch:
        """Return this process's part of a step."""
        config, shape = self._config, self._shape
        count = config.batch_size
        rng = draw_rng(config.seed, step, "flow")
        whole = draw_flow(
            count,
            shape.horizon,
            shape.action_dim,
            rng,
            share=config.consistency_batch_ratio,
            times=config.flow_times,
        )
        own = slice(*shard.bounds(count))
        order = np.argsort(whole.consistency[own], kind="stable")
        draws = whole.part(own).part(order)
        taught = int(whole.consistency.sum())
        augment = None
        if config.augment.active:
            rng = draw_rng(config.seed, step, "augmentation")
            varying = draw_augmentation(count, config.augment, rng).part(own).part(order)
            augment = AugmentTensors(*map(self._moved, varying))
        data = self._batches.samples(self._batches.chosen(step, shard)[order])
        return TrainingBatch(
            current=self._moved(data.current),
            initial=None if data.initial is None else self._moved(data.initial),
            state=self._moved(data.state),
            action=self._moved(data.action),
            task=self._moved(data.task),
            noise=self._moved(draws.noise),
            time=self._moved(draws.time),
            delta=self._moved(draws.delta),
            flow_samples=int((~draws.consistency).sum()),
            flow_count=(count - taught) / shard.world,
            consistency_count=taught / shard.world,
            augment=augment,
            text=self._text(step, own, order, data.episode),
        )

    def _text(
        self, step: int, own: slice, order: np.ndarray, episodes: np.ndarray
    ) -> TextTokens | None:
        """Draw one of each episode's instructions."""
        if self._instructions is None:
            return None
        draw = draw_rng(self._config.seed, step, "instructions").random(self._config.batch_size)
        texts = self._batches.instructions(episodes, draw[own][order])
        return self._instructions.tokens(texts).to(self._device)

    def _moved(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
