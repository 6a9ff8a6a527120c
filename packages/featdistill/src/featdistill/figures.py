"""The page and the pictures of a run: what the student shows, beside teacher and ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from loom.gates import GateResult
from loom.record import read_records
from loom.report import Report
from loom.report_run import run_report

from featdistill.assess import STUDENT_TEACHER, gate_results, read_results
from featdistill.data.renders import find_pictures
from featdistill.evaluate import read_reference

SHOWN = 4
ERROR_GAIN = 4
COLUMNS = ("psnr_db", "foreground_psnr_db", "ssim", "ssim_valid", "lpips", "alpha_iou")


def error_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the absolute difference of two 8-bit pictures, four times as strong, on black."""
    difference = np.abs(image.astype(np.int16) - reference.astype(np.int16)) * ERROR_GAIN
    return np.minimum(difference, 255).astype(np.uint8)


def score_rows(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the mean scores of each judgement, and those of an empty picture beside them."""
    rows = {name: {c: _number(r["means"].get(c)) for c in COLUMNS} for name, r in results.items()}
    for name, result in results.items():
        reference = name.partition(" against ")[2]
        rows.setdefault(f"empty picture against {reference}", _blank(result))
    return rows


def _blank(result: dict[str, Any]) -> dict[str, float | None]:
    return {c: _number(result["blank"].get(c)) for c in COLUMNS} | {"alpha_iou": 0.0, "lpips": None}


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def gates_of(results: dict[str, dict[str, Any]]) -> list[GateResult]:
    """Answer the gates from stored scores."""
    means = results[STUDENT_TEACHER]["means"]
    return gate_results({name: _number(value) for name, value in means.items()})


def write_report(run: Path) -> Path:
    """Write `report.html` of a run: the core's part, the scores, pictures and the cost curve."""
    report = run_report(run)
    results = read_results(run)
    if results:
        frames = len(results[STUDENT_TEACHER]["frames"])
        report.heading(f"All {frames} evaluation views")
        rows = score_rows(results)
        empty = {name: row for name, row in rows.items() if name.startswith("empty")}
        full = {name: row for name, row in rows.items() if name not in empty}
        report.scores(full, empty, "means over frames of 8-bit pictures on white")
        report.gates(gates_of(results))
        _pictures(report, run)
    _cost(report, run)
    if results:
        _frames(report, results[STUDENT_TEACHER]["frames"])
    return report.write(run / "report.html")


def _pictures(report: Report, run: Path) -> None:
    renders = sorted((run / "renders").glob("step_*"))
    if not renders:
        return
    ours, theirs = find_pictures(renders[-1]), find_pictures(run / "teacher")
    numbers = [n for n in theirs if n in ours]
    chosen = numbers[:: max(1, len(numbers) // SHOWN)][:SHOWN]
    row = []
    for number in chosen:
        student, _ = read_reference(ours[number], "white")
        teacher, _ = read_reference(theirs[number], "white")
        row += [
            (f"view {number}: teacher", teacher),
            ("student", student),
            (f"difference x{ERROR_GAIN}", error_map(student, teacher)),
        ]
    report.heading("Pictures").pictures(row, columns=3)


def _cost(report: Report, run: Path) -> None:
    rows = [row for row in read_records(run) if "perf/cpu_s" in row and "metric/psnr_db" in row]
    if len(rows) < 2:
        return
    seconds = [row["perf/cpu_s"] for row in rows]
    quality = [row["metric/psnr_db"] for row in rows]
    blank = rows[-1].get("baseline/blank/psnr_db")
    report.heading("Quality against cost").curves(
        {"student against teacher": (seconds, quality)},
        "CPU seconds",
        "PSNR on a few evaluation views, dB",
        baselines={"empty picture": blank} if blank is not None else None,
    )


def _frames(report: Report, frames: list[dict[str, Any]]) -> None:
    report.heading("Each view, student against teacher").table(
        ("view", *COLUMNS), [(f["name"], *(_number(f.get(c)) for c in COLUMNS)) for f in frames]
    )
