"""`pinpad sweep`: from options and variables to a sweep that runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from loom import jobs
from loom.errors import UserError
from loom.processors import usable_processors

from pinpad.sweep import execute
from pinpad.sweep.conditions import BOUNDARY4, read_conditions, without_rssm
from pinpad.sweep.plan import EMBEDDED, parse_seeds


def run_command(
    given: Mapping[str, Any],
    *,
    config: Path | None,
    logroot: Path | None,
    skip_rssm: bool,
    slots: int | None,
    devices: str | None,
    executor: str,
    run_log: Path | None,
    status_file: Path | None,
    resume: bool,
    retry_failed: bool,
) -> bool:
    """Begin a sweep or go on with one; return whether every run is done.

    Args:
        given: What the command line says of the settings; `seeds` as text, `conditions` a file.
        config: YAML under the overrides.
        logroot: The sweep's folder; a new one, or on resume the newest one, if None.
        skip_rssm: Leave out the conditions without boundaries.
        slots: Jobs at once; the processors of this machine, or what a cluster has, if None.
        devices: Accelerators to share out, separated by commas.
        executor: Where jobs run, as `loom.jobs.executor` reads it.
        run_log: Gets every line of progress.
        status_file: Shell assignments for other programs.
        resume: Go on with a sweep.
        retry_failed: Run also what had failed.
    """
    shared = [each.strip() for each in devices.split(",")] if devices else []
    slots = slots or (usable_processors() if executor == "local" else None)
    chosen = jobs.executor(executor, slots, devices=shared, grace_s=execute.PATIENCE_S)
    wanted = dict(given)
    if "seeds" in wanted:
        wanted["seeds"] = parse_seeds(wanted["seeds"])
    if "conditions" in wanted or skip_rssm:
        file = wanted.get("conditions")
        named = read_conditions(file) if file else BOUNDARY4
        named = without_rssm(named) if skip_rssm else named
        wanted["conditions"] = {name: dict(each) for name, each in named.items()}
    if resume:
        if config is not None:
            raise UserError("a sweep goes on with the configuration it has", hint="drop --config")
        root = logroot or execute.newest_log_root()
        settings = execute.go_on(root, wanted)
    else:
        if retry_failed:
            raise UserError("--retry-failed goes with --resume", hint="give both")
        root = logroot or execute.new_log_root()
        if config is None and not {"overrides", "preset", "pretrain", "data"} & wanted.keys():
            wanted["overrides"] = EMBEDDED
            typer.echo(
                f"[sweep] short by default ({' '.join(EMBEDDED)}): "
                "give KEY=VALUE or --config FILE for another one"
            )
        settings = execute.settings_from(wanted)
        for notice in execute.begin(settings, root, config):
            typer.echo(notice)
    return execute.run_sweep(
        settings,
        root,
        executor=chosen,
        resume=resume,
        retry_failed=retry_failed,
        status_file=status_file,
        run_log=run_log,
        say=typer.echo,
    )
