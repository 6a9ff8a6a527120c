"""`pinpad monitor`: the run under way, all of the sweep, and what became of every run.

On a terminal the picture is drawn over and over; into a pipe or a file go lines, one whenever a run
has moved on to something else or ten seconds have gone by, and the picture at the end.
"""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pinpad.sweep.state import RunState, SweepState, read_sweep

REFRESH_S, LINE_S = 1.0, 10.0
"""Between two looks at the sweep, and between two lines of a monitor without a terminal."""
BAR_COLUMNS = 40
STYLES = {
    "done": "green",
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "dead": "bold red",
    "interrupted": "yellow",
    "skipped": "yellow",
}


def follow(logroot: Path) -> SweepState:
    """Show a sweep until it ends; return its last state."""
    console = _console()
    if not console.is_terminal:
        return _follow_in_lines(logroot, console)
    with Live(console=console, auto_refresh=False) as live:
        for state in states(logroot):
            live.update(picture(state), refresh=True)
    return state


def show(logroot: Path) -> SweepState:
    """Show a sweep once; return its state."""
    state = read_sweep(logroot)
    _console().print(picture(state))
    return state


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)  # a pipe cuts nothing


def _follow_in_lines(logroot: Path, console: Console) -> SweepState:
    said, said_at = None, 0.0
    for state in states(logroot):
        stages = [(run.state, run.stage) for run in state.runs]
        if stages != said or time.monotonic() - said_at >= LINE_S:
            said, said_at = stages, time.monotonic()
            console.print(Text(line(state)), soft_wrap=True)
    console.print(picture(state))
    return state


def line(state: SweepState) -> str:
    """Return how far a sweep is, in one line."""
    run, parts = state.current, [f"{datetime.now():%H:%M:%S} {state.state}"]
    if run is not None:
        steps = f" {run.step}/{run.total}" if run.total else ""
        parts.append(f"({run.index}/{len(state.runs)}) {run.name} {run.stage}{steps}")
    return ", ".join([*parts, f"all {100 * state.share:.0f} %", _note(state)])


def states(logroot: Path, interval_s: float = REFRESH_S) -> Iterator[SweepState]:
    """Yield the state of a sweep again and again, until it does not run any more."""
    while True:
        state = read_sweep(logroot)
        yield state
        if state.state != "running":
            return
        time.sleep(interval_s)


def picture(state: SweepState) -> Group:
    """Return both bars and the table of runs."""
    bars = Table.grid(padding=(0, 1))
    for _ in range(4):
        bars.add_column(no_wrap=True)
    run = state.current
    if run is not None:
        name = f"({run.index}/{len(state.runs)}) {run.name}"
        note = f"{run.step}/{run.total} {run.stage}" if run.total else run.stage
        bars.add_row(name, _bar(run.share), f"{100 * run.share:.0f} %", note)
    bars.add_row("all", _bar(state.share), f"{100 * state.share:.0f} %", _note(state))
    head = Text.assemble(state.logroot, "  ", (state.state.upper(), STYLES.get(state.state, "")))
    if state.state == "dead":
        head.append(f": no sign of life from process {state.pid} for {state.age_s:.0f} s")
        head.append("; resume completes it", "dim")
    return Group(head, bars, _table(state.runs))


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=BAR_COLUMNS)


def _note(state: SweepState) -> str:
    ended = state.count("done") + state.count("failed")
    note = f"{ended} of {len(state.runs)} ended, {state.count('failed')} failed"
    if state.state != "running" or state.eta_s is None:
        return note
    return f"{note}, {timedelta(seconds=round(state.eta_s))} left"


def _table(runs: tuple[RunState, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "run", "state", "stage", "step", "of", "steps/s"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        rate = "" if run.rate is None else f"{run.rate:.1f}"
        state = Text(run.state, STYLES.get(run.state, "dim"))
        steps = (str(run.step), str(run.total)) if run.total else ("", "")
        table.add_row(str(run.index), run.name, state, run.stage, *steps, rate, Text(run.detail))
    return table
