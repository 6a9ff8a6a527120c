"""Does distilling features help the picture? Equal trainings that differ in one term, by seed.

Each condition is a training of the same length on the same teacher. Its pictures are judged on
every evaluation view, its features by their cosine along the rays of a few views, whatever they
were trained on. Seeds are paired: the seed decides initial weights and rays of every condition, so
a difference to the condition without features is a difference within seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.evaluation.statistics import Interval, mean_interval
from loom.files import read_json, write_json
from loom.jobs import Executor, Job, Local, Sweep
from loom.report import Cell, Report
from loom.runs import last_metrics

from featdistill.assess import STUDENT_TEACHER, read_results, stored_means
from featdistill.embedded import embedded_scene, embedded_teacher

RUNS, STUDY_FILE, REPORT_FILE = "runs", "study.json", "report.html"
REFERENCE = "no features"
_DATA = ("data.scene=", "data.teacher=", "data.camera_json=")
METRICS = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "alpha_iou": "alpha IoU",
    "feature_cosine": "feature cosine",
    "cpu_s": "CPU-seconds",
}
GAIN = "psnr_gain_db"
_FORMATS = {
    "psnr_db": ".2f",
    "ssim": ".4f",
    "alpha_iou": ".4f",
    "feature_cosine": ".3f",
    "cpu_s": ".0f",
    GAIN: "+.2f",
}


@dataclass(frozen=True)
class Settings:
    """What a study varies.

    Attributes:
        seeds: Of every condition.
        l2_weight: Of the squared feature error where it is on.
        cos_weight: Of one minus the feature cosine where it is on.
        opacity_weight: Of the opacity loss in the two conditions that compare its targets.
        opacity_target: The constant opacity that the notes pulled every ray to.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    l2_weight: float = 0.05
    cos_weight: float = 0.01
    opacity_weight: float = 0.05
    opacity_target: float = 0.05

    def conditions(self) -> dict[str, tuple[str, ...]]:
        """Return what each condition sets."""
        off = ("feature_pipeline.enabled=false",)
        found = {REFERENCE: off}
        for source in ("per_pixel", "per_sample"):
            for name, l2, cosine in (("L2", 1, 0), ("cos", 0, 1), ("L2+cos", 1, 1)):
                found[f"{name}, {source.replace('_', ' ')}"] = (
                    f"feature_pipeline.feature_source={source}",
                    f"loss.feature_l2.weight={l2 * self.l2_weight!r}",
                    f"loss.feature_cos.weight={cosine * self.cos_weight!r}",
                )
        for label, target in (("teacher", "teacher"), (f"{self.opacity_target:g}", None)):
            found[f"opacity towards {label}"] = (
                *off,
                f"loss.opacity.weight={self.opacity_weight!r}",
                f"loss.opacity.target_weight={self.opacity_weight!r}",
                f"loss.opacity.target={target or self.opacity_target!r}",
            )
        return found


def folder_name(condition: str) -> str:
    """Return the folder of a condition: its words joined by dashes."""
    return condition.replace(",", "").replace("+", "-and-").replace(" ", "-")


def plan(settings: Settings, overrides: Sequence[str], root: Path) -> Sweep:
    """Return the trainings, seed by seed, so that a study that is stopped has whole seeds.

    Args:
        settings: What varies.
        overrides: What all trainings share, as `KEY=VALUE`.
        root: Folder of the study.
    """
    taken = {"seed", "name"} & {override.partition("=")[0] for override in overrides}
    if taken:
        raise UserError(
            f"{', '.join(sorted(taken))} is set by the study itself", hint="use --seeds"
        )
    seeds = settings.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(
            f"--seeds {','.join(map(str, seeds))}: each has to be there once, and none below 0",
            hint="for instance --seeds 0,1,2",
        )
    jobs = []
    for seed in settings.seeds:
        for condition, own in settings.conditions().items():
            name = folder_name(condition)
            run = (root / RUNS / name / f"seed-{seed}").absolute()
            command = [sys.executable, "-m", "featdistill", "train", "--run-dir", str(run)]
            command += ["--archive", *overrides, *own, f"seed={seed}", f"name={name}"]
            done = [str(run / "report.html")]
            jobs.append(Job(f"{name}.seed-{seed}", command, directory=Path.cwd(), outputs=done))
    return Sweep("study", jobs)


