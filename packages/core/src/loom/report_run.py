"""The standard part of every run's report, read from its directory alone.

`run_report` takes what `loom.run`, `loom.record` and `loom.gates` have written; a thread adds its
own sections to what it returns. A run that died, or is still going on, gets a report too: what is
missing or damaged is named in a warning, and the rest is shown.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from loom.errors import UserError
from loom.files import read_json
from loom.gates import by_gate
from loom.progress import STATUS_FILE, read_status
from loom.provenance import shown_changes
from loom.record import METRICS_FILE, Row, read_records
from loom.report import Cell, Report
from loom.report_curves import Curves
from loom.run_directory import GATES_FILE, REPORT_FILE, RUN_FILE, require_thread
from loom.runs import summary

STATE_MARK = "loom-run-state"
"""In the head of a page that holds nothing of a thread: the state in which it shows the run."""

_METRIC, _BASELINE = "metric/", "baseline/"
_ENDS = {
    "failed": "This run failed",
    "died": "This run died",
    "stopped": "This run was stopped",
    "gate_missed": "This run missed a gate",
}
_LOGARITHMIC = ("loss", "loss_weighted")  # families that fall by powers of ten
_LINES = 6  # series in one figure, more than that cannot be told apart

T = TypeVar("T")


def run_report(
    directory: Path,
    judgement: Callable[[Report], None] = lambda _: None,
    *,
    thread: str | None = None,
) -> Report:
    """Return the report of one run: how it ended, gates, scores, curves, configuration, facts.

    Args:
        directory: The run's directory.
        judgement: Adds the thread's own sections; they stand before the curves of the training.
        thread: Whose sections they are; any if None.

    Raises:
        UserError: There is no such directory, or it holds no run, or one of another thread, whose
            page would be lost.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such run", hint="`loom runs` lists the runs")
    if not any((directory / name).is_file() for name in (RUN_FILE, STATUS_FILE, METRICS_FILE)):
        raise UserError(f"{directory} is no run's directory", hint="`loom runs` lists the runs")
    if thread is not None:
        require_thread(directory, thread, hint="its own thread has a `report`, too")
    damaged: list[str] = []
    run = _read(damaged, RUN_FILE, dict, lambda: dict(read_json(directory / RUN_FILE)))
    status = _read(damaged, STATUS_FILE, dict, lambda: dict(read_status(directory)))
    rows = _read(damaged, METRICS_FILE, list, lambda: read_records(directory))
    gates = _read(damaged, GATES_FILE, list, lambda: _gates(directory / GATES_FILE))

    report = Report(
        f"{run.get('thread', 'run')} / {directory.resolve().name}", _text(run, "command")
    )
    _warnings(report, run, status, damaged)
    report.facts(_summary(run, status, rows))
    judgement(report)
    report.heading("Gates during the run").gates(gates)
    _scores(report, rows)
    _curves(report, rows)
    config = run.get("config")
    if isinstance(config, Mapping):
        origins = run.get("config_origins")
        report.heading("Configuration")
        report.config(config, origins if isinstance(origins, Mapping) else {})
    if run:
        report.heading("Where it ran").facts(_machine(run))
    return report


