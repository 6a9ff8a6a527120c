"""The `maniflow-overlay` command: parse, then one call."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import ExecutorOption, JsonOption, application, run_app

import maniflow_overlay
from maniflow_overlay import commands_simulation, commands_train


def _checks():
    from maniflow_overlay.doctor import checks

    return checks()


app = application("maniflow-overlay", maniflow_overlay.__doc__, checks=_checks)
main = partial(run_app, app)
commands_train.register(app)
commands_simulation.register(app)

overlay = typer.Typer(help="Paths drawn into pictures.", no_args_is_help=True)
app.add_typer(overlay, name="overlay")


@overlay.command("check")
def overlay_check(
    cases: Annotated[Path, typer.Argument(help="Recorded drawings (JSON).")],
) -> None:
    """Replay recorded drawings; exit code 1 names the first that differs."""
    from maniflow_overlay.overlay.recorded import first_difference, read_cases

    recorded = read_cases(cases)
    complaint = first_difference(recorded)
    if complaint:
        typer.echo(f"{cases}: {complaint}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{cases}: {len(recorded)} drawings, all equal to the byte")


@overlay.command("render")
def overlay_render(
    picture: Annotated[Path, typer.Argument(help="PNG or JPEG file.")],
    path: Annotated[Path, typer.Argument(help="JSON list of [x, y, gripper] or [x, y].")],
    output: Annotated[Path, typer.Argument(help="PNG file to write.")],
    path_only: Annotated[
        bool, typer.Option("--path-only", help="The path on black (approach B).")
    ] = False,
) -> None:
    """Draw a path into a picture."""
    from maniflow_overlay.overlay.pictures import render

    render(picture, path, output, path_only=path_only)
    typer.echo(f"written to {output}")


Frames = Annotated[
    Path, typer.Argument(metavar="FRAMES", help="Folder of TASK/episode_NN/frames/frame_NNNN.png.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeatable.")]


@overlay.command("frames")
def overlay_frames(
    frames: Frames,
    paths: Annotated[Path, typer.Argument(help="paths.jsonl.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for TASK/episode_NN/overlay.")
    ],
    task: Tasks = None,
    path_only: Annotated[
        bool, typer.Option("--path-only", help="The paths on black (approach B).")
    ] = False,
) -> None:
    """Draw the paths of a file into their frames, as PNG files."""
    from maniflow_overlay.paths.answer_commands import draw_command

    draw_command(frames, paths, output, task or [], path_only=path_only)


JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Spread over so many jobs.", show_default=False)
]
PartOption = Annotated[
    str | None, typer.Option("--part", help="K/N: only the work of the K-th of N jobs.")
]


paths = typer.Typer(help="Paths from vision-language models.", no_args_is_help=True)
app.add_typer(paths, name="paths")

DialectOption = Annotated[str, typer.Option(help="hamster, peek or qwen.")]
SpaceOption = Annotated[
    str | None, typer.Option("--coordinates", help="unit, permille or pixel, if not the default.")
]


@paths.command("generate")
def paths_generate(
    frames: Frames,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of raw.jsonl.")],
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="hamster=URL or openai=URL,limit=N; repeatable."),
    ] = None,
    model: Annotated[str, typer.Option(help="The server's name of the model.")] = "Hamster_dev",
    dialect: DialectOption = "hamster",
    coordinates: SpaceOption = None,
    task: Tasks = None,
    instruction: Annotated[
        list[str] | None, typer.Option(help="TASK=TEXT; repeatable. RoboTwin's six are known.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Ask for every N-th frame only.")] = 1,
    only_first: Annotated[
        bool, typer.Option("--only-first", help="Ask for the first frame of each episode only.")
    ] = False,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Only the first N of each task (default: all).")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens of the first answer.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for one call.")] = 120.0,
    retries: Annotated[
        int, typer.Option(min=0, help="Further calls for a frame after failed ones.")
    ] = 3,
    reasks: Annotated[
        int, typer.Option(min=0, help="Further calls for a frame after unreadable answers.")
    ] = 2,
    give_up: Annotated[
        float, typer.Option(min=0, help="Seconds without any endpoint that end the run.")
    ] = 300.0,
) -> None:
    """Ask model servers for the path of every frame; the same command goes on where it stopped."""
    from maniflow_overlay.paths.server_commands import generate_command

    generate_command(
        frames,
        folder,
        endpoints=endpoint or [],
        model=model,
        dialect=dialect,
        coordinates=coordinates,
        tasks=task or [],
        instructions=instruction or [],
        stride=stride,
        only_first=only_first,
        episodes=episodes,
        max_tokens=max_tokens,
        timeout_s=timeout,
        retries=retries,
        reasks=reasks,
        give_up_s=give_up,
    )


@paths.command("parse")
def paths_parse(
    source: Annotated[
        Path, typer.Argument(help="Folder with raw.jsonl, or of TASK/episode_NN/raw_outputs.")
    ],
    output: Annotated[Path, typer.Argument(help="paths.jsonl to write.")],
    dialect: DialectOption = "hamster",
    coordinates: SpaceOption = None,
    size: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT of the frames; only for text files.")
    ] = "320x240",
    hold: Annotated[
        Path | None,
        typer.Option(help="Folder of frames: each gets the last usable path of its episode."),
    ] = None,
    jobs: JobsOption = None,
    executor: ExecutorOption = "local",
    part: PartOption = None,
) -> None:
    """Read the paths out of kept answers, again and without a GPU."""
    from maniflow_overlay.parts import Spread
    from maniflow_overlay.paths.answer_commands import parse_command

    parse_command(
        source,
        output,
        dialect=dialect,
        coordinates=coordinates,
        size=size,
        frames=hold,
        spread=Spread.read(jobs, executor, part),
    )


@paths.command("import-pickles")
def paths_import(
    root: Annotated[Path, typer.Argument(help="Folder of TASK/episode_NN/paths/*.pkl.")],
    output: Annotated[Path, typer.Argument(help="paths.jsonl to write.")],
) -> None:
    """Take over paths that lie as pickles; code in them is refused, never run."""
    from maniflow_overlay.paths.answer_commands import import_command

    import_command(root, output)


@paths.command("report")
def paths_report(
    source: Annotated[Path, typer.Argument(help="paths.jsonl.")],
    as_json: JsonOption = False,
) -> None:
    """Count the frames by task and status."""
    from maniflow_overlay.paths.answer_commands import report_command

    report_command(source, as_json=as_json)


@paths.command("serve-fake")
def paths_serve_fake(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8000,
    kind: Annotated[str, typer.Option(help="hamster or openai.")] = "hamster",
    model: Annotated[str, typer.Option(help="The name that it answers to.")] = "Hamster_dev",
    latency: Annotated[float, typer.Option(min=0, help="Seconds of one answer.")] = 0.1,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="KIND=SHARE of error, busy, drop, slow, cut, prose, garbage."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of answers and faults.")] = 0,
) -> None:
    """Serve made-up answers over real HTTP, with faults on demand, until Ctrl-C."""
    from maniflow_overlay.paths.server_commands import serve_fake_command

    serve_fake_command(port, kind, model, latency, fault or [], seed)


data = typer.Typer(help="Episodes, frame stores and their paths.", no_args_is_help=True)
app.add_typer(data, name="data")

Episodes = Annotated[
    Path, typer.Argument(metavar="EPISODES", help="RoboTwin 2.0's data folder (HDF5).")
]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a frame store.")]
CameraOption = Annotated[str, typer.Option(help="head, left, right or front.")]
SizeOption = Annotated[str, typer.Option(help="WIDTHxHEIGHT of the stored frames.")]


@paths.command("oracle")
def paths_oracle(
    episodes: Episodes,
    output: Annotated[Path, typer.Argument(help="paths.jsonl to write.")],
    task: Tasks = None,
    camera: CameraOption = "head",
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="Largest error of the simplified path, as a share of the picture."
        ),
    ] = 0.02,
    noise: Annotated[float, typer.Option(min=0, help="Deviation of the points.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
) -> None:
    """Write the path that the gripper took, projected into every frame."""
    from maniflow_overlay.data.commands import oracle_command

    oracle_command(
        episodes, output, task or [], camera, tolerance=tolerance, noise=noise, seed=seed
    )


@data.command("synth")
def data_synth(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Name of a task; repeatable.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task.")] = 2,
    layout: Annotated[str, typer.Option(help="old (to 2026-08) or new.")] = "old",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the motions.")] = 0,
) -> None:
    """Make up episodes and write them as RoboTwin 2.0 does."""
    from maniflow_overlay.data.commands import synth_command

    synth_command(folder, task or ["click_bell"], episodes, layout, seed)


@data.command("extract-frames")
def data_extract(
    episodes: Episodes,
    output: Annotated[Path, typer.Argument(help="Folder for TASK/episode_NN/frames.")],
    task: Tasks = None,
    camera: CameraOption = "head",
) -> None:
    """Write the pictures of episodes as PNG files, for `paths generate`."""
    from maniflow_overlay.data.commands import extract_command

    extract_command(episodes, output, task or [], camera)


@data.command("convert")
def data_convert(
    episodes: Episodes,
    store: Store,
    task: Tasks = None,
    camera: CameraOption = "head",
    size: SizeOption = "224x224",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be converted, and how large.")
    ] = False,
    jobs: JobsOption = None,
    executor: ExecutorOption = "local",
    part: PartOption = None,
) -> None:
    """Convert episodes to a frame store; the same command goes on where it was interrupted."""
    from maniflow_overlay.data.commands import convert_command, foresee_command
    from maniflow_overlay.parts import Spread

    spread = Spread.read(jobs, executor, part)
    if dry_run:
        foresee_command(episodes, task or [], camera, size)
    else:
        convert_command(episodes, store, task or [], camera, size, spread)


@data.command("import-zarr")
def data_import(
    zarr: Annotated[Path, typer.Argument(help="RoboTwin 1.0 or notes' store.")],
    store: Store,
    task: Annotated[str, typer.Option(help="Name for its episodes.")] = "imported",
    size: SizeOption = "224x224",
) -> None:
    """Convert a zarr store to a frame store; a missing chunk is refused."""
    from maniflow_overlay.data.commands import import_command

    import_command(zarr, store, task, size)


@data.command("export-zarr")
def data_export(
    store: Store,
    output: Annotated[Path, typer.Argument(help="Folder NAME.zarr to make.")],
    raw: Annotated[bool, typer.Option("--raw", help="Without the paths.")] = False,
    as_bytes: Annotated[
        bool, typer.Option("--uint8", help="Bytes instead of the notes' float32.")
    ] = False,
) -> None:
    """Write a frame store in the notes' zarr layout, paths drawn in."""
    from maniflow_overlay.data.commands import export_command

    export_command(store, output, raw=raw, as_bytes=as_bytes)


