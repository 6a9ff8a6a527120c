"""Let a trained world model say where the boundaries of recorded episodes are.

A VTA gives P(READ) twice: by its posterior, which looks two frames ahead, and online, as its prior
predicted it one step before. An RSSM gives its surprise: the divergence by which each frame moved
its latent. The files are what `pinpad boundaries eval --scores` takes.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.files import write_atomic

from pinpad.data.episodes import Episode, episode_files, read_episode
from pinpad.data.windows import Windows
from pinpad.models.world import WorldModel
from pinpad.restore import restore_world
from pinpad.tensors import seen

_TOGETHER = 8  # episodes filtered at once


@torch.no_grad()
def score_episodes(
    model: WorldModel, episodes: Sequence[Episode], seed: int = 0
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return, for each kind of score, the arrays of its file for each episode.

    Args:
        model: In evaluation mode.
        episodes: All of one length.
        seed: Of the latents.
    """
    generator = torch.Generator().manual_seed(seed)
    windows = Windows(
        np.stack([episode.image for episode in episodes], axis=1),
        np.stack([episode.action for episode in episodes], axis=1).astype(np.int64),
        np.stack([episode.reward for episode in episodes], axis=1),
        np.stack([episode.is_first for episode in episodes], axis=1),
    )
    rollout = model.rollout(seen(windows), generator)
    kinds = {"surprise": [_row("value", rollout.surprise[:, i]) for i in range(len(episodes))]}
    found = rollout.boundaries
    if found is not None:
        # Where a rule decides, its decision is the score: the detector was not asked.
        posterior = torch.where(found.forced, found.read, found.logit.sigmoid())
        kinds["posterior"] = [
            _row("probability", posterior[:, i], found.forced[:, i])
            | {"abs_surprise": found.abs_surprise[:, i].numpy()}
            for i in range(len(episodes))
        ]
        online = found.prior_logit.sigmoid()
        kinds["online"] = [_row("probability", online[:, i]) for i in range(len(episodes))]
    return kinds


def score_folder(run: Path, episodes: Path, output: Path) -> list[Path]:
    """Score every episode of a folder; return a folder for each kind of score.

    Raises:
        UserError: The episodes' frames are not those the model was made for.
    """
    model, config = restore_world(run)
    torch.set_num_threads(config.threads)
    waiting: list[Episode] = []
    folders: dict[str, Path] = {}
    for path in episode_files(episodes):
        episode = read_episode(path)
        if episode.image[0].size != len(model.pixel_mean):
            raise UserError(
                f"{path}: frames of {episode.image.shape[1:]}, the model was trained on "
                f"{len(model.pixel_mean)} values",
                hint="collect the episodes with the size of the model's configuration",
            )
        if waiting and (len(waiting) == _TOGETHER or len(waiting[0]) != len(episode)):
            _write(model, waiting, output, folders)
            waiting = []
        waiting.append(episode)
    _write(model, waiting, output, folders)
    return list(folders.values())


def _write(
    model: WorldModel, episodes: list[Episode], output: Path, folders: dict[str, Path]
) -> None:
    for kind, rows in score_episodes(model, episodes).items():
        folders[kind] = output / kind
        folders[kind].mkdir(parents=True, exist_ok=True)
        for episode, row in zip(episodes, rows, strict=True):
            content = io.BytesIO()
            np.savez_compressed(content, allow_pickle=False, **row)
            write_atomic(folders[kind] / f"{episode.name}-{len(episode)}.npz", content.getvalue())


def _row(
    kind: str, score: torch.Tensor, forced: torch.Tensor | None = None
) -> dict[str, np.ndarray]:
    row = {"score": score.numpy().astype(np.float32), "kind": np.array(kind)}
    return row if forced is None else row | {"forced": forced.numpy()}