def write_standard_page(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a run without its thread's sections, by default in its directory.

    The page is marked as such, so that `loom report --all` may renew it.

    Raises:
        UserError: There is no such directory, it holds no run, or the disk refuses.
    """
    report = run_report(directory)
    report.marks[STATE_MARK] = summary(directory).state
    return report.write(output if output is not None else directory / REPORT_FILE)


def _read(damaged: list[str], name: str, empty: Callable[[], T], read: Callable[[], T]) -> T:
    """Read one file of the run; note why it cannot be read and go on without it."""
    try:
        return read()
    except UserError as error:
        damaged.append(error.message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        damaged.append(f"{name} is not what Loom wrote ({error!r})")
    return empty()


def _warnings(
    report: Report, run: Mapping[str, Any], status: Mapping[str, Any], damaged: list[str]
) -> None:
    """Put what a reader must know before any number at the top."""
    ended = _ENDS.get(str(status.get("state")))
    if ended is not None:
        report.warning(f"{ended}: {status.get('reason') or 'no reason given'}")
    shortened = _entries(run, "shortened")
    for entry in shortened:
        report.warning(
            f"This run was shortened: {entry.get('key')} is {entry.get('now')} where the "
            f"configuration says {entry.get('was')}. Its numbers are not those of a full run."
        )
    said = run.get("warnings")
    for text in said if isinstance(said, list) else []:
        if not (shortened and "using override regardless" in str(text)):  # the same, in log words
            report.warning(str(text))
    for text in damaged:
        report.warning(f"Left out of this page: {text}")


def _summary(run: Mapping[str, Any], status: Mapping[str, Any], rows: list[Row]) -> dict[str, Cell]:
    facts: dict[str, Cell] = {"state": str(status.get("state", "unknown")).replace("_", " ")}
    if rows:
        facts["last recorded step"] = rows[-1]["step"]
    for name, key in (("began", "began"), ("seed", "seed"), ("device", "device")):
        if run.get(key) is not None:
            facts[name] = run[key]
    git = run.get("git")
    if isinstance(git, Mapping):
        facts["commit"] = f"{str(git.get('commit'))[:12]} ({shown_changes(git.get('dirty'))})"
    for name, parent in _mapping(run, "parents").items():
        digest = str(parent.get("sha256", ""))[:16] if isinstance(parent, Mapping) else ""
        facts[name] = f"sha256 {digest}…"
    return facts


def _machine(run: Mapping[str, Any]) -> dict[str, Cell]:
    """Return the rest of `run.json`, one line per entry."""
    shown = {"thread", "command", "config", "config_origins", "warnings", "shortened", "began"}
    facts: dict[str, Cell] = {}
    for key, value in run.items():
        if key in shown or value in (None, {}, []):
            continue
        if isinstance(value, Mapping):
            facts |= {f"{key} {name}": _plain(entry) for name, entry in value.items()}
        elif isinstance(value, list):
            facts |= {f"{key} {index}": _plain(entry) for index, entry in enumerate(value, 1)}
        else:
            facts[key.replace("_", " ")] = _plain(value)
    return facts


def _gates(path: Path) -> list[Mapping[str, Any]]:
    """Return the last answer of each gate, and every answer before it that was no pass."""
    if not path.exists():
        return []
    answers: list[Mapping[str, Any]] = [dict(answer) for answer in read_json(path)]
    named = by_gate(answers, lambda answer, name: answer.get(name))
    last = {gate: index for index, (gate, _) in enumerate(named)}
    kept = set(last.values())
    return [
        answer
        for index, answer in enumerate(answers)
        if index in kept or answer.get("passed") is not True
    ]


def _scores(report: Report, rows: list[Row]) -> None:
    """Show the last value of each metric, with the recorded baselines in the same table."""
    last = _last_values(rows)
    measured = {key.removeprefix(_METRIC): v for key, v in last.items() if key.startswith(_METRIC)}
    if not measured:
        return
    baselines: dict[str, dict[str, float | None]] = {}
    for key, value in last.items():
        if key.startswith(_BASELINE):
            name, _, metric = key.removeprefix(_BASELINE).rpartition("/")
            baselines.setdefault(f"{name} (baseline)", {})[metric] = value
    note = "The last recorded value of each metric."
    if not baselines:
        note += " No trivial baseline was recorded beside them."
    report.heading("Scores").scores({"this run": measured}, baselines, note)


def _curves(report: Report, rows: list[Row]) -> None:
    """Draw what has a unit of its own by itself, metrics with baselines, and the rest by family."""
    last = _last_values(rows)
    families: dict[str, list[str]] = {}
    for key in last:
        measured = any(row.get(key) is not None for row in rows)
        if measured and not key.startswith((_BASELINE, "run/")):
            family = key if key.startswith((_METRIC, "perf/")) else key.rpartition("/")[0] or key
            families.setdefault(family, []).append(key)
    figures = []
    for family, keys in sorted(families.items(), key=lambda item: not item[0].startswith(_METRIC)):
        for start in range(0, len(keys), _LINES):
            series = {_leaf(key): _series(rows, key) for key in keys[start : start + _LINES]}
            levels = {
                key.removeprefix(_BASELINE).rpartition("/")[0]: value
                for key, value in last.items()
                if key.startswith(_BASELINE) and _leaf(key) == _leaf(family) and value is not None
            }
            title = family.removeprefix(_METRIC)
            figures.append(Curves(series, "step", title, levels, log=family in _LOGARITHMIC))
    if figures:
        report.heading("Curves").curves_grid(figures)


def _series(rows: list[Row], key: str) -> tuple[list[float], list[float | None]]:
    points = [(row["step"] or 0, row[key]) for row in rows if key in row]
    return [step for step, _ in points], [value for _, value in points]


def _last_values(rows: list[Row]) -> dict[str, float | None]:
    """Return the last value of every key; None where it was asked for but not measured."""
    last: dict[str, float | None] = {}
    for row in rows:
        last |= {key: value for key, value in row.items() if key not in ("step", "time")}
    return last


def _leaf(key: str) -> str:
    return key.rpartition("/")[2]


def _text(run: Mapping[str, Any], key: str) -> str:
    return str(run.get(key) or "")


def _mapping(run: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = run.get(key)
    return value if isinstance(value, Mapping) else {}


def _entries(run: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = run.get(key)
    return [e for e in value if isinstance(e, Mapping)] if isinstance(value, list) else []


def _plain(value: object) -> Cell:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value)
    return str(value)
