"""One page over a folder of runs: a table to sort, with a link to the report of each run."""

import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from loom.errors import UserError
from loom.files import explained
from loom.record import METRICS_FILE
from loom.report import Cell, Link, Report
from loom.report_run import STATE_MARK, write_standard_page
from loom.run_directory import GATES_FILE, REPORT_FILE, RUN_FILE, STATUS_FILE
from loom.runs import Summary, find_runs, shown_gates

INDEX_FILE = "index.html"
_HEAD_BYTES = 1024  # of a page, with its marks
_NAMED = 8  # runs in one warning; the rest are counted


def write_index(root: Path, output: Path | None = None) -> Path:
    """Write the page of all runs below a folder, and the reports that it links.

    A run without a report gets the standard one, where its folder can be written; a standard one is
    renewed when its run has gone on or ended since. A report that the run's thread wrote is kept;
    where the run has recorded more since, the page says so.

    Args:
        root: The folder of the runs.
        output: The page, by default `index.html` in the folder.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    summaries = find_runs(root)
    if not summaries:
        raise UserError(f"{root}: no runs", hint="give the folder that holds them")
    outdated = []
    for each in summaries:
        with suppress(UserError):  # a folder of somebody else stands there as it is
            outdated += [each.path] if _renewed(Path(each.path), each.state) else []
    output = output if output is not None else root / INDEX_FILE
    return index_report(summaries, output.parent, outdated).write(output)


def _renewed(run: Path, state: str) -> bool:
    """Bring a run's page up to date; return whether it is old and not ours to write."""
    page = run / REPORT_FILE
    with explained(page):
        written = _changed(page)
        if not written:
            write_standard_page(run)
            return False
        with page.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
        shown = re.search(f'<meta name="{STATE_MARK}" content="([^"]*)">', head)
        if shown is None:
            return _changed(run / METRICS_FILE) > written
        files = (RUN_FILE, STATUS_FILE, METRICS_FILE, GATES_FILE)
        if shown[1] != state or max(_changed(run / name) for name in files) > written:
            write_standard_page(run)
        return False


def _changed(path: Path) -> int:
    """Return when a file was last written, in nanoseconds; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def index_report(
    summaries: Sequence[Summary], base: Path, outdated: Collection[str] = ()
) -> Report:
    """Return the page of a list of runs.

    Args:
        summaries: The runs, the newest last.
        base: The folder of the page; links are relative to it.
        outdated: Paths of the runs that have recorded more than their reports show.
    """
    states = [each.state for each in summaries]
    root = Path(os.path.commonpath([_place(each.path).parent for each in summaries]))
    report = Report("Runs", f"in {root.name}")
    report.facts({state.replace("_", " "): states.count(state) for state in dict.fromkeys(states)})
    if outdated:
        names = [_place(path).relative_to(root).as_posix() for path in outdated]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        report.warning(
            f"The reports of {', '.join(names[:_NAMED])}{more} are older than the records; "
            "`THREAD report RUN` renews one."
        )
    columns = ("run", "thread", "state", "step", "metric", "value", "gates", "began", "reason")
    report.table(columns, [_cells(each, _place(base), root) for each in reversed(summaries)])
    return report


def _cells(each: Summary, base: Path, root: Path) -> list[Cell]:
    run = _place(each.path)
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


def _place(path: str | Path) -> Path:
    """Return an absolute path that keeps links: they have the names that the user gave."""
    return Path(os.path.normpath(Path(path).absolute()))
