"""The `coopcyl` command: parse, then one call."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import ConfigOption, Overrides, add_config_commands, application, run_app

import coopcyl

app = application("coopcyl", coopcyl.__doc__)
main = partial(run_app, app)
add_config_commands(app, "coopcyl.config:ViewConfig")

RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Folder of train, validate, ...; without one: a small synthetic data set."
    ),
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Folder below the root.")]
FrameOption = Annotated[
    str, typer.Option("--frame", help="Index of a time, or SCENARIO/TIME (000069).")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
VALIDATION_FAILED = 3


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Where to write the data set.")],
    split: Annotated[str, typer.Option(help="Folder of the scenarios.")] = "train",
    scenarios: Annotated[int, typer.Option(min=1, help="Worlds, one folder each.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Times per scenario, 0.1 s apart.")] = 1,
    least: Annotated[int, typer.Option(min=1, max=7, help="Fewest vehicles.")] = 2,
    most: Annotated[int, typer.Option(min=1, max=7, help="Most vehicles.")] = 5,
    width: Annotated[int, typer.Option(help="Image width: 800 as OPV2V, or 400.")] = 800,
    depth: Annotated[str, typer.Option(help="Of npy, carla_rgb24, opv2v_h.")] = "npy,carla_rgb24",
    roadside: Annotated[bool, typer.Option("--roadside", help="Add unit -1.")] = False,
    plain: Annotated[
        float, typer.Option(min=0, max=1, help="Share of scenarios with plain facades.")
    ] = 0.0,
    slope_deg: Annotated[float, typer.Option(min=0, max=15, help="Slope of the ground.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
) -> None:
    """Write a synthetic data set in OPV2V's files: images, depth, LiDAR, YAML."""
    from coopcyl.data.synth.write import SynthOptions, depth_formats, write_tree

    options = SynthOptions(
        split=split,
        scenarios=scenarios,
        frames=frames,
        vehicles=(least, most),
        width=width,
        depth=depth_formats(depth),
        roadside=roadside,
        plain=plain,
        slope_deg=slope_deg,
        seed=seed,
    )
    count = write_tree(folder, options)
    typer.echo(f"{count} vehicle frames of {scenarios} scenarios written to {folder / split}")


@app.command()
def validate(
    overrides: Overrides = None,
    config: ConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Times whose vehicles are read; 0: all.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file.")] = None,
) -> None:
    """Hold a data set against its own geometry; exit code 3 if something fails."""
    from coopcyl.commands import run_validation

    passed = run_validation(
        config, overrides, root=root, split=split, samples=samples, as_json=as_json, output=output
    )
    raise typer.Exit(0 if passed else VALIDATION_FAILED)


@app.command()
def preview(
    overrides: Overrides = None,
    config: ConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    frame: FrameOption = "0",
    output: OutputOption = Path("previews"),
) -> None:
    """Write panoramas, ranges, masks and camera indices of one time as PNG and npy."""
    from coopcyl.commands import run_preview

    typer.echo(run_preview(config, overrides, root=root, split=split, frame=frame, output=output))


@app.command()
def project(
    overrides: Overrides = None,
    config: ConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    frame: FrameOption = "0",
    output: OutputOption = Path("projections"),
) -> None:
    """Draw LiDAR points and vehicle boxes into every camera and the panorama."""
    from coopcyl.commands import run_projection

    typer.echo(
        run_projection(config, overrides, root=root, split=split, frame=frame, output=output)
    )


@app.command()
def cache(
    folder: Annotated[Path, typer.Argument(help="Where the entries go.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    rebuild_damaged: Annotated[
        bool, typer.Option("--rebuild-damaged", help="Make damaged entries again, and count them.")
    ] = False,
) -> None:
    """Stitch every vehicle frame of a split once and keep the panoramas."""
    from coopcyl.commands import fill_cache

    typer.echo(
        fill_cache(
            folder, config, overrides, root=root, split=split, rebuild_damaged=rebuild_damaged
        )
    )


@app.command()
def baselines(
    overrides: Overrides = None,
    config: ConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    samples: Annotated[int, typer.Option(min=0, help="Times that are read; 0: all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Print the errors of trivial poses and the floor that true matches give, in metres."""
    from coopcyl.commands import run_baselines

    run_baselines(config, overrides, root=root, split=split, samples=samples, as_json=as_json)


@app.command()
def stitch(
    rig: Annotated[Path, typer.Argument(metavar="RIG", help="YAML file of cameras and images.")],
    overrides: Overrides = None,
    output: OutputOption = Path("stitched"),
) -> None:
    """Stitch loose images of one vehicle, without data set or poses (settings: panorama.*)."""
    from coopcyl.commands import run_stitch

    typer.echo(run_stitch(rig, overrides, output))
