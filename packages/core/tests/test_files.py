"""Files are whole or not there, and what the disk refuses is said in words."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loom import files
from loom.errors import UserError


def test_write_replaces_the_content_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "status.json"
    files.write_atomic(path, "old")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_content_reaches_the_disk_before_the_name_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), sync(fd)))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (events.append("rename"), replace(self, to))
    )
    files.write_atomic(tmp_path / "a", "x")
    assert events == ["sync", "rename", "sync"]


def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    files.write_atomic(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"config\.yaml: no space left") as caught:
        files.write_atomic(path, "new")
    assert "free some space" in caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_folder_is_a_user_error(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="permission denied"):
        files.write_atomic(tmp_path / "a", "x")


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        files.write_atomic(tmp_path / "gone" / "a", "x")


def test_a_failure_that_is_no_disk_error_is_not_disguised(tmp_path):
    with pytest.raises(OSError, match="odd"), files.explained(tmp_path):
        raise OSError(errno.EDOM, "odd")


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state.json"
    files.write_json(path, [0] * 20_000)
    code = (
        "import itertools, pathlib, sys; from loom import files\n"
        "for n in itertools.count(): files.write_json(pathlib.Path(sys.argv[1]), [n] * 20_000);"
        " print(n, flush=True)"
    )
    for lines in (1, 2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        )
        with process:
            for _ in range(lines):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        values = files.read_json(path)
        assert len(values) == 20_000
        assert len(set(values)) == 1


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"psnr": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_utf8_is_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    files.write_json(tmp_path / "a.json", {"command": name})
    assert files.read_json(tmp_path / "a.json") == {"command": name}
    files.append_line(tmp_path / "log.txt", name)
    assert (tmp_path / "log.txt").read_text() == "caf\\udce9\n"


def test_a_torn_last_line_is_closed_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, '{"step": 1}')
    with path.open("a") as stream:
        stream.write('{"ste')
    files.append_line(path, '{"step": 3}', sync=True)
    assert path.read_text().splitlines() == ['{"step": 1}', '{"ste', '{"step": 3}']


def test_appending_two_lines_as_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one line"):
        files.append_line(tmp_path / "a", "one\ntwo")


def test_sha256_equals_the_library(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5_000])
def test_damaged_json_is_a_user_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json"):
        files.read_json(path)


def test_every_truncation_of_a_json_object_is_noticed(tmp_path):
    path = tmp_path / "run.json"
    whole = json.dumps({"step": 12, "name": "é", "rows": [1, 2.5, None]}).encode()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"run\.json"):
            files.read_json(path)
