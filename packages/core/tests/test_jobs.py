"""The local executor: limits, failures, signals, and what the disk says about them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from loom import processes
from loom.errors import UserError
from loom.jobs import Job, Local, Sweep, SweepInterrupted


def local(slots: int = 1, **options) -> Local:
    return Local(slots, grace_s=1.0, **options)


def shell(name: str, script: str, **options) -> Job:
    return Job(name, ["/bin/sh", "-c", script], **options)


def python(name: str, code: str, **options) -> Job:
    return Job(name, [sys.executable, "-S", "-c", code], **options)


def run(root: Path, *jobs: Job, slots: int = 4, **options):
    """Run jobs to the end; return their entries in status.json and the last event."""
    executor = local(slots)
    events = list(executor.run(Sweep("test", jobs), root, **options))
    return status(root)["jobs"], events[-1]


def status(root: Path) -> dict:
    return json.loads((root / "status.json").read_text(encoding="utf-8"))


def wait_until(claim, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return processes._stat_fields(Path("/proc") / str(pid))[0] != "Z"
    except IndexError:
        return False


# --- how jobs end --------------------------------------------------------------------------------


def test_one_failure_of_any_kind_never_ends_the_rest(tmp_path):
    jobs, last = run(
        tmp_path,
        shell("status", "echo all is lost; exit 3"),
        shell("error", "echo 'error: no such key'; echo 'hint: give another'; exit 2"),
        shell("segfault", "kill -SEGV $$"),
        shell("killed", "kill -KILL $$"),
        shell("below", f"{sys.executable} -S -c 'import os; os.abort()' 2>/dev/null; exit $?"),
        Job("absent", ["/no/such/program"]),
        shell("hangs", "sleep 60", timeout_s=0.3),
        shell("silent", "true", outputs=["latest"]),
        shell("good", "echo 1 > latest", outputs=["latest"]),
    )
    details = {name: entry["detail"] for name, entry in jobs.items()}
    assert details["status"] == "exit status 3: all is lost"
    assert details["error"] == "exit status 2: error: no such key"
    assert details["segfault"] == "killed by SIGSEGV (segmentation fault)"
    assert details["killed"].startswith("killed by SIGKILL (the machine ran out of memory")
    assert details["below"].startswith("killed by SIGABRT (aborted), exit status 134")
    assert "cannot be started" in details["absent"]
    assert details["hangs"] == "timed out after 0.3 s"
    assert details["silent"] == "exit status 0, but it left no latest"
    assert {name for name, entry in jobs.items() if entry["state"] == "done"} == {"good"}
    assert (last.kind, last.job, last.detail) == ("failed", "", "8 failed, 1 done")
    assert status(tmp_path)["state"] == "failed"


def test_a_job_that_ignores_sigterm_is_killed_with_its_children(tmp_path):
    script = "trap '' TERM; setsid --fork true; sleep 60 & echo $! > child; wait; sleep 60"
    begin = time.monotonic()
    run(tmp_path, shell("stubborn", script, timeout_s=0.3))
    assert time.monotonic() - begin < 10
    child = int((tmp_path / "jobs" / "stubborn" / "child").read_text())
    wait_until(lambda: not is_alive(child))


@pytest.mark.parametrize("group", ["", "os.setpgid(0, 0); "], ids=["same-group", "own-group"])
def test_a_process_that_a_job_leaves_behind_is_ended_with_it(tmp_path, group):
    stays = f"import os, time; {group}print(os.getpid(), flush=True); time.sleep(60)"
    script = f"{sys.executable} -S -c '{stays}' > child & until [ -s child ]; do sleep 0.02; done"
    jobs, _ = run(tmp_path, shell("leaves", script, outputs=["child"]))
    assert jobs["leaves"]["state"] == "done"
    child = int((tmp_path / "jobs" / "leaves" / "child").read_text())
    wait_until(lambda: not is_alive(child), timeout_s=5)


@pytest.mark.skipif(not processes.can_measure(), reason="memory is read from /proc")
def test_the_memory_limit_counts_the_children_of_a_job(tmp_path):
    hog = "x = bytearray(150 << 20); import time; time.sleep(30)"
    below = f"{sys.executable} -S -c '{hog}' & wait"
    jobs, _ = run(
        tmp_path,
        shell("below", below, memory_mb=100),
        python("modest", "import time; time.sleep(1)", memory_mb=100),
    )
    assert jobs["below"]["state"] == "failed"
    assert "MB of memory, the limit is 100 MB" in jobs["below"]["detail"]
    assert jobs["below"]["seconds"] < 10
    assert jobs["modest"]["state"] == "done"
    assert 1 < jobs["modest"]["peak_mb"] < 100


def test_the_memory_of_a_job_without_a_limit_is_not_measured_rather_than_nothing(tmp_path):
    jobs, _ = run(tmp_path, shell("a", "true"))
    assert jobs["a"]["peak_mb"] is None


@pytest.mark.parametrize("file", ["sweep.json", "status.json"])
@pytest.mark.parametrize("content", ["[]", "{}", '{"name": "x", "jobs": {"a": 1}}'])
def test_a_sweep_whose_files_are_foreign_is_not_resumed(tmp_path, file, content):
    job = shell("a", "true")
    run(tmp_path, job)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="not what a sweep writes"):
        list(local().run(Sweep("test", [job]), tmp_path, resume=True))
    assert (tmp_path / file).read_text(encoding="utf-8") == content


# --- jobs that come after others -----------------------------------------------------------------


def test_a_job_starts_when_those_before_it_have_ended_well_or_not(tmp_path):
    order = tmp_path / "order"
    jobs, _ = run(
        tmp_path / "root",
        shell("train", f"sleep 0.4; echo train >> {order}; exit 1"),
        shell("judge", f"echo judge >> {order}", after=["train"]),
        shell("other", f"echo other >> {order}"),
    )
    assert order.read_text(encoding="utf-8").split() == ["other", "train", "judge"]
    assert [jobs[name]["state"] for name in ("train", "judge", "other")] == [
        "failed",
        "done",
        "done",
    ]


def test_a_job_without_its_inputs_is_skipped_and_runs_when_they_are_there(tmp_path):
    train = "[ -e again ] && touch weights; touch again; exit 1"
    listed = [
        shell("train", train, directory=tmp_path),
        shell("judge", "touch judged", directory=tmp_path, after=["train"], inputs=["weights"]),
    ]
    jobs, last = run(tmp_path / "root", *listed)
    assert jobs["judge"]["state"] == "skipped"
    assert jobs["judge"]["detail"] == "missing weights"
    assert jobs["judge"]["attempts"] == 0
    assert last.detail == "1 failed, 1 skipped"
    jobs, _ = run(tmp_path / "root", *listed, resume=True, retry_failed=True)
    assert jobs["judge"]["state"] == "done"
    assert (tmp_path / "judged").exists()


def test_what_comes_after_a_job_that_runs_again_runs_again(tmp_path):
    script = "[ -e tried ] || { touch tried; exit 1; }"
    listed = [
        shell("train", script),
        shell("judge", "true", after=["train"]),
        shell("draw", "true", after=["judge"]),
        shell("apart", "true"),
    ]
    run(tmp_path, *listed)
    jobs, _ = run(tmp_path, *listed, resume=True, retry_failed=True)
    attempts = {name: entry["attempts"] for name, entry in jobs.items()}
    assert attempts == {"train": 2, "judge": 2, "draw": 2, "apart": 1}


def test_a_job_can_only_come_after_one_of_the_list_before_it():
    with pytest.raises(UserError, match="job judge: train is not a job before it"):
        Sweep("test", [shell("judge", "true", after=["train"]), shell("train", "true")])


# --- words ---------------------------------------------------------------------------------------


def test_exit_codes_are_put_in_words():
    assert processes.describe_exit(1) == "exit status 1"
    assert processes.describe_exit(250) == "exit status 250"
    assert processes.describe_exit(-9).startswith("killed by SIGKILL")
    assert "exit status 139" in processes.describe_exit(139)


# --- slots, devices, surroundings ----------------------------------------------------------------


def test_never_more_jobs_than_slots_run_at_once(tmp_path):
    script = "sleep 0.15"
    jobs = [shell(f"job{i}", script) for i in range(4)] + [shell("wide", script, slots=2)]
    most = now = 0
    sizes = {job.name: job.slots for job in jobs}
    for event in local(2).run(Sweep("test", jobs), tmp_path):
        if event.job and event.kind == "started":
            now += sizes[event.job]
        elif event.job:
            now -= sizes[event.job]
        most = max(most, now)
    assert most == 2
    assert status(tmp_path)["state"] == "finished"


def test_devices_are_handed_out_without_overlap(tmp_path):
    script = "echo $CUDA_VISIBLE_DEVICES > seen; sleep 0.2"
    jobs = [shell("a", script), shell("b", script), shell("pair", script, slots=2)]
    list(local(devices=["4", "7"]).run(Sweep("test", jobs), tmp_path))
    seen = {job.name: (tmp_path / "jobs" / job.name / "seen").read_text().strip() for job in jobs}
    assert {seen["a"], seen["b"]} == {"4", "7"}
    assert set(seen["pair"].split(",")) == {"4", "7"}


def test_a_job_gets_its_directory_environment_and_log(tmp_path):
    place = tmp_path / "place"
    job = shell("job", "echo $COLOUR; pwd; echo bad >&2", directory=place, env={"COLOUR": "red"})
    run(tmp_path / "root", job)
    log = (tmp_path / "root" / "logs" / "job.log").read_text(encoding="utf-8").splitlines()
    assert log[0].startswith("$ /bin/sh -c")
    assert log[1:] == ["red", str(place), "bad"]


def test_impossible_sweeps_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="needs 5 slots"):
        run(tmp_path, shell("a", "touch ran"), shell("wide", "true", slots=5))
    assert not (tmp_path / "jobs").exists()
    for make in (
        lambda: Job("../up", ["true"]),
        lambda: Job("words", "true"),
        lambda: Job("none", []),
        lambda: Job("zero", ["true"], slots=0),
        lambda: Sweep("twice", [Job("a", ["true"]), Job("a", ["false"])]),
    ):
        with pytest.raises(UserError):
            make()


# --- resume --------------------------------------------------------------------------------------

COUNT = "echo . >> runs; "


def runs(root: Path, name: str) -> int:
    path = root / "jobs" / name / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_resume_runs_only_what_is_not_done(tmp_path):
    jobs = [
        shell("done", COUNT + "touch out", outputs=["out"]),
        shell("lost", COUNT + "touch out", outputs=["out"]),
        shell("failed", COUNT + "test -e ../../mended"),
    ]
    run(tmp_path, *jobs)
    (tmp_path / "jobs" / "lost" / "out").unlink()
    (tmp_path / "mended").touch()

    entries, last = run(tmp_path, *jobs, resume=True)
    assert [runs(tmp_path, job.name) for job in jobs] == [1, 2, 1]
    assert entries["failed"]["state"] == "failed"
    assert last.kind == "failed"

    entries, last = run(tmp_path, *jobs, resume=True, retry_failed=True)
    assert [runs(tmp_path, job.name) for job in jobs] == [1, 2, 2]
    assert {entry["state"] for entry in entries.values()} == {"done"}
    assert entries["failed"]["attempts"] == 2
    assert last.kind == "finished"
    events = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum(e["kind"] == "started" and e["job"] == "failed" for e in events) == 2


def test_a_folder_never_mixes_two_sweeps(tmp_path):
    run(tmp_path, shell("a", "true"))
    with pytest.raises(UserError, match="holds a sweep already"):
        run(tmp_path, shell("a", "true"))
    with pytest.raises(UserError, match="a changed since"):
        run(tmp_path, shell("a", "false"), resume=True)
    entries, _ = run(tmp_path, shell("a", "true"), shell("b", "true"), resume=True)
    assert entries["b"]["state"] == "done"


def test_two_executors_never_run_the_same_sweep(tmp_path):
    first = local(1).run(Sweep("test", [shell("a", "sleep 5")]), tmp_path)
    next(first)
    with pytest.raises(UserError, match="another process"):
        run(tmp_path, shell("a", "sleep 5"), resume=True)
    first.close()


def test_leaving_the_loop_ends_the_jobs(tmp_path):
    job = shell("a", "echo $$ > pid; sleep 60")
    for event in local(1).run(Sweep("test", [job]), tmp_path):
        if event.job == "a":
            wait_until((tmp_path / "jobs" / "a" / "pid").exists)
            break
    wait_until(lambda: status(tmp_path)["state"] == "interrupted")
    entry = status(tmp_path)["jobs"]["a"]
    assert entry["state"] == "interrupted"
    assert entry["seconds"] < 10


SWEEP_SCRIPT = """
import sys
from pathlib import Path
from loom.jobs import Job, Local, Sweep
script = "echo . >> tries; sleep %s; echo . >> runs; touch out"
pauses = ["0.1", "0.1", *["${PAUSE:-0.1}"] * 3]
jobs = [
    Job(f"job{i}", ["/bin/sh", "-c", script % pause], outputs=["out"])
    for i, pause in enumerate(pauses)
]
executor = Local(2, grace_s=1.0)
for event in executor.run(Sweep("test", jobs), Path(sys.argv[1]), resume="resume" in sys.argv):
    print(event, flush=True)
