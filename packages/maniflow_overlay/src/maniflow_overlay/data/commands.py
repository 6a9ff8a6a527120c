"""The commands on data: options in, files and one table out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import typer
from loom.drawing import print_json, print_table
from loom.errors import UserError
from loom.files import explained, sha256_file
from loom.progress import Progress

from maniflow_overlay.data.convert import Rows, Source, convert, require_unfinished
from maniflow_overlay.data.convert_parts import from_parts
from maniflow_overlay.data.frame_store import MANIFEST, FrameStore, StoreShape
from maniflow_overlay.data.path_layers import (
    FOLDER,
    OFFSET,
    PathLayers,
    draw_layers,
    join_layers,
    write_layers,
)
from maniflow_overlay.data.robotwin import VECTOR, EpisodeFile, find_episodes, read_episode
from maniflow_overlay.data.synthetic import Scene, write_task
from maniflow_overlay.data.zarr_files import ZarrEpisodes, export_zarr, read_zarr
from maniflow_overlay.overlay.pictures import write_png_bgr
from maniflow_overlay.parts import ALONE, Spread, remove_parts, run_parts
from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.oracle import oracle_path
from maniflow_overlay.paths.table import ORACLE, PathRow, read_paths, write_paths


def read_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT."""
    numbers = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not numbers:
        raise UserError(f"the size {text!r} is not WIDTHxHEIGHT", hint="as in 224x224")
    return int(numbers[1]), int(numbers[2])


def synth_command(root: Path, tasks: Sequence[str], episodes: int, layout: str, seed: int) -> None:
    """Write made-up episodes."""
    if layout not in ("old", "new"):
        raise UserError(f"no layout is called {layout!r}", hint="old or new")
    for number, task in enumerate(tasks):
        scene = Scene(seed=seed + number)
        write_task(root, task, episodes, scene, "old" if layout == "old" else "new")
    typer.echo(f"{episodes} episodes each of {', '.join(tasks)} written to {root}")


def extract_command(root: Path, output: Path, tasks: Sequence[str], camera: str) -> None:
    """Write every picture as TASK/episode_NN/frames/frame_NNNN.png; keep those that are there."""
    files = find_episodes(root, tasks)
    progress = Progress("extract", len(files))
    written = 0
    for number, file in enumerate(files, 1):
        written += _extract(file, output, camera)
        progress.update(number)
    progress.close()
    typer.echo(f"{written} frames of {len(files)} episodes written to {output}")


def _extract(file: EpisodeFile, output: Path, camera: str) -> int:
    episode = read_episode(file, camera)
    folder = output / file.task / f"episode_{file.number:02d}" / "frames"
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for row in range(len(episode.jpegs)):
        path = folder / f"frame_{row:04d}.png"
        if not path.exists():
            write_png_bgr(path, np.ascontiguousarray(episode.picture_rgb(row)[..., ::-1]))
            written += 1
    return written


def oracle_command(
    root: Path,
    output: Path,
    tasks: Sequence[str],
    camera: str,
    *,
    tolerance: float,
    noise: float,
    seed: int,
) -> None:
    """Write the path that was taken, for every frame."""
    rows = []
    for file in find_episodes(root, tasks):
        episode = read_episode(file, camera)
        height, width = episode.picture_rgb(0).shape[:2]
        rng = np.random.default_rng([seed, file.number])
        for row in range(len(episode.jpegs)):
            path = oracle_path(
                episode, row, (width, height), tolerance=tolerance, noise=noise, rng=rng
            )
            key = FrameKey(file.task, file.number, row)
            rows.append(PathRow(key, ORACLE, path))
    write_paths(output, rows)
    points = np.mean([len(row.path) for row in rows if row.path])
    typer.echo(f"{len(rows)} paths of {points:.1f} points on average written to {output}")


def convert_command(
    root: Path,
    store: Path,
    tasks: Sequence[str],
    camera: str,
    size: str,
    spread: Spread = ALONE,
) -> None:
    """Convert RoboTwin 2.0 episodes to a frame store, or one part of them to a part of it."""
    sources: Sequence[Source] = [
        Source(file.task, file.number, file.path, _reader(file, camera))
        for file in find_episodes(root, tasks)
    ]
    if spread.part is not None:
        folder = spread.part.path(store)
        if not (folder / MANIFEST).is_file():  # a job that was ended after its work was done
            _convert(spread.part.of(sources), folder, size, VECTOR, {"camera": camera})
        return
    if spread.jobs is not None:
        require_unfinished(store)
        command = ["data", "convert", root.absolute(), store.absolute()]
        command += [word for task in tasks for word in ("--task", task)]
        command += ["--camera", camera, "--size", size]
        jobs = min(spread.jobs, len(sources))
        parts = run_parts(command, store, jobs, spread.executor, made=MANIFEST, say=typer.echo)
        sources = from_parts(sources, parts)
    _convert(sources, store, size, VECTOR, {"camera": camera})
    if spread.jobs is not None:
        remove_parts(store)


def foresee_command(root: Path, tasks: Sequence[str], camera: str, size: str) -> None:
    """Read the episodes as a conversion would, and say what would come of it."""
    width, height = read_size(size)
    frames: dict[str, list[int]] = {}
    for file in find_episodes(root, tasks):
        frames.setdefault(file.task, []).append(len(read_episode(file, camera).jpegs))
    print_table(
        ["task", "episodes", "frames"],
        [[task, len(counts), sum(counts)] for task, counts in frames.items()],
    )
    rows = sum(map(sum, frames.values()))
    size_gb = StoreShape(width, height, VECTOR).frame_bytes * rows / 1e9
    typer.echo(f"{rows} frames of {width}x{height}, {size_gb:.2f} GB; nothing was written")


