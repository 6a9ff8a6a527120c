"""The full judgement of a student: every evaluation view, against teacher and ground truth.

The same views give four rows that belong together: the student against its teacher (what was
distilled), the student and the teacher against the ground truth (what that is worth), and an empty
picture against each reference (what a score is worth at all).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loom.errors import UserError
from loom.evaluation.images import PictureDistance
from loom.files import read_json, write_json
from loom.gates import Baseline, Gate, GateResult
from loom.gates import evaluate as answer

from featdistill.cameras import Cameras
from featdistill.data.nerf_synthetic import Views
from featdistill.data.png import make_folder
from featdistill.data.renders import (
    RenderStats,
    find_rgba,
    measure_stats,
    read_rgba,
    write_frame,
    write_stats,
)
from featdistill.data.rgba import BACKGROUNDS, composite
from featdistill.evaluate import Evaluation, FramePair, evaluate_frames
from featdistill.gaussians import Gaussians
from featdistill.models.student import Student, prepare_pictures, render_image
from featdistill.summary import append_summary
from featdistill.teacher_frames import each_frame

FrameSource = Callable[[int], np.ndarray]
"""Number of a frame to premultiplied floats [h, w, 4]."""

STUDENT_TEACHER = "student against teacher"
STUDENT_TRUTH = "student against ground truth"
TEACHER_TRUTH = "teacher against ground truth"

SCORES_HINT = "give a file of `eval pipeline`, or judge the run again: `featdistill eval run RUN`"

STOPPED = "stopped"
"""Folder of the pictures that a run leaves when a gate stops it."""

COLUMNS = ("psnr_db", "foreground_psnr_db", "ssim", "ssim_valid", "lpips", "alpha_iou")

GATES = (
    Gate("metric/psnr_db", ">=", 22.5, otherwise="below the notes' gate for 200 white frames"),
    Gate("metric/ssim", ">=", 0.82, otherwise="below the notes' gate for 200 white frames"),
    Gate("metric/lpips", "<=", 0.19, otherwise="above the notes' gate for 200 white frames"),
    Gate("metric/alpha_iou", ">", 0.5, otherwise="the silhouettes do not overlap"),
    Gate("metric/psnr_db", ">", Baseline("blank", margin=1.0), otherwise="student is blank"),
)
"""What a student must reach against its teacher; LPIPS needs weights to be evaluated."""


@dataclass(frozen=True)
class Assessment:
    """The rows of a judgement, by name, with what rendering cost."""

    rows: Mapping[str, Evaluation]
    render: RenderStats


def gate_results(means: Mapping[str, float | None]) -> list[GateResult]:
    """Answer the gates for the mean scores of an evaluation."""
    metrics = {f"metric/{name}": value for name, value in means.items()}
    metrics["baseline/blank/psnr_db"] = means.get("blank_psnr_db")
    return answer(GATES, metrics, 0, end=True)


@torch.no_grad()
def render_views(
    student: Student,
    cameras: Cameras,
    folder: Path,
    *,
    start: int = 0,
    count: int | None = None,
    chunk: int | None = None,
    store_rgba: bool = True,
    background: str = "white",
    progress: Callable[[int], None] = lambda _: None,
) -> RenderStats:
    """Render views of a student into a render folder, with `render_stats.json`.

    Args:
        student: What is rendered.
        cameras: All views; files are numbered by position in them.
        folder: The render folder.
        start: First view.
        count: How many views; None for the rest.
        chunk: Rays at a time; None for a whole view.
        store_rgba: Whether to keep `rgba_npz`, which evaluation on any background needs.
        background: Under the PNG files.
        progress: Called with the number of frames done.
    """
    end = len(cameras) if count is None else min(len(cameras), start + count)
    prepare_pictures(student)
    seconds = 0.0
    for number in range(start, end):
        began = time.perf_counter()
        shown = render_image(student, cameras[number], chunk=chunk)
        rgba, depth = (part.cpu() for part in shown)
        seconds += time.perf_counter() - began
        write_frame(folder, number, rgba, depth=depth, background=background, store_rgba=store_rgba)
        progress(number - start + 1)
    device, allocated = student.weights.device, None
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device) / 2**20
    size = cameras.width, cameras.height
    stats = measure_stats(
        end - start, *size, seconds, device=str(device), gpu_peak_memory_mib=allocated
    )
    write_stats(folder, stats)
    return stats


def assess(
    student: Student,
    gaussians: Gaussians,
    cameras: Cameras,
    truth: Views | None,
    folder: Path,
    *,
    step: int,
    lpips: PictureDistance | None = None,
    background: str = "white",
    sources: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Assessment:
    """Render and score every evaluation view; write frames, JSON files and the summary.

    Args:
        student: Who is judged.
        gaussians: Its teacher.
        cameras: The evaluation views.
        truth: The ground truth of the same views, where there is any.
        folder: The run directory: `renders/step_N`, `teacher`, `evaluation` are written in it.
        step: Updates that the student has behind it; names the render folder.
        lpips: The perceptual metric, where weights are at hand.
        background: What everything is composed on.
        sources: Digests of what the student came from, recorded beside the scores.
        say: Told what is going on.
    """
    say(f"[eval] rendering {len(cameras)} views of student and teacher")
    renders = folder / "renders" / f"step_{step:06d}"
    stats = render_views(student, cameras, renders, background=background)
    write_teacher_views(gaussians, cameras, folder / "teacher", background)
    ours, theirs = stored(renders), stored(folder / "teacher")
    pairs = {STUDENT_TEACHER: (ours, theirs)}
    if truth is not None:
        exact = truth_frames(truth)
        pairs |= {STUDENT_TRUTH: (ours, exact), TEACHER_TRUTH: (theirs, exact)}
    else:
        say("[eval] no ground truth of these views is at hand: the teacher is the only reference")
    extra = {"avg_fps": stats.avg_fps, "peak_memory_mib": stats.peak_memory_mib}
    rows = {
        name: _score(
            name, folder, _pairs(len(cameras), *pair, background), background, lpips, sources, extra
        )
        for name, pair in pairs.items()
    }
    return Assessment(rows, stats)


def assess_teacher(
    gaussians: Gaussians,
    truth: Views,
    folder: Path,
    *,
    lpips: PictureDistance | None = None,
    background: str = "white",
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Render and score a teacher's views against the ground truth, as `assess` does."""
    cameras = truth.cameras
    say(f"[eval] rendering {len(cameras)} views of the teacher")
    write_teacher_views(gaussians, cameras, folder / "teacher", background)
    pairs = _pairs(len(cameras), stored(folder / "teacher"), truth_frames(truth), background)
    return _score(TEACHER_TRUTH, folder, pairs, background, lpips, None, {})