"""


def sweep_process(root: Path, *arguments: str, pause: str = "0.1") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP_SCRIPT, str(root), *arguments],
        env={**os.environ, "PAUSE": pause},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tries(root: Path) -> int:
    return len(list((root / "jobs").glob("*/tries")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal_resume_brings_every_job_to_success_exactly_once(tmp_path, number):
    process = sweep_process(tmp_path, pause="60")
    wait_until(lambda: tries(tmp_path) == 4)  # two are done, two have begun, one waits
    process.send_signal(number)
    process.communicate(timeout=20)
    if number != signal.SIGKILL:
        assert process.returncode != 0
        assert status(tmp_path)["state"] == "interrupted"
        states = [entry["state"] for entry in status(tmp_path)["jobs"].values()]
        assert "interrupted" in states
        assert "running" not in states
    under_way = [entry for entry in status(tmp_path)["jobs"].values() if "pid" in entry]
    process = sweep_process(tmp_path, "resume")
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "sweep: finished, 5 done" in output
    assert not any(is_alive(entry["pid"]) for entry in under_way)
    assert [runs(tmp_path, f"job{i}") for i in range(5)] == [1] * 5


def test_a_stranger_with_the_process_id_of_a_dead_job_is_left_alone(tmp_path):
    job = shell("a", "true")
    run(tmp_path, job)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    damaged = status(tmp_path)
    damaged["jobs"]["a"].update(state="running", pid=stranger.pid, process_start=1)
    (tmp_path / "status.json").write_text(json.dumps(damaged), encoding="utf-8")
    stream = local().run(Sweep("test", [job]), tmp_path, resume=True)
    next(stream)
    assert status(tmp_path)["jobs"]["a"]["state"] == "interrupted"
    list(stream)
    assert status(tmp_path)["jobs"]["a"]["state"] == "done"
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_an_interrupt_is_raised_once_the_jobs_have_ended(tmp_path):
    kinds = []
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started us in the background
    sweep = Sweep("test", [shell("a", "sleep 60"), shell("b", "true")])
    with pytest.raises(SweepInterrupted, match="SIGINT") as raised:  # noqa: PT012
        for event in local(2).run(sweep, tmp_path):
            kinds.append((event.job, event.kind))
            if event.kind == "started" and event.job:
                os.kill(os.getpid(), signal.SIGINT)
    assert raised.value.exit_code == 130
    assert kinds[-2:] == [("a", "interrupted"), ("", "interrupted")]
    assert signal.getsignal(signal.SIGINT) is before
    assert status(tmp_path)["jobs"]["b"]["state"] == "waiting"


def test_the_status_file_beats_while_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setattr("loom.jobs_state.HEARTBEAT_S", 0.1)
    beats = set()
    stream = local(1).run(Sweep("test", [shell("a", "sleep 2")]), tmp_path)
    done = threading.Event()

    def watch():
        while not done.wait(0.03):
            if (tmp_path / "status.json").exists():
                beats.add(status(tmp_path)["heartbeat"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    list(stream)
    done.set()
    watcher.join()
    assert len(beats) >= 5


def test_a_full_or_read_only_place_is_an_error_for_the_user(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        run(tmp_path / "file" / "root", shell("a", "true"))
