"""`train-teacher` and `train-student`: the notes' options, each laid over a setting."""

from pathlib import Path
from typing import Annotated, Any

import typer
from loom.cli import Archive, ConfigOption, Overrides, Resume
from loom.errors import UserError


def _laid(
    description: str,
    default: str,
    *names: str,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return an option that is laid over a setting; the setting has the default that is shown."""
    return typer.Option(*names, help=description, show_default=default, min=least, max=most)


DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Dataset; without one: the embedded one.")
]
CameraRoot = Annotated[
    Path | None,
    typer.Option(
        "--camera-root",
        help="Dataset of the images, if they are not in the first.",
    ),
]
Preset = Annotated[str | None, _laid("Sizes: racing, racing-fine, kitti.", "racing")]
Epochs = Annotated[
    float | None,
    _laid("Passes over the training windows; wins over max_steps of a settings file.", "8"),
]
MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Updates in all, instead of epochs.")
]
Rate = Annotated[float | None, _laid("Peak of the learning rate.", "0.002", "--lr")]
BatchSize = Annotated[
    int | None, _laid("Windows per update, all processes.", "16", "--batch-size", least=1)
]
SeqLen = Annotated[int | None, _laid("Frames of a window.", "5", "--seq-len", least=1)]
TargetShift = Annotated[
    int | None,
    _laid(
        "Frames until the speed that is the label, where no commanded one is recorded.",
        "1",
        "--target-shift",
        least=1,
    ),
]
SteerWeight = Annotated[
    float | None,
    _laid(
        "Weight of steering errors (degrees^2). A student with a teacher and few labels: 0.1.",
        "1",
        "--steer-loss-weight",
        least=0,
    ),
]
SpeedWeight = Annotated[
    float | None, _laid("Weight of speed errors (m/s)^2.", "0.05", "--speed-loss-weight", least=0)
]
SmoothWeight = Annotated[
    float | None, _laid("Weight of the errors' first differences.", "0", "--smooth-weight", least=0)
]
SteerDropout = Annotated[
    float | None,
    _laid(
        "Share of windows without the previous wheel angle.",
        "0.5",
        "--steer-dropout",
        least=0,
        most=1,
    ),
]
Workers = Annotated[int | None, _laid("Batches read in advance.", "0", "--num-workers", least=0)]
NoValidate = Annotated[bool, typer.Option("--no-validate", help="Leave the validation out.")]
InitPath = Annotated[
    Path | None, typer.Option("--init-path", help="Run or model file to begin from.")
]
InitStrict = Annotated[
    bool | None,
    _laid("Whether every weight must fit.", "init-strict", "--init-strict/--no-init-strict"),
]
InitSkip = Annotated[
    bool,
    typer.Option(
        "--init-skip-output-layer",
        help="Leave the last layer as it begins.",
    ),
]
SavePath = Annotated[
    Path | None, typer.Option("--save-path", help="Also write the model into this file.")
]
RunFolder = Annotated[
    list[Path] | None,
    typer.Option(
        "--run-dir",
        "--log-dir",
        "--checkpoint-path",
        help="Directory of the run, its checkpoints and its log.",
    ),
]
ResumePath = Annotated[
    Path | None, typer.Option("--resume-path", help="Run to go on with; --resume --run-dir.")
]
Device = Annotated[str | None, _laid("auto, cpu or cuda.", "auto")]
Seed = Annotated[int | None, _laid("Of weights and order.", "0", least=0)]
CacheDir = Annotated[
    Path | None, typer.Option("--teacher-cache-dir", help="Teacher cache to learn from.")
]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("train-teacher")(train_teacher)
    app.command("train-student")(train_student)


def train_teacher(
    config: ConfigOption = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    preset: Preset = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    seq_len: SeqLen = None,
    target_shift: TargetShift = None,
    steer_loss_weight: SteerWeight = None,
    speed_loss_weight: SpeedWeight = None,
    smooth_weight: SmoothWeight = None,
    steer_dropout: SteerDropout = None,
    lidar_num_features: Annotated[
        str,
        typer.Option(
            "--lidar-num-features",
            help="4 or 8: refuse a dataset whose files have another layout; auto: take its own.",
        ),
    ] = "auto",
    num_workers: Workers = None,
    no_validate: NoValidate = False,
    init_path: InitPath = None,
    init_strict: InitStrict = None,
    init_skip_output_layer: InitSkip = False,
    save_path: SavePath = None,
    val_log_path: Annotated[
        Path | None, typer.Option("--val-log-path", help="Also put the records here (CSV).")
    ] = None,
    device: Device = None,
    seed: Seed = None,
    run_dir: RunFolder = None,
    resume: Resume = False,
    resume_path: ResumePath = None,
    archive: Archive = False,
) -> None:
    """Train the LiDAR teacher by behaviour cloning, and judge it on the validation windows."""
    from end2race.training_run import run_teacher

    flags = {
        "data.root": data_root,
        "data.seq_len": seq_len,
        "data.target_shift": target_shift,
        "data.prefetch": num_workers,
        "data.lidar_num_features": _features(lidar_num_features),
        "preset": preset,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.lr": lr,
        "train.batch_size": batch_size,
        "train.steering_dropout": steer_dropout,
        "loss.steer_weight": steer_loss_weight,
        "loss.speed_weight": speed_loss_weight,
        "loss.smooth_weight": smooth_weight,
        "init_path": init_path,
        "init_strict": init_strict,
        "init_skip_output_layer": init_skip_output_layer or None,
        "save_path": save_path,
        "device": device,
        "seed": seed,
    }
    directory, goes_on = _place(run_dir, resume, resume_path)
    run_teacher(
        config,
        _settings(overrides, epochs, no_validate),
        flags,
        directory=directory,
        resume=goes_on,
        archive=archive,
        csv_path=val_log_path,
    )


def train_student(
    config: ConfigOption = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    camera_root: CameraRoot = None,
    train_split: Annotated[
        str | None, _laid("Split to learn from.", "train", "--train-split")
    ] = None,
    val_split: Annotated[str | None, _laid("Split to validate on.", "valid", "--val-split")] = None,
    preset: Preset = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    seq_len: SeqLen = None,
    target_shift: TargetShift = None,
    steer_loss_weight: SteerWeight = None,
    speed_loss_weight: SpeedWeight = None,
    smooth_weight: SmoothWeight = None,
    steer_dropout: SteerDropout = None,
    view_transform: Annotated[
        str | None, _laid("lift_splat or identity.", "lift_splat", "--view-transform")
    ] = None,
    teacher_cache_dir: CacheDir = None,
    kd_action_w: Annotated[
        float | None,
        _laid("Weight of the teacher's actions (smooth L1).", "1", "--kd-action-w", least=0),
    ] = None,
    kd_bevvec_w: Annotated[
        float | None,
        _laid("Weight of its BEV vectors (1 - cosine).", "1", "--kd-bevvec-w", least=0),
    ] = None,
    kd_temporal_w: Annotated[
        float | None,
        _laid("Weight of its recurrent states (squared error).", "1", "--kd-temporal-w", least=0),
    ] = None,
    kd_bevfeat_w: Annotated[
        float | None,
        _laid(
            "Weight of its BEV maps (squared error), from a cache with --save-bev-feat.",
            "0",
            "--kd-bevfeat-w",
            least=0,
        ),
    ] = None,
    kd_missing: Annotated[
        str | None,
        _laid("What a window without an answer is: error, or skip.", "error", "--kd-missing"),
    ] = None,
    allow_stale: Annotated[
        bool, typer.Option("--allow-stale", help="Take a cache of other data.")
    ] = False,
    memory: Annotated[
        str | None, _laid("none, or topk: ask the memory about windows without an answer.", "none")
    ] = None,
    memory_dir: Annotated[
        Path | None, typer.Option("--memory-dir", help="Bank of `memory build --keys camera`.")
    ] = None,
    topk: Annotated[int | None, _laid("Windows that are recalled.", "8", least=1)] = None,
    tau: Annotated[float | None, _laid("Temperature of their weights.", "0.1")] = None,
    label_fraction: Annotated[
        float | None,
        _laid(
            "Share of the training segments with the expert's labels.",
            "1",
            "--label-fraction",
            least=0,
            most=1,
        ),
    ] = None,
    num_workers: Workers = None,
    no_validate: NoValidate = False,
    init_path: InitPath = None,
    init_strict: InitStrict = None,
    init_skip_output_layer: InitSkip = False,
    save_path: SavePath = None,
    csv_log_path: Annotated[
        Path | None, typer.Option("--csv-log-path", help="Also put the records here (CSV).")
    ] = None,
    device: Device = None,
    seed: Seed = None,
    run_dir: RunFolder = None,
    resume: Resume = False,
    resume_path: ResumePath = None,
    archive: Archive = False,
) -> None:
    """Train the camera student on the expert's labels and a teacher's cache, and judge it."""
    from end2race.training_run import run_student

    flags = {
        "data.root": data_root,
        "data.camera_root": camera_root,
        "data.train_split": train_split,
        "data.val_split": val_split,
        "data.seq_len": seq_len,
        "data.target_shift": target_shift,
        "data.prefetch": num_workers,
        "preset": preset,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.lr": lr,
        "train.batch_size": batch_size,
        "train.steering_dropout": steer_dropout,
        "loss.steer_weight": steer_loss_weight,
        "loss.speed_weight": speed_loss_weight,
        "loss.smooth_weight": smooth_weight,
        "view_transform": view_transform,
        "kd.cache_dir": teacher_cache_dir,
        "kd.action_weight": kd_action_w,
        "kd.bevvec_weight": kd_bevvec_w,
        "kd.temporal_weight": kd_temporal_w,
        "kd.bevfeat_weight": kd_bevfeat_w,
        "kd.missing": kd_missing,
        "kd.allow_stale": allow_stale or None,
        "kd.memory": memory,
        "kd.memory_dir": memory_dir,
        "kd.topk": topk,
        "kd.tau": tau,
        "label_fraction": label_fraction,
        "init_path": init_path,
        "init_strict": init_strict,
        "init_skip_output_layer": init_skip_output_layer or None,
        "save_path": save_path,
        "device": device,
        "seed": seed,
    }
    directory, goes_on = _place(run_dir, resume, resume_path)
    run_student(
        config,
        _settings(overrides, epochs, no_validate),
        flags,
        directory=directory,
        resume=goes_on,
        archive=archive,
        csv_path=csv_log_path,
    )


def _settings(overrides: list[str] | None, epochs: float | None, no_validate: bool) -> list[str]:
    """Return the overrides with what options mean for other settings than their own."""
    by_epochs = ["train.max_steps=null"] if epochs is not None else []  # else it would win
    without = ["train.validate_interval=null"] if no_validate else []
    return [*by_epochs, *(overrides or ()), *without]


def _place(
    named: list[Path] | None, resume: bool, resume_path: Path | None
) -> tuple[Path | None, bool]:
    """Return the run's directory and whether to go on there.

    Raises:
        UserError: Two directories are named, the run to go on with does not exist, or is not the
            one that is named beside.
    """
    places = {path.resolve(): path for path in named or ()}
    if len(places) > 1:
        raise UserError(
            f"--run-dir, --log-dir and --checkpoint-path are one directory here, not "
            f"{' and '.join(map(str, places.values()))}",
            hint="name it once; --save-path writes the model to another place",
        )
    run_dir = next(iter(places.values()), None)
    if resume_path is None:
        return run_dir, resume
    if not (resume_path / "run.json").is_file():
        raise UserError(
            f"{resume_path}: there is no run to go on with",
            hint="give the directory of the run; without --resume-path a new one begins",
        )
    if run_dir is not None and run_dir.resolve() != resume_path.resolve():
        raise UserError(
            f"--resume-path {resume_path} goes on in its own directory, not in {run_dir}",
            hint="drop --run-dir; --init-path begins a new run from these weights",
        )
    return resume_path, True


def _features(value: str) -> Any:
    if value not in ("auto", "4", "8"):
        raise UserError(f"--lidar-num-features {value}", hint="take 4, 8 or auto")
    return None if value == "auto" else int(value)
