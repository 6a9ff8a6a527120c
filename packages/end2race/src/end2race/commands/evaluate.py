"""`eval-teacher` and `eval-student`: open-loop errors on a split, as table, CSV row and JSON."""

from pathlib import Path
from typing import Annotated, Any

import typer
from loom.cli import JsonOption
from loom.errors import UserError

from end2race.commands.train import CacheDir, CameraRoot, DataRoot

Split = Annotated[str, typer.Option(help="train, valid or test.")]
EvalSeqLen = Annotated[
    int | None,
    typer.Option("--seq-len", min=1, help="Frames (default: as in training)."),
]
EvalBatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Windows at a time.")]
Names = Annotated[str, typer.Option("--action-names", help="Names of the two components.")]
Weights = Annotated[
    str,
    typer.Option("--overall-weights", help="Weights of the overall error."),
]
CsvPath = Annotated[Path | None, typer.Option("--csv-path", help="CSV file to append a row to.")]
JsonPath = Annotated[Path | None, typer.Option("--json-path", help="JSON file for all figures.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("eval-teacher")(eval_teacher)
    app.command("eval-student")(eval_student)


def eval_teacher(
    teacher_ckpt: Annotated[
        Path,
        typer.Option("--teacher-ckpt", help="Run, checkpoint or model file."),
    ],
    data_root: DataRoot = None,
    split: Split = "valid",
    seq_len: EvalSeqLen = None,
    batch_size: EvalBatchSize = 16,
    action_names: Names = "steer,speed",
    overall_weights: Weights = "1.0,0.05",
    csv_path: CsvPath = None,
    json_path: JsonPath = None,
    device: Device = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare a teacher's actions with the recorded ones, trivial drivers beside it."""
    _evaluate(
        "teacher",
        teacher_ckpt,
        data_root,
        split,
        seq_len,
        batch_size,
        action_names,
        overall_weights,
        csv_path,
        json_path,
        device,
        as_json,
    )


def eval_student(
    student_ckpt: Annotated[
        Path,
        typer.Option("--student-ckpt", help="Run, checkpoint or model file."),
    ],
    data_root: DataRoot = None,
    camera_root: CameraRoot = None,
    split: Split = "valid",
    seq_len: EvalSeqLen = None,
    batch_size: EvalBatchSize = 16,
    teacher_cache_dir: CacheDir = None,
    action_names: Names = "steer,speed",
    overall_weights: Weights = "1.0,0.05",
    csv_path: CsvPath = None,
    json_path: JsonPath = None,
    device: Device = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare a student's actions with the recorded ones, and with its teacher's."""
    _evaluate(
        "student",
        student_ckpt,
        data_root,
        split,
        seq_len,
        batch_size,
        action_names,
        overall_weights,
        csv_path,
        json_path,
        device,
        as_json,
        teacher_cache_dir,
        camera_root,
    )


def _evaluate(
    kind: str,
    checkpoint: Path,
    data_root: Path | None,
    split: str,
    seq_len: int | None,
    batch_size: int,
    action_names: str,
    overall_weights: str,
    csv_path: Path | None,
    json_path: Path | None,
    device: str,
    as_json: bool,
    cache_dir: Path | None = None,
    camera_root: Path | None = None,
) -> None:
    from functools import partial

    from end2race.evaluation_run import evaluate_driver

    evaluate_driver(
        kind,
        checkpoint,
        data_root=data_root,
        camera_root=camera_root,
        split=split,
        seq_len=seq_len,
        batch_size=batch_size,
        names=tuple(name.strip() for name in action_names.split(",")),
        weights=_numbers("--overall-weights", overall_weights),
        csv_path=csv_path,
        json_path=json_path,
        device=device,
        cache_dir=cache_dir,
        as_json=as_json,
        say=partial(typer.echo, err=as_json),
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        hint: Any = "write numbers separated by commas, such as 1.0,0.05"
        raise UserError(f"{option} {text!r} is not a list of numbers", hint=hint) from error
