"""The `loom` command: runs, machines and native code of all threads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loom.cli import JsonOption, add_config_commands, application, run_app

if TYPE_CHECKING:
    from loom.doctor import Check


def _checks() -> "Sequence[Check]":
    from loom.doctor import thread_checks

    return thread_checks()


app = application("loom", "Look at runs, machines and native code.", "loom-core", _checks)
add_config_commands(app)
ext = typer.Typer(help="Native kernels: the tool chain and the builds.", no_args_is_help=True)
app.add_typer(ext, name="ext")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of the runs.")] = Path(
        "runs"
    ),
    as_json: JsonOption = False,
) -> None:
    """List the runs below a folder, the newest last."""
    from dataclasses import asdict

    from loom.drawing import print_json, print_table
    from loom.runs import find_runs, shown_age, shown_gates

    found = find_runs(root)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    if not found:
        typer.echo(f"{root}: no runs")
        return
    columns = ("run", "thread", "state", "step", "of", "metric", "value", "gates", "age", "reason")
    rows = [
        (each.path, each.thread, each.state, each.step, each.total, each.metric, each.value)
        + (shown_gates(each), shown_age(each.age_s), each.reason)
        for each in found
    ]
    print_table(columns, rows)


@app.command()
def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Show the state and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Follow a run until it ends; exit code 0 if it went well, 3 for a missed gate, else 1."""
    from loom.drawing import print_json
    from loom.runs import EXIT_CODES, follow, status_line

    status: dict[str, Any] = {}
    for status in follow(run, once=once):
        if as_json:
            print_json(status, indent=None)
        else:
            typer.echo(status_line(status))
    raise typer.Exit(EXIT_CODES.get(str(status.get("state")), 1))


@app.command()
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A run, or a folder with the seeds of a condition.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="What it is compared with.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the curves as well.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs, or two folders of runs that differ in their seed: settings and metrics."""
    from dataclasses import asdict

    from loom.comparison import compare as compare_runs
    from loom.comparison import (
        comparison_report,
        left_out_notes,
        paired_cells,
        paired_columns,
        paired_note,
        with_interval,
    )
    from loom.drawing import print_json, print_table

    found = compare_runs(first, second)
    page = comparison_report(found).write(html) if html is not None else None
    if as_json:
        print_json(
            {
                "settings": found.settings,
                "metrics": [asdict(row) for row in found.metrics],
                "runs": [len(side.runs) for side in (found.first, found.second)],
                "left_out": [side.left_out for side in (found.first, found.second)],
                "paired": [asdict(row) for row in found.paired.rows],
                "not_paired": found.paired.notes,
            }
        )
        return
    for note in left_out_notes(found):
        typer.echo(f"note: {note}")
    typer.echo("\n".join(found.settings) if found.settings else "the settings are the same")
    if found.metrics:
        rows = [
            (
                row.metric,
                with_interval(row.first, row.first_interval),
                with_interval(row.second, row.second_interval),
                with_interval(row.difference, row.difference_interval),
            )
            for row in found.metrics
        ]
        print_table(("metric", found.first.name, found.second.name, "difference"), rows)
    if found.paired.rows:
        typer.echo("")
        print_table(paired_columns(found), paired_cells(found))
        typer.echo(paired_note(found))
    for note in found.paired.notes:
        typer.echo(f"not paired: {note}")
    if page is not None:
        typer.echo(page)


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="[RUN]", help="Directory of a run; with --all, of runs.")
    ] = Path("runs"),
    every: Annotated[
        bool, typer.Option("--all", help="Write the page that links every run below the folder.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File (default: report.html or index.html in RUN)."),
    ] = None,
) -> None:
    """Write a run's report, one HTML file that needs nothing else, or the index of all runs."""
    from loom.report_index import write_index
    from loom.report_run import write_standard_page
    from loom.runs import require_run

    if every:
        typer.echo(write_index(run, output))
        return
    require_run(run, hint="`loom report --all` takes a folder of runs")
    typer.echo(write_standard_page(run, output))


@app.command()
def snapshot(
    run: RunArgument,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Name of the snapshot.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder (default: snapshots/ beside the run).")
    ] = None,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Take the newest intact checkpoint along.")
    ] = False,
) -> None:
    """Pack a run with the code that it ran from into one zip file."""
    from loom.snapshot import snapshot as pack

    path, notices = pack(run, tag, to, checkpoint=checkpoint)
    for notice in notices:
        typer.echo(f"note: {notice}", err=True)
    typer.echo(path)


@ext.command()
def info(as_json: JsonOption = False) -> None:
    """Show the tool chain as it was found, and what has been built."""
    import json
    from dataclasses import asdict

    from loom.native.inventory import toolchain

    found = toolchain()
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, default=str))  # its paths as text
        return
    for name, value in vars(found).items():
        if name != "artefacts":
            typer.echo(f"{name:<14} {_said(value)}")
    for artefact in found.artefacts:
        typer.echo(f"{'built':<14} {artefact.name} {artefact.isa} {artefact.path}")


@ext.command()
def build(as_json: JsonOption = False) -> None:
    """Compile the kernels of every installed package; exit code 1 if one cannot be."""
    from loom.drawing import print_json
    from loom.native import Library
    from loom.native.inventory import build_all

    missing, rows = 0, []
    for each in build_all():
        built = isinstance(each.result, Library)
        missing += not built
        said = _said(each.result)
        rows.append({"package": each.package, "name": each.name, "built": built})
        rows[-1] |= {"seconds": each.seconds, "result": said}
        if not as_json:
            typer.echo(f"{each.package} {each.name} {each.seconds:.1f} s: {said}")
    if as_json:
        print_json(rows)
    raise typer.Exit(int(missing > 0))


def _said(value: Any) -> str:
    """Write a part of the tool chain in one line."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    reason = getattr(value, "reason", None)
    if reason is not None:
        return f"unavailable: {reason}"
    if hasattr(value, "__dataclass_fields__"):
        shown = [str(part) for name, part in vars(value).items() if not name.startswith("_")]
        return ", ".join(shown)
    return str(value)


def main() -> None:
    """Run the `loom` command."""
    run_app(app)
