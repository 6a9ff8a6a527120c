"""The `pinpad` command: parse, then one call."""

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

import pinpad


def _checks(
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder of recorded traces (.npz) to replay, or one of them."),
    ] = None,
):
    from pinpad.doctor import checks

    return checks(traces)


app = application("pinpad", pinpad.__doc__, checks=_checks)
main = partial(run_app, app)

add_config_commands(
    app, "pinpad.train_config:TrainConfig", groups=Path(pinpad.__file__).parent / "groups"
)
boundaries = typer.Typer(help="Temporal boundaries and their evaluation.", no_args_is_help=True)
app.add_typer(boundaries, name="boundaries")

PresetOption = Annotated[
    str | None, typer.Option(help="cpu_tiny (as by default), cpu_small, rtx3070 or h100.")
]
TaskOption = Annotated[
    str | None, typer.Option(help="pinpad_three to pinpad_eight (Pinpad-Three-v0, three).")
]


@app.command()
def demo(
    logroot: Annotated[
        Path | None, typer.Option(help="Folder (default: logdir/demo_TIME, a new one).")
    ] = None,
) -> None:
    """Record episodes, learn an RSSM and a VTA, judge their boundaries: table and page."""
    from pinpad.demo import run_demo

    raise typer.Exit(0 if run_demo(logroot, typer.echo) else 1)


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(help="Folder for the episodes; it holds none yet.")],
    task: Annotated[str, typer.Option(help="pinpad_three to pinpad_eight.")] = "pinpad_three",
    players: Annotated[
        str, typer.Option(help="Who plays: uniform=0.5,sticky=0.3,babble=0.1,oracle:0.1=0.1.")
    ] = "uniform=1,sticky=1,babble=1,oracle:0.1=1",
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 20,
    length: Annotated[int, typer.Option(min=1, help="Steps of an episode.")] = 1000,
    size: Annotated[
        int, typer.Option(min=16, help="Pixels of an image's side, a multiple of 16.")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of spawns and players.")] = 0,
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
    preset: PresetOption = None,
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of spawns and latents.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Let an agent play in rooms of its own, beside uniform play and the oracle."""
    from pinpad.training_run import evaluate_run

    evaluate_run(run, task=task, rooms=episodes, steps=steps, seed=seed, as_json=as_json)


@app.command()
def planted(
    folder: Annotated[Path, typer.Argument(help="Folder for the episodes; it holds none yet.")],
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 40,
    length: Annotated[int, typer.Option(min=1, help="Steps of an episode.")] = 200,
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Boundaries per step.")] = 0.075,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")] = 0,
) -> None:
    """Write sequences with planted boundaries (event `planted`), to check a detector on."""
    from pinpad.data.collect import write_new
    from pinpad.data.planted import planted_episodes

    written = write_new(folder, planted_episodes(episodes, length=length, rate=rate, seed=seed))
    typer.echo(f"{written} episodes of {length} steps in {folder}")


@boundaries.command("score")
def boundaries_score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run, or a checkpoint.")],
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
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="True events to judge against: sequence_append, pad_enter, pad_leave, progress, "
            "wrong_pad, reward, respawn, wall_bump, background (pad under the player or pause "
            "changes), delta. Default: sequence_append, pad_enter, reward and delta."
        ),
    ] = None,
    permutations: Annotated[int, typer.Option(min=1, help="Shifts for the p value.")] = 9_999,
    seed: Annotated[int, typer.Option(min=0, help="Seed of shifts and intervals.")] = 0,
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


@boundaries.command("draw")
def boundaries_draw(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run with an evaluation.")],
    episode: Annotated[
        int | None,
        typer.Option(min=0, help="Which episode (default: the one with the most true events)."),
    ] = None,
) -> None:
    """Draw where a run's boundaries are: a strip of frames, curves inside, frames that fired."""
    from pinpad.figures import draw_run

    for path in draw_run(run, episode):
        typer.echo(f"picture: {path}")


StatusFile = Annotated[
    Path | None,
    typer.Option(envvar="STATUS_FILE", help="Status file of the sweep, where no LOGROOT is given."),
]
LogRoot = Annotated[
    Path | None,
    typer.Argument(
        metavar="[LOGROOT]",
        envvar="LOGROOT",
        help="Folder of the sweep, or its status file (default: the newest under logdir).",
    ),
]


@app.command()
def sweep(
    config: ConfigOption = None,
    overrides: Overrides = None,
    logroot: Annotated[
        Path | None,
        typer.Option(envvar="LOGROOT", help="Folder (default: logdir/pinpad_TIME, a new one)."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(envvar="TASK", help="pinpad_three to pinpad_eight.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(envvar="SEEDS", help="0,1,2 (default: 0).")] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(help="YAML: NAME: {KEY: VALUE} (default: the four of the first experiments)."),
    ] = None,
    skip_rssm: Annotated[
        bool, typer.Option("--skip-rssm", envvar="SKIP_RSSM", help="Only conditions with vta.")
    ] = False,
    preset: PresetOption = None,
    pretrain: Annotated[
        int | None,
        typer.Option(min=0, envvar="PRETRAIN", help="Updates before an agent first acts."),
    ] = None,
    vta_eval_every: Annotated[
        int | None,
        typer.Option(min=1, envvar="VTA_EVAL_EVERY", help="eval_every of conditions with vta."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Training episodes, with wm_only=true (default: scripted ones)."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Held-out episodes to judge on (default: 20).")
    ] = None,
    permutations: Annotated[
        int | None, typer.Option(min=1, help="Shifts for the p value (default: 9999).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which a training is ended.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="MB above which a training is ended.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once (default: the processors).")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="Accelerators to share out, as 0,1; one training on each.")
    ] = None,
    executor: ExecutorOption = "local",
    run_log: Annotated[
        Path | None,
        typer.Option(envvar="RUN_LOG", help="A file that gets every line of progress, too."),
    ] = None,
    status_file: Annotated[
        Path | None,
        typer.Option(
            envvar="STATUS_FILE",
            help="Shell assignments, every second (default: LOGROOT/pinpad_status.env).",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: also runs that had failed.")
    ] = False,
) -> None:
    """Train, judge and draw four conditions (RSSM, three VTA) for each seed; then a report.

    A failure ends no other run. Without settings: a few minutes of world models on pinpad_three.
    """
    from pinpad.sweep.command import run_command

    given = {
        "task": task,
        "seeds": seeds,
        "conditions": conditions,
        "overrides": tuple(overrides) if overrides else None,
        "preset": preset,
        "pretrain": pretrain,
        "vta_eval_every": vta_eval_every,
        "data": data,
        "episodes": episodes,
        "permutations": permutations,
        "timeout_s": timeout,
        "memory_mb": memory,
    }
    done = run_command(
        {name: value for name, value in given.items() if value is not None},
        config=config,
        logroot=logroot,
        skip_rssm=skip_rssm,
        slots=jobs,
        devices=devices,
        executor=executor,
        run_log=run_log,
        status_file=status_file,
        resume=resume,
        retry_failed=retry_failed,
    )
    raise typer.Exit(0 if done else 1)


@app.command()
def monitor(
    logroot: LogRoot = None,
    status_file: StatusFile = None,
    once: Annotated[bool, typer.Option("--once", help="Show the state and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Follow a sweep: the run under way, all of it, and what became of each run."""
    import json

    from pinpad.sweep import monitor as show
    from pinpad.sweep.execute import named_log_root
    from pinpad.sweep.state import read_sweep

    root = named_log_root(logroot or status_file)
    if as_json:
        for state in [read_sweep(root)] if once else show.states(root):
            typer.echo(json.dumps(state.as_json()))
    else:
        state = show.show(root) if once else show.follow(root)
    raise typer.Exit(0 if state.state in ("running", "finished") else 1)


@app.command()
def stop(logroot: LogRoot = None, status_file: StatusFile = None) -> None:
    """Stop a sweep as Ctrl-C would: its trainings write a checkpoint, --resume completes it."""
    from pinpad.sweep import execute

    execute.stop(execute.named_log_root(logroot or status_file), typer.echo)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|LOGROOT", help="A run's directory, or that of a sweep.")
    ],
    event: Annotated[
        str | None, typer.Option(help="For a sweep: the true event whose table is printed.")
    ] = None,
) -> None:
    """Write the page of a run with its pictures, or the table and page of a sweep."""
    from pinpad.sweep.plan import SETTINGS_FILE

    if (folder / SETTINGS_FILE).is_file():
        from pinpad.sweep.report import write_report

        page = write_report(folder, typer.echo, event)
    else:
        from pinpad import figures

        page = figures.write_report(folder)
    typer.echo(f"report: {page}")
