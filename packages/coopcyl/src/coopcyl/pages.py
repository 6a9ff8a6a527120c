"""The page of a run: how good the poses are, beside the trivial answers, and how sure."""

from pathlib import Path
from typing import Any

from loom.files import read_json
from loom.report import Report
from loom.report_run import run_report

RESULTS = "evaluation/results.json"
SHOWN = {
    "trans_err_m_median": "median m",
    "trans_err_m_mean": "mean m",
    "trans_err_m_p90": "p90 m",
    "success_1_m": "< 1 m",
    "success_2_m": "< 2 m",
    "success_5_m": "< 5 m",
    "rot_err_deg_median": "rot deg",
    "yaw_err_deg_median": "yaw deg",
    "auc_5_deg": "AUC 5",
    "auc_15_deg": "AUC 15",
    "auc_30_deg": "AUC 30",
    "absrel": "absrel",
    "scale_ratio": "scale",
    "iou": "mask IoU",
    "bce_over_entropy": "bce/H",
}
"""Metric -> its name in tables."""
_FIRST_TABLE = 8


def read_results(run: Path) -> dict[str, Any]:
    """Return what the judgement at the end of a training left, or nothing."""
    path = run / RESULTS
    return dict(read_json(path)) if path.is_file() else {}


def write_report(run: Path) -> Path:
    """Write `report.html` of a run: judgement first, then the core's part.

    Raises:
        UserError: There is no run, or one of another thread, whose page would be lost.
    """
    results = read_results(run)
    report = run_report(run, lambda page: _judgement(page, results), thread="coopcyl")
    return report.write(run / "report.html")


def _judgement(report: Report, results: dict[str, Any]) -> None:
    if not results:
        return
    split = f" of {results['split']}" if "split" in results else ""
    report.heading(f"Judged on {results['sets']} sets{split}")
    names = list(SHOWN)
    for part, note in (
        (names[:_FIRST_TABLE], "Metres, shares and degrees; no scale is fitted, no frame aligned."),
        (names[_FIRST_TABLE:], "Areas under recall curves; ranges and masks, means over views."),
    ):
        baselines = {name: _shown(row, part) for name, row in results["baselines"].items()}
        report.scores({"network": _shown(results["metrics"], part)}, baselines, note)
    shares, errors = zip(*results["confidence_curve"], strict=True)
    report.curves(
        {"median error": (list(shares), list(errors))},
        x_label="share of the sets, the most confident first",
        y_label="position error (m)",
    )
    ordered = sorted(results["trans_err_m"])
    reached = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
    report.curves(
        {"network": (ordered, reached)},
        x_label="position error (m)",
        y_label="share of the sets below",
    )


def _shown(metrics: dict[str, float], keys: list[str]) -> dict[str, float]:
    """Return some metrics by their short names."""
    return {SHOWN[key]: metrics[key] for key in keys if key in metrics}
