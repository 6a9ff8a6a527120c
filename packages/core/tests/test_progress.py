import fcntl
import io
import itertools
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
import unicodedata
from pathlib import Path

import pytest
from loom import progress
from loom.errors import UserError
from loom.progress import STATUS_FILE, Heartbeat, Progress, format_line, read_status

NAME = "特徴蒸留_教師52d"
LINE = f"({NAME}) [48/50000]:   0%|          | 48/50000 [00:05<1:43:05]"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_the_line_is_the_one_of_the_notes():
    assert format_line(NAME, 48, 50_000, 6185.2 * 48 / 49_952) == LINE


def test_the_time_left_after_a_resume_follows_from_the_steps_of_this_process():
    line = format_line("x", 24_100, 50_000, 100.0, start=24_000)  # 1 step/s, 25,900 s to go
    assert line.endswith("| 24100/50000 [01:40<7:11:40]")


def test_a_pipe_gets_whole_lines_at_once_while_the_process_is_still_busy():
    script = (
        "import sys; from loom.progress import Progress\n"
        "p = Progress('特徴', 48); p.update(1); sys.stdin.readline()\n"
        "for n in range(2, 48): p.update(n, 'loss 0.5')\n"
        "p.close(); assert 'torch' not in sys.modules"
    )
    child = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline().startswith("(特徴) [0/48]:   0%|")
        assert child.stdout.readline().startswith("(特徴) [1/48]:   2%|")
        assert child.poll() is None
        rest = child.communicate("\n")[0]
    assert child.returncode == 0
    assert re.fullmatch(r"\(特徴\) \[47/48\]:  98%\|.*\] loss 0\.5\n", rest)


def test_a_pipe_gets_the_first_step_one_line_per_interval_and_the_last(clock):
    stream = io.StringIO()
    report = Progress("x", 1000, stream=stream, interval=10.0)
    for n in range(1, 1001):
        clock.now += 0.1  # 100 seconds in all
        report.update(n)
    report.close()
    shown = [int(n) for n in re.findall(r"\[(\d+)/1000\]", stream.getvalue())]
    assert shown[:2] == [0, 1]
    assert shown[-1] == 1000
    assert len(shown) in (11, 12, 13)
    assert len(set(shown)) == len(shown)
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().count("\n") == len(shown)


@pytest.mark.parametrize("step_s", [0.01, 0.7, 1.9])
def test_steps_below_two_seconds_leave_no_gap_above_ten(clock, step_s):
    times = []
    report = Progress("x", 10_000, stream=io.StringIO(), log=lambda line: times.append(clock.now))
    for n in range(1, 10_000):
        clock.now += step_s
        report.update(n)
    gaps = [later - before for before, later in itertools.pairwise(times)]
    assert len(gaps) > 5
    assert max(gaps) <= 10


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def drained(descriptor: int) -> bytes:
    parts = []
    while select.select([descriptor], [], [], 0.05)[0]:
        parts.append(os.read(descriptor, 65536))
    return b"".join(parts)


@pytest.fixture
def terminal():
    main, side = pty.openpty()
    with os.fdopen(side, "w", encoding="utf-8") as stream:
        yield stream, lambda: drained(main).decode()
    os.close(main)


@pytest.mark.parametrize("width", [40, 80])  # the line has 78 characters in 84 columns
def test_a_terminal_gets_one_line_cut_to_its_width(terminal, clock, width):
    stream, read = terminal
    fcntl.ioctl(stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    lines: list[str] = []
    report = Progress(NAME, 50_000, stream=stream, log=lines.append)
    for n in (1, 2, 48):
        clock.now += 2.0
        report.update(n, "loss 0.0123")
    drawn = read()
    assert "\n" not in drawn
    frames = [frame.removesuffix("\x1b[K") for frame in drawn.split("\r")[1:]]
    assert len(frames) == 4
    assert max(map(columns, frames)) == columns(frames[-1]) == width - 1
    full = format_line(NAME, 48, 50_000, 6.0) + " loss 0.0123"
    assert full.startswith(frames[-1].rstrip())
    report.close()
    assert read().endswith("\r\n")
    assert lines[-1] == full  # the log has it whole


def test_a_terminal_is_redrawn_at_most_ten_times_a_second(terminal, clock):
    stream, read = terminal
    report = Progress("x", 10_000, stream=stream)
    for n in range(1, 1001):
        clock.now += 0.001
        report.update(n)
    assert 8 <= read().count("\r") <= 13


def test_another_line_does_not_run_into_the_progress_line(terminal):
    stream, read = terminal
    report = Progress("x", 10, stream=stream)
    report.clear()
    assert read().endswith("\r\x1b[K")


def test_a_stream_without_the_characters_gets_question_marks_not_an_error():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="")
    Progress("蒸", 4, stream=stream).update(2)
    assert raw.getvalue().startswith(b"(?) [0/4]:   0%|")


