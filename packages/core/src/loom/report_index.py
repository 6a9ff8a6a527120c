"""One page over a folder of runs: a table to sort, with a link to the report of each run."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from loom.errors import UserError
from loom.report import Cell, Link, Report
from loom.report_run import run_report
from loom.run_directory import REPORT_FILE
from loom.runs import Summary, find_runs, shown_gates

INDEX_FILE = "index.html"


def write_index(root: Path, output: Path | None = None) -> Path:
    """Write the page of all runs below a folder, and the report of each run that has none.

    A run that has ended keeps the report that its thread wrote; one without a report gets the
    standard one, where its folder can be written.

    Args:
        root: The folder of the runs.
        output: The page, by default `index.html` in the folder.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    summaries = find_runs(root)
    if not summaries:
        raise UserError(f"{root}: no runs", hint="give the folder that holds them")
    for each in summaries:
        report = Path(each.path) / REPORT_FILE
        if not report.exists():
            with suppress(UserError):  # a folder that cannot be written stands there without a link
                run_report(Path(each.path)).write(report)
    output = output if output is not None else root / INDEX_FILE
    return index_report(summaries, output.parent).write(output)


def index_report(summaries: Sequence[Summary], base: Path) -> Report:
    """Return the page of a list of runs.

    Args:
        summaries: The runs, the newest last.
        base: The folder of the page; links are relative to it.
    """
    states = [each.state for each in summaries]
    root = Path(os.path.commonpath([Path(each.path).resolve().parent for each in summaries]))
    report = Report("Runs", f"in {root.name}")
    report.facts({state.replace("_", " "): states.count(state) for state in dict.fromkeys(states)})
    columns = ("run", "thread", "state", "step", "metric", "value", "gates", "began", "reason")
    report.table(columns, [_cells(each, base.resolve(), root) for each in reversed(summaries)])
    return report


def _cells(each: Summary, base: Path, root: Path) -> list[Cell]:
    run = Path(each.path).resolve()
    name = run.relative_to(root).as_posix()
    link = Path(os.path.relpath(run / REPORT_FILE, base)).as_posix()
    return [
        Link(name, link) if (run / REPORT_FILE).is_file() else name,
        each.thread or "",
        each.state.replace("_", " "),
        "" if each.step is None else f"{each.step} of {each.total}",
        each.metric or "",
        each.value,
        shown_gates(each),
        (each.began or "")[:16].replace("T", " "),
        each.reason or "",
    ]
