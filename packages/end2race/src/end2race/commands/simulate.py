"""Commands of the simulator: record the expert, let a driver drive."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import Archive, JsonOption, Overrides, RunDir
from loom.errors import UserError


class Look(StrEnum):
    """Appearances of a track."""

    RANDOM = "random"
    FIXED = "fixed"


class HiddenMode(StrEnum):
    """What the recurrent state begins from."""

    WINDOW = "window"
    CARRY = "carry"


class Split(StrEnum):
    """Splits of a dataset."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


TrackDir = Annotated[
    Path | None,
    typer.Option(help="Folder of F1TENTH tracks (*_centerline.csv, *_map.yaml) to drive instead."),
]
LookOption = Annotated[Look, typer.Option(help="Colours: new ones for each drive, or one for all.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command("demo")(demo)
    app.command("sim-collect")(sim_collect)
    app.command("drive")(drive)


def demo(overrides: Overrides = None, run_dir: RunDir = None, archive: Archive = False) -> None:
    """Collect, teach, cache, distil, drive: a few CPU-minutes, a table, a video, one page."""
    from end2race.demo import run_demo

    run_demo(overrides, run_dir, archive=archive)


def sim_collect(
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    tracks: Annotated[int, typer.Option(min=1, help="Procedural tracks.")] = 12,
    track_dir: TrackDir = None,
    drives: Annotated[int, typer.Option(min=1, help="Drives on each track.")] = 2,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each drive, at 10 Hz.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Draws tracks, starts, colours, noise.")] = 0,
    noise: Annotated[float, typer.Option(min=0, help="Noise on the wheel angle (rad).")] = 0.04,
    appearance: LookOption = Look.RANDOM,
    camera: Annotated[str, typer.Option(metavar="WxH", help="Pixels of the camera.")] = "128x64",
    beams: Annotated[int, typer.Option(min=1, max=128, help="Beams of the LiDAR.")] = 8,
    split: Annotated[Split, typer.Option(help="Which split to record.")] = Split.TRAIN,
) -> None:
    """Record the expert in the simulator: camera, LiDAR and controls, one split at a time."""
    from end2race.sim import sensors
    from end2race.sim.collect import Collection, collect
    from end2race.sim.track_files import read_tracks

    width, height = _size(camera)
    plan = Collection(
        tracks=tracks if track_dir is None else read_tracks(track_dir),
        drives=drives,
        frames=frames,
        seed=seed,
        noise_rad=noise,
        fixed_look=appearance is Look.FIXED,
        camera=sensors.camera(width, height),
        lidar=sensors.lidar(beams),
    )
    count = collect(out, split.value, plan, typer.echo)
    typer.echo(f"{count:,} frames in {out / split.value}")


def drive(
    ckpt: Annotated[
        list[Path] | None,
        typer.Option(help="Run, checkpoint or model file; several are driven one after another."),
    ] = None,
    hidden_mode: Annotated[
        HiddenMode,
        typer.Option(
            "--hidden-mode",
            help="Recurrent state: over the last frames as in training, or carried along.",
        ),
    ] = HiddenMode.WINDOW,
    tracks: Annotated[int, typer.Option(min=1, help="Unseen procedural tracks.")] = 8,
    track_dir: TrackDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Starts on each track.")] = 1,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=128,
            help="Beams of the LiDAR; those that each driver knows (8) if not given.",
        ),
    ] = None,
    appearance: LookOption = Look.RANDOM,
    limit_s: Annotated[
        float, typer.Option("--limit-s", min=1, help="Seconds until a car is stopped.")
    ] = 40.0,
    blank: Annotated[bool, typer.Option("--blank", help="Black images and empty clouds.")] = False,
    video: Annotated[
        Path | None, typer.Option(help="Film the first race: .webp, .gif or .mp4.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json-path", help="Write every race as JSON.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Race in closed loop on tracks that no training has seen, beside the baselines.

    Without --ckpt only the baselines drive: copycat, constant command, expert. A student looks
    through the camera that it was trained with, and a teacher has as many beams as it learned from.
    """
    from functools import partial

    from loom.drawing import print_table
    from loom.film import require_film_name, write_film

    from end2race.race_day import Setting, baselines, networks, race_day, scores, write_results
    from end2race.sim import sensors
    from end2race.sim.kernels import CONTROL_HZ
    from end2race.sim.score import COLUMNS, score_rows
    from end2race.sim.track_files import read_tracks

    if video is not None:
        require_film_name(video)
    setting = Setting(
        tracks if track_dir is None else read_tracks(track_dir),
        range(seeds),
        appearance is Look.FIXED,
        limit_s,
        None if beams is None else sensors.lidar(beams),
    )
    drivers = networks(ckpt, hidden_mode.value) if ckpt else {}
    drivers |= baselines()
    first = next(iter(drivers))
    filmed = first if video is not None else None
    say = partial(typer.echo, err=as_json)
    heats = race_day(drivers, setting, blank=blank, film=filmed, say=say)
    print_table(COLUMNS, score_rows(scores(heats)), as_json=as_json)
    film = heats[first].film
    if video is not None and film is not None:
        say(f"video of {first}: {write_film(video, film.frames, CONTROL_HZ, quality=60)}")
    if json_path is not None:
        write_results(json_path, heats)


def _size(text: str) -> tuple[int, int]:
    """Read `128x64`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 8 <= int(width) <= 4096):
        raise UserError(f"--camera {text} is no size", hint="write it as 128x64")
    if not 8 <= int(height) <= 4096:
        raise UserError(f"--camera {text}: the height must be 8 to 4096", hint="write 128x64")
    return int(width), int(height)
