"""The `pinpad` command: parse, then one call."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import (
    Archive,
    ConfigOption,
    Overrides,
    Resume,
    RunDir,
    add_config_commands,
    application,
    run_app,
)

import pinpad

app = application("pinpad", pinpad.__doc__)
main = partial(run_app, app)

add_config_commands(app, "pinpad.train_config:TrainConfig")
boundaries = typer.Typer(help="Temporal boundaries and their evaluation.", no_args_is_help=True)
app.add_typer(boundaries, name="boundaries")

JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
TaskOption = Annotated[
    str | None, typer.Option(help="pinpad_three to pinpad_eight (Pinpad-Three-v0, three).")
]


# Takes the place of the `doctor` that every application has: this one can replay traces.
@app.command()
def doctor(
    as_json: JsonOption = False,
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder of recorded traces (.npz) to replay, or one of them."),
    ] = None,
) -> None:
    """Check this machine and the environment; exit code 1 if a check fails.

    A trace holds action, reset, spawn_index, reward, is_first, is_last, position, sequence_length,
    countdown, length and image_sha256_every_500; its name begins with the layout.
    """
    from loom.doctor import core_checks, report, run_checks

    from pinpad.doctor import checks

    outcomes = run_checks([*core_checks("pinpad"), *checks(traces)])
    raise typer.Exit(report(outcomes, as_json=as_json))


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(help="Folder for the episodes; it holds none yet.")],
    task: Annotated[str, typer.Option(help="pinpad_three to pinpad_eight.")] = "pinpad_three",
    players: Annotated[
        str, typer.Option(help="Who plays: uniform=0.5,sticky=0.3,babble=0.1,oracle:0.1=0.1.")
    ] = "uniform=1,sticky=1,babble=1,oracle:0.1=1",
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    length: Annotated[int, typer.Option(min=1, help="Steps of an episode.")] = 1000,
    size: Annotated[int, typer.Option(min=16, help="Pixels of an image's side: 16 or 64.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of spawns and players.")] = 0,
) -> None:
    """Record episodes of scripted players, with the true events of every frame."""
    from loom.drawing import print_table

    from pinpad.data.collect import collect
    from pinpad.data.players import parse_mix
    from pinpad.envs.layouts import layout_name

    mix = parse_mix(players)
    tallies = collect(folder, layout_name(task), mix, episodes, length=length, size=size, seed=seed)
    rows = [
        (
            each.player,
            each.episodes,
            each.reward / each.episodes,
            each.appends / each.episodes,
        )
        for each in tallies
    ]
    print_table(("player", "episodes", "mean return", "mean pads written"), rows)
    typer.echo(f"{episodes} episodes of {length} steps in {folder}")


@app.command()
def train(
    config: ConfigOption = None,
    overrides: Overrides = None,
    preset: Annotated[
        str | None, typer.Option(help="cpu_tiny (as by default), cpu_small, rtx3070 or h100.")
    ] = None,
    task: TaskOption = None,
    dynamics_type: Annotated[str | None, typer.Option(help="rssm or vta.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Recorded episodes to learn from, with wm_only=true.")
    ] = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Train an agent that acts, or with wm_only=true a world model on recorded episodes."""
    from pinpad.training_run import run_training

    run_training(
        config,
        overrides,
        preset=preset,
        flags={"task": task, "dynamics_type": dynamics_type, "data": data},
        directory=run_dir,
        resume=resume,
        archive=archive,
    )


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of train, or a checkpoint.")],
    task: TaskOption = None,
    episodes: Annotated[int | None, typer.Option(min=2, help="Rooms, one episode each.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of an episode.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of spawns and of what is drawn.")] = 0,
) -> None:
    """Let an agent play in rooms of its own, beside uniform play and the oracle."""
    from pinpad.training_run import evaluate_run

    evaluate_run(run, task=task, rooms=episodes, steps=steps, seed=seed)


@app.command("train-world")
def train_world(
    config: ConfigOption = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Train a world model (dynamics_type=rssm or vta) on recorded episodes.

    Without `data` it records scripted ones.
    """
    from loom.report_run import run_report
    from loom.run import Run

    from pinpad.config import WorldConfig

    with Run.open(
        "pinpad",
        WorldConfig,
        config,
        overrides,
        directory=run_dir,
        resume=resume,
        archive=archive,
    ) as run:
        from pinpad.train_world import train_world

        train_world(run.config, run)
        run.info(f"[report] {run_report(run.dir).write(run.path('report.html'))}")


@app.command()
def planted(
    folder: Annotated[Path, typer.Argument(help="Folder for the episodes; it holds none yet.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 40,
    length: Annotated[int, typer.Option(min=1, help="Steps of an episode.")] = 200,
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Boundaries per step.")] = 0.075,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
) -> None:
    """Write sequences with planted boundaries (event `planted`), to check a detector on."""
    from pinpad.data.collect import write_new
    from pinpad.data.planted import planted_episodes

    written = write_new(folder, planted_episodes(episodes, length=length, rate=rate, seed=seed))
    typer.echo(f"{written} episodes of {length} steps in {folder}")


@boundaries.command("score")
def boundaries_score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of train-world.")],
    episodes: Annotated[Path, typer.Argument(help="Episodes to score.")],
    output: Annotated[Path, typer.Argument(help="Folder for the scores.")],
) -> None:
    """Let a world model score every frame: P(READ) of a VTA, surprise of an RSSM."""
    from pinpad.score import score_folder

    for folder in score_folder(run, episodes, output):
        typer.echo(f"scores: {folder}")


@boundaries.command("eval")
def boundaries_eval(
    episodes: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|FOLDER]",
            help="A run, whose model scores episodes that it has not seen; or held-out episodes "
            "(.npz). Without it 20 scripted ones are recorded.",
        ),
    ] = None,
    on: Annotated[
        Path | None, typer.Option("--on", help="Episodes for a run's model to score.")
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A model's scores of these episodes."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Boundaries of scores: map (p > 0.5), topk (matched rate) or sample."),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(help="random, random:0.1, periodic, periodic:30, frame_delta."),
    ] = None,
    event: Annotated[list[str] | None, typer.Option(help="True events to judge against.")] = None,
    permutations: Annotated[int, typer.Option(min=1, help="Shifts for the p value.")] = 9_999,
    seed: Annotated[int, typer.Option(min=0, help="Of shifts and intervals.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="All figures, as JSON (default: boundary_eval.json, or in RUN)."
        ),
    ] = None,
) -> None:
    """Judge where detectors fire: matches, rankings, segmentations, chance and collapse."""
    from pinpad.boundary_eval import evaluate

    page = evaluate(
        episodes,
        on,
        scores=scores or (),
        source=source,
        anchors=detector,
        events=event,
        permutations=permutations,
        seed=seed,
        output=output,
        say=typer.echo,
    )
    typer.echo(f"figures: {page.with_suffix('.json')}\nreport: {page}")
