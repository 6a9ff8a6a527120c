"""The page of a training run: scores beside trivial answers, and what the policy sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from loom.config import resolve
from loom.errors import UserError
from loom.report import Report
from loom.report_run import run_report

from maniflow_overlay.config import NO_CHANGE, TrainConfig
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.path_layers import PathLayers
from maniflow_overlay.data.windows import Batches, Windows, WindowShape
from maniflow_overlay.open_loop import SCORES, read_scores
from maniflow_overlay.policy.augmentation import AugmentTensors, draw_augmentation
from maniflow_overlay.policy.pictures import varied

SHOWN = 4


def write_report(run: Path) -> Path:
    """Write `report.html` of a training.

    Raises:
        UserError: There is no run, or one of another thread, whose page would be lost.
    """
    report = run_report(run, lambda page: _judgement(page, run), thread="maniflow_overlay")
    return report.write(run / "report.html")


def _judgement(report: Report, run: Path) -> None:
    if (run / SCORES).is_file():
        scores, about = read_scores(run / SCORES)
        trivial = {f"{name} (baseline)": row for name, row in scores.items() if name != "policy"}
        report.heading("Open-loop validation")
        report.scores(
            {"policy": scores["policy"]},
            trivial,
            f"{about}. action_mse: normalised units; action_mae: units of the data. "
            "Lower is better.",
        )
    try:
        pictures = input_pictures(resolve(TrainConfig, run / "config.yaml").config)
    except UserError as error:
        report.warning(f"Left out of this page: {error.message}")
        return
    report.heading("What the policy sees")
    report.pictures(pictures, columns=4)


def input_pictures(config: TrainConfig) -> list[tuple[str, np.ndarray]]:
    """Return captioned inputs of a few windows, as in use and as varied in training.

    Raises:
        UserError: The store is not there any more.
    """
    if config.store is None:
        raise UserError("the run names no store")
    store = FrameStore(config.store)
    layers = PathLayers(store) if config.mode != "none" else None
    # Without padding in front and one observed row, windows count like rows.
    windows = Windows(store.begins, store.ends, WindowShape(observed=1, before=0))
    batches = Batches(store, layers, windows, show=config.mode, fuse="concat6")
    episodes = np.linspace(0, len(store.ends) - 1, SHOWN).round().astype(np.int64)
    lengths = (store.ends - store.begins)[episodes]
    data = batches.samples(store.begins[episodes] + lengths // 3)
    current = torch.from_numpy(data.current)
    initial = None if data.initial is None else torch.from_numpy(data.initial)
    rng = np.random.default_rng(config.seed)
    draws = draw_augmentation(SHOWN, config.augment, rng)
    still = draw_augmentation(SHOWN, NO_CHANGE, rng)
    shown = []
    for caption, amounts in (("as in use", still), ("varied", draws)):
        tensors = AugmentTensors(*map(torch.from_numpy, amounts))
        seen, first = varied(current, initial, config.arm, tensors)
        views = [("current", seen[:, 0])] + ([] if first is None else [("initial", first)])
        for view, pictures in views:
            shown += [(f"{view}, {caption}", _side_by_side(picture)) for picture in pictures]
    return shown


def _side_by_side(picture: torch.Tensor) -> np.ndarray:
    """Return (channels, H, W) in [0, 1] as bytes; channels 4 to 6 stand beside the first three."""
    parts = picture.split(3)
    joined = torch.cat(parts, dim=-1).movedim(0, -1)
    return (joined * 255).round().to(torch.uint8).numpy()
