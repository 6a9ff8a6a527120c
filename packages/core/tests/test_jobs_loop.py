"""The loop at a place of our own, whose machines go away: each job still ends exactly once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from loom import jobs_loop
from loom.errors import UserError
from loom.jobs import Job, Local, Sweep
from loom.jobs_loop import MAX_LOSSES, run_jobs
from loom.jobs_process import Ending
from loom.jobs_state import SweepState
from loom.runs import find_runs


class Fragile:
    """A place where each attempt takes two polls and the first few of a job are lost."""

    def __init__(self, slots: int, losses: dict[str, int]) -> None:
        self.count, self.losses = slots, dict(losses)
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def open(self, sweep: Sweep):
        return nullcontext()

    def slots(self) -> int:
        return self.count

    def start(self, job: Job, slots: Sequence[int], directory: Path, log: Path):
        self.seen.append((job.name, tuple(slots)))
        return Step(self, job.name)


class Step:
    where = {"node": "elsewhere"}

    def __init__(self, place: Fragile, name: str) -> None:
        self.place, self.name, self.polls = place, name, 0

    def poll(self, stops: int) -> Ending | None:
        self.polls += 1
        if self.polls < 2:
            return None
        if self.place.losses.get(self.name, 0) > 0:
            self.place.losses[self.name] -= 1
            self.place.count = 1  # its machine is gone
            return Ending("lost", "its machine went away")
        return Ending("done", "", {"seconds": 0.1})

    def waits_for(self) -> str:
        return ""

    def kill(self) -> Ending:
        return Ending("interrupted", "")


def events(root: Path) -> list[dict]:
    lines = (root / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_jobs_of_a_machine_that_goes_away_run_again_and_end_exactly_once(tmp_path):
    place = Fragile(3, {"b": 1, "c": 2})
    sweep = Sweep("test", [Job(name, ["true"]) for name in "abcdef"])
    list(run_jobs(place, sweep, tmp_path, False, retry_failed=False))
    kinds = Counter((event["job"], event["kind"]) for event in events(tmp_path))
    assert [kinds[name, "done"] for name in "abcdef"] == [1] * 6
    assert [kinds[name, "lost"] for name in "abcdef"] == [0, 1, 2, 0, 0, 0]
    assert [kinds[name, "started"] for name in "abcdef"] == [1, 2, 3, 1, 1, 1]
    started = [event["job"] for event in events(tmp_path) if event["kind"] == "started"]
    assert started[1:7] == ["a", "b", "c", "b", "c", "c"]  # again before what comes later
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "finished"
    assert status["jobs"]["c"]["attempts"] == 3
    assert status["jobs"]["c"]["node"] == "elsewhere"


def test_slots_that_went_away_are_not_handed_out_again(tmp_path):
    place = Fragile(2, {"b": 1})
    sweep = Sweep("test", [Job(name, ["true"]) for name in "abcd"])
    list(run_jobs(place, sweep, tmp_path, False, retry_failed=False))
    assert place.seen[:2] == [("a", (0,)), ("b", (1,))]
    assert {slots for _, slots in place.seen[2:]} == {(0,)}


def test_a_job_that_is_lost_again_and_again_has_failed(tmp_path):
    place = Fragile(1, {"poison": 99})
    sweep = Sweep("test", [Job("poison", ["true"]), Job("good", ["true"])])
    *_, last = run_jobs(place, sweep, tmp_path, False, retry_failed=False)
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))["jobs"]
    assert status["poison"]["state"] == "failed"
    assert f"lost {MAX_LOSSES} times" in status["poison"]["detail"]
    assert status["poison"]["attempts"] == MAX_LOSSES
    assert status["good"]["state"] == "done"
    assert last.kind == "failed"


class Full(Fragile):
    """A place that others use, too: an attempt begins after some polls, if at all."""

    def __init__(self, slots: int, waits: int) -> None:
        super().__init__(slots, {})
        self.waits = waits

    def start(self, job: Job, slots: Sequence[int], directory: Path, log: Path):
        return Queued(self, job.name)


class Queued(Step):
    def poll(self, stops: int) -> Ending | None:
        self.polls += 1
        return Ending("done", "") if self.polls > self.place.waits + 3 else None

    def waits_for(self) -> str:
        return "" if self.polls > self.place.waits else "it asks for 2, 1 of 4 is free"


def test_a_job_that_its_place_keeps_waiting_is_named_with_what_it_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_loop, "PATIENCE_S", 0.0)
    go_on, forgotten = SweepState.go_on, []
    monkeypatch.setattr(
        SweepState, "go_on", lambda state, job: (forgotten.append(job.name), go_on(state, job))
    )
    sweep = Sweep("test", [Job("a", ["true"], slots=2)])
    shown = []
    for event in run_jobs(Full(4, waits=5), sweep, tmp_path, False, retry_failed=False):
        status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
        shown.append((str(event), status["jobs"]["a"].get("detail")))
    assert shown[2] == (
        "a: waiting, it asks for 2, 1 of 4 is free",
        "it asks for 2, 1 of 4 is free",
    )
    kinds = [event["kind"] for event in events(tmp_path)]
    assert kinds == ["started", "started", "waiting", "done", "finished"]  # told once
    assert forgotten == ["a"]


def test_what_a_job_waited_for_is_forgotten_once_it_has_begun(tmp_path):
    state = SweepState(sweep := Sweep("test", [Job("a", ["true"])]), tmp_path, {})
    state.begin(sweep.jobs[0], {})
    state.wait(sweep.jobs[0], "no room")
    state.go_on(sweep.jobs[0])
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert status["jobs"]["a"]["state"] == "running"
    assert "detail" not in status["jobs"]["a"]


def test_a_job_larger_than_what_is_left_says_so_and_starts_when_there_is_room(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(jobs_loop, "PATIENCE_S", 0.0)
    place = Fragile(4, {"a": 1})  # one slot of four is left when `a` has lost its machine
    sweep = Sweep("test", [Job("a", ["true"]), Job("wide", ["true"], after=["a"], slots=3)])
    said = []
    for event in run_jobs(place, sweep, tmp_path, False, retry_failed=False):
        if event.kind == "waiting":
            said.append(str(event))
            place.count = 4  # the machine is back
    assert said == [
        "wide: waiting, it asks for 3 slots, 1 of 1 are free; so many there are not any more"
    ]
    assert events(tmp_path)[-1]["kind"] == "finished"


def test_idle_slots_that_are_too_few_for_the_next_job_are_told_of_and_full_ones_are_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(jobs_loop, "PATIENCE_S", 0.0)
    said = {}
    for name, wide in (("idle", 2), ("full", 1)):
        root = tmp_path / name
        jobs = [Job("a", ["true"]), Job("b", ["true"], slots=wide), Job("c", ["true"])]
        place = Fragile(2 if wide == 2 else 1, {})
        found = run_jobs(place, Sweep("test", jobs), root, False, retry_failed=False)
        said[name] = [str(event) for event in found if event.kind == "waiting"]
    assert said == {"idle": ["b: waiting, it asks for 2 slots, 1 of 2 are free"], "full": []}


def test_a_list_of_runs_shows_a_sweep_and_the_runs_below_it(tmp_path):
    run = tmp_path / "study" / "runs" / "a" / "seed-0"
    command = ["/bin/sh", "-c", f'mkdir -p {run}; echo \'{{"thread": "t"}}\' > {run}/run.json']
    stream = Local().run(Sweep("study", [Job("a", command)]), tmp_path / "study")
    next(stream)
    sweep = find_runs(tmp_path)[0]
    assert (sweep.thread, sweep.state, sweep.step, sweep.total) == ("sweep", "running", 0, 1)
    list(stream)
    found = {summary.path: summary for summary in find_runs(tmp_path)}
    sweep = found[str(tmp_path / "study")]
    assert (sweep.state, sweep.step, sweep.total, sweep.reason) == ("finished", 1, 1, "1 done")
    assert found[str(run)].thread == "t"


def test_a_sweep_is_read_back_from_its_file(tmp_path):
    jobs = [Job("a", ["true"], timeout_s=2.0), Job("b", ["x"], Path("/place"), after=["a"])]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(Sweep("s", jobs).description()), encoding="utf-8")
    found = Sweep.read(path)
    assert found.description() == Sweep("s", jobs).description()
    assert found.jobs[1].directory == Path("/place")
    for damaged in ("[]", "{}", '{"name": "s", "jobs": [1]}', '{"name": "s", "jobs": [{}]}', "{"):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(UserError, match="sweep"):
            Sweep.read(path)
