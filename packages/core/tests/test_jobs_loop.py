"""The loop at a place of our own, whose machines go away: each job still ends exactly once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from loom.errors import UserError
from loom.jobs import Job, Local, Sweep
from loom.jobs_loop import MAX_LOSSES, run_jobs
from loom.jobs_process import Ending
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
