"""Runs are listed, followed, compared and packed from their directories alone, in any state."""

import json
import math
import re
import time
from pathlib import Path

import pytest
from loom.__main__ import app
from loom.comparison import compare, comparison_report
from loom.drawing import print_table
from loom.errors import UserError
from loom.files import write_json
from loom.runs import find_runs, shown_age, summary
from typer.testing import CliRunner

from packages.core.tests.small_run import write_run

runner = CliRunner()


def test_runs_lists_whole_damaged_and_half_written_runs_and_skips_the_rest(tmp_path):
    root = tmp_path / "runs"
    write_run(root / "demo" / "a", state="finished", step=10, total=10)
    (write_run(root / "demo" / "bb") / "status.json").write_text('{"state": "run')
    (write_run(root / "demo" / "ccc") / "status.json").unlink()
    (write_run(root / "demo" / "dddd") / "run.json").write_bytes(b"\xff[]")
    (write_run(root / "demo" / "eeeee") / "status.json").write_text("[1]")
    write_run(root / "demo" / "archive" / "old")
    (root / "photos" / "2024").mkdir(parents=True)
    (root / "note.txt").touch()
    result = runner.invoke(app, ["runs", str(root), "--json"])
    assert result.exit_code == 0
    states = {Path(each["path"]).name: each["state"] for each in json.loads(result.stdout)}
    assert states == {
        "a": "finished",
        "bb": "unreadable",
        "ccc": "unreadable",
        "dddd": "running",
        "eeeee": "unreadable",
    }
    table = runner.invoke(app, ["runs", str(root)])
    assert len(table.stdout.splitlines()) == 6
    assert runner.invoke(app, ["runs", str(tmp_path / "gone")]).exit_code == 2
    assert "no runs" in runner.invoke(app, ["runs", str(root / "photos")]).stdout


@pytest.mark.parametrize(
    ("state", "code"),
    [("running", 0), ("finished", 0), ("stopped", 0), ("gate_missed", 3), ("failed", 1)],
)
def test_watch_ends_with_the_state_of_the_run(tmp_path, state, code):
    path = write_run(tmp_path / "a", state=state, step=48, total=50_000, rate=9.6, phase="特徴")
    result = runner.invoke(app, ["watch", str(path), "--once"])
    assert result.exit_code == code
    shown = "(特徴) [48/50000]:" if state == "running" else f"{state}, step 48 of 50000"
    assert shown in result.stdout
    as_json = runner.invoke(app, ["watch", str(path), "--once", "--json"])
    assert json.loads(as_json.stdout)["state"] == state


def test_watch_follows_until_the_end(tmp_path, monkeypatch):
    from loom import runs

    path = write_run(tmp_path / "a", step=1, total=3, rate=1.0, phase="p")

    def next_state(_):
        write_json(path / "status.json", {"state": "finished", "step": 3, "total": 3})

    monkeypatch.setattr(runs.time, "sleep", next_state)
    result = runner.invoke(app, ["watch", str(path)])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.splitlines()[-1] == "finished, step 3 of 3"
    assert runner.invoke(app, ["watch", str(tmp_path)]).exit_code == 2


def write_records(run: Path, *rows: dict) -> None:
    lines = [json.dumps({"step": step, "time": 0, **row}) for step, row in enumerate(rows, 1)]
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


def gate(metric: str, passed: bool, value: float | str | None, at: str = "end") -> dict:
    return {"metric": metric, "at": at, "step": 1, "passed": passed, "value": value, "limit": 1}


def test_a_run_is_judged_by_the_metric_of_its_first_gate_and_its_newest_value(tmp_path):
    run = write_run(tmp_path / "a", metrics={"metric/other": 1.0, "metric/psnr_db": 35.5})
    write_json(
        run / "gates.json",
        [
            gate("metric/psnr_db", False, 9.0, "every 10"),
            gate("metric/psnr_db", True, 30.0, "every 10") | {"step": 20},
            gate("metric/ssim", False, None),
        ],
    )
    found = summary(run)
    assert (found.metric, found.value) == ("psnr_db", 35.5)
    assert (found.gates_passed, found.gates) == (1, 2)  # the last answer of each counts


def test_two_gates_that_ask_for_one_metric_at_one_time_count_as_two(tmp_path):
    run = write_run(tmp_path / "a")
    both = [gate("metric/score", False, 3.0), gate("metric/score", True, 3.0)]
    write_json(run / "gates.json", [each | {"step": 10} for each in both] + both)
    assert (summary(run).gates_passed, summary(run).gates) == (1, 2)


