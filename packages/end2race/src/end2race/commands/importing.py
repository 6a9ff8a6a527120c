"""`validate-data`: look a dataset over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

VALIDATION_FAILED = 3
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command("validate-data")(validate_data)


def validate_data(
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", "--data_root", help="Dataset; without one: the embedded one."),
    ] = None,
    files: Annotated[
        int, typer.Option(min=0, help="Clouds and images to decode per segment; 0: all.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Check files, units, splits and labels of a dataset; exit code 3 if something is wrong."""
    from loom.files import write_atomic

    from end2race.data.validation import validate
    from end2race.embedded import default_dataset

    root = data_root or default_dataset(lambda line: typer.echo(line, err=True))
    found = validate(root, files_per_segment=files)
    if output is not None:
        write_atomic(output, found.to_json() + "\n")
    if as_json:
        typer.echo(found.to_json())
    else:
        width = max(len(finding.check) for finding in found.findings)
        for finding in found.findings:
            typer.echo(f"{_MARKS[finding.level]} {finding.check:<{width}}  {finding.detail}")
            if finding.fix:
                typer.echo(f"{'':<{width + 6}} -> {finding.fix}")
        for split, copied in found.copied.items():
            shares = {"speed": copied.speed_share, "wheel angle": copied.angle_share}
            known = [f"{name} {share:.1%}" for name, share in shares.items() if share is not None]
            typer.echo(
                f"{split}: {found.counts[split]['segments']} segments, "
                f"{found.counts[split]['frames']:,} frames; repeating the input leaves of the mean "
                f"predictor's error: {', '.join(known)}"
            )
        typer.echo("passed" if found.passed else "failed")
    raise typer.Exit(0 if found.passed else VALIDATION_FAILED)
