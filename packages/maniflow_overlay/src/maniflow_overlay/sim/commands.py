"""The commands on the simulated table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from loom.drawing import print_table
from loom.progress import Progress

from maniflow_overlay.overlay.drawing import draw_path_rgb
from maniflow_overlay.overlay.pictures import require_png, write_png_bgr
from maniflow_overlay.sim.choice import chosen_scene, make_scene
from maniflow_overlay.sim.collect import Collection, collect
from maniflow_overlay.sim.expert import expert
from maniflow_overlay.sim.path_source import QUALITIES, PathSource
from maniflow_overlay.sim.scene import STEPS, success


def collect_command(
    folder: Path, tasks: Sequence[str], episodes: int, scene: str, seed: int
) -> None:
    """Record the expert."""
    name = chosen_scene(scene, typer.echo)
    wanted = Collection(tuple(tasks), episodes, name, seed)
    progress = Progress("collect", episodes * len(tasks))
    try:
        recorded = collect(wanted, folder, progress.update)
    finally:
        progress.close()
    typer.echo(f"{recorded} episodes of the {name} scene recorded in {folder}")


def demo_command(output: Path, scene: str, seed: int, *, occluded: bool, marked: bool) -> None:
    """Play the expert once and write what it saw, with the path of each quality drawn in."""
    require_png(output)
    name = chosen_scene(scene, typer.echo)
    table = make_scene(name)
    try:
        began = time.process_time()
        table.reset(seed, occluded=occluded, marked=marked)
        sources = [PathSource(table, quality) for quality in QUALITIES]
        columns = []
        while table.steps < STEPS and not success(table):
            picture = table.picture()
            drawn = [draw_path_rgb(picture.copy(), source.ask()) for source in sources]
            columns.append(np.concatenate([picture, *drawn]))
            table.step(expert(table))
        seconds = time.process_time() - began
    finally:
        table.close()
    write_png_bgr(output, np.ascontiguousarray(np.concatenate(columns, 1)[..., ::-1]))
    rows = [[name, seed, len(columns), "yes" if success(table) else "no", f"{seconds:.2f}"]]
    print_table(["scene", "seed", "steps", "success", "CPU s"], rows)
    typer.echo(f"plain, {', '.join(QUALITIES)} from top to bottom: {output}")