def test_a_rank_that_is_not_the_first_says_nothing():
    stream = io.StringIO()
    report = Progress("x", 2, stream=stream, enabled=False)
    report.update(1)
    report.close()
    assert stream.getvalue() == ""


def test_the_heart_beats_while_one_step_is_long(tmp_path):
    heart = Heartbeat(tmp_path, {"thread": "t"}, lambda: {"step": 7}, interval=0.02)
    first = read_status(tmp_path)
    end = time.monotonic() + 5
    while read_status(tmp_path)["heartbeat"] <= first["heartbeat"] and time.monotonic() < end:
        time.sleep(0.01)  # the main thread does nothing for the file
    last = read_status(tmp_path)
    heart.stop(state="finished")
    heart.stop(state="failed")
    assert last["heartbeat"] > first["heartbeat"]
    assert (last["state"], last["step"], last["pid"]) == ("running", 7, os.getpid())
    assert read_status(tmp_path)["state"] == "finished"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_beat_that_fails_is_not_the_last_one(tmp_path, monkeypatch):
    heart = Heartbeat(tmp_path, {}, interval=0.01)
    written = threading.Event()
    calls = []

    def write_json(path, value):
        calls.append(value)
        if len(calls) == 1:
            raise UserError("no space left on device")
        written.set()

    monkeypatch.setattr(progress, "write_json", write_json)
    assert written.wait(5)
    heart.stop()


def test_a_slow_disk_does_not_hold_up_the_training(tmp_path, monkeypatch):
    heart = Heartbeat(tmp_path, {}, interval=0.01)
    writing, go_on = threading.Event(), threading.Event()

    def write_json(path, value):
        writing.set()
        assert go_on.wait(5)

    monkeypatch.setattr(progress, "write_json", write_json)
    assert writing.wait(5)
    setter = threading.Thread(target=heart.set, kwargs={"step": 1})
    setter.start()
    setter.join(2)
    held_up = setter.is_alive()
    go_on.set()
    setter.join()
    heart.stop()
    assert not held_up


def test_a_field_that_json_lacks_fails_where_it_is_set(tmp_path):
    heart = Heartbeat(tmp_path, {}, interval=60)
    with pytest.raises(ValueError, match="JSON"):
        heart.set(loss=float("nan"))
    with pytest.raises(TypeError, match="JSON"):
        heart.set(folder=Path("x"))
    heart.stop(state="finished")
    assert "loss" not in read_status(tmp_path)


def test_a_killed_process_is_told_from_a_running_one(tmp_path):
    script = (
        "import sys; from pathlib import Path; from loom.progress import Heartbeat\n"
        "Heartbeat(Path(sys.argv[1]), {}); print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert read_status(tmp_path)["state"] == "running"
        child.kill()
    status = read_status(tmp_path)
    assert status["state"] == "died"
    assert f"process {child.pid} on {status['host']} is gone" in status["reason"]


@pytest.mark.parametrize(
    ("age", "host", "state"),
    [(30, None, "running"), (90, None, "died"), (30, "other", "running"), (90, "other", "died")],
)
def test_a_heartbeat_that_is_too_old_means_died(tmp_path, age, host, state):
    Heartbeat(tmp_path, {}, interval=60).stop()
    file = tmp_path / STATUS_FILE
    status = json.loads(file.read_text(encoding="utf-8"))
    status |= {"heartbeat": time.time() - age, "interval_s": 2.0}
    status["host"] = host or status["host"]
    status["pid"] = os.getpid() if host is None else 2**22 + 1  # no such process on this host
    file.write_text(json.dumps(status), encoding="utf-8")
    assert read_status(tmp_path, limit=60)["state"] == state


def test_a_folder_without_a_status_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"status\.json"):
        read_status(tmp_path)
