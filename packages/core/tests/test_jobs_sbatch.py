"""Sweeps as arrays of SLURM: the script is run by bash, under commands that act as SLURM's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fake_slurm
import pytest
from loom.errors import UserError
from loom.jobs import Job, Sweep
from loom.jobs import executor as executor_named
from loom.jobs_array import chains
from loom.jobs_sbatch import Sbatch, _Tail, cancel


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    for pid in fake_slurm.tasks_alive(folder).values():
        os.killpg(pid, signal.SIGKILL)
    if (folder / "controller").exists():
        os.kill(int((folder / "controller").read_text()), signal.SIGKILL)


def shell(name: str, script: str, **options) -> Job:
    return Job(name, ["/bin/sh", "-c", script], **options)


def test_an_event_that_a_kill_has_torn_is_passed_over(tmp_path):
    tail = _Tail(tmp_path / "events.jsonl")
    whole = '{"time": 1.0, "kind": "done", "job": "a", "detail": ""}\n'
    (tmp_path / "events.jsonl").write_text(whole + whole[:30] + "\n[1]\n" + whole)
    assert [event.job for event in tail] == ["a", "a"]


def executor(slots: int | None = None, **options) -> Sbatch:
    return Sbatch(slots, grace_s=2.0, poll_s=0.2, **options)


def status(root: Path) -> dict:
    return json.loads((root / "status.json").read_text(encoding="utf-8"))


def kinds(root: Path) -> Counter:
    lines = (root / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return Counter((event["job"], event["kind"]) for event in map(json.loads, lines))


def wait_until(claim, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_an_array_runs_every_job_once_in_its_order_and_says_so(tmp_path, slurm):
    order = tmp_path / "order"
    jobs = [
        shell("train", f"sleep 0.2; echo train >> {order}; touch weights", outputs=["weights"]),
        shell("bad", "echo all is lost; exit 3"),
        shell("judge", f"echo judge >> {order}", after=["train"]),
        shell("hangs", "sleep 60", timeout_s=0.3),
        shell("blind", "true", inputs=["absent"]),
    ]
    events = list(executor(2).run(Sweep("test", jobs), tmp_path / "root"))
    entries = status(tmp_path / "root")["jobs"]
    assert {name: entry["state"] for name, entry in entries.items()} == {
        "train": "done",
        "bad": "failed",
        "judge": "done",
        "hangs": "failed",
        "blind": "skipped",
    }
    assert entries["bad"]["detail"] == "exit status 3: all is lost"
    assert entries["hangs"]["detail"] == "timed out after 0.3 s"
    assert order.read_text().split() == ["train", "judge"]
    ended = Counter(event.job for event in events if event.kind in ("done", "failed", "skipped"))
    assert ended == Counter({job.name: 1 for job in jobs} | {"": 1})
    assert (events[-1].kind, events[-1].job) == ("failed", "")
    assert status(tmp_path / "root")["state"] == "failed"


def test_a_resume_submits_only_what_is_not_done(tmp_path, slurm):
    root = tmp_path / "root"
    jobs = [
        shell("good", "echo . >> runs"),
        shell("mended", f"test -e {tmp_path}/mended"),
        shell("later", "true"),
    ]
    list(executor().run(Sweep("test", jobs[:2]), root))
    (tmp_path / "mended").touch()
    list(executor().run(Sweep("test", jobs), root, resume=True, retry_failed=True))
    assert status(root)["state"] == "finished"
    assert (root / "jobs" / "good" / "runs").read_text() == ".\n"
    arrays = [
        line for line in (slurm / "submissions").read_text().splitlines() if "--array" in line
    ]
    assert arrays == ["#SBATCH --array=0,1", "#SBATCH --array=1,2"]
    before = (slurm / "submissions").read_text()
    *_, last = executor().run(Sweep("test", jobs), root, resume=True)
    assert (last.kind, last.detail) == ("finished", "3 done")
    assert (slurm / "submissions").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warned_task_ends_its_job_in_peace_and_is_queued_again(tmp_path, slurm, number):
    root = tmp_path / "root"
    script = """
        echo . >> tries
        [ -e checkpoint ] && exit 0
        trap 'echo step 7 > checkpoint; exit 1' TERM
        sleep 60 & wait
    """
    jobs = [
        shell("prepare", "true"),
        shell("train", script, outputs=["checkpoint"], after=["prepare"]),
        shell("b", "true", after=["train"]),
    ]
    for event in executor().run(Sweep("test", jobs), root):
        if (event.job, event.kind) == ("train", "started") and not (root / "warned").exists():
            wait_until((root / "jobs" / "train" / "tries").exists)
            (root / "warned").touch()
            fake_slurm.warn(slurm, number)
    assert status(root)["state"] == "finished"
    counted = kinds(root)
    assert (counted["train", "interrupted"], counted["train", "done"]) == (1, 1)
    assert (counted["prepare", "started"], counted["prepare", "done"]) == (1, 1)
    assert (counted["b", "started"], counted["b", "done"]) == (1, 1)
    assert status(root)["jobs"]["train"]["attempts"] == 2


def test_a_task_that_was_cut_off_starts_its_job_again(tmp_path, slurm):
    root = tmp_path / "root"
    script = "echo . >> tries; [ $(wc -l < tries) = 2 ] || sleep 60"
    for event in executor().run(Sweep("test", [shell("a", script)]), root):
        if (event.job, event.kind) == ("a", "started") and not (root / "cut").exists():
            wait_until((root / "jobs" / "a" / "tries").exists)
            (root / "cut").touch()
            fake_slurm.cut_off(slurm)
            os.killpg(status(root)["jobs"]["a"]["pid"], signal.SIGKILL)
    counted = kinds(root)
    assert [counted["a", kind] for kind in ("started", "lost", "done")] == [2, 1, 1]
    assert status(root)["state"] == "finished"


FOLLOW = """
import sys
from pathlib import Path
from loom.jobs import Job, Sweep
from loom.jobs import executor as executor_named
from loom.jobs_sbatch import Sbatch
jobs = [Job(f"job{i}", ["/bin/sh", "-c", "echo . >> tries; sleep $PAUSE"]) for i in range(2)]
executor = Sbatch(grace_s=2.0, poll_s=0.2)
for event in executor.run(Sweep("test", jobs), Path(sys.argv[1]), resume="resume" in sys.argv):
    print(event, flush=True)