def test_a_gate_lends_its_value_where_the_status_has_none(tmp_path):
    run = write_run(tmp_path / "a", metrics={"loss/total": 0.5})
    write_json(run / "gates.json", [gate("metric/psnr_db", False, 9.0)])
    assert (summary(run).metric, summary(run).value) == ("psnr_db", 9.0)
    (run / "gates.json").write_text("[")
    assert (summary(run).metric, summary(run).value) == ("loss/total", 0.5)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (7_200, "2 h"), (172_800, "2 d")],
)
def test_an_age_is_written_with_its_largest_unit(seconds, shown):
    assert shown_age(seconds) == shown


def test_the_age_counts_from_the_beginning_in_its_own_time_zone(tmp_path):
    run = write_run(tmp_path / "a")
    began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 3600 + 7200)) + "+0200"
    write_json(run / "run.json", {"thread": "demo", "began": began})
    assert summary(run).age_s == pytest.approx(3600, abs=30)


def test_a_run_that_links_lead_to_is_listed_once_and_by_its_own_name(tmp_path):
    sweep = write_run(tmp_path / "runs" / "sweep")
    write_json(sweep / "sweep.json", {})
    write_run(sweep / "seed-0")
    (tmp_path / "runs" / "latest").symlink_to(sweep)
    (sweep / "again").symlink_to(sweep)
    elsewhere = write_run(tmp_path / "large-disk" / "b")
    (tmp_path / "runs" / "a").symlink_to(elsewhere)
    found = {
        str(Path(each.path).relative_to(tmp_path / "runs")) for each in find_runs(tmp_path / "runs")
    }
    assert found == {"sweep", "sweep/seed-0", "a"}
    assert len(find_runs(tmp_path / "runs")) == 3


@pytest.mark.parametrize("call", ["is_file", "iterdir"])
def test_a_folder_of_somebody_else_is_passed_over(tmp_path, monkeypatch, call):
    for name in ("mine", "theirs", "yours"):
        write_run(tmp_path / name / "a")
    allowed = getattr(Path, call)

    def refuse(path: Path):
        if path.parent == tmp_path / "theirs" or path == tmp_path / "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(Path, call, refuse)
    found = [Path(each.path).parent.name for each in find_runs(tmp_path)]
    assert sorted(found) == ["mine", "yours"]


def test_a_list_of_a_thousand_runs_takes_less_than_two_seconds(tmp_path):
    for index in range(1000):
        run = write_run(tmp_path / "demo" / f"a-{index}", state="finished", step=1, total=1)
        write_json(run / "gates.json", [gate("metric/m", True, 1.0)] * 20)
    began = time.process_time()
    assert len(find_runs(tmp_path)) == 1000
    assert time.process_time() - began < 2


def test_compare_names_settings_and_last_metrics(tmp_path):
    one = write_run(tmp_path / "one", config="train:\n  lr: 5e-4\n  same: 1\n")
    two = write_run(tmp_path / "two", config="train:\n  lr: 1e-3\n  same: 1\n")
    write_records(one, {"loss/a": 0.75}, {"loss/a": 0.5, "metric/psnr_db": 9.5})
    result = runner.invoke(app, ["compare", str(one), str(two)])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["train.lr:", "0.0005", "->", "0.001"]
    assert lines[2:4] == [["metric/psnr_db", "9.5", "-", "-"], ["loss/a", "0.5", "-", "-"]]
    same = runner.invoke(app, ["compare", str(one), str(one)])
    assert "the settings are the same" in same.stdout


def seeds(folder: Path, name: str, values: list[float], width: int = 4, first: int = 0) -> Path:
    for seed, value in enumerate(values, first):
        run = write_run(folder / f"{name}-{seed}", config=f"seed: {seed}\nwidth: {width}\n")
        write_records(run, {"metric/m": 0.0}, {"metric/m": value})
    return folder


def test_what_programs_are_told_is_strict_json_though_a_metric_is_infinite(tmp_path, capsys):
    for name in ("a", "b"):
        write_records(write_run(tmp_path / name), {"metric/psnr_db": "Infinity"})
    result = runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    print_table(("name", "psnr_db"), [("a", math.inf), ("b", math.nan)], as_json=True)
    table = capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads(result.stdout, parse_constant=refuse)
    assert told["metrics"][0]["first"] == "Infinity"
    shown = json.loads(table, parse_constant=refuse)
    assert [row["psnr_db"] for row in shown] == ["Infinity", "NaN"]


