"""Servers as processes: started, found ready, ended, never mistaken for another process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest
from loom import processes
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.paths.servers import STATE, Server, read_servers, start, stop
from typer.testing import CliRunner

LISTEN = (
    "import os,socket,subprocess,sys,time\n"
    "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    "print('gpu', os.environ['CUDA_VISIBLE_DEVICES'], sys.argv[2], flush=True)\n"
    "child = subprocess.Popen(['sleep', '300'])\n"
    "print('child', child.pid, flush=True)\n"
    "time.sleep(300)\n"
)


def script(tmp_path: Path, code: str) -> str:
    (tmp_path / "server.py").write_text(code, encoding="utf-8")
    return f"{sys.executable} {tmp_path / 'server.py'} {{port}} gpu{{gpu}}"


def free_ports(number: int) -> int:
    """Return the first of `number` free ports in a row."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            first = listener.getsockname()[1]
        try:
            for port in range(first, first + number):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def run(*arguments):
    return CliRunner().invoke(app, ["servers", *map(str, arguments)])


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(holds, seconds: float = 20) -> None:
    """A killed process takes a moment to die."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_servers_come_up_are_shown_and_go_down_with_their_children(tmp_path):
    port, folder = free_ports(2), tmp_path / "servers"
    assert run("status", "--folder", folder).exit_code == 1
    command = script(tmp_path, LISTEN)
    options = ["--command", command, "--gpus", "0,3", "--port", port, "--folder", folder]
    done = run("up", *options)
    try:
        assert done.exit_code == 0, done.output
        assert done.output.count("is ready") == 2
        shown = run("status", "--folder", folder)
        assert (shown.exit_code, shown.output.count("ready")) == (0, 2)
        log = (folder / "logs" / f"{port + 1}.log").read_text(encoding="utf-8")
        assert "gpu 3 gpu3" in log
        child = int(re.findall(r"child (\d+)", log)[0])
        assert processes.start_time(child)
        assert "servers are running" in run("up", *options).stderr
        first = read_servers(folder)[0]
        os.kill(first.pid, 9)
        os.waitpid(first.pid, 0)
        assert run("status", "--folder", folder).output.count("ended") == 1
    finally:
        stopped = run("down", "--folder", folder)
    assert "1 servers stopped" in stopped.output
    wait_until(lambda: not runs(child))
    assert read_servers(folder) == []


def test_a_server_that_ends_is_named_with_its_last_words_and_the_others_are_stopped(tmp_path):
    port = free_ports(2)
    code = f"import sys\nif sys.argv[1] == '{port + 1}': sys.exit('CUDA driver error')\n" + LISTEN
    with pytest.raises(UserError, match=f"port {port + 1} ended: CUDA driver error") as error:
        start(tmp_path, script(tmp_path, code), ["0", "1"], port, wait_s=60, say=lambda _: None)
    assert f"{port + 1}.log" in error.value.hint
    assert read_servers(tmp_path) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_process_that_does_not_listen_yet_is_starting():
    began = processes.start_time(os.getpid())
    server = Server("0", free_ports(1), os.getpid(), began, ("server",))
    assert server.state() == "starting"
    with socket.create_server(("127.0.0.1", server.port)):
        assert server.state() == "ready"
    assert Server("0", server.port, os.getpid(), began + 1, ("server",)).state() == "ended"


@pytest.mark.parametrize("gpus", ["0,0", "0,,1", ""])
def test_gpus_that_are_no_list_of_different_ones_are_refused(tmp_path, gpus):
    command = script(tmp_path, LISTEN)
    done = run("up", "--command", command, "--gpus", gpus, "--folder", tmp_path / "servers")
    assert done.exit_code == 2
    assert "no list of different GPUs" in done.stderr


def test_a_server_that_ignores_the_request_to_end_is_killed(tmp_path):
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LISTEN
    port, folder = free_ports(1), tmp_path / "servers"
    (server,) = start(folder, script(tmp_path, stubborn), ["0"], port, wait_s=60, say=print)
    assert server.alive
    assert stop(folder, grace_s=0.3) == 1
    with contextlib.suppress(ChildProcessError):
        os.waitpid(server.pid, 0)
    assert not server.alive


def test_a_server_that_never_listens_is_given_up(tmp_path):
    port = free_ports(1)
    command = script(tmp_path, "import time; time.sleep(300)")
    with pytest.raises(UserError, match=rf"no connection to {port} within 0.3 s"):
        start(tmp_path, command, ["0"], port, wait_s=0.3, say=lambda _: None)
    assert read_servers(tmp_path) == []


def test_commands_and_ports_that_cannot_work_are_refused(tmp_path):
    port = free_ports(1)

    def up(command: str, at: int = port) -> None:
        start(tmp_path, command, ["0"], at, wait_s=1, say=lambda _: None)

    with pytest.raises(UserError, match="needs {port}"):
        up("python server.py")
    with pytest.raises(UserError, match="cannot be read"):
        up("python 'server.py {port}")
    with pytest.raises(UserError, match="cannot be started"):
        up("/no/such/program {port}")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="is taken"),
    ):
        up("true {port}", taken.getsockname()[1])
    assert run("up", "--command", "x {port}", "--gpus", "0,0", "--folder", tmp_path).exit_code == 2


def test_a_process_that_got_an_old_number_is_not_touched(tmp_path):
    mine = {"gpu": "0", "port": 1, "pid": os.getpid(), "started": 7, "command": ["x"]}
    (tmp_path / STATE).write_text(json.dumps({"servers": [mine]}), encoding="utf-8")
    assert [server.state() for server in read_servers(tmp_path)] == ["ended"]
    assert stop(tmp_path) == 0  # and this test goes on


@pytest.mark.parametrize("text", ["[]", '{"servers": [1]}', '{"servers": [{"pid": 1}]}', "{"])
def test_a_damaged_state_is_refused(tmp_path, text):
    (tmp_path / STATE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=STATE):
        read_servers(tmp_path)