"""


def follower(root: Path, *arguments: str, pause: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(root), *arguments],
        env={**os.environ, "PAUSE": pause},
        stdout=subprocess.PIPE,
        text=True,
    )


def tries(root: Path) -> list[int]:
    return [len(path.read_text().split()) for path in sorted(root.glob("jobs/*/tries"))]


def test_an_array_goes_on_without_its_follower_and_is_followed_again(tmp_path, slurm):
    first = follower(tmp_path / "root", pause="4")
    wait_until(lambda: tries(tmp_path / "root") == [1, 1])
    first.kill()
    first.communicate()
    output, _ = follower(tmp_path / "root", "resume", pause="4").communicate(timeout=60)
    assert f"follows array job {fake_slurm.ARRAY} again" in "".join(
        (tmp_path / "root" / "events.jsonl").read_text()
    )
    assert "sweep: finished, 2 done" in output
    assert tries(tmp_path / "root") == [1, 1]


def test_a_signal_to_the_follower_ends_the_array_for_good(tmp_path, slurm):
    process = follower(tmp_path / "root", pause="60")
    wait_until(lambda: tries(tmp_path / "root") == [1, 1])
    (slurm / "unreachable").touch()  # a controller that does not answer ends nothing
    wait_until(lambda: len((slurm / "unreachable").read_text()) >= 2)
    assert process.poll() is None
    (slurm / "unreachable").unlink()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert status(tmp_path / "root")["state"] == "interrupted"
    assert {e["state"] for e in status(tmp_path / "root")["jobs"].values()} == {"interrupted"}
    assert not (slurm / "controller").exists()
    output, _ = follower(tmp_path / "root", "resume", pause="0").communicate(timeout=60)
    assert "sweep: finished, 2 done" in output


def test_an_array_that_nobody_follows_can_be_cancelled(tmp_path, slurm):
    root = tmp_path / "root"
    assert cancel(root) == ""
    process = follower(root, pause="60")
    wait_until(lambda: tries(root) == [1, 1])
    process.kill()
    process.communicate()
    assert cancel(root) == fake_slurm.ARRAY
    wait_until(lambda: not (slurm / "controller").exists())
    assert {entry["state"] for entry in status(root)["jobs"].values()} == {"interrupted"}
    assert cancel(root) == ""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("local", "Local"),
        ("ray", "Ray"),
        ("ray:10.0.0.1:6379", "Ray"),
        ("ray+gpu", "Ray"),
        ("sbatch", "Sbatch"),
        ("sbatch:site.sh", "Sbatch"),
    ],
)
def test_an_executor_is_named_in_a_word(name, kind):
    assert type(executor_named(name, 2)).__name__ == kind


@pytest.mark.parametrize("name", ["", "slurm", "local:2", "Ray"])
def test_an_unknown_executor_is_refused(name):
    with pytest.raises(UserError, match="there is no executor"):
        executor_named(name)


def test_a_cluster_hands_out_its_accelerators_itself():
    for name in ("ray", "sbatch:site.sh"):
        with pytest.raises(UserError, match="hands out accelerators itself"):
            executor_named(name, devices=["0", "1"])


def test_jobs_that_come_after_one_another_share_a_task():
    jobs = [
        Job("a", ["true"]),
        Job("b", ["true"]),
        Job("c", ["true"], after=["a"]),
        Job("d", ["true"]),
        Job("e", ["true"], after=["d", "b"]),
        Job("f", ["true"], after=["e"]),
    ]
    names = [[job.name for job in chain] for chain in chains(Sweep("test", jobs))]
    assert names == [["a", "c"], ["b", "d", "e", "f"]]


def test_the_script_says_what_slurm_has_to_know(tmp_path):
    (tmp_path / "site").write_text("#SBATCH --partition=long\nmodule load cuda\n")
    jobs = [Job("a", ["true"]), Job("b", ["true"], slots=4)]
    script = Sbatch(3, header=tmp_path / "site").script(Sweep("s", jobs), Path("/a b"), [0, 1])
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=0,1%3" in lines
    assert "#SBATCH --cpus-per-task=4" in lines
    assert "#SBATCH --requeue" in lines
    assert "#SBATCH --output='/a b/logs/array-%A_%a.log'" in lines
    assert lines[-3:-1] == ["#SBATCH --partition=long", "module load cuda"]
    assert lines[-1].startswith(f"exec {sys.executable} -m loom.jobs_array '/a b' ")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_machine_without_slurm_and_a_refused_array_are_errors_for_the_user(tmp_path, monkeypatch):
    sweep = Sweep("test", [Job("a", ["true"])])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no `sbatch`"):
        list(executor().run(sweep, tmp_path / "root"))
    refuse = tmp_path / "sbatch"
    refuse.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    refuse.chmod(0o755)
    with pytest.raises(UserError, match="invalid partition"):
        list(executor().run(sweep, tmp_path / "root"))
