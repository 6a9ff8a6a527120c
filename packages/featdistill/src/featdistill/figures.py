"""The page and the pictures of a run: what the student shows, beside teacher and ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loom.record import read_records
from loom.report import Report
from loom.report_run import run_report

from featdistill.assess import (
    COLUMNS,
    STOPPED,
    STUDENT_TEACHER,
    gate_results,
    newest_renders,
    read_results,
    score_rows,
    stored_means,
)
from featdistill.data.png import write_png
from featdistill.data.renders import find_pictures, find_rgba
from featdistill.data.rgba import BACKGROUNDS
from featdistill.evaluate import read_reference

SHOWN = 4
ERROR_GAIN = 4


def error_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the absolute difference of two 8-bit pictures, four times as strong, on black."""
    difference = np.abs(image.astype(np.int16) - reference.astype(np.int16)) * ERROR_GAIN
    return np.minimum(difference, 255).astype(np.uint8)


def write_report(run: Path) -> Path:
    """Write `report.html` of a run: scores, pictures and cost, then the core's part.

    The pictures stand in `pictures.png` as well.
    """
    results = read_results(run)
    report = run_report(run, lambda page: _judgement(page, run, results), thread="featdistill")
    for name, result in list(results.items())[:1]:
        _frames(report, name, result["frames"])
    return report.write(run / "report.html")


def _judgement(report: Report, run: Path, results: dict[str, dict[str, Any]]) -> None:
    if results:
        frames = len(next(iter(results.values()))["frames"])
        rows = score_rows(results)
        empty = {name: row for name, row in rows.items() if name.startswith("empty")}
        full = {name: row for name, row in rows.items() if name not in empty}
        report.heading(f"All {frames} evaluation views")
        backgrounds = " and ".join(sorted({str(r["background"]) for r in results.values()}))
        report.scores(full, empty, f"means over frames of 8-bit pictures on {backgrounds}")
        if STUDENT_TEACHER in results:
            report.gates(gate_results(stored_means(results[STUDENT_TEACHER])))
    _pictures(report, run, str(results.get(STUDENT_TEACHER, {}).get("background")))
    _cost(report, run)


def _pictures(report: Report, run: Path, background: str) -> None:
    rows = list(comparisons(run, background if background in BACKGROUNDS else "white"))
    if not rows:
        return
    captioned = []
    for number, *pictures in rows:
        captions = (f"view {number}: teacher", "student", f"difference x{ERROR_GAIN}")
        captioned += list(zip(captions, pictures, strict=True))
    report.heading("Pictures").pictures(captioned, columns=3)
    write_png(run / "pictures.png", np.concatenate([np.concatenate(r[1:], 1) for r in rows]))


def comparisons(
    run: Path, background: str = "white"
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield number, teacher, student and their difference for a few views of a run.

    They are composed here: a later `render` may have left PNG files on another background.
    """
    renders, references = newest_renders(run), run / "teacher"
    if renders is None and (run / STOPPED).is_dir():
        renders, references = run / STOPPED / "student", run / STOPPED / "teacher"
    if renders is None or not references.is_dir():  # rendered, but not judged
        return
    ours, theirs = (find_rgba(each) or find_pictures(each) for each in (renders, references))
    numbers = [n for n in theirs if n in ours]
    for number in numbers[:: max(1, len(numbers) // SHOWN)][:SHOWN]:
        student = read_reference(ours[number], background).pixels
        teacher = read_reference(theirs[number], background).pixels
        yield number, teacher, student, error_map(student, teacher)


def _cost(report: Report, run: Path) -> None:
    rows = read_records(run)
    points = [(row.get("perf/cpu_s"), row.get("metric/psnr_db")) for row in rows]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if len(known) < 2:
        return
    seconds, quality = [x for x, _ in known], [y for _, y in known]
    blank = next((b for row in rows if (b := row.get("baseline/blank/psnr_db")) is not None), None)
    report.heading("Quality against cost").curves(
        {"student against teacher": (seconds, quality)},
        "CPU seconds",
        "PSNR on a few evaluation views, dB",
        baselines={"empty picture": blank} if blank is not None else None,
    )


def _frames(report: Report, name: str, frames: list[dict[str, Any]]) -> None:
    report.heading(f"Each view, {name}").table(
        ("view", *COLUMNS), [(f["name"], *(f.get(c) for c in COLUMNS)) for f in frames]
    )
