"""The index of all runs: what it links, which pages it renews, what it calls a run."""

import json
import os
import time
from pathlib import Path

from loom.__main__ import app
from loom.errors import UserError
from loom.files import write_json
from loom.report import Report
from loom.report_index import write_index
from typer.testing import CliRunner

from packages.core.tests.small_run import write_run

runner = CliRunner()


def test_the_index_links_every_run_and_keeps_the_reports_of_the_threads(tmp_path):
    root = tmp_path / "runs"
    own = write_run(root / "demo" / "a b", state="finished")
    (own / "report.html").write_text("the thread's own")
    damaged = write_run(root / "demo" / "<i>")
    (damaged / "status.json").write_text("{")
    page = write_index(root).read_text()
    assert page.count("<a href=") == 2
    assert '<a href="demo/a%20b/report.html">a b</a>' in page
    assert '<a href="demo/%3Ci%3E/report.html">&lt;i&gt;</a>' in page
    assert (own / "report.html").read_text() == "the thread's own"
    assert "<html" in (damaged / "report.html").read_text()
    (tmp_path / "empty").mkdir()
    assert runner.invoke(app, ["report", "--all", str(tmp_path / "empty")]).exit_code == 2


def record_value(run: Path, step: int, value: float) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time": 0.0, "metric/score": value}) + "\n")


def age(path: Path, seconds: float) -> None:
    """Make a file that much older."""
    stamp = path.stat().st_mtime - seconds
    os.utime(path, (stamp, stamp))


def test_the_index_renews_the_standard_page_of_a_run_that_has_gone_on(tmp_path):
    run = write_run(tmp_path / "a")
    record_value(run, 1, 0.125)
    page = run / "report.html"
    write_index(tmp_path)
    assert "0.125" in page.read_text()
    for path in run.iterdir():
        age(path, 60)
    record_value(run, 2, 0.875)
    write_index(tmp_path)
    assert "0.875" in page.read_text()


def test_the_index_renews_the_standard_page_of_a_run_that_died_since(tmp_path):
    run = write_run(tmp_path / "a")
    write_index(tmp_path)
    assert "This run died" not in (run / "report.html").read_text()
    status = json.loads((run / "status.json").read_text())
    write_json(run / "status.json", {**status, "heartbeat": time.time() - 3600})
    age(run / "status.json", 3600)  # nothing has been written since the page
    write_index(tmp_path)
    assert "This run died" in (run / "report.html").read_text()


def test_the_index_leaves_a_page_that_is_up_to_date_as_it_is(tmp_path, monkeypatch):
    for index in range(3):
        record_value(write_run(tmp_path / f"{index}", state="finished"), 1, 1.0)
    write_index(tmp_path)
    for path in tmp_path.glob("*/*"):
        if path.name != "report.html":
            age(path, 60)
    written = []
    monkeypatch.setattr(Report, "write", lambda report, path: written.append(path.name) or path)
    write_index(tmp_path)
    assert written == ["index.html"]


def test_the_index_keeps_a_threads_own_page_and_says_that_the_run_went_on(tmp_path):
    run = write_run(tmp_path / "demo" / "a")
    (run / "report.html").write_text("the thread's own")
    assert "older than what their runs recorded" not in write_index(tmp_path).read_text()
    age(run / "report.html", 60)
    assert "older than what their runs recorded" not in write_index(tmp_path).read_text()
    record_value(run, 2, 0.875)
    page = write_index(tmp_path).read_text()
    assert "older than what their runs recorded: a. The thread" in page
    assert (run / "report.html").read_text() == "the thread's own"


def test_a_run_whose_folder_cannot_be_written_stands_in_the_index_without_a_link(
    tmp_path, monkeypatch
):
    for name in ("mine", "theirs"):
        write_run(tmp_path / name)
    written = Report.write

    def refused(report: Report, path: Path) -> Path:
        if path.parent.name == "theirs":
            raise UserError(f"{path}: read-only file system")
        return written(report, path)

    monkeypatch.setattr(Report, "write", refused)
    page = write_index(tmp_path).read_text()
    assert 'href="mine/report.html"' in page
    assert "theirs" in page
    assert "theirs/report.html" not in page


def test_the_index_tells_the_seeds_of_two_conditions_apart(tmp_path):
    for condition in ("wide", "narrow"):
        write_run(tmp_path / "runs" / condition / "seed-0", state="finished")
    page = write_index(tmp_path / "runs", tmp_path / "index.html").read_text()
    assert '<a href="runs/wide/seed-0/report.html">wide/seed-0</a>' in page
    assert '<a href="runs/narrow/seed-0/report.html">narrow/seed-0</a>' in page
    assert "in runs<" in page


def test_the_index_calls_a_run_as_the_link_to_it(tmp_path):
    write_run(tmp_path / "runs" / "b", state="finished")
    elsewhere = write_run(tmp_path / "large-disk" / "0017", state="finished")
    (tmp_path / "runs" / "wide").symlink_to(elsewhere)
    page = write_index(tmp_path / "runs" / ".." / "runs").read_text()
    assert '<a href="wide/report.html">wide</a>' in page
    assert "in runs<" in page
