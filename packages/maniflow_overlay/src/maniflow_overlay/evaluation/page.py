"""The page of a matrix, and the same tables for the terminal and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
from loom.drawing import print_json, print_table
from loom.errors import UserError
from loom.files import read_json, write_json
from loom.progress import STATUS_FILE
from loom.report import Report
from loom.report_run import run_report

from maniflow_overlay.evaluation.judgement import Comparison, Rate, comparisons, rates
from maniflow_overlay.evaluation.matrix import CELLS, Cell, read_cells
from maniflow_overlay.evaluation.rollout import Condition

FOLDER, STRIPS, SUMMARY = "evaluation", "strips.json", "matrix.json"
ROLLOUTS = "rollouts"


def columns_of(cells: Sequence[Cell]) -> list[Condition]:
    """Return the conditions that tables have a column for, with every quality that occurs."""
    found = dict.fromkeys(cell.condition for cell in cells)
    chosen = [c for c in found if c.quality is not None] or list(found)
    return sorted(chosen, key=lambda c: (c.task, c.occluded))


def title(condition: Condition) -> str:
    """Return the name of a column."""
    return f"{'occluded' if condition.occluded else 'clear'}, {condition.quality or 'no path'}"


def rate_table(found: Sequence[Rate], columns: Sequence[Condition]) -> list[list[str | None]]:
    """Return a row per arm: its name, then its rate in every condition; None where not tried.

    An arm that sees no path has one rate for all qualities, which stands in each of them.
    """
    rows: dict[str, list[str | None]] = {}
    for arm in dict.fromkeys(rate.arm for rate in found):
        cells: list[str | None] = []
        for condition in columns:
            same = [
                rate
                for rate in found
                if (rate.arm, rate.condition.task) == (arm, condition.task)
                and rate.condition.occluded == condition.occluded
                and rate.condition.quality in (None, condition.quality)
            ]
            cells.append(same[0].shown() if same else None)
        rows[arm] = cells
    return [[arm, *cells] for arm, cells in rows.items()]


def is_matrix(folder: Path) -> bool:
    """Tell whether a folder is a matrix that has played a cell."""
    return (folder / FOLDER / CELLS).is_file()


def _cells(folder: Path) -> list[Cell]:
    if not is_matrix(folder):
        raise UserError(
            f"{folder} is no matrix: it has no {FOLDER}/{CELLS}",
            hint="play one: maniflow-overlay eval matrix --policy RUN",
        )
    return read_cells(folder / FOLDER / CELLS)


def print_matrix(folder: Path, *, as_json: bool = False) -> None:
    """Print the rates; as JSON also the comparisons, as `summary` has them."""
    cells = _cells(folder)
    if as_json:
        print_json(summary(cells))
        return
    for task, columns in _by_task(cells).items():
        titles = ["arm", *(title(condition) for condition in columns)]
        print_table([task, *titles[1:]], rate_table(rates(cells), columns))


def _by_task(cells: Sequence[Cell]) -> dict[str, list[Condition]]:
    columns = columns_of(cells)
    return {
        task: [c for c in columns if c.task == task]
        for task in dict.fromkeys(condition.task for condition in columns)
    }


def write_page(folder: Path) -> Path:
    """Write `report.html` and `evaluation/matrix.json` of a matrix."""
    cells = _cells(folder)
    write_json(folder / FOLDER / SUMMARY, summary(cells))
    return run_report(folder, lambda page: _judge(page, folder, cells)).write(
        folder / "report.html"
    )


def summary(cells: Sequence[Cell]) -> dict[str, list[dict]]:
    """Return rates and comparisons as plain values."""
    return {
        "rates": [_plain(rate) for rate in rates(cells)],
        "comparisons": [_plain(comparison) for comparison in comparisons(cells)],
    }


def _plain(row: Rate | Comparison) -> dict:
    fields = row._asdict()
    condition = fields.pop("condition")
    place = {name: getattr(condition, name) for name in ("task", "occluded", "quality")}
    return {**place, **fields}


def _judge(report: Report, folder: Path, cells: Sequence[Cell]) -> None:
    found = rates(cells)
    episodes = len(cells[0].outcomes)
    scene = _scene(folder)
    for task, columns in _by_task(cells).items():
        report.heading(f"Success: {task}")
        report.table(
            ["arm", *map(title, columns)],
            rate_table(found, columns),
            f"{episodes} episodes a cell and training{scene}, the same in all cells; Wilson's "
            "interval of 95 % over episodes, trainings pooled",
        )
    report.heading("Each cell").table(
        ["arm", "task", "table", "path", "trainings", "episodes", "success", "low", "high"]
        + ["worst", "best training", "right block lifted", "another block lifted"],
        [
            [r.arm, r.condition.task, "occluded" if r.condition.occluded else "clear"]
            + [r.condition.quality or "not seen", r.runs, r.episodes, r.rate, r.low, r.high]
            + [r.lowest, r.highest, r.picked, r.mistaken]
            for r in found
        ],
    )
    compared = comparisons(cells)
    for task in dict.fromkeys(c.condition.task for c in compared):
        report.heading(f"Arms compared on the same episodes: {task}").table(
            ["first", "second", "condition", "trainings", "gain", "low", "high", "p, Holm"]
            + ["McNemar in each, Holm", "p", "only first", "only second"],
            [
                [c.first, c.second, title(c.condition), c.runs, c.gain, c.low, c.high, c.p_holm]
                + [", ".join(f"{p:.2g}" for p in c.mcnemar_holm), c.p, c.only_first, c.only_second]
                for c in compared
                if c.condition.task == task
            ],
            "Of arms: gain, its interval of 95 % and p over trainings and episodes (min F': would "
            "other trainings gain on other tables, too?), from two trainings of each arm on. Of "
            "single networks: McNemar's exact test within each pair of trainings. All two-sided; "
            "Holm's correction over all comparisons of the matrix",
        )
    _strips(report, folder)


def _scene(folder: Path) -> str:
    """Say which scene `auto` chose, as far as the matrix noted it."""
    status = read_json(folder / STATUS_FILE) if (folder / STATUS_FILE).is_file() else {}
    scene = status.get("scene") if isinstance(status, dict) else None
    return f" in the {scene} scene" if isinstance(scene, str) else ""


def _strips(report: Report, folder: Path) -> None:
    listed = folder / FOLDER / STRIPS
    if not listed.is_file():
        return
    pictures = []
    for name, caption in json.loads(listed.read_text(encoding="utf-8")).items():
        strip = cv2.imread(str(folder / FOLDER / ROLLOUTS / name), cv2.IMREAD_COLOR)
        if strip is not None:
            pictures.append((caption, strip[..., ::-1].copy()))
    if pictures:
        report.heading("Rollouts").text(
            "Steps of single episodes, with the path where the policy is shown one. Green: solved; "
            "red: not. The animations lie beside, in evaluation/rollouts."
        )
        report.pictures(pictures, columns=1)
