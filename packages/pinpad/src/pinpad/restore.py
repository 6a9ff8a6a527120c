"""A world model or an agent read back from its run, with the configuration that it belongs to."""

from pathlib import Path
from typing import Any

import torch
from loom.checkpoint import Checkpoints, newest_folder
from loom.config import resolve
from loom.errors import UserError
from loom.run_directory import require_thread

from pinpad.models.agent import Agent
from pinpad.models.world import WorldModel
from pinpad.train import new_agent
from pinpad.train_config import TrainConfig
from pinpad.train_world import new_model


def restore_world(path: Path) -> tuple[WorldModel, TrainConfig]:
    """Read a world model from its run directory or one of its checkpoints; an agent has one too.

    Raises:
        UserError: There is no intact checkpoint, or no configuration beside it.
    """
    config, weights = _read(path)
    if _is_agent(weights):
        return _agent(config, weights).world, config
    model = new_model(config, len(weights["pixel_mean"]), torch.Generator().manual_seed(0))
    model.load_state_dict(weights)
    return model.eval(), config


def restore_agent(path: Path) -> tuple[Agent[Any], TrainConfig]:
    """Read an agent from its run directory or one of its checkpoints.

    Raises:
        UserError: There is no intact checkpoint, or it is that of a world model alone.
    """
    config, weights = _read(path)
    if not _is_agent(weights):
        raise UserError(
            f"{path}: holds a world model and nobody who acts",
            hint="`pinpad train` without wm_only=true trains an agent",
        )
    return _agent(config, weights), config


def read_config(run: Path) -> TrainConfig:
    """Return the configuration of a run.

    Raises:
        UserError: It is a run of another thread, or has no configuration.
    """
    require_thread(run, "pinpad", hint="give a run of `pinpad train`")
    return resolve(TrainConfig, run / "config.yaml").config


def _read(path: Path) -> tuple[TrainConfig, dict[str, torch.Tensor]]:
    folder = newest_folder(path)
    config = read_config(folder.parent.parent)
    return config, dict(Checkpoints(folder.parent).load(folder).state["model"])


def _is_agent(weights: dict[str, torch.Tensor]) -> bool:
    return "world.pixel_mean" in weights


def _agent(config: TrainConfig, weights: dict[str, torch.Tensor]) -> Agent[Any]:
    pixels = len(weights["world.pixel_mean"])
    agent = new_agent(config, pixels, torch.Generator().manual_seed(0))
    agent.load_state_dict(weights)
    return agent.eval()
