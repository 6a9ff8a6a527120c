"""The `featdistill scene` and `featdistill teacher` commands: what a student learns from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from loom.cli import (
    Archive,
    ConfigOption,
    JsonOption,
    Overrides,
    Resume,
    RunDir,
    add_config_commands,
)

from featdistill.options import Background, BackgroundOption, MaxSteps

scene = typer.Typer(name="scene", help="Scenes in the NeRF-synthetic layout.", no_args_is_help=True)
teacher = typer.Typer(
    name="teacher", help="The 3D Gaussian Splatting teacher.", no_args_is_help=True
)

add_config_commands(teacher, "featdistill.teacher_config:TeacherConfig")

SceneOption = Annotated[
    Path | None,
    typer.Option(help="NeRF-synthetic folder; without one: the embedded brick model."),
]
SceneArgument = Annotated[Path, typer.Argument(help="NeRF-synthetic folder.")]
TeacherArgument = Annotated[Path, typer.Argument(help="point_cloud.ply, or a teacher run.")]
_WIDTH = typer.Option(min=8, help="Image width in pixels.")
WidthOption = Annotated[int | None, _WIDTH]


@scene.command("synth")
def scene_synth(
    folder: Annotated[Path | None, typer.Argument(help="Where to write it.")] = None,
    width: Annotated[int, typer.Option(min=16, help="Image width in pixels.")] = 100,
    train: Annotated[int, typer.Option(min=1, help="Training views.")] = 60,
    test: Annotated[int, typer.Option(min=1, help="Test views.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Which model is built.")] = 0,
) -> None:
    """Ray-trace a brick model into a NeRF-synthetic folder."""
    from featdistill.data.bricks import BrickScene, write_scene
    from featdistill.embedded import SCENE

    target = folder or SCENE
    made = write_scene(target, BrickScene(seed=seed, width=width, train=train, test=test))
    typer.echo(f"{target}: {'written' if made else 'was there already'}")


@scene.command("import")
def scene_import(
    source: SceneArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write the copy.")],
    width: Annotated[int, _WIDTH],
) -> None:
    """Copy a scene at a smaller width, filtered over premultiplied colours."""
    from featdistill.scenes import import_scene

    typer.echo(import_scene(source, folder, width))


@scene.command("info")
def scene_info(
    folder: SceneArgument,
    width: WidthOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a scene whole and say what is in it."""
    from featdistill.scenes import describe_scene

    _print_facts(*describe_scene(folder, width), as_json=as_json)


@teacher.command("fit")
def teacher_fit(
    config: ConfigOption = None,
    overrides: Overrides = None,
    scene: SceneOption = None,
    width: WidthOption = None,
    max_steps: MaxSteps = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Fit gaussians to a scene's training views; point_cloud.ply is in the run directory.

    `featdistill teacher config show` lists the settings.
    """
    from featdistill.teacher_run import run_teacher

    run_teacher(
        config,
        overrides,
        scene=scene,
        width=width,
        max_steps=max_steps,
        directory=run_dir,
        resume=resume,
        archive=archive,
    )


@teacher.command("render")
def teacher_render(
    teacher: TeacherArgument,
    cameras: Annotated[Path, typer.Option(help="transforms_*.json of the views.")],
    output_dir: Annotated[Path, typer.Option(help="Render folder.")],
    width: WidthOption = None,
    features: Annotated[
        bool, typer.Option("--features", help="Also write features/N.npy, 52 per pixel.")
    ] = False,
    background: BackgroundOption = Background.white,
) -> None:
    """Render a teacher: RGBA, depth, and on demand its 52 features."""
    from featdistill.rendering import render_teacher

    render_teacher(
        teacher, cameras, output_dir, width=width, features=features, background=background
    )
    typer.echo(f"rendered to {output_dir}")


@teacher.command("export-ply")
def teacher_export(
    teacher: Annotated[Path, typer.Argument(help="A teacher run or checkpoint.")],
    output: Annotated[Path, typer.Argument(help="PLY file to write.")],
) -> None:
    """Write a teacher as 3DGS point_cloud.ply."""
    from featdistill.teacher_run import export_teacher

    typer.echo(export_teacher(teacher, output))


@teacher.command("info")
def teacher_info(
    teacher: TeacherArgument,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a 3DGS file."""
    from featdistill.teacher_run import describe_teacher

    _print_facts(describe_teacher(teacher), as_json=as_json)


def _print_facts(*facts: Any, as_json: bool) -> None:
    """Print dataclasses in their own words, or as a JSON list."""
    typer.echo(
        json.dumps([asdict(each) for each in facts], indent=2)
        if as_json
        else "\n".join(map(str, facts))
    )
