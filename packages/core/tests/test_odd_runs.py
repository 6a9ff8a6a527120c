"""Runs with odd names, links for folders and folders for files: listed, shown, compared, packed."""

import json
import os
import zipfile
from pathlib import Path

import pytest
from loom.__main__ import app
from loom.errors import UserError
from loom.runs import find_runs
from typer.testing import CliRunner

from packages.core.tests.small_run import opened, write_run

NAMES = {
    "spaces, brackets and other scripts": "mein Lauf – größe 特徴 [bold]",
    "a new line and an escape": "a\nb\x1b[31m",
    "bytes that are not UTF-8": os.fsdecode(b"caf\xe9"),
}


def asked(*words: str | Path, charset: str = "utf-8"):
    runner = CliRunner(charset=charset)
    return runner.invoke(app, [str(word) for word in words])


def small(path: Path) -> Path:
    run = write_run(path, state="finished", step=1, total=1)
    facts = json.loads((run / "run.json").read_text()) | {"began": "2026-01-01T00:00:00+0000"}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "metric/m": 2.0}\n')
    return run


@pytest.fixture
def plain(tmp_path) -> Path:
    return small(tmp_path / "other" / "plain")


@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_run_of_any_name_is_listed_shown_compared_and_packed(tmp_path, plain, name, charset):
    root = tmp_path / "runs"
    run = small(root / name)
    for words in (
        ("runs", root),
        ("runs", root, "--json"),
        ("report", run),
        ("report", "--all", root),
        ("compare", run, plain, "--html", tmp_path / "page.html"),
        ("snapshot", run, "kept"),
        ("watch", run, "--once"),
    ):
        result = asked(*words, charset=charset)
        assert result.exit_code == 0, (words, result.output)
    assert len(asked("runs", root, charset=charset).stdout_bytes.splitlines()) == 2
    page = (root / "index.html").read_text(encoding="utf-8")
    assert "report.html" in page
    assert (root / "snapshots" / "kept.zip").is_file()


def test_a_path_is_printed_as_the_bytes_that_it_has(tmp_path):
    run = small(tmp_path / os.fsdecode(b"caf\xe9"))
    assert os.fsencode(run / "report.html") in asked("report", run).stdout_bytes


def test_a_link_to_a_run_is_called_as_the_user_calls_it_and_loops_are_no_runs(tmp_path, plain):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "best").symlink_to(plain)
    (runs / "loop").symlink_to(runs / "loop")
    (runs / "gone").symlink_to(runs / "nowhere")
    assert [line.split()[0] for line in asked("runs", runs).stdout.splitlines()[1:]] == [
        str(runs / "best")
    ]
    heading = asked("compare", runs / "best", plain).stdout.splitlines()[1]
    assert heading.split()[:3] == ["metric", "best", "plain"]
    for name in ("loop", "gone"):
        for words in (("compare", plain), ("report",), ("snapshot",), ("watch",), ("runs",)):
            place = [runs / name, *words[1:], *(["t"] if words[0] == "snapshot" else [])]
            result = asked(words[0], *place)
            assert result.exit_code == 2, result.output
            assert "there is no such" in result.stderr
    with pytest.raises(UserError, match="there is no run to resume"):
        opened(runs / "loop", resume=True)


def test_settings_that_are_a_folder_or_not_there_are_named_by_a_comparison(tmp_path, plain):
    folder, bare = small(tmp_path / "folder"), small(tmp_path / "bare")
    for run in (folder, bare):
        (run / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()
    said = asked("compare", plain, folder)
    assert said.exit_code == 2
    assert f"{folder / 'config.yaml'}: is a directory" in said.stderr
    said = asked("compare", bare, plain)
    assert said.exit_code == 2
    assert f"{bare}: a run without config.yaml" in said.stderr


def test_metrics_that_cannot_be_read_are_left_out_of_a_report_and_said(tmp_path):
    run = small(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert asked("report", run).exit_code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Left out of this page" in page
    assert "metrics.jsonl: is a directory" in page


def test_a_snapshot_says_what_it_left_out_and_names_a_file_that_it_may_not_read(
    tmp_path, monkeypatch
):
    run = small(tmp_path / "run")
    (run / "config.yaml").unlink()
    (run / "config.yaml").mkdir()
    (run / "evaluation" / "views").mkdir(parents=True)
    (run / "evaluation" / "views" / "one.json").write_text("{}")
    (run / "evaluation" / os.fsdecode(b"\xe9.json")).write_text("{}")
    (run / "evaluation" / "secret.json").symlink_to("/etc/hostname")
    result = asked("snapshot", run, "kept")
    assert result.exit_code == 0, result.output
    told = "left out, as they are no files of the run's own: config.yaml, evaluation/secret.json"
    assert told in result.stderr
    with zipfile.ZipFile(tmp_path / "snapshots" / "kept.zip") as archive:
        names = archive.namelist()
        assert told in json.loads(archive.read("manifest.json"))["notices"]
    assert {"evaluation/views/one.json", r"evaluation/\udce9.json"} <= set(names)
    assert not {"config.yaml", "evaluation/secret.json"} & set(names)

    original = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "one.json":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    result = asked("snapshot", run, "other")
    assert result.exit_code == 2
    assert f"{run / 'evaluation/views/one.json'}: permission denied" in result.stderr
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["kept.zip"]


def test_a_folder_that_may_not_be_read_is_not_said_to_hold_no_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="permission denied, so nothing is known of its runs"):
        find_runs(tmp_path)
