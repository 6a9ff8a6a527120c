"""The full judgement of a student: every evaluation view, against teacher and ground truth.

The same views give four rows that belong together: the student against its teacher (what was
distilled), the student and the teacher against the ground truth (what that is worth), and an empty
picture against each reference (what a score is worth at all).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loom.evaluation.images import PictureDistance
from loom.files import read_json, write_json
from loom.gates import Baseline, Gate, GateResult
from loom.gates import evaluate as answer
from torch import Tensor

from featdistill.cameras import Cameras
from featdistill.data.nerf_synthetic import Views
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
from featdistill.models.student import Student, render_image
from featdistill.summary import append_summary
from featdistill.supervision import TeacherFrames, render_frames

FrameSource = Callable[[int], np.ndarray]
"""Number of a frame to premultiplied floats [h, w, 4]."""

STUDENT_TEACHER = "student against teacher"
STUDENT_TRUTH = "student against ground truth"
TEACHER_TRUTH = "teacher against ground truth"

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

    def gates(self) -> list[GateResult]:
        """Answer the gates for the student against its teacher."""
        return gate_results(self.rows[STUDENT_TEACHER].means)


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
        store_rgba: Whether to keep `rgba_npz`, which evaluation on any background needs.
        background: Under the PNG files.
        progress: Called with the number of frames done.
    """
    end = len(cameras) if count is None else min(len(cameras), start + count)
    seconds = 0.0
    for number in range(start, end):
        began = time.perf_counter()
        rgba, depth = render_image(student, cameras[number])
        seconds += time.perf_counter() - began
        write_frame(
            folder, number, rgba, depth=depth, background=background, store_rgba=store_rgba
        )
        progress(number - start + 1)
    stats = measure_stats(end - start, cameras.width, cameras.height, seconds)
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
    frames = render_frames(gaussians, cameras)
    for number in range(len(cameras)):
        write_frame(
            folder / "teacher",
            number,
            _rgba(frames, number),
            depth=frames.depth[number],
            background=background,
        )
    ours = stored(renders)
    pairs = {STUDENT_TEACHER: (ours, stored(folder / "teacher"))}
    if truth is not None:
        exact = truth.premultiplied().numpy().__getitem__
        pairs |= {STUDENT_TRUTH: (ours, exact), TEACHER_TRUTH: (stored(folder / "teacher"), exact)}
    rows = {}
    for name, (shown, wanted) in pairs.items():
        result = evaluate_frames(
            _pairs(len(cameras), shown, wanted, background),
            background=background,
            lpips=lpips,
            method=name,
            sources=sources,
            render_stats={"avg_fps": stats.avg_fps, "peak_memory_mib": stats.peak_memory_mib},
        )
        rows[name] = result
        write_json(result_path(folder, name), result.to_json())
        append_summary(folder / "evaluation" / "metrics_summary.csv", result.row())
    return Assessment(rows, stats)


def result_path(folder: Path, name: str) -> Path:
    """Where a row's scores are written in a run directory; the folder exists then."""
    path = folder / "evaluation" / f"{name.replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read_results(folder: Path) -> dict[str, dict]:
    """Read the scores of a run's last judgement, by row; empty if there was none."""
    names = (STUDENT_TEACHER, STUDENT_TRUTH, TEACHER_TRUTH)
    paths = {name: result_path(folder, name) for name in names}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def _rgba(frames: TeacherFrames, number: int) -> Tensor:
    alpha = 1 - frames.transmittance[number]
    return torch.cat([frames.rgb[number], alpha[..., None]], dim=-1)


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
