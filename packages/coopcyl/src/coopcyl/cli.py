"""The `coopcyl` command: parse, then one call."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import (
    Archive,
    ConfigOption,
    JsonOption,
    Overrides,
    Resume,
    RunDir,
    add_config_commands,
    application,
    run_app,
)

import coopcyl


def _checks():
    from coopcyl.doctor import checks

    return checks()


app = application("coopcyl", coopcyl.__doc__, checks=_checks)
main = partial(run_app, app)
add_config_commands(
    app, "coopcyl.train_config:TrainConfig", groups=Path(__file__).parent / "groups"
)

RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Folder of train, validate, ...; without one: a small synthetic data set."
    ),
]
ViewConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with the sections dataset and panorama."),
]
OtherRootOption = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of train, validate, ...; without one: that of the run."),
]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Folder below the root (default: train).")
]
OtherSplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Folder below the root (default: what the run was judged on)."),
]
FrameOption = Annotated[
    str, typer.Option("--frame", help="Index of a time, or SCENARIO/TIME (000069).")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
TrainedArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Directory of a training run, or one checkpoint.")
]
RerunOption = Annotated[
    bool, typer.Option("--rerun", help="Also a recording for the Rerun viewer (rerun-sdk).")
]
VALIDATION_FAILED = 3


def _require_own_code() -> None:
    """Refuse to train or to ask a network in a checkout whose code this is not."""
    from coopcyl.guard import require_this_checkout

    require_this_checkout(Path.cwd(), Path(__file__).parent)


@app.command()
def demo(run_dir: RunDir = None, archive: Archive = False) -> None:
    """Write a town, validate it, train briefly, judge and draw the result: minutes on a CPU."""
    _require_own_code()
    from coopcyl.demo import run_demo

    raise typer.Exit(run_demo(run_dir, archive=archive))


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    root: RootOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs in all.")] = None,
    print_lr: Annotated[
        bool, typer.Option("--print-lr", help="Print steps and learning rates, and end.")
    ] = False,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Train the network, judge it in metres, write its page.

    Settings and groups as in the notes: dataset=opv2v_cyl_coop_ft dataset.max_sets_per_epoch=5000.
    """
    _require_own_code()
    from coopcyl.training_run import print_schedule, run_training

    flags = {"dataset.root": root, "train_params.epochs": epochs}
    if print_lr:
        print_schedule(config, overrides, flags)
        return
    run_training(config, overrides, flags=flags, directory=run_dir, resume=resume, archive=archive)


@app.command()
def lr(
    overrides: Overrides = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Print the learning rate by step: the same for every number of processes."""
    from coopcyl.training_run import print_schedule

    print_schedule(config, overrides, {}, as_json=as_json)


@app.command("eval")
def evaluate(
    run: TrainedArgument,
    overrides: Overrides = None,
    root: OtherRootOption = None,
    split: OtherSplitOption = None,
    oracle: Annotated[
        list[str] | None,
        typer.Option(help="Replace a stage by the truth: depth, match or pose; repeatable."),
    ] = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="Also with true ranges, true matches, and both.")
    ] = False,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Compare with the poses of other sets.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a trained network in metres, beside identity, mean and GPS."""
    _require_own_code()
    from coopcyl.judging import Question, run_evaluation

    question = Question(run, overrides, root, split)
    run_evaluation(
        question,
        oracle=oracle or (),
        ladder=ladder,
        shuffle=shuffle,
        output=output,
        as_json=as_json,
    )


@app.command()
def predict(
    run: TrainedArgument,
    overrides: Overrides = None,
    root: OtherRootOption = None,
    split: OtherSplitOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON lines.")] = Path(
        "predictions.jsonl"
    ),
) -> None:
    """Predict the poses of all vehicles at every time of a split, one JSON line each."""
    _require_own_code()
    from coopcyl.judging import Question, run_predictions

    typer.echo(run_predictions(Question(run, overrides, root, split), output))


@app.command()
def render(
    run: TrainedArgument,
    overrides: Overrides = None,
    root: OtherRootOption = None,
    split: OtherSplitOption = None,
    frame: FrameOption = "0",
    rerun: RerunOption = False,
    output: OutputOption = Path("scenes"),
) -> None:
    """Draw one time as the network sees it: a page with clouds, PNG, npy, summary.json."""
    _require_own_code()
    from coopcyl.judging import Question, run_rendering

    question = Question(run, overrides, root, split)
    typer.echo(run_rendering(question, frame=frame, output=output, rerun=rerun))


@app.command()
def viz(
    overrides: Overrides = None,
    config: ViewConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    frame: FrameOption = "0",
    rerun: RerunOption = False,
    output: OutputOption = Path("scenes"),
) -> None:
    """Draw one time as its files have it: a page with the clouds of all vehicles."""
    from coopcyl.commands import Request, run_viz

    request = Request(config, overrides, root, split)
    typer.echo(run_viz(request, frame=frame, output=output, rerun=rerun))