def run_study(
    settings: Settings,
    overrides: Sequence[str],
    root: Path,
    *,
    executor: Executor | None = None,
    resume: bool = False,
    say: Callable[[str], Any] = print,
) -> bool:
    """Run what is not done and write the table; return whether every training went well.

    Without an executor the trainings run here, one after the other.
    """
    sweep = plan(settings, overrides, root)
    if not any(each.startswith(_DATA) for each in overrides):  # once, before trainings need it
        embedded_scene(say)
        embedded_teacher(say)
    well = True
    for event in (executor or Local()).run(sweep, root, resume=resume, retry_failed=True):
        say(str(event))
        well &= event.kind not in ("failed", "interrupted")
    write_study(settings, overrides, root)
    return well


def measured(root: Path, condition: str, seeds: Sequence[int]) -> dict[str, list[float | None]]:
    """Return each metric of a condition by seed; None where a training has not ended."""
    values: dict[str, list[float | None]] = {metric: [] for metric in METRICS}
    for seed in seeds:
        run = root / RUNS / folder_name(condition) / f"seed-{seed}"
        results = read_results(run)
        means = stored_means(results[STUDENT_TEACHER]) if STUDENT_TEACHER in results else {}
        last = last_metrics(run)
        means["feature_cosine"] = last.get("metric/feature_cosine")
        means["cpu_s"] = last.get("perf/cpu_s")
        for metric, column in values.items():
            column.append(means.get(metric) if results else None)
    return values


def write_study(settings: Settings, overrides: Sequence[str], root: Path) -> Path:
    """Write `study.json` and the page; return the page."""
    found = {name: measured(root, name, settings.seeds) for name in settings.conditions()}
    reference = found[REFERENCE]["psnr_db"]
    rows, table = [], []
    for name, values in found.items():
        gains = differences(values["psnr_db"], reference) if name != REFERENCE else []
        row = {"condition": name, **values, GAIN: gains}
        rows.append(_cells(row))
        table.append(row)
    content = {"seeds": settings.seeds, "overrides": list(overrides), "conditions": table}
    write_json(root / STUDY_FILE, content)
    report = Report("featdistill study", " ".join(overrides))
    seeds = ", ".join(map(str, settings.seeds))
    note = (
        f"Student against teacher over all evaluation views, seeds {seeds}. Mean [95 % interval of "
        "Student's t over seeds]; the gain is paired by seed with the training without features. "
        "The feature cosine is measured along rays; it is not evaluated where nothing learns it."
    )
    report.heading("Conditions").table(columns(), rows, note)
    return report.write(root / REPORT_FILE)


def columns() -> tuple[str, ...]:
    """Return the heads of the table."""
    return ("condition", *METRICS.values(), "PSNR gain, dB")


def differences(
    values: Sequence[float | None], reference: Sequence[float | None]
) -> list[float | None]:
    """Return the difference of each seed; None where one of the two is missing."""
    pairs = zip(values, reference, strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    """Write a condition's row, in the order of `columns`."""
    return [row["condition"], *(_shown(row[metric], form) for metric, form in _FORMATS.items())]


def _shown(values: Sequence[float | None], form: str) -> Cell:
    """Write `35.10 [34.81, 35.43]`; the mean alone where there is but one seed."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    interval = mean_interval(known)
    if not isinstance(interval, Interval):
        return format(mean, form)
    return f"{mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def markdown(root: Path) -> str:
    """Return the table of a study as Markdown."""
    content = read_json(root / STUDY_FILE)
    lines = ["| " + " | ".join(columns()) + " |", "|" + "---|" * len(columns())]
    for row in content["conditions"]:
        shown = ["" if cell is None else str(cell) for cell in _cells(row)]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
