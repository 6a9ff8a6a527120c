"""Keep what runs measured, and write docs/results.md from it: no number is typed by hand.

    uv run scripts/results.py record pinpad-agent runs/three-seed0 runs/three-seed1
    uv run scripts/results.py write       # docs/results.md, from experiments/
    uv run scripts/results.py check       # exit code 1 if that would change it

`experiments/THREAD.yaml` says what was asked, by which commands, and which figures of a run make
the table. `record` keeps of each run its settings, last metrics and evaluation, without weights, in
`experiments/records/EXPERIMENT/RUN.json`.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.config import Config, read_yaml
from loom.errors import UserError
from loom.evaluation.statistics import Interval, mean_interval
from loom.files import read_json, write_atomic
from loom.runs import last_metrics
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS, RESULTS = ROOT / "experiments", ROOT / "docs" / "results.md"
KEPT = ("evaluation/*.json", "laps.json", "report.json", "study.json")
LONGEST_LIST, MOST_BYTES, DIGITS = 64, 150_000, 7


class Table(Config):
    """A table over the records of an experiment.

    Attributes:
        title: Stands above it.
        runs: Which of the records, as a pattern of their names.
        each: "run" for a row per run, or `FILE KEY`: a row for each element of a list or mapping.
        where: What an element must have to get a row.
        columns: Heading to what stands below it: `FILE KEY.KEY` of a run, `KEY.KEY` of an element,
            `@name`, `@seed` or `@step` of the run in both; ` :.2f` behind it formats. A list of
            numbers is shown as its mean.
        mean_over: Columns of which a last row gives the mean over rows with its 95 % interval.
    """

    title: str = ""
    runs: str = "*"
    each: str = "run"
    where: dict[str, Any] = Field(default_factory=dict)
    columns: dict[str, str]
    mean_over: tuple[str, ...] = ()


class Experiment(Config):
    """A question, the commands that answer it, and how the answer is shown."""

    question: str
    documents: tuple[str, ...]
    commands: tuple[str, ...]
    note: str = ""
    file: str = Field("", description="that holds it, filled in when it is read")
    tables: tuple[Table, ...] = ()


def experiments(folder: Path = EXPERIMENTS) -> dict[str, Experiment]:
    """Return every experiment by its name, thread by thread."""
    found: dict[str, Experiment] = {}
    for path in sorted(folder.glob("*.yaml")):
        for name, content in read_yaml(path).items():
            if name in found:
                raise UserError(f"{path}: {name} is there twice", hint="give it another name")
            found[name] = Experiment.model_validate({**content, "file": path.name}, strict=False)
    return found


# Records


def record(name: str, runs: Iterable[Path], folder: Path = EXPERIMENTS) -> list[Path]:
    """Keep what runs measured; return the files.

    Args:
        name: An experiment.
        runs: Directories of runs, or of sweeps of them.
        folder: Of the experiments.
    """
    if name not in experiments(folder):
        raise UserError(f"{name} is no experiment", hint=f"add it to {folder}/THREAD.yaml first")
    written = []
    listed = [run.resolve() for run in runs]
    for run in listed:
        alone = [each.name for each in listed].count(run.name) == 1
        own = run.name if alone else f"{run.parent.name}-{run.name}"  # CONDITION/seed-0
        place = folder / "records" / name / f"{own}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        lines = [f'"{key}": {_json(value)}' for key, value in digest(run).items()]
        write_atomic(place, "{\n" + ",\n".join(lines) + "\n}\n")
        written.append(place)
    return written


def digest(run: Path) -> dict[str, Any]:
    """Return what a figure of a run depends on, and what the run measured."""
    facts = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    files = {
        str(path.relative_to(run)): kept
        for pattern in KEPT
        for path in sorted(run.glob(pattern))
        if len(_json(kept := _pruned(read_json(path)))) <= MOST_BYTES
    }
    if not files and not facts:
        raise UserError(f"{run}: neither a run nor results", hint="name the directory of a run")
    code = facts.get("git") or {}
    state = read_json(run / "status.json") if (run / "status.json").is_file() else {}
    return {
        "thread": facts.get("thread"),
        "state": state.get("state"),
        "step": state.get("step"),
        "began": str(facts.get("began", ""))[:10] or None,
        "seed": facts.get("seed"),
        "cpu": facts.get("cpu"),
        "commit": str(code["commit"])[:10] if code.get("commit") else None,
        "changed": bool(code.get("dirty")),
        "config": _pruned(facts.get("config", {})),
        "metrics": _pruned(last_metrics(run)) if (run / "metrics.jsonl").is_file() else {},
        "files": files,
    }


def _pruned(value: Any) -> Any:
    """Leave long lists out, round numbers, and cut the folders of one machine off paths."""
    if isinstance(value, Mapping):
        return {key: _pruned(each) for key, each in value.items() if not _is_long(each)}
    if isinstance(value, list):
        return [_pruned(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", value)
    return value


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONGEST_LIST


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# Tables


def rows(table: Table, records: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of a table."""
    lines, numbers = [], []
    for name, content in records.items():
        if not Path(name).match(table.runs):
            continue
        for element in _elements(table, content):
            found = [_found(key, name, content, element) for key in table.columns.values()]
            numbers.append(found)
            shown = zip(found, table.columns.values(), strict=True)
            lines.append([_shown(value, key) for value, key in shown])
    if table.mean_over and len(numbers) > 1:
        lines.append(_mean_row(table, numbers))
    return lines


