"""Two hosts on one machine: network namespaces with a cable between them.

    with two_hosts() as (a, b):
        a.run(["ray", "start", "--head", ...])

Each has an address, a loopback device and processes of its own, and no way to anything else; the
file system is shared, as on a cluster. Leaving the block kills what runs in the namespaces and
removes them; what a killed test left is removed by the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMESPACES = Path("/var/run/netns")


def reason_why_not() -> str:
    """Return why there cannot be two hosts here, or ""."""
    if shutil.which("ip") is None:
        return "`ip` (iproute2) is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"loom-a-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces are not allowed: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


@dataclass
class Host:
    """A namespace with an address."""

    name: str
    address: str
    device: str
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start a command on this host."""
        process = subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)
        self.started.append(process)
        return process

    def processes(self) -> list[int]:
        """Return every process of this host."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        return [int(word) for word in done.stdout.split()]

    def lose_power(self) -> None:
        """Cut the cable, then kill every process of this host: nobody is told good-bye."""
        _ip("-n", self.name, "link", "set", self.device, "down")
        self.kill_all()

    def kill_all(self) -> None:
        """Kill every process of this host, and what they start meanwhile."""
        deadline = time.monotonic() + 20
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        for process in self.started:
            process.wait(20)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.started.clear()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def remove_what_killed_tests_left() -> None:
    """Remove the hosts of tests whose process is gone."""
    for path in NAMESPACES.glob("loom-[ab]-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove(Host(path.name, "", ""))


def _remove(host: Host) -> None:
    if (NAMESPACES / host.name).exists():
        host.kill_all()
        subprocess.run(["ip", "netns", "del", host.name], check=False)


@contextmanager
def two_hosts() -> Generator[tuple[Host, Host]]:
    """Make two hosts that see each other and nothing else, and remove them."""
    remove_what_killed_tests_left()
    tag = os.getpid()
    hosts = tuple(
        Host(f"loom-{letter}-{tag}", f"10.99.{tag % 250}.{number}", f"lm{letter}{tag}")
        for number, letter in enumerate("ab", start=1)
    )
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        first, second = hosts
        _ip("link", "add", first.device, "type", "veth", "peer", "name", second.device)
        for host in hosts:
            inside = ("-n", host.name)
            _ip("link", "set", host.device, "netns", host.name)
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", host.device)
            _ip(*inside, "link", "set", host.device, "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            _remove(host)
        subprocess.run(["ip", "link", "del", hosts[0].device], capture_output=True, check=False)
