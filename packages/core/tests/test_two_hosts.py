"""Trainings and sweeps over two hosts made of network namespaces, one of which may be lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from two_hosts import Host, reason_why_not, two_hosts

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TINY = Path(__file__).with_name("tiny_training.py")


@pytest.fixture
def hosts():
    if reason := reason_why_not():
        pytest.skip(reason)
    with two_hosts() as pair:
        yield pair


def wait_until(claim, timeout_s: float, *processes: subprocess.Popen) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "timed out"
        for process in processes:
            assert process.poll() is None, f"{process.args} has ended"
        time.sleep(0.1)


def torchrun(host: Host, rank: int, head: Host, folder: Path) -> subprocess.Popen:
    """Start one node of a training that has a node on each host."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += [f"--node-rank={rank}", f"--master-addr={head.address}", "--master-port=29500"]
    return host.start(
        [*command, str(TINY), "train", str(folder)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": host.device, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_training_on_two_hosts_is_that_of_one_process_step_by_step(tmp_path, hosts):
    alone = subprocess.run([sys.executable, str(TINY), "train", str(tmp_path)], check=False)
    assert alone.returncode == 0
    nodes = [torchrun(host, rank, hosts[0], tmp_path) for rank, host in enumerate(hosts)]
    for node in nodes:
        output, _ = node.communicate(timeout=500)
        assert node.returncode == 0, output
    parts = [torch.load(tmp_path / f"world2_rank{r}.pt", weights_only=True) for r in range(2)]
    whole = torch.load(tmp_path / "world1_rank0.pt", weights_only=True)
    for step, rows in whole["seen"]:
        shares = [dict(map(tuple, part["seen"]))[step] for part in parts]
        assert shares[0] + shares[1] == rows
    for place, value in whole["weights"].items():
        if place.startswith(("/model", "/ema")):
            for part in parts:
                torch.testing.assert_close(part["weights"][place], value, rtol=0, atol=1e-6)

    def losses(world: int) -> dict[int, float]:
        lines = (tmp_path / f"world{world}" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: row["loss/total"] for row in rows if "loss/total" in row}

    two, one = losses(2), losses(1)
    assert list(two) == list(one)
    assert len(one) == 40
    worst = max(abs(two[step] - one[step]) for step in one)
    print(f"largest difference of the loss over {len(one)} steps: {worst:.1e}")
    assert worst < 1e-6


SWEEP = """
import sys
import time
from pathlib import Path
from loom.jobs import Job, Sweep
from loom.jobs_ray import Ray
root = Path(sys.argv[1])
script = "echo $$ >> tries; until [ -e $LOOM_GO ]; do sleep 0.2; done; echo . >> runs; touch out"
jobs = [Job(f"job{i}", ["/bin/sh", "-c", script], outputs=["out"]) for i in range(6)]
for event in Ray(address=sys.argv[2], grace_s=2.0).run(Sweep("two hosts", jobs), root):
    print(time.strftime("%H:%M:%S", time.gmtime(event.time)), event, flush=True)
"""


@pytest.fixture
def ray_environment():
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="lr-", dir="/tmp")  # paths of sockets are short
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64, "RAY_TMPDIR": folder}
    settings |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    yield {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | settings
    shutil.rmtree(folder, ignore_errors=True)


def start_ray(host: Host, environment: dict, log: Path, *arguments: str) -> subprocess.Popen:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--block", f"--node-ip-address={host.address}", "--num-cpus=2"]
    command += ["--object-store-memory=80000000", "--include-log-monitor=false"]
    with log.open("w") as output:
        return host.start(
            [*command, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def test_every_job_ends_exactly_once_when_a_host_of_the_cluster_is_lost(
    tmp_path, hosts, ray_environment
):
    head, other = hosts
    root = tmp_path / "root"
    root.mkdir()
    arguments = ("--head", "--port=6379", "--include-dashboard=false")
    begun = [start_ray(head, ray_environment, tmp_path / "head.log", *arguments)]
    address = f"{head.address}:6379"
    wait_until(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text(), 120, *begun)
    begun.append(start_ray(other, ray_environment, tmp_path / "b.log", f"--address={address}"))
    wait_until(lambda: "Ray runtime started" in (tmp_path / "b.log").read_text(), 120, *begun)
    with (tmp_path / "sweep.log").open("w") as output:
        driver = head.start(
            [sys.executable, "-c", SWEEP, str(root), address],
            env=ray_environment | {"LOOM_GO": str(root / "go")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wait_until(lambda: len(list(root.glob("jobs/*/tries"))) == 4, 200, driver, *begun)
    wait_until(lambda: all(path.read_text() for path in root.glob("jobs/*/tries")), 20)
    on_other = set(other.processes())
    tries = {path.parent.name: path.read_text().split() for path in root.glob("jobs/*/tries")}
    lost = {name for name, pids in tries.items() if int(pids[0]) in on_other}
    assert 0 < len(lost) < 4
    other.lose_power()
    now = time.strftime("%H:%M:%S", time.gmtime())
    print(f"{now} host {other.address} is lost with {', '.join(sorted(lost))}")
    (root / "go").touch()
    assert driver.wait(300) == 0, (tmp_path / "sweep.log").read_text()
    print((tmp_path / "sweep.log").read_text())
    events = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    counted = Counter((event["job"], event["kind"]) for event in events)
    names = [f"job{i}" for i in range(6)]
    assert [counted[name, "done"] for name in names] == [1] * 6
    assert {name for name in names if counted[name, "lost"]} == lost
    assert {counted[name, "lost"] for name in lost} == {1}
    assert [(root / "jobs" / name / "runs").read_text() for name in names] == [".\n"] * 6
    status = json.loads((root / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "finished"
    assert {status["jobs"][name]["node"] for name in names} == {head.address}
