"""Keep what runs measured, and write docs/results.md from it: no number is typed by hand.

    uv run scripts/results.py record pinpad-agent runs/three-seed0 runs/three-seed1
    uv run scripts/results.py write       # docs/results.md, from experiments/
    uv run scripts/results.py check       # exit code 1 if that would change it

`experiments/THREAD.yaml` says what was asked, by which commands, and which figures of a run make
the table. `record` keeps of each run its settings, last metrics and evaluation, without weights, in
`experiments/records/EXPERIMENT/RUN.json`. It names what is too long to be kept, and refuses the run
if a table shows a part of that.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.config import Config, differences, read_yaml
from loom.errors import UserError
from loom.evaluation.statistics import Interval, mean_interval
from loom.files import read_json, write_atomic
from loom.runs import last_metrics
from pydantic import Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS, RESULTS = ROOT / "experiments", ROOT / "docs" / "results.md"
KEPT = ("evaluation/*.json", "laps.json", "report.json", "study.json")
LONGEST_LIST, MOST_BYTES, DIGITS = 64, 75_000, 7


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

    @model_validator(mode="after")
    def _means_have_a_column(self) -> "Table":
        unknown = [heading for heading in self.mean_over if heading not in self.columns]
        if unknown:
            raise ValueError(f"mean_over names no column: {', '.join(unknown)}")
        return self


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
            if not isinstance(content, Mapping):
                raise UserError(f"{path}: {name} is no mapping", hint="write `question: ...` below")
            try:
                entry = {**content, "file": path.name}
                found[name] = Experiment.model_validate(entry, strict=False)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, (name, *first["loc"])))
                hint = "the keys are those of Experiment and Table in scripts/results.py"
                raise UserError(f"{path}: {place}: {first['msg']}", hint=hint) from error
    return found


# Records


def record(
    name: str,
    runs: Iterable[Path],
    folder: Path = EXPERIMENTS,
    on_notice: Callable[[str], None] = lambda notice: None,
) -> list[Path]:
    """Keep what runs measured; return the files.

    Args:
        name: An experiment.
        runs: Directories of runs, or of sweeps of them.
        folder: Of the experiments.
        on_notice: Told of each run what is too long to be kept, and whose record it replaces.

    Raises:
        UserError: No such experiment, no run, two runs of one name, or a figure of a table that is
            too long to be kept; nothing has been written then.
    """
    known = experiments(folder)
    if name not in known:
        raise UserError(f"{name} is no experiment", hint=f"add it to {folder}/THREAD.yaml first")
    contents: dict[str, dict[str, Any]] = {}
    listed = list(dict.fromkeys(run.resolve() for run in runs))
    for run in listed:
        alone = [each.name for each in listed].count(run.name) == 1
        own = run.name if alone else f"{run.parent.name}-{run.name}"  # CONDITION/seed-0
        if own in contents:
            raise UserError(f"{run}: another run is called {own}, too", hint="rename one of them")
        whole = digest(run)
        contents[own], left_out = _shortened(whole)
        lost = _lost(known[name].tables, own, whole, contents[own])
        if lost:
            raise UserError(
                f"{run}: {', '.join(left_out)} cannot be kept, but the table of {name} shows"
                f" {', '.join(lost)} of it",
                hint="let the run write these figures in a short file, or raise LONGEST_LIST or"
                " MOST_BYTES of scripts/results.py",
            )
        if left_out:
            on_notice(f"{own}: left out {', '.join(left_out)}")
    written = []
    for own, content in contents.items():
        place = folder / "records" / name / f"{own}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        before = read_json(place).get("config", {}) if place.is_file() else content["config"]
        if changes := differences(before, content["config"]):
            on_notice(f"{own}: replaces the record of other settings: {'; '.join(changes[:3])}")
        lines = [f'"{key}": {_json(value)}' for key, value in content.items()]
        write_atomic(place, "{\n" + ",\n".join(lines) + "\n}\n")
        written.append(place)
    return written


def digest(run: Path) -> dict[str, Any]:
    """Return what a figure of a run depends on, and what the run measured."""
    facts = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    files = {
        str(path.relative_to(run)): _plain(read_json(path))
        for pattern in KEPT
        for path in sorted(run.glob(pattern))
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
        "config": _plain(facts.get("config", {})),
        "metrics": _plain(last_metrics(run)) if (run / "metrics.jsonl").is_file() else {},
        "files": files,
    }


def _plain(value: Any) -> Any:
    """Round numbers, and cut the folders of one machine off paths."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", value)
    return value


def _shortened(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a digest without long lists and large files, and a word on each that is missing."""
    left_out = [
        f"{place} ({length} numbers or rows of at most {LONGEST_LIST})"
        for place, length in dict(_long_lists(content)).items()
    ]
    kept: dict[str, Any] = _without_long_lists(content)
    for file in list(kept["files"]):
        size = len(_json(kept["files"][file]))
        if size > MOST_BYTES:
            left_out.append(f"{file} ({size / 1000:.0f} kB of at most {MOST_BYTES / 1000:.0f})")
            del kept["files"][file]
    return kept, left_out


def _without_long_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_long_lists(v) for k, v in value.items() if not _is_long(v)}
    return [_without_long_lists(each) for each in value] if isinstance(value, list) else value


def _long_lists(value: Any, place: str = "") -> Iterator[tuple[str, int]]:
    """Yield place and length of each list that is left out; elements of one list share a place."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            below = f"{place}.{key}".removeprefix(".").removeprefix("files.")
            if _is_long(each):
                yield below, len(each)
            else:
                yield from _long_lists(each, below)
    elif isinstance(value, list):
        for each in value:
            yield from _long_lists(each, place)


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONGEST_LIST


def _lost(
    tables: Iterable[Table], name: str, whole: Mapping[str, Any], kept: Mapping[str, Any]
) -> list[str]:
    """Return the columns that would show a run's figure if all of the run had been kept."""
    lost = []
    for table in tables:
        shown, left = rows(table, {name: whole}), rows(table, {name: kept})
        for index, heading in enumerate(table.columns):
            if sum(bool(row[index]) for row in left) < sum(bool(row[index]) for row in shown):
                lost.append(heading)
    return list(dict.fromkeys(lost))


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
    if isinstance(value, list):
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


def page(folder: Path = EXPERIMENTS, on_notice: Callable[[str], None] = lambda notice: None) -> str:
    """Return docs/results.md.

    Args:
        folder: Of the experiments.
        on_notice: Told which columns show nothing because no record holds their figure.
    """
    parts = [HEAD]
    for name, experiment in experiments(folder).items():
        paths = sorted((folder / "records" / name).glob("*.json"))
        records = {path.stem: read_json(path) for path in paths}
        if not records:
            continue
        parts.append(f"## {name}\n\n{experiment.question}\n")
        for table in experiment.tables:
            lines = rows(table, records)
            parts.append(_markdown(table, lines))
            for index, (heading, place) in enumerate(table.columns.items()):
                if not any(line[index] for line in lines):
                    on_notice(f"{name}: no record holds {heading} ({place})")
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


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


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
            for path in record(given.name, given.runs, on_notice=_note):
                print(path.relative_to(ROOT))
        written = page(on_notice=_note)
        if given.command == "check":
            if RESULTS.read_text(encoding="utf-8") != written:
                sys.exit("docs/results.md is not what the records say: scripts/results.py write")
            return
        write_atomic(RESULTS, written)
    except UserError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")


if __name__ == "__main__":
    main()
