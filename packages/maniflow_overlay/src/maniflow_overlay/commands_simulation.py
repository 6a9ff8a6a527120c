"""The commands of the closed loop: `demo`, `sim demo|collect`, `eval matrix|report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from loom.cli import Archive, ConfigOption, JsonOption, Overrides, Resume, RunDir

SIMULATED = Path("data/maniflow_overlay/simulated")
SceneOption = Annotated[str, typer.Option(help="auto, tabletop (MuJoCo) or planar (no GL).")]


def register(app: typer.Typer) -> None:
    """Give an application the commands of the closed loop."""
    app.command()(demo)
    sim = typer.Typer(help="The simulated table.", no_args_is_help=True)
    evaluation = typer.Typer(help="Policies at the simulated table.", no_args_is_help=True)
    app.add_typer(sim, name="sim")
    app.add_typer(evaluation, name="eval")
    sim.command("demo")(sim_demo)
    sim.command("collect")(sim_collect)
    evaluation.command("matrix")(eval_matrix)
    evaluation.command("report")(eval_report)


def demo(
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Folder of the runs (default: a new one in runs/)."),
    ] = None,
) -> None:
    """Record, draw paths, train two small policies, let them act, compare: some CPU-minutes."""
    from maniflow_overlay.demo import run_demo

    run_demo(run_dir)


def sim_demo(
    output: Annotated[Path, typer.Argument(help="PNG file to write.")] = Path("sim.png"),
    scene: SceneOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the layout.")] = 0,
    occluded: Annotated[bool, typer.Option("--occluded", help="With the curtain.")] = False,
    marked: Annotated[bool, typer.Option("--marked", help="Block and goal in orange.")] = False,
) -> None:
    """Play the expert once: its pictures in a row, plain and with the paths of each quality."""
    from maniflow_overlay.sim.commands import demo_command

    demo_command(output, scene, seed, occluded=occluded, marked=marked)


def sim_collect(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = SIMULATED,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="pick_place, pick_place_marked; repeatable.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task.")] = 300,
    scene: SceneOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Chooses the layouts.")] = 0,
) -> None:
    """Record the expert as RoboTwin 2.0 episodes, with oracle paths; goes on where it stopped."""
    from maniflow_overlay.sim.commands import collect_command

    collect_command(folder, task or ["pick_place"], episodes, scene, seed)


def eval_matrix(
    overrides: Overrides = None,
    policy: Annotated[
        list[Path] | None, typer.Option("--policy", help="A training run; repeatable.")
    ] = None,
    config: ConfigOption = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes of each cell (default: 200).")
    ] = None,
    scene: Annotated[
        str | None, typer.Option(help="auto, tabletop or planar (default: auto).")
    ] = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Play policies and baselines in every condition on the same episodes, and compare them.

    Further settings: tasks, occluded, qualities, baselines, checkpoint, seed, shown, at_a_time; all
    stand in the config.yaml of a matrix.
    """
    from maniflow_overlay.evaluation.run import matrix_command

    matrix_command(
        config,
        overrides,
        policy or [],
        episodes,
        scene,
        directory=run_dir,
        resume=resume,
        archive=archive,
    )


def eval_report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a matrix.")],
    as_json: JsonOption = False,
) -> None:
    """Print the table of a matrix and write its page again."""
    from maniflow_overlay.evaluation.page import print_matrix, write_page

    print_matrix(run, as_json=as_json)
    typer.echo(f"report: {write_page(run)}", err=as_json)
