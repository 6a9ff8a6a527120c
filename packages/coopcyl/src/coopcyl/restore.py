"""A trained network read back from its run, with the settings that it belongs to."""

from pathlib import Path
from typing import NamedTuple

import torch
from loom.checkpoint import Checkpoints, newest_folder
from loom.config import resolve
from loom.device import choose_device
from loom.files import sha256_file
from loom.run_directory import require_thread

from coopcyl.models.predict import Network
from coopcyl.train import new_model
from coopcyl.train_config import TrainConfig


class Restored(NamedTuple):
    """A network in evaluation mode on the best device, its settings, and where both come from."""

    model: Network
    config: TrainConfig
    step: int
    run: Path
    checkpoint: Path

    def sources(self) -> dict[str, str]:
        """Return what a picture or a number of this network depends on."""
        return {
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": sha256_file(self.checkpoint / "state.pt"),
            "config_sha256": sha256_file(self.run / "config.yaml"),
        }


def restore_model(path: Path) -> Restored:
    """Read the averaged weights of a run directory's best checkpoint, or of one checkpoint.

    Args:
        path: A run directory, its `checkpoints/`, or one checkpoint.

    Raises:
        UserError: There is no intact checkpoint, or it is one of another thread.
    """
    folder = newest_folder(path)
    checkpoints = Checkpoints(folder.parent)
    if folder != path:
        folder = checkpoints.best() or folder
    run = folder.parent.parent
    require_thread(run, "coopcyl", hint="give a run of `coopcyl train`")
    config = resolve(TrainConfig, run / "config.yaml").config
    loaded = checkpoints.load(folder)
    model = new_model(config, torch.Generator())
    model.load_state_dict(loaded.state["ema"] or loaded.state["model"])
    return Restored(model.to(choose_device()).eval(), config, loaded.step, run, folder)