def _elements(table: Table, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if table.each == "run":
        return [{}]
    found = _at(content, table.each)
    if isinstance(found, Mapping):
        found = [{"key": key, **each} for key, each in found.items()]
    wanted = table.where.items()
    return [each for each in found or () if all(each.get(key) == value for key, value in wanted)]


def _at(content: Mapping[str, Any], place: str) -> Any:
    """Follow `FILE KEY.KEY` into a record; the file may be `metrics` or `config`."""
    file, _, keys = place.partition(" ")
    value = content[file] if file in ("metrics", "config") else content["files"].get(file)
    steps = [keys] if file == "metrics" else keys.split(".") if keys else []
    return _below(value, steps)


def _below(value: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if isinstance(value, list):
            value = value[int(step)] if step.isdigit() and int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _found(key: str, name: str, content: Mapping[str, Any], element: Mapping[str, Any]) -> Any:
    key = key.partition(" :")[0]
    if key.startswith("@"):
        return name if key == "@name" else content.get(key[1:])
    return _below(element, key.split(".")) if element else _at(content, key)


def _shown(value: Any, key: str) -> str:
    form = key.partition(" :")[2]
    if isinstance(value, list) and value:
        return _mean(value, form)
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if form and isinstance(value, int | float):
        return format(value, form)
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _mean_row(table: Table, numbers: Sequence[Sequence[Any]]) -> list[str]:
    """Return the means over the rows, each with Student's interval of 95 %."""
    cells = []
    for column, (heading, key) in enumerate(table.columns.items()):
        values = [line[column] for line in numbers if line[column] is not None]
        if heading not in table.mean_over or not values:
            cells.append("" if column else f"mean of {len(numbers)}")
            continue
        cells.append(_mean(values, key.partition(" :")[2]))
    return cells


def _mean(values: Sequence[float | None], form: str) -> str:
    """Return the mean of what was measured, with Student's interval of 95 % from two values on."""
    measured = [value for value in values if value is not None]
    if not measured:
        return ""
    text = format(sum(measured) / len(measured), form or ".4g")
    found = mean_interval(measured)
    if isinstance(found, Interval):
        text += f" [{format(found.low, form or '.4g')}, {format(found.high, form or '.4g')}]"
    return text


# The page

HEAD = """\
# Results

Written by `scripts/results.py` from the records in [experiments/records](../experiments/records);
nothing here is typed by hand, and a test compares. Means over seeds have Student's interval of
95 %; a single seed has none. [CONTRIBUTING.md](../CONTRIBUTING.md) says how to add a run.
"""


def page(folder: Path = EXPERIMENTS) -> str:
    """Return docs/results.md."""
    parts = [HEAD]
    for name, experiment in experiments(folder).items():
        paths = sorted((folder / "records" / name).glob("*.json"))
        records = {path.stem: read_json(path) for path in paths}
        if not records:
            continue
        parts.append(f"## {name}\n\n{experiment.question}\n")
        parts += [_markdown(table, rows(table, records)) for table in experiment.tables]
        parts.append(f"{experiment.note}\n" if experiment.note else "")
        parts.append(_origin(experiment, list(records.values())))
    return "\n".join(part for part in parts if part)


def _markdown(table: Table, lines: Sequence[Sequence[str]]) -> str:
    heads = list(table.columns)
    ruled = [heads, ["---"] * len(heads), *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"
    return f"{table.title}\n\n{text}" if table.title else text


def _origin(experiment: Experiment, each: Sequence[Mapping[str, Any]]) -> str:
    """Return where the figures come from: commands, runs, commits, machines, days."""
    commits = {
        f"{one['commit']}{' with changes' if one['changed'] else ''}"
        for one in each
        if one["commit"]
    }
    parts = [f"{len(each)} record{'s' if len(each) > 1 else ''}"]
    parts += [f"commit {', '.join(sorted(commits))}"] if commits else []
    parts += [", ".join(sorted({one["cpu"] for one in each if one["cpu"]}))]
    parts += [", ".join(sorted({one["began"] for one in each if one["began"]}))]
    commands = f"[commands](../experiments/{experiment.file})"
    return f"By these {commands}; {'; '.join(part for part in parts if part)}.\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Keep results of runs and write docs/results.md.")
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("record", help="keep what runs measured")
    keep.add_argument("name", help="an experiment")
    keep.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    commands.add_parser("write", help="write docs/results.md")
    commands.add_parser("check", help="exit code 1 if docs/results.md is not what is written")
    given = parser.parse_args()
    try:
        if given.command == "record":
            for path in record(given.name, given.runs):
                print(path.relative_to(ROOT))
        if given.command == "check":
            sys.exit(RESULTS.read_text(encoding="utf-8") != page())
        write_atomic(RESULTS, page())
    except UserError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")


if __name__ == "__main__":
    main()
