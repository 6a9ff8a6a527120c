"""Asking servers for paths, keeping the answers and reading them: real HTTP, real kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.paths import table
from maniflow_overlay.paths.breaker import Breaker
from maniflow_overlay.paths.client import is_loopback, parse_endpoint, read_reply
from maniflow_overlay.paths.engine import Generation, Outcome, Patience
from maniflow_overlay.paths.fake_server import FakeModel, FakeServer
from maniflow_overlay.paths.frames import FrameFile, FrameKey, find_frames, select_frames
from maniflow_overlay.paths.grammar import Dialect, parse_answer
from maniflow_overlay.paths.journal import RAW, Journal, read_events
from maniflow_overlay.paths.prompts import INSTRUCTIONS, asking
from typer.testing import CliRunner

HASTY = Patience(
    timeout_s=2, retries=3, rest_s=0.05, longest_rest_s=0.2, backoff_s=0.01, give_up_s=1.0
)
HAMSTER = asking(Dialect.HAMSTER, "Hamster_dev")


def write_frames(root: Path, episodes: dict[str, list[int]]) -> list[FrameFile]:
    """Write tiny frames, every one different, for tasks with episodes of these lengths."""
    number = 0
    for task, lengths in episodes.items():
        for episode, length in enumerate(lengths):
            folder = root / task / f"episode_{episode:02d}" / "frames"
            folder.mkdir(parents=True)
            for frame in range(length):
                image = np.zeros((24, 32, 3), np.uint8)
                for bit in range(12):  # a barcode survives JPEG
                    image[4:20, bit * 2 + 4 : bit * 2 + 6] = 255 * (number >> bit & 1)
                cv2.imwrite(str(folder / f"frame_{frame:04d}.png"), image)
                number += 1
    return find_frames(root)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(folder: Path, frames, endpoints, how=HAMSTER, patience=HASTY, **options) -> Outcome:
    with Journal(folder) as journal:
        made = [parse_endpoint(text) for text in endpoints]
        generation = Generation(journal, how, INSTRUCTIONS, made, patience, **options)
        return asyncio.run(generation.run(frames))


def events(folder: Path) -> list[dict]:
    return list(read_events(folder / RAW))


def terminal(folder: Path) -> Counter:
    return Counter(
        (e["task"], e["episode"], e["frame"]) for e in events(folder) if e.get("terminal")
    )


def test_every_frame_is_asked_once_and_its_path_is_what_the_server_said(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [5, 4]})
    with FakeServer(FakeModel(latency_s=0.01)) as one, FakeServer(FakeModel(latency_s=0.01)) as two:
        urls = [f"hamster={one.url}", f"hamster={two.url}"]
        outcome = ask(tmp_path / "out", frames, urls)
        assert (outcome.asked, outcome.done) == (9, 9)
        assert one.most_at_once == two.most_at_once == 1
        assert sum((one.calls + two.calls).values()) == len(one.calls + two.calls) == 9
        again = ask(tmp_path / "out", frames, urls)
        assert again.asked == 0
        assert sum((one.calls + two.calls).values()) == 9
    assert set(terminal(tmp_path / "out").values()) == {1}
    rows = {row.key: row for row in table.parse_journal(tmp_path / "out")}
    said = {
        e["frame"]: e["text"]
        for e in events(tmp_path / "out")
        if e["event"] == "answered" and e["episode"] == 0
    }
    for frame in range(5):
        row = rows[FrameKey("click_bell", 0, frame)]
        assert row.status == "ok"
        assert row.path == parse_answer(said[frame], Dialect.HAMSTER).path
    assert len({tuple(map(tuple, row.path.rows())) for row in rows.values() if row.path}) == 9


def test_an_openai_server_is_asked_many_things_at_a_time_within_its_limit(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [24]})
    with FakeServer(FakeModel("openai", latency_s=0.05)) as server:
        outcome = ask(tmp_path / "out", frames, [f"openai={server.url},limit=6"])
    assert outcome.done == 24
    assert 3 <= server.most_at_once <= 6


def test_an_answer_that_was_cut_off_is_asked_for_again_with_twice_the_tokens(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [3]})
    with FakeServer(FakeModel(faults={"cut": 1.0}, latency_s=0)) as server:
        ask(tmp_path / "out", frames, [f"hamster={server.url}"])
    for frame in range(3):
        mine = [e for e in events(tmp_path / "out") if e.get("frame") == frame]
        tokens = [e["max_tokens"] for e in mine if e["event"] == "asked"]
        status = [e["status"] for e in mine if e["event"] == "answered"]
        assert (tokens, status) == ([512, 1024], ["truncated", "ok"])
    assert {row.status for row in table.parse_journal(tmp_path / "out")} == {"ok"}


def test_an_answer_without_a_list_is_asked_for_again_warmer_and_then_given_up(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [1]})
    with FakeServer(FakeModel(faults={"prose": 1.0}, latency_s=0)) as server:
        ask(tmp_path / "out", frames, [f"hamster={server.url}"])
    warmth = [e["temperature"] for e in events(tmp_path / "out") if e["event"] == "asked"]
    assert warmth == [0.0, 0.2, 0.2]
    assert [row.status for row in table.parse_journal(tmp_path / "out")] == ["no_answer"]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("error", "server_error"),
        ("garbage", "server_error"),
        ("drop", "server_error"),
        ("slow", "timeout"),
    ],
)
def test_a_frame_whose_calls_keep_failing_ends_with_the_reason(tmp_path, fault, status):
    frames = write_frames(tmp_path / "frames", {"click_bell": [1]})
    patience = Patience(0.1, 2, rest_s=0.01, longest_rest_s=0.01, backoff_s=0.01, give_up_s=9)
    with FakeServer(FakeModel(faults={fault: 1.0}, latency_s=0.01)) as server:
        ask(tmp_path / "out", frames, [f"hamster={server.url}"], patience=patience)
        assert sum(server.calls.values()) == 3
    assert [row.status for row in table.parse_journal(tmp_path / "out")] == [status]
    assert set(terminal(tmp_path / "out").values()) == {1}


def test_a_wrong_model_name_is_named_and_no_frame_is_charged_with_it(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [2]})
    for kind, code in (("hamster", 422), ("openai", 404)):
        with FakeServer(FakeModel(kind, "another")) as server:
            with pytest.raises(
                UserError, match=f"every endpoint refuses.*{code}.*Hamster_dev"
            ) as error:
                ask(tmp_path / kind, frames, [f"{kind}={server.url}"])
            assert "--model" in error.value.hint
        assert terminal(tmp_path / kind) == Counter()


def test_endpoints_that_are_down_end_the_run_by_name_and_it_goes_on_later(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [2]})
    port = closed_port()
    with pytest.raises(UserError, match=f"no endpoint has answered for 1 s.*:{port}"):
        ask(tmp_path / "out", frames, [f"hamster=http://127.0.0.1:{port}"])
    with FakeServer(FakeModel(latency_s=0)) as server:
        assert ask(tmp_path / "out", frames, [f"hamster={server.url}"]).done == 2


def test_a_busy_server_is_no_fault_of_the_frame(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [6]})
    patience = Patience(2, 0, rest_s=0.01, longest_rest_s=0.02, backoff_s=0.01, give_up_s=9)
    with FakeServer(FakeModel(faults={"busy": 0.5}, latency_s=0)) as server:
        ask(tmp_path / "out", frames, [f"hamster={server.url}"], patience=patience)
    assert {row.status for row in table.parse_journal(tmp_path / "out")} == {"ok"}


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_done(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [3]})
    frames[1].path.write_bytes(b"no picture")
    with FakeServer(FakeModel(latency_s=0)) as server:
        done = run("paths", "generate", tmp_path / "frames", tmp_path / "out",
                   "--endpoint", f"hamster={server.url}")  # fmt: skip
    assert done.exit_code == 2
    assert "1 pictures cannot be read" in done.stderr
    assert "frame_0001.png" in done.stderr
    assert sum(terminal(tmp_path / "out").values()) == 2


@pytest.mark.bench
def test_four_endpoints_are_kept_busy(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [20]})
    begin = time.process_time()
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer(FakeModel(latency_s=0.5))) for _ in range(4)]
        outcome = ask(tmp_path / "out", frames, [f"hamster={s.url}" for s in servers])
        shares = [server.counts()["busy_share"] for server in servers]
    assert outcome.done == 20
    assert [sum(server.calls.values()) for server in servers] == [5, 5, 5, 5]
    assert min(shares) > 0.8  # the rest is room for a busy machine
    # Client and servers together.
    assert (time.process_time() - begin) / 20 < 0.03


def generate_command(tmp_path: Path, urls: list[str]) -> list[str]:
    code = "import sys; from maniflow_overlay.cli import main; sys.exit(main())"
    endpoints = [part for url in urls for part in ("--endpoint", url)]
    return [
        sys.executable, "-c", code, "paths", "generate", str(tmp_path / "frames"),
        str(tmp_path / "out"), *endpoints,
    ]  # fmt: skip


def wait_for_answers(path: Path, number: int) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        if path.is_file() and path.read_bytes().count(b'"event": "answered"') >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path}: less than {number} answers within a minute")


def test_killed_twice_every_frame_ends_once_and_no_call_is_repeated(tmp_path):
    """Two good servers, a flaky one and a dead one; ended by SIGTERM, then by SIGKILL."""
    frames = write_frames(tmp_path / "frames", {"click_bell": [30], "turn_switch": [20, 10]})
    raw = tmp_path / "out" / RAW
    with ExitStack() as stack:
        good = [stack.enter_context(FakeServer(FakeModel(latency_s=0.05))) for _ in range(2)]
        faults = {"error": 0.2, "cut": 0.2, "drop": 0.1}
        flaky = stack.enter_context(FakeServer(FakeModel(latency_s=0.05, seed=1, faults=faults)))
        urls = [f"hamster={s.url}" for s in (*good, flaky)]
        command = generate_command(tmp_path, [*urls, f"hamster=http://127.0.0.1:{closed_port()}"])

        first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for_answers(raw, 8)
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=60)
        assert first.returncode == 128 + signal.SIGTERM, said
        assert "frames are left" in said
        assert open_calls(raw) == Counter()  # calls under way were waited for

        second = subprocess.Popen(command)
        wait_for_answers(raw, 24)
        second.kill()
        second.wait(timeout=60)
        torn = open_calls(raw)
        assert sum(torn.values()) <= 4
        with raw.open("ab") as journal:
            journal.write(b'{"event": "answ')  # a line that the kill tore

        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        received = sum((s.calls for s in (*good, flaky)), Counter())

    assert terminal(tmp_path / "out") == Counter({tuple(frame.key): 1 for frame in frames})
    happened = events(tmp_path / "out")
    answered = Counter((*_key(e), e["attempt"]) for e in happened if e["event"] == "answered")
    assert set(answered.values()) == {1}
    # The servers have seen the calls that the journal tells of, and no other: one per frame, its
    # failures and re-asks, and again only what was under way at the SIGKILL.
    reached = [e for e in happened if e["event"] in ("answered", "failed") and not _dead(e)]
    assert sum(received.values()) <= len(reached) + sum(torn.values())
    per_frame = Counter(_key(e) for e in reached) + torn
    assert sorted(received.values()) <= sorted(per_frame.values())
    assert len(received) == len(frames)


def _key(event: dict) -> tuple:
    return event["task"], event["episode"], event["frame"]


def _dead(event: dict) -> bool:
    return event["event"] == "failed" and not event["charged"]


def open_calls(raw: Path) -> Counter:
    """Count the calls of each frame that were asked and neither answered nor failed."""
    balance: Counter = Counter()
    for event in read_events(raw):
        if event["event"] != "question":
            balance[_key(event)] += 1 if event["event"] == "asked" else -1
    return +balance


def test_a_cut_path_is_better_than_a_later_answer_without_one(tmp_path):
    frames = write_frames(tmp_path / "frames", {"click_bell": [1]})
    with FakeServer(FakeModel(latency_s=0)) as server:
        ask(tmp_path / "out", frames, [f"hamster={server.url}"])
    lines = (tmp_path / "out" / RAW).read_text(encoding="utf-8").splitlines()
    answer = json.loads(lines[-1])
    for text in ("<ans>[(0.1, 0.2), (0.3, 0.4), (0.", "I see nothing."):
        lines.append(json.dumps(answer | {"text": text}))
    (tmp_path / "out" / RAW).write_text("\n".join(lines[:2] + lines[3:]) + "\n", encoding="utf-8")
    row = table.parse_journal(tmp_path / "out")[0]
    assert row.status == "truncated"
    assert row.path
    assert row.path.rows() == [[0.1, 0.2, 0], [0.3, 0.4, 0]]


def test_two_processes_cannot_write_one_journal(tmp_path):
    with Journal(tmp_path), pytest.raises(UserError, match="another process"), Journal(tmp_path):
        pass


def test_an_event_that_the_disk_took_half_of_ends_the_run_and_is_none(tmp_path, monkeypatch):
    write = os.write
    with Journal(tmp_path) as journal:
        journal.append("question", question="q")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
            with pytest.raises(UserError, match="no space left"):
                journal.append("question", question="r")
    with Journal(tmp_path) as journal:
        assert journal.knows("q")
        assert not journal.knows("r")
        journal.append("question", question="s")
    assert [event["question"] for event in events(tmp_path)] == ["q", "s"]


def test_a_damaged_line_of_a_journal_is_named(tmp_path):
    (tmp_path / RAW).write_bytes(b'{"event": "question", "question": "q"}\n{"event": "as\n')
    with pytest.raises(UserError, match=r"raw.jsonl:2: damaged"), Journal(tmp_path):
        pass


@pytest.mark.parametrize(
    "line", ["3", "{}", '{"event": "x"}', '{"event": "asked"}', "[" * 9999, "null",
             '{"event": "asked", "task": "a", "episode": "1", "frame": 2, "question": "q"}'],
)  # fmt: skip
def test_lines_that_are_no_events_are_refused(tmp_path, line):
    (tmp_path / RAW).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="raw.jsonl:1"):
        events(tmp_path)


def test_a_breaker_opens_after_failures_in_a_row_and_rests_longer_each_time():
    now = [0.0]
    breaker = Breaker(3, 2.0, 10.0, lambda: now[0])
    breaker.fail()
    breaker.fail()
    assert (breaker.open, breaker.rest()) == (False, 0)
    rests = []
    for _ in range(5):
        breaker.fail()
        rests.append(breaker.rest())
    assert rests == [2, 4, 8, 10, 10]
    now[0] += 9
    assert (breaker.open, breaker.rest()) == (True, 1)
    breaker.succeed()
    assert (breaker.open, breaker.rest()) == (False, 0)


def test_stride_keeps_the_first_frame_of_each_episode(tmp_path):
    frames = write_frames(tmp_path, {"a": [5, 2], "b": [1]})
    kept = [frame.key[:] for frame in select_frames(frames, stride=2)]
    assert kept == [("a", 0, 0), ("a", 0, 2), ("a", 0, 4), ("a", 1, 0), ("b", 0, 0)]
    first = [frame.key[:] for frame in select_frames(frames, most=1)]
    assert first == [("a", 0, 0), ("a", 1, 0), ("b", 0, 0)]
    some = [frame.key[:] for frame in select_frames(frames, stride=4, episodes=1)]
    assert some == [("a", 0, 0), ("a", 0, 4), ("b", 0, 0)]
    assert {frame.key.task for frame in find_frames(tmp_path, ["b"])} == {"b"}
    with pytest.raises(UserError, match="task c"):
        find_frames(tmp_path, ["c"])
    with pytest.raises(UserError, match="no frames"):
        find_frames(tmp_path / "a")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_generate_parse_and_hold_as_commands(tmp_path):
    write_frames(tmp_path / "frames", {"click_bell": [7], "secret": [1]})
    with FakeServer(FakeModel(latency_s=0)) as server:
        options = ["--endpoint", f"hamster={server.url}", "--stride", 3]
        done = run("paths", "generate", tmp_path / "frames", tmp_path / "out", *options)
        assert (done.exit_code, "no instruction for the task secret" in done.stderr) == (2, True)
        options += ["--instruction", "secret=find it"]
        done = run("paths", "generate", tmp_path / "frames", tmp_path / "out", *options)
        assert done.exit_code == 0, done.output
        assert "4 frames are done" in done.output
        assert httpx.get(f"{server.url}/counts").json()["busy_share"] is not None
    done = run(
        "paths", "parse", tmp_path / "out", tmp_path / "p.jsonl", "--hold", tmp_path / "frames"
    )
    assert done.exit_code == 0, done.output
    rows = table.read_paths(tmp_path / "p.jsonl")
    assert [row.held_from for row in rows] == [None, 0, 0, None, 3, 3, None, None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hamster",
        "vila=http://a",
        "hamster=ftp://a",
        "openai=http://a,limit=0",
        "openai=http://a,limit=x",
        "hamster=http://",
    ],
)
def test_endpoints_that_cannot_be_read_are_refused(text):
    with pytest.raises(UserError, match="cannot be read"):
        parse_endpoint(text)


def test_endpoints_say_kind_place_and_limit():
    assert parse_endpoint("hamster=http://127.0.0.1:8000/").limit == 1
    endpoint = parse_endpoint("openai=https://node7:8010,limit=32")
    assert (endpoint.kind, endpoint.url, endpoint.limit) == ("openai", "https://node7:8010", 32)
    assert parse_endpoint("openai=http://node7:8010/v1/").url == "http://node7:8010"
    hosts = {"127.0.0.1": 1, "localhost": 1, "[::1]": 1, "10.0.0.1": 0, "node7": 0}
    assert {host: is_loopback(f"http://{host}:1") for host in hosts} == hosts


def test_content_is_read_as_text_and_as_parts():
    def reply(content):
        return read_reply(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    assert reply("abc").text == "abc"
    assert (
        reply(
            [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
        ).text
        == "ab"
    )
    assert reply(None).text == ""