def write_teacher_views(
    gaussians: Gaussians, cameras: Cameras, folder: Path, background: str = "white"
) -> None:
    """Render views of a teacher into a render folder."""
    for number, frame in enumerate(each_frame(gaussians, cameras)):
        rgba = torch.cat([frame.rgb[0], 1 - frame.transmittance[0, ..., None]], dim=-1)
        write_frame(folder, number, rgba, depth=frame.depth[0], background=background)


def truth_frames(truth: Views) -> FrameSource:
    """Return a source of the ground truth's frames."""
    return lambda number: truth[number].premultiplied()[0].numpy()


def _score(
    name: str,
    folder: Path,
    pairs: Iterator[FramePair],
    background: str,
    lpips: PictureDistance | None,
    sources: Mapping[str, str] | None,
    render_stats: Mapping[str, Any],
) -> Evaluation:
    result = evaluate_frames(
        pairs,
        background=background,
        lpips=lpips,
        method=name,
        sources=sources,
        render_stats=render_stats,
    )
    make_folder(folder / "evaluation")
    write_json(result_path(folder, name), result.to_json())
    append_summary(folder / "evaluation" / "metrics_summary.csv", result.row())
    return result


def result_path(folder: Path, name: str) -> Path:
    """Where a row's scores are written in a run directory."""
    return folder / "evaluation" / f"{name.replace(' ', '_')}.json"


def read_results(folder: Path) -> dict[str, dict]:
    """Read the scores of a run's last judgement, by row; empty if there was none."""
    names = (STUDENT_TEACHER, STUDENT_TRUTH, TEACHER_TRUTH)
    paths = {name: result_path(folder, name) for name in names}
    found = {name: path for name, path in paths.items() if path.is_file()}
    return {name: read_scores(path, ("means", "blank")) for name, path in found.items()}


def read_scores(path: Path, sections: Sequence[str] = ("means",)) -> dict[str, Any]:
    """Read a file of scores, as a judgement or `eval pipeline` writes it.

    Raises:
        UserError: It is damaged, or lacks one of the sections, or a number in it is none.
    """
    content = read_json(path)
    for section in sections:
        scores = content.get(section) if isinstance(content, dict) else None
        if not isinstance(scores, dict):
            raise UserError(f"{path} holds no {section} of scores", hint=SCORES_HINT)
        for name, value in scores.items():
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if not known and value not in (None, "inf", "-inf", "nan"):
                raise UserError(
                    f"{path}: {section}.{name} is {value!r}, expected a number", hint=SCORES_HINT
                )
    return content


def leave_pictures(student: Student, gaussians: Gaussians, cameras: Cameras, folder: Path) -> None:
    """Leave what a stopped run showed, beside what it should have shown, for `diagnose`."""
    render_views(student, cameras, folder / STOPPED / "student")
    write_teacher_views(gaussians, cameras, folder / STOPPED / "teacher")


def newest_renders(run: Path) -> Path | None:
    """Return the render folder of the run's latest step, if any."""
    folders = sorted((run / "renders").glob("step_*"))
    return folders[-1] if folders else None


def stored_means(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the mean scores of a stored judgement as numbers."""
    return {name: _number(value) for name, value in result["means"].items()}


def score_rows(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the mean scores of each judgement, and those of an empty picture beside them."""
    rows = {name: {c: stored_means(r).get(c) for c in COLUMNS} for name, r in results.items()}
    for name, result in results.items():
        blank = {c: _number(result["blank"].get(c)) for c in COLUMNS}
        # The silhouette of an empty picture is empty: it overlaps nothing, whatever the reference.
        reference = name.partition(" against ")[2]
        rows.setdefault(f"empty picture against {reference}", blank | {"alpha_iou": 0.0})
    return rows


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def stored(folder: Path) -> FrameSource:
    """Return a source that reads the frames of a render folder, one when asked."""
    paths = find_rgba(folder)
    return lambda number: read_rgba(paths[number])


def _pairs(
    count: int, shown: FrameSource, wanted: FrameSource, background: str
) -> Iterator[FramePair]:
    colour = BACKGROUNDS[background]
    for number in range(count):
        reference = wanted(number)
        yield FramePair(
            f"{number:05d}", shown(number), composite(reference, colour), reference[..., 3]
        )
