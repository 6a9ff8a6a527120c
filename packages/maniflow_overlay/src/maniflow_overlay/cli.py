"""The `maniflow-overlay` command: parse, then one call."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import application, run_app

import maniflow_overlay

app = application("maniflow-overlay", maniflow_overlay.__doc__)
main = partial(run_app, app)

overlay = typer.Typer(help="Paths drawn into pictures.", no_args_is_help=True)
app.add_typer(overlay, name="overlay")


@overlay.command("check")
def overlay_check(
    cases: Annotated[Path, typer.Argument(help="Recorded drawings (JSON).")],
) -> None:
    """Replay recorded drawings; exit code 1 names the first that differs."""
    from maniflow_overlay.overlay.recorded import first_difference, read_cases

    recorded = read_cases(cases)
    complaint = first_difference(recorded)
    if complaint:
        typer.echo(f"{cases}: {complaint}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{cases}: {len(recorded)} drawings, all equal to the byte")


@overlay.command("render")
def overlay_render(
    picture: Annotated[Path, typer.Argument(help="PNG or JPEG file.")],
    path: Annotated[Path, typer.Argument(help="JSON list of [x, y, gripper] or [x, y].")],
    output: Annotated[Path, typer.Argument(help="PNG file to write.")],
    path_only: Annotated[
        bool, typer.Option("--path-only", help="The path on black (approach B).")
    ] = False,
) -> None:
    """Draw a path into a picture."""
    from maniflow_overlay.overlay.pictures import render

    render(picture, path, output, path_only=path_only)
    typer.echo(f"written to {output}")