def test_folders_of_seeds_are_compared_by_their_means_with_intervals(tmp_path):
    first = seeds(tmp_path / "narrow", "run", [1.0, 2.0, 3.0])
    second = seeds(tmp_path / "wide", "run", [5.0, 5.0, 5.0], width=8, first=7)
    found = compare(first, second)
    assert found.settings == ("width: 4 -> 8",)
    row = found.metrics[0]
    assert (row.first, row.second) == (2.0, 5.0)
    # Student's t of 2 degrees of freedom at 97.5 % is 4.3027; the standard error is 1 / sqrt(3).
    assert row.first_interval == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert row.second_interval == (5.0, 5.0)
    # Welch: all of the spread is in one group, whose 2 degrees of freedom are what is left.
    assert row.difference == 3.0
    assert row.difference_interval == pytest.approx(
        (3 - 4.3027 / 3**0.5, 3 + 4.3027 / 3**0.5), 1e-4
    )
    shown = json.loads(runner.invoke(app, ["compare", str(first), str(second), "--json"]).stdout)
    assert shown["metrics"][0]["first"] == 2.0
    page = comparison_report(found).html()
    assert "narrow/run-2" in page
    assert "difference" in page


def test_a_seed_that_died_before_it_had_settings_is_named_and_not_counted_in_silence(tmp_path):
    first = seeds(tmp_path / "narrow", "run", [1.0, 2.0, 3.0])
    second = seeds(tmp_path / "wide", "run", [5.0, 6.0], width=8)
    (second / "run-1" / "config.yaml").unlink()
    write_json(second / "sweep.json", {})  # the sweep itself is no run of a condition
    write_json(second / "status.json", {"state": "finished"})
    told = "wide is 1 of 2 runs: run-1 ended without config.yaml"
    assert f"note: {told}" in runner.invoke(app, ["compare", str(first), str(second)]).stdout
    shown = json.loads(runner.invoke(app, ["compare", str(first), str(second), "--json"]).stdout)
    assert (shown["runs"], shown["left_out"]) == ([3, 1], [[], ["run-1"]])
    assert told in comparison_report(compare(first, second)).html()
    assert "note:" not in runner.invoke(app, ["compare", str(first), str(first)]).stdout


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for condition, value in (("narrow", 1.0), ("wide", 5.0)):
        seeds(tmp_path / condition, "seed", [value])
    found = compare(tmp_path / "narrow" / "seed-0", tmp_path / "wide" / "seed-0")
    assert (found.first.name, found.second.name) == ("narrow/seed-0", "wide/seed-0")
    page = comparison_report(found).html()
    assert "narrow/seed-0 <b>1</b>" in page
    assert "wide/seed-0 <b>5</b>" in page


def test_the_runs_of_a_side_share_its_colour_and_differ_in_dashes(tmp_path):
    first = seeds(tmp_path / "narrow", "run", [1.0, 2.0])
    second = seeds(tmp_path / "wide", "run", [5.0, 6.0], width=8)
    page = comparison_report(compare(first, second)).html()
    lines = re.findall(r'<path class="line" style="stroke:var\((--c\d)\)"([^>]*?) d="M', page)
    drawn = [(colour, "stroke-dasharray" in rest) for colour, rest in lines]
    assert drawn[:2] == [("--c0", False), ("--c0", True)]
    assert ("--c1", False) in drawn
    assert {colour for colour, _ in drawn} == {"--c0", "--c1"}


def test_a_folder_whose_runs_differ_in_more_than_their_seed_is_refused(tmp_path):
    mixed = seeds(tmp_path / "mixed", "a", [1.0])
    seeds(mixed, "b", [1.0], width=8)
    with pytest.raises(UserError, match="more than their seed") as refusal:
        compare(mixed, mixed)
    assert "width: 4 -> 8" in str(refusal.value)
    with pytest.raises(UserError, match="no such folder"):
        compare(tmp_path / "gone", mixed)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run nor a folder"):
        compare(tmp_path / "empty", mixed)


def test_report_of_a_run_is_one_file(tmp_path):
    path = write_run(tmp_path / "a", state="finished")
    result = runner.invoke(app, ["report", str(path)])
    assert result.exit_code == 0, result.stderr
    assert "<html" in (path / "report.html").read_text()


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path, command):
    (tmp_path / "thesis.tex").write_text("x")
    result = runner.invoke(app, [command, str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a run's directory" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_where_no_run_was_made_yet_the_hint_says_what_makes_one(tmp_path):
    with pytest.raises(UserError, match="there is no such folder") as refusal:
        find_runs(tmp_path / "runs")
    assert "a training makes runs/" in refusal.value.hint
