"""A clock that jumps by a day, either way, spoils no run and no word about one."""

import itertools
import json
import math
import os
import socket
import time

import pytest
from loom.config import Config
from loom.progress import STATUS_FILE, read_status
from loom.record import read_records
from loom.run import Run
from loom.runs import find_runs, shown_age

DAY_S = 86_400.0


class Settings(Config):
    seed: int = 0


@pytest.fixture
def jumping(monkeypatch):
    """The wall clock jumps a day forwards, then two back, at every reading in turn."""
    now, jumps = time.time, itertools.cycle((0.0, DAY_S, -DAY_S))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))


def test_a_run_through_jumps_keeps_its_records_and_ends(tmp_path, jumping, capsys):
    with Run.open("core", Settings, directory=tmp_path / "run") as run:
        progress = run.progress("train", 40)
        for step in range(1, 41):
            run.record(step, {"loss/total": 1 / step})
            progress.update(step)
        progress.close()
    assert [row["step"] for row in read_records(tmp_path / "run")] == list(range(1, 41))
    assert read_status(tmp_path / "run")["state"] == "finished"
    (found,) = find_runs(tmp_path)
    assert found.age_s is not None
    assert found.age_s >= 0
    said = capsys.readouterr().out
    assert "40/40" in said
    assert "-1 day" not in said
    assert "24:00:" not in said


@pytest.mark.parametrize("ahead_s", [DAY_S, 1e9])
def test_a_sign_of_life_from_the_future_is_one(tmp_path, ahead_s):
    status = {"state": "running", "step": 1, "pid": os.getpid(), "host": socket.gethostname()}
    status |= {"heartbeat": time.time() + ahead_s, "interval_s": 1.0}
    (tmp_path / STATUS_FILE).write_text(json.dumps(status))
    assert read_status(tmp_path)["state"] == "running"


def test_an_age_is_never_negative(tmp_path):
    (tmp_path / "run").mkdir()
    future = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + DAY_S))
    facts = {"thread": "core", "began": future, "config": {}, "parents": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    (tmp_path / "run" / STATUS_FILE).write_text(json.dumps({"state": "finished"}))
    (found,) = find_runs(tmp_path)
    assert found.age_s == 0
    assert shown_age(math.nextafter(0, 1)) == "0 s"