@data.command("attach-paths")
def data_attach(
    store: Store,
    paths: Annotated[Path, typer.Argument(help="paths.jsonl.")],
    draw_size: Annotated[
        str | None,
        typer.Option(help="Draw at this WIDTHxHEIGHT and scale down; the notes: 320x240."),
    ] = None,
    jobs: JobsOption = None,
    executor: ExecutorOption = "local",
    part: PartOption = None,
) -> None:
    """Draw paths into layers of a frame store, at the store's size if no other is given."""
    from maniflow_overlay.data.commands import attach_command
    from maniflow_overlay.parts import Spread

    attach_command(store, paths, draw_size, Spread.read(jobs, executor, part))


@data.command("inspect")
def data_inspect(store: Store, as_json: JsonOption = False) -> None:
    """Say what a frame store holds."""
    from maniflow_overlay.data.commands import inspect_command

    inspect_command(store, as_json=as_json)


@data.command("verify")
def data_verify(store: Store, as_json: JsonOption = False) -> None:
    """Read a frame store whole and hold it against its check sums."""
    from maniflow_overlay.data.commands import verify_command

    verify_command(store, as_json=as_json)


servers = typer.Typer(help="Model servers on this machine.", no_args_is_help=True)
app.add_typer(servers, name="servers")

ServerFolder = Annotated[Path, typer.Option("--folder", help="State and logs of the servers.")]
SERVERS = Path("data/maniflow_overlay/servers")


@servers.command("up")
def servers_up(
    command: Annotated[
        str, typer.Option(help='As in "python server.py --port {port} --model-path MODEL".')
    ],
    gpus: Annotated[str, typer.Option(help="One server for each.")] = "0",
    port: Annotated[
        int,
        typer.Option(min=1, max=65000, help="Port of the first server; the next ones count up."),
    ] = 8000,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to load.")] = 600.0,
    folder: ServerFolder = SERVERS,
) -> None:
    """Start one server per GPU and wait until all of them answer."""
    from maniflow_overlay.paths.server_processes import up_command

    up_command(folder, command, gpus, port, wait)


@servers.command("status")
def servers_status(folder: ServerFolder = SERVERS, as_json: JsonOption = False) -> None:
    """Show the servers; exit code 1 unless all are ready."""
    from maniflow_overlay.paths.server_processes import status_command

    raise typer.Exit(0 if status_command(folder, as_json=as_json) else 1)


@servers.command("down")
def servers_down(folder: ServerFolder = SERVERS) -> None:
    """Stop the servers with all their processes."""
    from maniflow_overlay.paths.server_processes import down_command

    down_command(folder)
