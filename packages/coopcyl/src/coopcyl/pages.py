"""The page of a run: how good the poses are, beside the trivial answers, and how sure."""

from pathlib import Path
from typing import Any

from loom.files import read_json
from loom.report import Report
from loom.report_run import run_report

RESULTS = "evaluation/results.json"


def read_results(run: Path) -> dict[str, Any]:
    """Return what the judgement at the end of a training left, or nothing."""
    path = run / RESULTS
    return dict(read_json(path)) if path.is_file() else {}


def write_report(run: Path) -> Path:
    """Write `report.html` of a run: judgement first, then the core's part."""
    results = read_results(run)
    return run_report(run, lambda page: _judgement(page, results)).write(run / "report.html")


def _judgement(report: Report, results: dict[str, Any]) -> None:
    if not results:
        return
    report.heading(f"Judged on {results['sets']} sets that were not learned from")
    report.scores(
        {"network": results["metrics"]},
        results["baselines"],
        "Metres and degrees; no scale is fitted and no frame is aligned.",
    )
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
