"""The watcher that a cluster's worker starts, without a cluster: it is told by a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from loom import jobs_ray, jobs_ray_cluster, processes
from loom.errors import UserError
from loom.jobs import Job, Sweep
from loom.jobs_node import order_line
from loom.jobs_process import Ending
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


def busy_ray() -> SimpleNamespace:
    """Ray's functions as far as an executor asks them, of a cluster that others use."""
    nodes = [
        {"NodeID": name, "NodeManagerAddress": name, "Alive": True, "Resources": resources}
        for name, resources in (
            ("10.0.0.1", {"CPU": 8.0, "GPU": 2.0}),
            ("10.0.0.2", {"CPU": 4.0, "GPU": 6.0}),
        )
    ]
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda machine, soft: machine)
    task = SimpleNamespace(remote=lambda order: "task")
    return SimpleNamespace(
        nodes=lambda: nodes,
        cluster_resources=lambda: {"CPU": 12.0, "GPU": 8.0},
        available_resources=lambda: {"CPU": 3.0},
        remote=lambda function: SimpleNamespace(options=lambda **asked: task),
        util=SimpleNamespace(scheduling_strategies=strategies),
    )


@pytest.fixture
def ray(monkeypatch) -> SimpleNamespace:
    ray = busy_ray()
    for module in (jobs_ray, jobs_ray_cluster):
        monkeypatch.setattr(module, "import_ray", lambda: ray)
    return ray


@pytest.mark.parametrize(
    ("gpus", "slots", "told"),
    [
        (
            False,
            5,
            "it has not begun; it asks for 5 CPU of 10.0.0.1, which holds 8 slots; free in the "
            "whole cluster: 3 of 12 CPU",
        ),
        (
            True,
            3,
            "it has not begun; it asks for 3 CPU and 3 GPU of 10.0.0.2, which holds 4 slots; free "
            "in the whole cluster: 3 of 12 CPU and 0 of 8 GPU",
        ),
    ],
)
def test_a_job_that_ray_keeps_waiting_says_what_it_asks_for_until_it_begins(
    tmp_path, ray, gpus, slots, told
):
    executor, log = Ray(gpus=gpus), tmp_path / "job.log"
    executor._remote = ray.remote(None)
    log.write_text("of an earlier attempt\n")
    attempt = executor.start(Job("job", ["true"], slots=slots), range(slots), tmp_path, log)
    assert not isinstance(attempt, Ending)
    assert attempt.waits_for() == told
    log.write_text("of an earlier attempt\n$ true\n")
    assert attempt.waits_for() == ""


@pytest.mark.parametrize(("gpus", "most"), [(False, 8), (True, 4)])
def test_what_no_machine_of_the_cluster_could_ever_give_is_refused(ray, gpus, most):
    def require(slots: int) -> None:
        Ray(gpus=gpus)._require_room(Sweep("test", [Job("wide", ["true"], slots=slots)]))

    require(most)
    with pytest.raises(UserError, match=f"needs {most + 1} slots, no machine has more than {most}"):
        require(most + 1)


def test_without_ray_the_executor_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs the library Ray"):
        list(Ray().run(Sweep("test", [Job("a", ["true"])]), tmp_path))
