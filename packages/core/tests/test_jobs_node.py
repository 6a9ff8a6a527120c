"""The watcher that a cluster's worker starts, without a cluster: it is told by a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from loom import processes
from loom.errors import UserError
from loom.jobs import Job, Sweep
from loom.jobs_node import order_line
from loom.jobs_ray import Ray


def begin(root: Path, script: str, *, env: dict | None = None, **options) -> subprocess.Popen:
    job = Job("job", ["/bin/sh", "-c", script], **options)
    watcher = subprocess.Popen(
        [sys.executable, "-m", "loom.jobs_node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdin
    watcher.stdin.write(order_line(job, root / "place", root / "job.log", env or {}, grace_s=1.0))
    watcher.stdin.flush()
    return watcher


def ending(watcher: subprocess.Popen) -> dict:
    """Wait for its answer, with its standard input left open."""
    with watcher:
        return json.loads(watcher.stdout.read())


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text().strip()


def is_alive(pid: int) -> bool:
    fields = processes._stat_fields(Path("/proc") / str(pid))
    return bool(fields) and fields[0] != "Z"


def test_a_job_ends_on_a_node_as_it_does_here(tmp_path):
    done = ending(begin(tmp_path, "echo $COLOUR > out", env={"COLOUR": "red"}, outputs=["out"]))
    assert done["state"] == "done"
    assert (tmp_path / "place" / "out").read_text() == "red\n"
    failed = ending(begin(tmp_path, "echo all is lost; exit 3"))
    assert (failed["state"], failed["detail"]) == ("failed", "exit status 3: all is lost")
    assert failed["facts"]["exit"] == 3
    late = ending(begin(tmp_path, "sleep 60", timeout_s=0.2))
    assert late["detail"] == "timed out after 0.2 s"


def test_a_node_is_asked_to_end_its_job_and_gives_it_time(tmp_path):
    script = "trap 'echo saved > saved; exit 0' TERM; echo $$ > pid; sleep 60 & wait"
    watcher = begin(tmp_path, script)
    wait_for(tmp_path / "place" / "pid")
    watcher.stdin.write("stop\n")
    watcher.stdin.flush()
    assert ending(watcher)["state"] == "interrupted"
    assert (tmp_path / "place" / "saved").exists()


def test_a_job_does_not_outlive_the_worker_that_watched_it(tmp_path):
    watcher = begin(tmp_path, "trap '' TERM; echo $$ > pid; sleep 60 & wait; sleep 60")
    pid = int(wait_for(tmp_path / "place" / "pid"))
    watcher.stdin.close()
    with watcher:
        watcher.wait(20)
    assert not is_alive(pid)


def test_a_job_ends_where_the_worker_is_gone_and_its_child_was_killed_as_ray_does(tmp_path):
    watcher = begin(tmp_path, "echo $$ > pid; sleep 600")
    pid = int(wait_for(tmp_path / "place" / "pid"))
    with watcher:
        watcher.kill()
        watcher.wait(20)
        assert is_alive(pid)
        watcher.stdin.close()
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_attempts_of_a_job_never_run_at_the_same_time(tmp_path):
    with FileLock(tmp_path / "job.lock"):
        watcher = begin(tmp_path, "touch ran")
        time.sleep(1.0)
        assert watcher.poll() is None
        assert not (tmp_path / "place").exists()
    assert ending(watcher)["state"] == "done"
    assert (tmp_path / "place" / "ran").exists()


def test_without_ray_the_executor_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs the library Ray"):
        list(Ray().run(Sweep("test", [Job("a", ["true"])]), tmp_path))
