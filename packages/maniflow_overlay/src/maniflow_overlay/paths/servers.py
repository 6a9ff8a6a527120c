"""Start, watch and stop one model server per GPU: the notes' start and stop scripts as one command.

A server is any command line with `{gpu}` and `{port}` in it; CUDA_VISIBLE_DEVICES is set for it.
Each one leads a session of its own, writes to `logs/PORT.log` and outlives this program. The file
`servers.json` names it by process id and start time, so that a number that the system has given to
another process since is never touched.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loom import processes
from loom.errors import UserError
from loom.files import explained, read_json, write_json

STATE = "servers.json"
POLL_S = 0.1
LOG_TAIL_BYTES = 600


@dataclass(frozen=True)
class Server:
    """One server that was started.

    Attributes:
        gpu: What CUDA_VISIBLE_DEVICES was set to.
        port: Where it listens.
        pid: Its first process.
        started: When that process began, in ticks since boot.
        command: What was run.
    """

    gpu: str
    port: int
    pid: int
    started: int
    command: tuple[str, ...]

    @property
    def alive(self) -> bool:
        """Whether the process that was started is still there."""
        return processes.start_time(self.pid) == self.started

    @property
    def listening(self) -> bool:
        """Whether somebody takes connections at the port."""
        return _listens(self.port)

    def state(self) -> str:
        """Return `ready`, `starting` or `ended`."""
        if not self.alive:
            return "ended"
        return "ready" if self.listening else "starting"


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def read_servers(folder: Path) -> list[Server]:
    """Read which servers a folder knows; none if there is no file.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return []
    try:
        return [_server(fields) for fields in read_json(path)["servers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({error!r})", hint="end the servers by hand and remove the file"
        ) from error


def _server(fields: dict[str, Any]) -> Server:
    given: dict[str, Any] = {**fields, "command": tuple(fields["command"])}
    server = Server(**given)
    if any(type(number) is not int for number in (server.port, server.pid, server.started)):
        raise TypeError(f"no server: {fields!r}")
    return server


def start(
    folder: Path,
    template: str,
    gpus: Sequence[str],
    first_port: int,
    *,
    wait_s: float,
    say: Callable[[str], None],
) -> list[Server]:
    """Start one server per GPU and wait until all take connections.

    Args:
        folder: For the state and the logs.
        template: A command line with `{port}`, and `{gpu}` where it is wanted.
        gpus: Names for CUDA_VISIBLE_DEVICES.
        first_port: Of the first GPU; the next ones count up.
        wait_s: How long all may take to load.
        say: Prints one line.

    Raises:
        UserError: A port is taken, a program is missing, a server ended, or the time is over; the
            servers that were started are stopped then.
    """
    words = _words(template)
    running = [server.port for server in read_servers(folder) if server.alive]
    if running:
        raise UserError(
            f"{folder}: servers are running at {', '.join(map(str, running))}",
            hint="stop them first: servers down",
        )
    ports = [first_port + number for number in range(len(gpus))]
    for port in ports:
        if _listens(port):
            raise UserError(f"port {port} is taken", hint="choose another --port")
    with explained(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    servers: list[Server] = []
    try:
        for gpu, port in zip(gpus, ports, strict=True):
            servers.append(_launch(folder, words, gpu, port))
            write_json(folder / STATE, {"servers": [asdict(server) for server in servers]})
        _wait(folder, servers, wait_s, say)
    except BaseException:
        stop(folder, grace_s=1.0)
        raise
    return servers


def _words(template: str) -> list[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UserError(f"the command cannot be read: {str(error).lower()}") from error
    if not words or not any("{port}" in word for word in words):
        raise UserError(
            "the command needs {port}",
            hint='as in --command "python server.py --port {port} --model-path MODEL"',
        )
    return words


def _launch(folder: Path, words: Sequence[str], gpu: str, port: int) -> Server:
    command = [word.replace("{port}", str(port)).replace("{gpu}", gpu) for word in words]
    log = folder / "logs" / f"{port}.log"
    opened = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        # Not Popen: it would wait for its child, and these outlive us.
        pid = os.posix_spawnp(
            command[0],
            command,
            {**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), opened, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise UserError(
            f"{command[0]} cannot be started: {(error.strerror or str(error)).lower()}"
        ) from error
    return Server(gpu, port, pid, processes.start_time(pid) or 0, tuple(command))


def _wait(
    folder: Path, servers: Sequence[Server], wait_s: float, say: Callable[[str], None]
) -> None:
    limit = time.monotonic() + wait_s
    missing = list(servers)
    while missing:
        for server in list(missing):
            if _ended(server):
                raise UserError(
                    f"the server at port {server.port} ended: {_last_words(folder, server)}",
                    hint=f"its log is {folder / 'logs' / f'{server.port}.log'}",
                )
            if server.listening:
                say(f"[servers] port {server.port} is ready (GPU {server.gpu})")
                missing.remove(server)
        if missing and time.monotonic() > limit:
            ports = ", ".join(str(server.port) for server in missing)
            raise UserError(
                f"no connection to {ports} within {wait_s:g} s", hint="give more time with --wait"
            )
        time.sleep(POLL_S)


def _ended(server: Server) -> bool:
    """Whether a child of ours has ended; this also removes it from the process table."""
    try:
        return os.waitpid(server.pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return not server.alive


def _last_words(folder: Path, server: Server) -> str:
    log = folder / "logs" / f"{server.port}.log"
    content = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def stop(folder: Path, *, grace_s: float = 10.0) -> int:
    """Stop the servers of a folder, with all their processes; return how many were running."""
    running = [server for server in read_servers(folder) if server.alive]
    for server in running:
        processes.terminate_group(server.pid)
    limit = time.monotonic() + grace_s
    while time.monotonic() < limit and not all(map(_ended, running)):
        time.sleep(POLL_S)
    for server in running:
        processes.kill_session(server.pid)
    (folder / STATE).unlink(missing_ok=True)
    return len(running)
