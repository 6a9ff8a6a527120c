"""The `featdistill` command: parse, then one call."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import (
    Archive,
    ConfigOption,
    ExecutorOption,
    JsonOption,
    Overrides,
    Resume,
    RunDir,
    add_config_commands,
    application,
    run_app,
)

import featdistill
from featdistill.cli_inputs import scene, teacher
from featdistill.options import (
    Background,
    BackgroundOption,
    Device,
    Force,
    Frames,
    LpipsWeights,
    MaxSteps,
    OutputJson,
    RunArgument,
)


def _checks():
    from featdistill.doctor import checks

    return checks()


app = application("featdistill", featdistill.__doc__, checks=_checks)
main = partial(run_app, app)
add_config_commands(app, "featdistill.config:TrainConfig")

evaluation = typer.Typer(name="eval", help="Scores of rendered frames.", no_args_is_help=True)
app.add_typer(scene)
app.add_typer(teacher)
app.add_typer(evaluation, name="eval")


@app.command()
def demo(
    run_dir: RunDir = None,
    archive: Archive = False,
) -> None:
    """Make a scene, fit a teacher, distil a student, judge it: a few CPU-minutes, one page."""
    from featdistill.demo import run_demo

    raise typer.Exit(run_demo(run_dir, archive=archive))


@app.command()
def train(
    config: ConfigOption = None,
    overrides: Overrides = None,
    max_steps: MaxSteps = None,
    log_interval: Annotated[
        int | None,
        typer.Option(min=1, envvar="KILOGS_LOG_INTERVAL", help="Updates between two records."),
    ] = None,
    lpips_weights: LpipsWeights = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Distil a 3D Gaussian Splatting teacher into a KiloNeRF student, and judge the result.

    Without data.scene and data.teacher it trains on the embedded brick model. `featdistill config
    show` lists the settings.
    """
    from featdistill.training_run import run_training

    run_training(
        config,
        overrides,
        max_steps=max_steps,
        log_interval=log_interval,
        lpips_weights=lpips_weights,
        directory=run_dir,
        resume=resume,
        archive=archive,
    )


@app.command()
def render(
    checkpoint: Annotated[Path, typer.Option(help="Run directory or checkpoint folder.")],
    config: Annotated[
        Path | None, typer.Option(help="Refuse a checkpoint of another configuration than this.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Render folder (default: renders/step_N of the run).")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Rays at a time, which bounds the memory.")
    ] = None,
    store_rgba: Annotated[
        bool, typer.Option("--store-rgba", help="Keep rgba_npz, for any background.")
    ] = False,
    start_frame: Annotated[int, typer.Option(min=0, help="First view.")] = 0,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Number of views.")] = None,
    background: BackgroundOption = Background.white,
    device: Device = "auto",
    enable_nvml: Annotated[
        bool, typer.Option("--enable-nvml", help="Require the accelerator's own figures.")
    ] = False,
    video: Annotated[
        Path | None,
        typer.Option(help="Instead of the views: one turn about it, as .webp, .gif or .mp4."),
    ] = None,
    video_frames: Annotated[
        int | None, typer.Option(min=2, help="Pictures of the turn (default: 90).")
    ] = None,
) -> None:
    """Render the evaluation views of a student, or a film of one turn about it."""
    from featdistill.rendering import render_film, render_run

    if video is not None:
        if any((config, output_dir, chunk, store_rgba, start_frame, max_frames, enable_nvml)):
            raise typer.BadParameter(
                "--video is one turn about the student; beside it only --checkpoint, --background,"
                " --device and --video-frames are taken"
            )
        film = render_film(
            checkpoint, video, frames=video_frames or 90, background=background, device=device
        )
        typer.echo(film)
        return
    if video_frames is not None:
        raise typer.BadParameter("--video-frames are those of --video FILE, which is missing")
    folder = render_run(
        checkpoint,
        config=config,
        output=output_dir,
        chunk=chunk,
        store_rgba=store_rgba,
        start=start_frame,
        count=max_frames,
        background=background,
        device=device,
        require_driver=enable_nvml,
    )
    typer.echo(f"rendered to {folder}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN", help="Run or checkpoint folder.")],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Student file to write.")],
) -> None:
    """Write a student as one safetensors file in half precision, without its training head.

    FILE.onnx gets its networks alone, as a graph that evaluates a batch of samples per cell.
    """
    from featdistill.rendering import export_student

    typer.echo(export_student(checkpoint, output))


@app.command()
def gate(
    results: Annotated[Path, typer.Argument(help="Run directory, or JSON file of `eval`.")],
    as_json: JsonOption = False,
) -> None:
    """Hold scores against the gates; exit code 3 for a gate that is missed or not evaluated."""
    from featdistill.scoring import gate_code

    raise typer.Exit(gate_code(results, as_json=as_json))


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory or render folder.")],
    teacher_renders: Annotated[
        Path | None, typer.Option(help="Reference frames (default: those of the run).")
    ] = None,
    background: BackgroundOption = Background.white,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with a run's pictures: blank, flipped, wrong frames, scale, background."""
    from featdistill.scoring import diagnose_run

    typer.echo(diagnose_run(run, teacher_renders, background=background, as_json=as_json))


@app.command()
def report(run: RunArgument) -> None:
    """Write the page of a run again."""
    from featdistill.figures import write_report

    typer.echo(f"report: {write_report(run)}")