@app.command()
def parity(
    run: TrainedArgument,
    overrides: Overrides = None,
    root: OtherRootOption = None,
    split: OtherSplitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold training against prediction on the same sets; exit code 3 if they differ."""
    _require_own_code()
    from coopcyl.judging import Question, run_parity

    equal = run_parity(Question(run, overrides, root, split), as_json=as_json)
    raise typer.Exit(0 if equal else VALIDATION_FAILED)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]) -> None:
    """Write the page of a run again."""
    from coopcyl.pages import write_report

    typer.echo(f"report: {write_report(run)}")


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Where to write the data set.")],
    split: Annotated[str, typer.Option(help="Folder of the scenarios.")] = "train",
    scenarios: Annotated[int, typer.Option(min=1, help="Number of worlds, one folder each.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Times per scenario, 0.1 s apart.")] = 1,
    least: Annotated[int, typer.Option(min=1, max=7, help="Fewest vehicles.")] = 2,
    most: Annotated[int, typer.Option(min=1, max=7, help="Most vehicles.")] = 5,
    width: Annotated[int, typer.Option(help="Pixels of an image's width; OPV2V has 800.")] = 800,
    depth: Annotated[
        str, typer.Option(help="Depth files: npy, carla_rgb24, opv2v_h.")
    ] = "npy,carla_rgb24",
    roadside: Annotated[bool, typer.Option("--roadside", help="Add unit -1.")] = False,
    plain: Annotated[
        float, typer.Option(min=0, max=1, help="Share of scenarios with plain facades.")
    ] = 0.0,
    kind: Annotated[
        str,
        typer.Option(help="Kind of towns: usual; varied, to learn from; foreign, to judge on."),
    ] = "usual",
    slope_deg: Annotated[float, typer.Option(min=0, max=15, help="Slope of the ground.")] = 2.0,
    lidar_rings: Annotated[int, typer.Option(min=1, help="Rings of the LiDAR.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")] = 0,
) -> None:
    """Write a synthetic data set in OPV2V's files: images, depth, LiDAR, YAML."""
    from coopcyl.data.synth.write import SynthOptions, depth_formats, town_kind, write_tree

    options = SynthOptions(
        split=split,
        scenarios=scenarios,
        frames=frames,
        vehicles=(least, most),
        width=width,
        depth=depth_formats(depth),
        roadside=roadside,
        plain=plain,
        kind=town_kind(kind),
        slope_deg=slope_deg,
        lidar=(lidar_rings, 720),
        seed=seed,
    )
    count = write_tree(folder, options)
    typer.echo(f"{count} vehicle frames of {scenarios} scenarios written to {folder / split}")


@app.command()
def validate(
    overrides: Overrides = None,
    config: ViewConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Times whose vehicles are read; 0: all.")
    ] = 20,
    as_json: JsonOption = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file.")] = None,
) -> None:
    """Hold a data set against its own geometry; exit code 3 if something fails."""
    from coopcyl.commands import Request, run_validation

    request = Request(config, overrides, root, split)
    passed = run_validation(request, samples=samples, as_json=as_json, output=output)
    raise typer.Exit(0 if passed else VALIDATION_FAILED)


@app.command()
def preview(
    overrides: Overrides = None,
    config: ViewConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    frame: FrameOption = "0",
    depth_aware: Annotated[
        bool, typer.Option("--depth-aware", help="Also the panorama from one centre, from depth.")
    ] = False,
    output: OutputOption = Path("previews"),
) -> None:
    """Write panoramas, ranges, masks and camera indices of one time as PNG and npy."""
    from coopcyl.commands import Request, run_preview

    request = Request(config, overrides, root, split)
    typer.echo(run_preview(request, frame=frame, output=output, depth_aware=depth_aware))


@app.command()
def project(
    overrides: Overrides = None,
    config: ViewConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    frame: FrameOption = "0",
    output: OutputOption = Path("projections"),
) -> None:
    """Draw LiDAR points and vehicle boxes into every camera and the panorama."""
    from coopcyl.commands import Request, run_projection

    request = Request(config, overrides, root, split)
    typer.echo(run_projection(request, frame=frame, output=output))


@app.command()
def cache(
    folder: Annotated[Path, typer.Argument(help="Where the entries go.")],
    overrides: Overrides = None,
    config: ViewConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    rebuild_damaged: Annotated[
        bool, typer.Option("--rebuild-damaged", help="Make damaged entries again, and count them.")
    ] = False,
) -> None:
    """Stitch every vehicle frame of a split once and keep the panoramas.

    A training does so itself. To do it before, for the network's default panorama:
    `coopcyl cache FOLDER panorama.width=256 panorama.height=64 panorama.supersample=2`, then
    `coopcyl train dataset.cache=FOLDER`.
    """
    from coopcyl.commands import Request, fill_cache

    request = Request(config, overrides, root, split)
    typer.echo(fill_cache(request, folder, rebuild_damaged=rebuild_damaged))


@app.command()
def baselines(
    overrides: Overrides = None,
    config: ViewConfigOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    samples: Annotated[int, typer.Option(min=0, help="Times that are read; 0: all.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Print the errors of trivial poses and the floor that true matches give, in metres."""
    from coopcyl.commands import Request, run_baselines

    run_baselines(Request(config, overrides, root, split), samples=samples, as_json=as_json)


@app.command()
def stitch(
    rig: Annotated[Path, typer.Argument(metavar="RIG", help="YAML file of cameras and images.")],
    overrides: Overrides = None,
    output: OutputOption = Path("stitched"),
) -> None:
    """Stitch loose images of one vehicle, without data set or poses (settings: panorama.*)."""
    from coopcyl.commands import run_stitch

    typer.echo(run_stitch(rig, overrides, output))