def _reader(file: EpisodeFile, camera: str) -> Callable[[], Rows]:
    def read() -> Rows:
        episode = read_episode(file, camera)
        pictures = (episode.picture_rgb(row) for row in range(len(episode.jpegs)))
        return Rows(
            file.task,
            file.number,
            file.path.name,
            sha256_file(file.path),
            pictures,
            episode.state,
            episode.action,
            episode.instructions,
        )

    return read


def import_command(path: Path, store: Path, task: str, size: str) -> None:
    """Convert a zarr store to a frame store."""
    content = read_zarr(path)
    marker = next(name for name in (path / ".zgroup", path / "zarr.json") if name.is_file())
    sources = [
        Source(task, number, marker, _zarr_reader(content, number, task, marker))
        for number in range(len(content.ends))
    ]
    _convert(sources, store, size, content.state.shape[1], {"zarr": path.name})


def _zarr_reader(content: ZarrEpisodes, number: int, task: str, marker: Path) -> Callable[[], Rows]:
    def read() -> Rows:
        rows = content.rows(number)
        return Rows(
            task,
            number,
            content.path.name,
            sha256_file(marker),
            content.pictures(number),
            content.state[rows],
            content.action[rows],
            (),
        )

    return read


def _convert(
    sources: Sequence[Source], store: Path, size: str, vector: int, about: dict[str, str]
) -> None:
    width, height = read_size(size)
    progress = Progress("convert", len(sources))
    try:
        convert(
            sources, store, StoreShape(width, height, vector), about=about, done=progress.update
        )
    finally:
        progress.close()
    inspect_command(store)


def attach_command(
    store: Path, paths: Path, draw_size: str | None = None, spread: Spread = ALONE
) -> None:
    """Draw the paths of a file into layers of a store, at its size or scaled down from another."""
    drawn_at = read_size(draw_size) if draw_size else None
    opened = FrameStore(store)
    known = {row.key: row for row in read_paths(paths)}
    rows = [
        known.get(FrameKey(episode.task, episode.number, frame))
        for episode in opened.episodes
        for frame in range(episode.rows)
    ]
    if not any(rows):
        raise UserError(
            f"{paths} has no path for any frame of {store}",
            hint="tasks and episode numbers must be those of the store",
        )
    drawn = [row.path if row else None for row in rows]
    layers = store / FOLDER
    if spread.part is not None:
        draw_layers(opened, spread.part.of(drawn), spread.part.path(layers), drawn_at=drawn_at)
        return
    statuses = [row.status if row else "absent" for row in rows]
    about = f"{paths.name} {sha256_file(paths)}"
    if spread.jobs is None:
        counts = write_layers(opened, drawn, statuses, about, drawn_at=drawn_at)
    else:
        command = ["data", "attach-paths", store.absolute(), paths.absolute()]
        command += ["--draw-size", draw_size] if draw_size else []
        parts = run_parts(
            command, layers, spread.jobs, spread.executor, made=OFFSET, say=typer.echo
        )
        counts = join_layers(opened, parts, statuses, about, drawn_at=drawn_at)
        remove_parts(layers)
    print_table(["status", "frames"], list(counts.items()))


def inspect_command(store: Path, *, as_json: bool = False) -> None:
    """Print what a store holds."""
    opened = FrameStore(store)
    tasks = dict.fromkeys(episode.task for episode in opened.episodes)
    rows = []
    for task in tasks:
        lengths = [episode.rows for episode in opened.episodes if episode.task == task]
        rows.append([task, len(lengths), sum(lengths), min(lengths), max(lengths)])
    columns = ["task", "episodes", "frames", "shortest", "longest"]
    shape = opened.shape
    size = len(opened) * shape.frame_bytes
    counts = PathLayers(opened).counts if (store / FOLDER).is_dir() else {}
    if as_json:
        facts = {
            "frames": len(opened),
            "width": shape.width,
            "height": shape.height,
            "bytes": size,
            "tasks": [dict(zip(columns, row, strict=True)) for row in rows],
            "paths": dict(counts),
        }
        print_json(facts)
        return
    print_table(columns, rows)
    typer.echo(
        f"{len(opened)} frames of {shape.width}x{shape.height}, {size / 1e9:.2f} GB in {store}"
    )
    if counts:
        typer.echo("paths: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def verify_command(store: Path, *, as_json: bool = False) -> None:
    """Read a store whole and hold it against its check sums."""
    opened = FrameStore(store)
    complaints = opened.verify()
    if (store / FOLDER).is_dir():
        complaints += PathLayers(opened).verify()
    if as_json:
        print_json({"frames": len(opened), "damages": complaints})
    if complaints:
        raise UserError("; ".join(complaints), hint="convert again, or attach the paths again")
    if not as_json:
        typer.echo(f"{store}: {len(opened)} frames, all as they were written")


def export_command(store: Path, output: Path, *, raw: bool, as_bytes: bool) -> None:
    """Write a store in the notes' zarr layout."""
    opened = FrameStore(store)
    export_zarr(opened, None if raw else PathLayers(opened), output, as_float=not as_bytes)
    typer.echo(f"{len(opened)} frames written to {output}")
