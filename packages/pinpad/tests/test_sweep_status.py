"""What a sweep says of itself while it runs: status file, state, monitor."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
from loom.errors import UserError
from pinpad.sweep import execute, monitor, status_file
from pinpad.sweep.plan import SweepSettings
from pinpad.sweep.state import read_sweep
from pinpad.sweep.status_file import read_status_file, write_status_file

from packages.pinpad.tests.sweep_command import SMALL, pinpad


def test_a_reader_never_sees_half_a_status_file(here):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    state, path = read_sweep(here / "root"), here / "status.env"
    write_status_file(path, state)
    code = (
        "import sys, time; from pathlib import Path\n"
        "path, end, seen = Path(sys.argv[1]), time.monotonic() + 1.0, 0\n"
        "while time.monotonic() < end:\n"
        "    text = path.read_text(); seen += 1\n"
        "    assert text[:9] == 'run_name=' and text.splitlines()[-1][:8] == 'logroot=', text\n"
        "print(seen)"
    )
    reader = subprocess.Popen([sys.executable, "-S", "-c", code, path], stdout=subprocess.PIPE)
    while reader.poll() is None:
        write_status_file(path, state)
    assert int(reader.communicate()[0]) > 100
    assert reader.returncode == 0


def test_a_monitor_in_a_pipe_says_each_change_in_a_line_and_ends_with_the_picture(
    here, monkeypatch, capsys
):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    waiting = read_sweep(here / "root")
    running, *others = waiting.runs
    running = dataclasses.replace(running, state="running", step=100, total=400, rate=20.0)
    begun = dataclasses.replace(waiting, runs=(running, *others))
    more = dataclasses.replace(running, step=101)
    later = dataclasses.replace(waiting, runs=(more, *others))
    ended = dataclasses.replace(begun, state="failed")
    monkeypatch.setattr(monitor, "states", lambda root: iter([waiting, begun, later, ended]))
    assert monitor.follow(here / "root") == ended
    first, second, third, *picture = capsys.readouterr().out.splitlines()
    assert first[9:] == "running, all 0 %, 0 of 4 ended, 0 failed"
    assert second[9:] == (
        "running, (1/4) pinpad_rssm_seed0 train 100/400, all 6 %, 0 of 4 ended, 0 failed, "
        "0:01:15 left"
    )
    assert "FAILED" in third  # a step more is no change worth a line
    assert len(picture) == 7


def test_a_training_that_failed_has_the_percent_it_had(here):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    whole = read_sweep(here / "root")
    failed = dataclasses.replace(whole.runs[0], state="failed", step=3, total=20)
    state = dataclasses.replace(whole, state="failed", runs=(failed, *whole.runs[1:]))
    write_status_file(here / "status.env", state)
    found = read_status_file(here / "status.env")
    assert (found["step"], found["steps_target"], found["percent"]) == ("3", "20", "15")
    assert found["overall_percent"] == "25"  # nothing of it is left to do
    assert state.as_json()["runs"][0]["percent"] == 15


def test_a_sweep_that_records_its_episodes_is_not_dead(here):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    (here / "root" / ".episodes.partial").mkdir()
    os.utime(here / "root", (0, time.time() - 100))
    assert read_sweep(here / "root").state == "running"
    os.utime(here / "root" / ".episodes.partial", (0, time.time() - 40))
    assert read_sweep(here / "root").state == "dead"


def test_a_sweep_is_stopped_by_its_status_file(here):
    execute.begin(SweepSettings(overrides=SMALL), here / "one", None)
    execute.begin(SweepSettings(overrides=SMALL), here / "logdir" / "newest", None)
    write_status_file(here / "status.env", read_sweep(here / "one"))
    done = pinpad("stop", "--status-file", "status.env")
    assert done.exit_code == 2
    assert f"{here / 'one'}: nothing is running" in done.output


def test_a_status_file_leads_the_monitor_to_its_sweep(here):
    execute.begin(SweepSettings(overrides=SMALL), here / "a b", None)
    write_status_file(here / "status.env", read_sweep(here / "a b"))
    assert read_status_file(here / "status.env")["logroot"] == str(here / "a b")
    shown = pinpad("monitor", here / "status.env", "--once")
    assert shown.exit_code == 0
    assert "a b  RUNNING" in shown.output
    assert shown.output.count("waiting") == 4


def test_progress_of_the_run_and_of_the_whole_is_said(here, monkeypatch):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    run = here / "root" / "pinpad_rssm_seed0"
    run.mkdir()
    jobs = {"pinpad_rssm_seed0.train": {"state": "running"}}
    status = {"state": "running", "heartbeat": time.time(), "pid": os.getpid(), "jobs": jobs}
    (here / "root" / "status.json").write_text(json.dumps(status))
    mine = {"state": "running", "heartbeat": time.time(), "pid": os.getpid(), "host": "here"}
    mine |= {"interval_s": 2.0, "step": 100, "total": 400, "rate": 20.0}
    (run / "status.json").write_text(json.dumps(mine))
    said = []
    monkeypatch.setattr(status_file, "PROGRESS_S", 0.0)
    with status_file.StatusWriter(here / "root", here / "status.env", said.append):
        pass
    (line,) = said
    assert line.startswith("(1/4 pinpad_rssm_seed0) [100/400]:  25%|")
    assert "[00:05<00:15]" in line
    assert line.endswith(", all 6%")


@pytest.mark.parametrize("text", ["state", "a b=3\n", "state=x y\n", "state='x\n", "=1\n"])
def test_a_damaged_status_file_is_named(here, text):
    (here / "status.env").write_text(text)
    with pytest.raises(UserError, match="status.env:1: no assignment"):
        read_status_file(here / "status.env")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"jobs": 3}', '{"jobs": {"pinpad_rssm_seed0.train": 1}}', '{"pid": []}'],
)
def test_a_damaged_state_is_named(here, text):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    (here / "root" / "status.json").write_text(text)
    with pytest.raises(UserError, match="status.json"):
        read_sweep(here / "root")
