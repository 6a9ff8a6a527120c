"""Train a world model on recorded episodes, and ask whether it knows what happens next.

The loss is 3 image + reward + dyn + rep, and the boundary terms of a VTA.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from loom.device import choose_device
from loom.errors import UserError
from loom.evaluation.statistics import Undefined
from loom.loop import Every, FitResult, Losses, Shard, Term, TrainState, fit
from loom.run import Run
from loom.update import Precision
from torch import Tensor

from pinpad.boundary.matching import average_precision
from pinpad.config import WorldConfig
from pinpad.data.collect import record_episodes
from pinpad.data.episodes import Episode, episode_files, read_episode, require_same_frames
from pinpad.data.players import parse_mix
from pinpad.data.windows import WindowSampler
from pinpad.envs.layouts import MOVES
from pinpad.models.dynamics import at
from pinpad.models.world import Seen, WorldModel, WorldSettings, squared_error
from pinpad.tensors import pixel_statistics, seen

CONTEXT, AHEAD = 10, 15
"""Frames that are seen and frames that are predicted from actions alone in an evaluation."""
EVALUATION_WINDOWS = 128
PRECISIONS: dict[int | str, Precision] = {16: "fp16", 32: "fp32", "bf16": "bf16"}


def read_or_record(
    folder: Path | None, config: WorldConfig, players: str, episodes: int, seed: int
) -> list[Episode]:
    """Return the episodes of a folder, or record scripted ones where there is none."""
    if folder is not None:
        return [read_episode(path) for path in episode_files(folder)]
    recorded = record_episodes(
        config.task,
        parse_mix(players),
        episodes,
        length=config.time_limit,
        size=config.size,
        seed=seed,
    )
    return list(recorded)


def training_episodes(config: WorldConfig) -> list[Episode]:
    """Return what the model learns from."""
    count = max(1, config.prefill // config.time_limit)
    return read_or_record(config.data, config, config.players, count, config.seed)


def heldout_episodes(config: WorldConfig) -> list[Episode]:
    """Return what the model is judged on."""
    return read_or_record(
        config.heldout,
        config,
        config.heldout_players,
        config.heldout_episodes,
        config.heldout_seed,
    )


def new_model(config: WorldConfig, pixels: int, generator: torch.Generator) -> WorldModel:
    """Make a model whose weights follow from a generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        sizes = WorldSettings(image_scale=config.image_scale, depth=config.cnn_depth)
        return WorldModel(pixels, len(MOVES), config.dynamics(), sizes)


class Evaluation:
    """Held-out windows: reconstruction, open-loop prediction, and the trivial answer beside them.

    With the frames in view almost any model tells a reward; whether it can be planned with shows in
    open loop, where only actions are known.
    """

    def __init__(self, episodes: Sequence[Episode], config: WorldConfig) -> None:
        """Choose the windows, half of them with a reward if there is any.

        Raises:
            UserError: No episode is long enough.
        """
        longest = max(map(len, episodes))
        if longest < CONTEXT + AHEAD:
            raise UserError(
                f"the held-out episodes have {longest} frames at most, but a model is judged on "
                f"{CONTEXT + AHEAD}: {CONTEXT} that it sees and {AHEAD} that it predicts",
                hint=f"set time_limit={CONTEXT + AHEAD - 1} or more, or give longer ones",
            )
        sampler = WindowSampler(
            episodes,
            batch_size=EVALUATION_WINDOWS,
            batch_length=CONTEXT + AHEAD,
            reward_windows=0.5,
            seed=config.seed,
        )
        self.seen = seen(sampler.batch(0))

    def __call__(self, model: WorldModel) -> dict[str, float | None]:
        """Return the figures of a model."""
        device = model.pixel_mean.device
        generator = torch.Generator(device).manual_seed(0)
        data = Seen(*(part.to(device) for part in self.seen))
        frame, reward = data.frame, data.reward
        rollout = model.rollout(data, generator)
        copied = squared_error(frame[:-1], frame[1:])[CONTEXT - 1 :].mean()
        state = at(rollout.state, CONTEXT - 1)
        imagined = []
        for t in range(CONTEXT, CONTEXT + AHEAD):
            state = model.dynamics.imagine(state, data.action[t], generator)
            imagined.append(model.dynamics.feature(state))
        ahead = torch.stack(imagined)
        rebuilt = squared_error(model.predicted_frame(rollout.feature), frame)[CONTEXT:].mean()
        found: dict[str, float | None] = {
            "metric/reconstruction_error": float(rebuilt),
            "baseline/copy_last/reconstruction_error": float(copied),
            "metric/one_step_error": float(
                squared_error(model.predicted_frame(ahead[0]), frame[CONTEXT]).mean()
            ),
            "metric/reward_ap_open_loop": _reward_ap(
                model.predicted_reward(ahead), reward[CONTEXT:]
            ),
            "metric/reward_ap_posterior": _reward_ap(
                model.predicted_reward(rollout.feature[CONTEXT:]), reward[CONTEXT:]
            ),
            "metric/surprise_nats": float(rollout.surprise[CONTEXT:].mean()),
        }
        for name in ("boundary_ratio", "forced_share"):
            if name in rollout.metrics:
                found[f"metric/{name}"] = float(rollout.metrics[name])
        return found


def _reward_ap(predicted: Tensor, reward: Tensor) -> float | None:
    value = average_precision(predicted.flatten().cpu().numpy(), reward.flatten().cpu().numpy() > 0)
    return None if isinstance(value, Undefined) else value


def train_world(config: WorldConfig, run: Run[WorldConfig]) -> tuple[WorldModel, FitResult]:
    """Learn, writing records and checkpoints into the run's directory."""
    episodes, heldout = training_episodes(config), heldout_episodes(config)
    frames = sum(map(len, episodes))
    run.info(f"[data] {len(episodes)} episodes, {frames:,} frames; {len(heldout)} held out")
    sampler = WindowSampler(
        episodes,
        batch_size=config.batch_size,
        batch_length=config.batch_length,
        reward_windows=config.reward_windows,
        seed=config.seed,
    )
    del episodes  # the sampler holds their frames
    pixels = int(np.prod(sampler.image.shape[1:]))
    require_same_frames(sampler.image.shape[1:], heldout[0].image.shape[1:])
    device = choose_device(config.device)
    model = new_model(config, pixels, run.generator("model")).to(device)
    model.fit_pixels(*pixel_statistics(sampler.image))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.model_lr, eps=1e-8)
    draws = run.generator("latents", device.type)
    state = TrainState(model, optimizer, generators={"latents": draws})

    def batch(step: int, shard: Shard) -> Seen:
        return seen(sampler.batch(step, shard), device)

    def loss(model: WorldModel, data: Seen, step: int) -> Losses:
        parts, rollout = model.losses(data, draws)
        return Losses(
            {name: Term(part.value, part.weight) for name, part in parts.items()},
            {f"train/{name}": value for name, value in rollout.metrics.items()},
        )

    result = fit(
        run,
        state,
        steps=config.all_updates(),
        batch=batch,
        loss=loss,
        lr=lambda step: config.model_lr,
        evaluate=Every(config.eval_every, Evaluation(heldout, config)),
        gates=config.gates,
        clip_norm=config.grad_clip,
        precision=PRECISIONS[config.precision],
        log_interval=config.log_every,
        checkpoint_interval=config.eval_every,
    )
    return model, result
