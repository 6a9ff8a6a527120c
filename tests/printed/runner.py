"""Run command lines as a user would, in a folder of their own, without starting Python for each.

A server process has imported torch once; each command is a fork of it that is given arguments, a
working directory and a file for what it prints. What a command does lasts for the next one only
in the folder.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from documents import OURS, ROOT

SECONDS = 900
"""After which a command hangs; a busy machine gives one a tenth of a processor."""
SERVERS = multiprocessing.get_context("forkserver")
SERVERS.set_forkserver_preload(["torch", "typer", "loom.run", "loom.cli", "printed.runner"])


@dataclass(frozen=True)
class Step:
    """One command of a chain.

    Attributes:
        printed: The commands of the documents, as `documents.command_lines` returns them, that this
            one stands for; empty for what has to be there first.
        run: What is run; by default the printed command.
        plus: Arguments behind it that make it small.
        code: The exit code that it ends with.
        until: For a server: what it says when it is ready. It is then interrupted.
        stays: A server is interrupted at the end of the chain only.
    """

    printed: tuple[str, ...] = ()
    run: str = ""
    plus: str = ""
    code: int = 0
    until: str = ""
    stays: bool = False

    @property
    def line(self) -> str:
        """The command line that is run."""
        return f"{self.run or self.printed[0]} {self.plus}".strip()


def step(*printed: str, run: str = "", plus: str = "", code: int = 0) -> Step:
    """Return a step for printed commands that are run once."""
    return Step(printed, run, plus, code)


@dataclass(frozen=True)
class Chain:
    """Commands that are run one after the other in one folder.

    Attributes:
        name: For messages.
        steps: The commands.
        begin: Called with the folder, for what no command writes.
        small: Returns, for `module:NAME`, the value that makes what is embedded small.
        quick: Whether the default suite runs it.
    """

    name: str
    steps: Sequence[Step]
    begin: Callable[[Path], None] | None = None
    small: Callable[[], Mapping[str, Any]] = dict
    quick: bool = False


def run_chain(chain: Chain, folder: Path) -> list[str]:
    """Run a chain; return what went wrong, in words."""
    if chain.begin is not None:
        chain.begin(folder)
    wrong, servers = [], []
    small = chain.small()
    try:
        for number, step in enumerate(chain.steps):
            output = folder / f".output-{number}.txt"
            code = _run(step, folder, output, small, servers)
            if code != step.code:
                said = output.read_text(encoding="utf-8", errors="replace")[-1500:]
                wrong.append(f"{step.line}: exit code {code} instead of {step.code}\n{said}")
    finally:
        for server in servers:
            _interrupt(server)
    return wrong


def _run(
    step: Step, folder: Path, output: Path, small: Mapping[str, Any], servers: list[Any]
) -> int | None:
    words = shlex.split(step.line)
    main = _entry(words[0])
    if main is None:
        return _foreign(words, folder, output)
    arguments = (main, words, str(folder), str(output), dict(small))
    process: Any = SERVERS.Process(target=_in_child, args=arguments)
    process.start()
    if step.until:
        code = None if _says(process, output, step.until) else -1
        if step.stays:
            servers.append(process)
            return code or step.code
        return code or _interrupt(process)
    process.join(SECONDS)
    return process.exitcode if process.exitcode is not None else _interrupt(process)


def _entry(name: str) -> str | None:
    """Return where a command of ours begins, as `module:function`."""
    for point in entry_points(group="console_scripts"):
        if point.name == name and point.dist is not None and point.dist.name in OURS:
            return point.value
    return None


def _in_child(
    main: str, words: list[str], folder: str, output: str, small: Mapping[str, Any]
) -> None:
    """Become the command."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with Path(output).open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = words
    for place, value in small.items():
        module, _, name = place.partition(":")
        assert hasattr(import_module(module), name), place
        setattr(import_module(module), name, value)
    module, _, name = main.partition(":")
    sys.exit(getattr(import_module(module), name)())


def _foreign(words: list[str], folder: Path, output: Path) -> int:
    """Run what is no command of ours: Python, a script of the repository, torchrun."""
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", *words[1:]]
    if words[0].startswith("scripts/"):
        own = folder / words[0]  # a copy, of a script that writes to its repository
        words = ["python", str(own if own.exists() else ROOT / words[0]), *words[1:]]
    words = [sys.executable if word in ("python", "python3") else word for word in words]
    place = ROOT if "benchmarks" in words else folder
    with output.open("wb") as stream:
        try:
            done = subprocess.run(
                words, cwd=place, stdout=stream, stderr=stream, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
    return done.returncode


def _says(process: Any, output: Path, words: str) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.is_alive():
        if output.exists() and words in output.read_text(encoding="utf-8", errors="replace"):
            return True
        time.sleep(0.05)
    return False


def _interrupt(process: Any) -> int | None:
    """End a server as Ctrl-C does; 130 and 0 are both a good end."""
    if process.is_alive():
        os.kill(process.pid, signal.SIGINT)
        process.join(20)
    if process.is_alive():
        process.kill()
        process.join()
        return -9
    return 0 if process.exitcode in (0, 130) else process.exitcode
