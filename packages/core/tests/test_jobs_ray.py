"""Sweeps on a Ray cluster of this machine; `test_two_hosts.py` has one of two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from loom import processes
from loom.jobs import Job, Local, Sweep

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed"),
]

RUN = """
import sys
from pathlib import Path
from loom.errors import UserError
from loom.jobs import Sweep
from loom.jobs_ray import Ray
executor = Ray(2, address="local", grace_s=2.0)
sweep = Sweep.read(Path(sys.argv[1]))
try:
    for event in executor.run(sweep, Path(sys.argv[2]), resume="resume" in sys.argv):
        print(event, flush=True)
except UserError as error:
    sys.exit(f"error: {error}")
"""

IN_BACKGROUND = ("/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh")
"""As a shell starts what ends in `&`: SIGINT is ignored, and so it is by Ray's workers."""


@pytest.fixture
def begin(tmp_path):
    """Return what starts a sweep in a process of its own, with a Ray and a token of its own."""
    folder = tempfile.mkdtemp(prefix="lr-", dir="/tmp")  # paths of sockets are short
    settings = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}

    def start(jobs: list[Job], root: Path, *arguments: str, **more: str) -> subprocess.Popen:
        path = tmp_path / "jobs.json"
        path.write_text(json.dumps(Sweep("test", jobs).description()), encoding="utf-8")
        environment = {name: os.environ[name] for name in os.environ if name != "RAY_ADDRESS"}
        return subprocess.Popen(
            [*IN_BACKGROUND, sys.executable, "-c", RUN, str(path), str(root), *arguments],
            env=environment | settings | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield start
    shutil.rmtree(folder, ignore_errors=True)


def shell(name: str, script: str, **options) -> Job:
    return Job(name, ["/bin/sh", "-c", script], **options)


def status(root: Path) -> dict:
    return json.loads((root / "status.json").read_text(encoding="utf-8"))


def test_jobs_end_on_ray_as_they_do_here(tmp_path, begin):
    jobs = [
        shell("good", "echo $COLOUR > out", outputs=["out"], env={"COLOUR": "red"}),
        shell("bad", "echo all is lost; exit 3"),
        shell("segfault", "kill -SEGV $$"),
        Job("absent", ["/no/such/program"]),
        shell("hangs", "sleep 60", timeout_s=0.3),
        shell("silent", "true", outputs=["latest"]),
        shell("after", "cat ../good/out", after=["good"]),
        shell("blind", "true", inputs=["absent"]),
        Job(
            "hog",
            [sys.executable, "-S", "-c", "x = bytearray(150 << 20); import time; time.sleep(30)"],
            memory_mb=100,
        ),
    ]
    list(Local(2).run(Sweep("test", jobs), tmp_path / "local"))
    output, _ = begin(jobs, tmp_path / "ray").communicate(timeout=300)
    lines = (tmp_path / "ray" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ended = Counter(
        e["job"] for e in map(json.loads, lines) if e["kind"] not in ("started", "waiting")
    )
    assert ended == Counter([*(job.name for job in jobs), ""]), output
    assert status(tmp_path / "ray")["state"] == "failed"
    entries = {}
    for name in ("local", "ray"):
        found = status(tmp_path / name)["jobs"]
        assert "the limit is 100 MB" in found.pop("hog")["detail"]  # and what it held just then
        entries[name] = {
            job: (entry["state"], entry["detail"] if entry["state"] != "done" else "")
            for job, entry in found.items()
        }
    assert entries["ray"] == entries["local"]
    log = (tmp_path / "ray" / "logs" / "after.log").read_text().splitlines()
    assert log[-1] == "red"
    wide = begin([shell("wide", "true", slots=3)], tmp_path / "wide")
    output, _ = wide.communicate(timeout=120)
    assert wide.returncode == 1
    assert "error: job wide needs 3 slots, no machine has more than 2" in output


def is_alive(pid: int) -> bool:
    fields = processes._stat_fields(Path("/proc") / str(pid))
    return bool(fields) and fields[0] != "Z"


def wait_until(claim, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_after_a_signal_nothing_runs_on_and_resume_completes_the_sweep(tmp_path, begin, number):
    script = "echo $$ > pid; sleep {}; echo . >> runs; touch out"
    pauses = ["0.1", "$LOOM_PAUSE", "$LOOM_PAUSE"]
    jobs = [shell(f"job{i}", script.format(p), outputs=["out"]) for i, p in enumerate(pauses)]
    root = tmp_path / "root"
    process = begin(jobs, root, LOOM_PAUSE="600")
    wait_until(lambda: (path := root / "jobs" / "job2" / "pid").exists() and path.read_text())
    pids = [int((root / "jobs" / f"job{i}" / "pid").read_text()) for i in (1, 2)]
    assert all(map(is_alive, pids))
    process.send_signal(number)
    process.communicate(timeout=120)
    wait_until(lambda: not any(map(is_alive, pids)))
    if number == signal.SIGINT:
        assert status(root)["state"] == "interrupted"
        assert status(root)["jobs"]["job1"]["state"] == "interrupted"
    output, _ = begin(jobs, root, "resume", LOOM_PAUSE="0.1").communicate(timeout=120)
    assert "sweep: finished, 3 done" in output
    runs = [(root / "jobs" / f"job{i}" / "runs").read_text() for i in range(3)]
    assert runs == [".\n"] * 3
