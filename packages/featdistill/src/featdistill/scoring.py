"""What commands say of results: scores as text, gates, and what is wrong with a run's pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from loom.config import resolve
from loom.drawing import print_json, print_table
from loom.errors import UserError
from loom.evaluation.images import PictureDistance, json_number
from loom.evaluation.lpips import Lpips
from loom.gates import GateResult
from loom.run_directory import RUN_FILE

from featdistill.assess import (
    STOPPED,
    STUDENT_TEACHER,
    gate_results,
    newest_renders,
    read_results,
    read_scores,
    score_rows,
    stored_means,
    write_teacher_views,
)
from featdistill.config import TrainConfig
from featdistill.diagnose import diagnose_folders
from featdistill.evaluate import compare, pipeline
from featdistill.restore import require_kind
from featdistill.teacher_views import teacher_of

GATE_MISSED = 3
OTHER_SPLIT_VIEWS = 100


def lpips_metric(weights: Path | None) -> PictureDistance | None:
    """Load LPIPS where weights are given: of VGG, unless they are of AlexNet alone."""
    if weights is None:
        return None
    names = [path.name for path in weights.glob("*.pth")] or [weights.name]
    alex = any("alex" in name for name in names) and not any("vgg" in name for name in names)
    return Lpips.from_files(weights, "alex" if alex else "vgg").as_metric()


def compare_folders(
    folder: Path, references: Path, *, lpips_weights: Path | None, as_json: bool, **options: Any
) -> None:
    """Score PNG files as they are; print the means. Options: see `evaluate.compare`."""
    scores = compare(folder, references, lpips=lpips_metric(lpips_weights), **options)
    _print_means({"frames": len(scores.frames), **scores.means}, as_json=as_json)


def score_renders(
    render_dir: Path,
    teacher_renders: Path,
    *,
    lpips_weights: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compose, score, record and print a render folder. Options: see `evaluate.pipeline`."""
    metric = lpips_metric(lpips_weights)
    result = pipeline(render_dir, teacher_renders, lpips=metric, **options)
    _print_means({"frames": len(result.scores.frames), **result.means}, as_json=as_json)


def _print_means(means: Mapping[str, float | int | None], *, as_json: bool) -> None:
    """Print one line per score; what was not measured says so."""
    if as_json:
        print_json({key: json_number(each) for key, each in means.items()})
        return
    width = max(map(len, means))
    for name, value in means.items():
        typer.echo(f"{name:<{width}}  {'not evaluated' if value is None else f'{value:.6g}'}")


def print_judgement(run: Path, *, as_json: bool = False) -> None:
    """Print the scores and the gates of a run's last judgement."""
    results = read_results(run)
    if as_json:
        gates = gate_results(stored_means(results[STUDENT_TEACHER]))
        scores = {
            name: {column: json_number(value) for column, value in row.items()}
            for name, row in score_rows(results).items()
        }
        shown = {"scores": scores, "gates": [asdict(each) for each in gates]}
        print_json(shown)
        return
    print_scores(results)
    print_gates(gate_results(stored_means(results[STUDENT_TEACHER])))


def print_scores(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the mean scores of each judgement and of an empty picture."""
    rows = score_rows(results)
    columns = list(next(iter(rows.values())))
    print_table(("", *columns), [(name, *row.values()) for name, row in rows.items()])


def print_gates(results: Sequence[GateResult]) -> None:
    """Print one row for each gate."""
    print_table(("gate", ""), [(verdict_of(result), result.message) for result in results])


def verdict_of(result: GateResult) -> str:
    """Return passed, MISSED or not evaluated."""
    if result.value is None:
        return "not evaluated"
    return "passed" if result.passed else "MISSED"


def gate_code(path: Path, *, as_json: bool = False) -> int:
    """Hold stored scores against the gates and print each; return the exit code.

    Args:
        path: A run directory that was judged, or a JSON file of `eval pipeline`.
        as_json: Whether to print JSON.
    """
    if path.is_dir():
        require_kind(path, "student")
        results = read_results(path)
        if STUDENT_TEACHER not in results:
            raise UserError(
                f"{path} was not judged yet, if it is a run at all",
                hint=f"`featdistill eval run {path}` judges a run; `loom runs` lists the runs",
            )
        content = results[STUDENT_TEACHER]
    else:
        content = read_scores(path)
    answers = gate_results(stored_means(content))
    if as_json:
        print_json([asdict(answer) for answer in answers])
    else:
        print_gates(answers)
    return 0 if all(answer.passed for answer in answers) else GATE_MISSED


def diagnose_run(run: Path, teacher_renders: Path | None, *, background: str, as_json: bool) -> str:
    """Find out what is wrong with the pictures of a run, or of a render folder.

    Args:
        run: A run directory, also of a run that a gate stopped; or a render folder.
        teacher_renders: The references; those of the run where it has some.
        background: What transparent files are composed on.
        as_json: Whether to return JSON.
    """
    renders, references = _pictures_of(run)
    references = teacher_renders or references
    if references is None:
        raise UserError(
            f"{run} is no run's directory, so its references are not known",
            hint="give --teacher-renders FOLDER, or the directory of a run",
        )
    with TemporaryDirectory() as scratch:
        others = _other_splits(run, Path(scratch), background)
        found = diagnose_folders(
            renders,
            references,
            background=background,
            # What a run's PNG files lie on was chosen when it was judged, and is no fault.
            take_rgba=_is_run(run),
            other_splits=others,
        )
    if as_json:
        return json.dumps(found.to_json(), indent=2)
    return "\n".join([f"verdict: {found.verdict}", *found.lines()])


def _other_splits(run: Path, scratch: Path, background: str) -> dict[str, Path]:
    """Render what a run's teacher shows of the training views, to recognise a wrong split."""
    if not _is_run(run):
        return {}
    teacher = teacher_of(resolve(TrainConfig, run / "config.yaml").config.data, run)
    count = min(len(teacher.training), OTHER_SPLIT_VIEWS)
    write_teacher_views(teacher.gaussians, teacher.training[:count], scratch, background)
    return {"train": scratch}


def _is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file()


def _pictures_of(run: Path) -> tuple[Path, Path | None]:
    """Return a folder's renders and references: the last judgement's, or those left at a stop."""
    if not run.is_dir():
        raise UserError(f"{run} is not a folder", hint="give a run's directory or a render folder")
    if not _is_run(run):
        return run, None
    require_kind(run, "student")
    renders = newest_renders(run)
    if renders is not None:
        return renders, run / "teacher"
    if (run / STOPPED).is_dir():
        return run / STOPPED / "student", run / STOPPED / "teacher"
    raise UserError(
        f"{run} has no pictures yet", hint=f"`featdistill eval run {run}` renders and scores them"
    )