@app.command()
def study(
    overrides: Overrides = None,
    root: Annotated[
        Path, typer.Option(help="Folder of the study; `--resume` goes on with the one in it.")
    ] = Path("runs/featdistill/study"),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    l2_weight: Annotated[float, typer.Option(min=0, help="Of the squared feature error.")] = 0.05,
    cos_weight: Annotated[float, typer.Option(min=0, help="Of 1 - feature cosine.")] = 0.01,
    opacity_weight: Annotated[float, typer.Option(min=0, help="Of the opacity loss.")] = 0.05,
    opacity_target: Annotated[
        float, typer.Option(min=0, max=1, help="Constant opacity, against the teacher's alpha.")
    ] = 0.05,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once (default: 1, or a whole cluster).")
    ] = None,
    executor: ExecutorOption = "local",
    resume: Annotated[
        bool, typer.Option("--resume", help="Train what the study in --root still lacks.")
    ] = False,
) -> None:
    """Train with and without feature losses, seed by seed, and say what they are worth.

    Without data.scene and data.teacher it trains on the embedded brick model.
    """
    from loom import jobs

    from featdistill.study import REPORT_FILE, Settings, markdown, run_study

    try:
        chosen = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise typer.BadParameter(f"--seeds {seeds}: whole numbers with commas") from None
    settings = Settings(chosen, l2_weight, cos_weight, opacity_weight, opacity_target)
    well = run_study(
        settings,
        overrides or (),
        root,
        executor=jobs.executor(executor, slots),
        resume=resume,
        say=typer.echo,
    )
    typer.echo(markdown(root))
    typer.echo(f"report: {root / REPORT_FILE}")
    raise typer.Exit(0 if well else 1)


@app.command()
def view(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8765,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: Device = "auto",
) -> None:
    """Look around a student, its teacher and their difference in a browser, until Ctrl-C."""
    import webbrowser

    from featdistill.viewer import Viewer
    from featdistill.viewer_server import HOST, make_server

    with make_server(Viewer(run, device), port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        typer.echo(f"{address} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        server.serve_forever()


@app.command()
def shell(
    run: Annotated[Path | None, typer.Option(help="Take the seed of this run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed without a run.")] = 2025,
    command: Annotated[str | None, typer.Option(help="Run this instead of a prompt.")] = None,
) -> None:
    """Open a shell in which seed and determinism variables are set and read-only."""
    from featdistill.shell import locked_shell, variables

    raise typer.Exit(locked_shell(variables(run, seed), command))


@app.command()
def archive(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory to move aside.")],
) -> None:
    """Move a run's directory to archive/ beside it, with a time stamp."""
    from loom.run_directory import move_aside

    typer.echo(f"moved to {move_aside(run)}")


@evaluation.command("compare")
def eval_compare(
    folder: Annotated[Path, typer.Argument(help="PNG files to judge.")],
    references: Annotated[Path, typer.Argument(help="PNG files to hold them against.")],
    output_json: OutputJson = None,
    frames: Frames = None,
    lpips_weights: LpipsWeights = None,
    force: Force = False,
    as_json: JsonOption = False,
) -> None:
    """Score a folder of PNG files against another, as they are."""
    from featdistill.scoring import compare_folders

    compare_folders(
        folder,
        references,
        output_json=output_json,
        frames=frames,
        lpips_weights=lpips_weights,
        force=force,
        as_json=as_json,
    )


@evaluation.command("pipeline")
def eval_pipeline(
    render_dir: Annotated[Path, typer.Argument(help="Render folder with rgba_npz.")],
    teacher_renders: Annotated[Path, typer.Option(help="The teacher's frames.")],
    background: BackgroundOption = Background.white,
    method_name: Annotated[str, typer.Option(help="Name of the row in the summary.")] = "",
    summary: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
    render_stats: Annotated[Path | None, typer.Option(help="render_stats.json to take.")] = None,
    output_json: OutputJson = None,
    frames: Frames = None,
    lpips_weights: LpipsWeights = None,
    force: Force = False,
    as_json: JsonOption = False,
) -> None:
    """Compose a student's RGBA over a background, score it, and record the result."""
    from featdistill.scoring import score_renders

    score_renders(
        render_dir,
        teacher_renders,
        background=background,
        method_name=method_name,
        summary=summary,
        render_stats=render_stats,
        output_json=output_json,
        frames=frames,
        lpips_weights=lpips_weights,
        force=force,
        as_json=as_json,
    )


@evaluation.command("run")
def eval_run(
    run: RunArgument,
    lpips_weights: LpipsWeights = None,
    background: BackgroundOption = Background.white,
    as_json: JsonOption = False,
) -> None:
    """Judge a training run again: every evaluation view, teacher and ground truth beside."""
    from featdistill.training_run import assess_run

    assess_run(run, background=background, lpips_weights=lpips_weights, as_json=as_json)


@app.command()
def migrate(
    old: Annotated[Path, typer.Argument(help="A configuration with removed keys.")],
    new: Annotated[Path, typer.Argument(help="Where to write it without them.")],
) -> None:
    """Write an old configuration without the keys that were removed, and name each of them."""
    from featdistill.migrate import migrate_config

    typer.echo(migrate_config(old, new))
