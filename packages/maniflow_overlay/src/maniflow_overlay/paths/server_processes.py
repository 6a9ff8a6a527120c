"""The commands that start, show and stop servers."""

from __future__ import annotations

from pathlib import Path

import typer
from loom.drawing import print_table
from loom.errors import UserError

from maniflow_overlay.paths.servers import read_servers, start, stop


def up_command(folder: Path, command: str, gpus: str, port: int, wait_s: float) -> None:
    """Start one server per GPU."""
    names = [name.strip() for name in gpus.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--gpus {gpus!r} is no list of different GPUs", hint="as in 0,1,2,3")
    start(folder, command, names, port, wait_s=wait_s, say=typer.echo)
    status_command(folder)


def status_command(folder: Path, *, as_json: bool = False) -> bool:
    """Print the servers; return whether all are ready."""
    servers = read_servers(folder)
    if not servers and not as_json:
        typer.echo(f"{folder}: no servers")
        return False
    rows = [
        [
            f"http://127.0.0.1:{s.port}",
            s.gpu,
            s.pid,
            s.state(),
            str(folder / "logs" / f"{s.port}.log"),
        ]
        for s in servers
    ]
    print_table(["server", "GPU", "process", "state", "log"], rows, as_json=as_json)
    return bool(servers) and all(server.state() == "ready" for server in servers)


def down_command(folder: Path) -> None:
    """Stop the servers."""
    typer.echo(f"{stop(folder)} servers stopped")
