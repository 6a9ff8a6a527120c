"""`validate-data`, and `import` for recordings in other layouts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from loom.cli import JsonOption

from end2race.commands.cache import Features

if TYPE_CHECKING:
    from end2race.data.importers.target import Target

VALIDATION_FAILED = 3
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}

import_app = typer.Typer(help="Recordings in other layouts, into a dataset.", no_args_is_help=True)


class AngleUnit(StrEnum):
    """Units of wheel angles."""

    AUTO = "auto"
    DEGREES = "degrees"
    RADIANS = "radians"


Source = Annotated[Path, typer.Option("--src", help="The recording.")]
Out = Annotated[Path, typer.Option(help="Folder of the dataset, new or to be added to.")]
SplitOption = Annotated[str, typer.Option(help="train, valid or test.")]
SegmentOption = Annotated[str, typer.Option(help="Name of the new segment.")]
Rate = Annotated[
    float,
    typer.Option("--rate-hz", min=0.01, help="Frames per second."),
]
Calibration = Annotated[
    Path | None, typer.Option(help="calibration.json of camera and LiDAR (nuScenes' form).")
]
Controls = Annotated[
    Path, typer.Option(help="CSV with velocity and wheel_angle (degrees), a row per cloud.")
]
FeaturesOption = Annotated[
    Features,
    typer.Option("--lidar-num-features", help="Numbers per point."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command("validate-data")(validate_data)
    app.add_typer(import_app, name="import")


@import_app.command("kitti-bin")
def kitti_bin(
    src: Source,
    controls: Controls,
    out: Out,
    split: SplitOption = "train",
    segment: SegmentOption = "segment_0001",
    rate_hz: Rate = 10.0,
    lidar_num_features: FeaturesOption = Features.AUTO,
    calibration: Calibration = None,
) -> None:
    """A folder of KITTI .bin clouds, with a table of speeds and wheel angles."""
    from end2race.data.importers.clouds import import_clouds

    target = _target(out, rate_hz, "kitti-bin", calibration)
    features = _features(lidar_num_features)
    import_clouds(src, ".bin", controls, target, split, segment, rate_hz, features)
    typer.echo(target.summary())


@import_app.command()
def pcd(
    src: Source,
    controls: Controls,
    out: Out,
    split: SplitOption = "train",
    segment: SegmentOption = "segment_0001",
    rate_hz: Rate = 10.0,
    calibration: Calibration = None,
) -> None:
    """A folder of .pcd clouds, with a table of speeds and wheel angles."""
    from end2race.data.importers.clouds import import_clouds

    target = _target(out, rate_hz, "pcd", calibration)
    import_clouds(src, ".pcd", controls, target, split, segment, rate_hz)
    typer.echo(target.summary())


@import_app.command("f1tenth-csv")
def f1tenth_csv(
    src: Source,
    out: Out,
    split: SplitOption = "train",
    fov_rad: Annotated[
        float, typer.Option(min=0.01, max=6.2832, help="First beam (right) to last (left).")
    ] = 4.7,
    range_limit_m: Annotated[
        float, typer.Option(min=0.1, help="What a beam shows that met nothing.")
    ] = 30.0,
) -> None:
    """Episodes of the End2Race paper: a CSV file, or a folder of them, one segment each."""
    from end2race.data.importers.end2race_csv import import_episodes

    target = _target(out, 10.0, "f1tenth-csv", None)
    import_episodes(src, target, split, fov_rad, range_limit_m)
    typer.echo(target.summary())


@import_app.command()
def morai(
    src: Source,
    out: Out,
    rate_hz: Rate = 10.0,
    lidar_num_features: FeaturesOption = Features.AUTO,
    angle_unit: Annotated[
        AngleUnit,
        typer.Option(help="Unit of wheel angles; auto: degrees, unless they look like radians."),
    ] = AngleUnit.AUTO,
    calibration: Calibration = None,
) -> None:
    """Recordings in the notes' layout, which lack a dataset.json: all splits at once."""
    from end2race.data.importers.morai import import_morai

    checked = angle_unit is not AngleUnit.AUTO
    target = _target(out, rate_hz, "morai", calibration, angles_checked=checked)
    import_morai(
        src,
        target,
        rate_hz,
        _features(lidar_num_features),
        radians=angle_unit is AngleUnit.RADIANS,
        angles_checked=checked,
    )
    typer.echo(target.summary())


@import_app.command()
def bag(
    src: Source,
    out: Out,
    lidar_topic: Annotated[str, typer.Option(help="PointCloud2 or LaserScan.")],
    drive_topic: Annotated[
        str, typer.Option(help="AckermannDriveStamped or AckermannDrive (rad, m/s).")
    ] = "/drive",
    odom_topic: Annotated[
        str | None, typer.Option(help="Odometry; else the speed is the frame before's command.")
    ] = None,
    image_topic: Annotated[str | None, typer.Option(help="CompressedImage or Image.")] = None,
    sync_tol_ms: Annotated[
        float, typer.Option(min=0, help="Greatest distance in time of what belongs together.")
    ] = 50.0,
    split: SplitOption = "train",
    segment: SegmentOption = "segment_0001",
    rate_hz: Rate = 10.0,
    calibration: Calibration = None,
) -> None:
    """A ROS 1 bag, a ROS 2 bag or an MCAP file (extra `ros`)."""
    from end2race.data.importers.bags import Topics, import_bag

    topics = Topics(lidar_topic, drive_topic, odom_topic, image_topic)
    target = _target(out, rate_hz, "bag", calibration)
    import_bag(src, topics, target, split, segment, sync_tol_ms)
    typer.echo(target.summary())


def _target(
    out: Path,
    rate_hz: float,
    source: str,
    calibration: Path | None,
    *,
    angles_checked: bool = False,
) -> Target:
    from end2race.data.importers.target import Target

    return Target(out, rate_hz, source, calibration, angles_checked=angles_checked)


def _features(chosen: Features) -> int | None:
    return None if chosen is Features.AUTO else int(chosen)


def validate_data(
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Dataset; without one: the embedded one."),
    ] = None,
    files: Annotated[
        int, typer.Option(min=0, help="Clouds and images to decode per segment; 0: all.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check files, units, splits and labels of a dataset; exit code 3 if something is wrong."""
    from loom.files import write_atomic

    from end2race.data.validation import validate
    from end2race.embedded import default_dataset

    root = data_root or default_dataset(lambda line: typer.echo(line, err=True))
    found = validate(root, files_per_segment=files)
    if output is not None:
        write_atomic(output, found.to_json() + "\n")
    if as_json:
        typer.echo(found.to_json())
    else:
        width = max(len(finding.check) for finding in found.findings)
        for finding in found.findings:
            typer.echo(f"{_MARKS[finding.level]} {finding.check:<{width}}  {finding.detail}")
            if finding.fix:
                typer.echo(f"{'':<{width + 6}} -> {finding.fix}")
        for split, copied in found.copied.items():
            shares = {"speed": copied.speed_share, "wheel angle": copied.angle_share}
            known = [f"{name} {share:.1%}" for name, share in shares.items() if share is not None]
            typer.echo(
                f"{split}: {found.counts[split]['segments']} segments, "
                f"{found.counts[split]['frames']:,} frames; repeating the input leaves of the mean "
                f"predictor's error: {', '.join(known)}"
            )
        typer.echo("passed" if found.passed else "failed")
    raise typer.Exit(0 if found.passed else VALIDATION_FAILED)
