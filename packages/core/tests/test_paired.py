"""Runs that were judged on the same items are compared item by item, and others are not."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from loom.__main__ import app
from loom.comparison import compare, comparison_report
from loom.evaluation.images import FrameScores, Scores
from loom.files import write_json
from typer.testing import CliRunner

from packages.core.tests.small_run import write_run

runner = CliRunner()
HARD = {"easy": 40.0, "fair": 30.0, "hard": 11.0, "dark": 2.0, "dusk": 25.0}
HALF = 2.7764 * math.sqrt(2.5 / 5)
"""Student's t of 4 degrees of freedom at 97.5 %, times the standard error of 1, 2, 3, 4, 5."""


def better(by: float = 0.0) -> dict[str, float]:
    """Return scores that are better than `HARD` by 1, 2, 3, 4, 5 and `by`, in another order."""
    gains = {name: value + gain + by for gain, (name, value) in enumerate(HARD.items(), 1)}
    return dict(reversed(gains.items()))


def judged(run: Path, psnr_db: Mapping[str, float], references: str = "scene", **metrics) -> Path:
    """Write a run whose frames were scored, and a file that names none."""
    if not run.is_dir():
        write_run(run)
    frames = [
        FrameScores(name, value, ssim=value / 100, ssim_valid=0.5, **metrics)
        for name, value in psnr_db.items()
    ]
    weights = {"lpips.pth": run.name} if "lpips" in metrics else None
    scores = Scores(tuple(frames), f"pictures of {run.name}", references, weights)
    (run / "evaluation").mkdir(exist_ok=True)
    write_json(run / "evaluation" / "student.json", scores.to_json())
    write_json(run / "evaluation" / "points.json", {"error_m": [1.0] * len(psnr_db)})
    return run


def told(*arguments: Path) -> str:
    result = runner.invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_difference_over_items_has_students_interval_of_pairs(tmp_path):
    first, second = judged(tmp_path / "a", HARD), judged(tmp_path / "b", better())
    found = compare(first, second).paired
    row = found.rows[0]
    assert (row.judgement, row.metric, row.items, row.n) == ("student", "psnr_db", "frames", 5)
    assert (row.first, row.second) == pytest.approx((21.6, 24.6))
    # The scores spread over 38 dB, and their differences are 1 to 5 dB.
    assert (row.difference, row.low, row.high) == pytest.approx((3, 3 - HALF, 3 + HALF), abs=1e-3)
    assert found.notes == ()
    assert [row.metric for row in found.rows] == ["psnr_db", "ssim", "ssim_valid"]
    page = comparison_report(compare(first, second)).html()
    assert "one training each" in page


def test_people_and_programs_are_told_of_what_the_interval_speaks(tmp_path):
    first, second = judged(tmp_path / "a", HARD), judged(tmp_path / "b", better())
    output = told(first, second)
    assert "5 frames" in output
    assert "3 [1.037, 4.963]" in output
    assert "over items, taken as independent; one training each" in output
    told_json = json.loads(told(first, second, Path("--json")))
    assert told_json["runs"] == [1, 1]
    assert told_json["paired"][0]["low"] == pytest.approx(3 - HALF, abs=1e-3)
    assert told_json["not_paired"] == []


def test_trainings_of_a_side_are_averaged_item_by_item(tmp_path):
    one = judged(tmp_path / "one", HARD)
    for seed, by in enumerate((-0.5, 0.5)):
        run = judged(tmp_path / "two" / f"s{seed}", better(by))
        (run / "config.yaml").write_text(f"seed: {seed}\n")
    found = compare(one, tmp_path / "two")
    row = found.paired.rows[0]
    assert (row.difference, row.low, row.high) == pytest.approx((3, 3 - HALF, 3 + HALF), abs=1e-3)
    assert "1 and 2 trainings" in comparison_report(found).html()


def test_what_cannot_be_paired_is_said_and_has_no_interval(tmp_path):
    one = judged(tmp_path / "a", HARD)
    plain = write_run(tmp_path / "plain")
    assert compare(plain, plain).paired.notes == (
        "neither side keeps values of single items in evaluation/",
    )
    assert "only the first side keeps" in told(one, plain)
    assert "only the second side keeps" in told(plain, one)

    fewer = judged(tmp_path / "fewer", {name: HARD[name] for name in ("easy", "fair", "hard")})
    renamed = judged(tmp_path / "renamed", {f"{name}.png": value for name, value in HARD.items()})
    scene = judged(tmp_path / "scene", better(), references="another scene")
    for other, reason in (
        (fewer, "student: other items: 5 frames and 3 frames, 3 names in both"),
        (renamed, "student: other items: 5 frames and 5 frames, 0 names in both"),
        (scene, "student: frames of the same names, but judged against other references"),
    ):
        found = compare(one, other).paired
        assert (found.rows, found.notes) == ((), (reason,))
        assert f"not paired: {reason}" in told(one, other)


def test_a_metric_that_cannot_be_paired_leaves_the_others(tmp_path):
    exact = judged(tmp_path / "exact", HARD | {"easy": math.inf}, lpips=0.1)
    other = judged(tmp_path / "other", HARD | {"easy": math.inf}, lpips=0.2)
    found = compare(exact, other).paired
    assert [row.metric for row in found.rows] == ["ssim_valid"]
    assert found.notes == (
        "student, psnr_db: not finite for 1 of 5 frames",
        "student, ssim: not finite for 1 of 5 frames",
        "student, lpips: measured with other weights",
    )


def test_one_item_has_a_difference_and_no_interval(tmp_path):
    one, two = judged(tmp_path / "a", {"x": 1.0}), judged(tmp_path / "b", {"x": 3.0})
    row = compare(one, two).paired.rows[0]
    assert (row.difference, row.low, row.high) == (2.0, None, None)
    assert "2 (1 value, an interval needs 2)" in told(one, two)


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        '{"frames": [{"name": "x", "m": 1}, {"name": "x", "m": 2}]}',
        '{"frames": [{"name": "x", "m": 1}, {"m": 2}]}',
        '{"frames": [{"name": ["x"], "m": 1}]}',
        '{"frames": [{"name": "x", "m": true, "n": "inf ", "o": {"p": 1}, "q": 1%s}]}'
        % ("0" * 400),
        '{"frames": [], "names": "x"}',
    ],
)
def test_a_file_that_does_not_name_each_item_once_is_not_paired(tmp_path, content):
    run = judged(tmp_path / "a", HARD)
    (run / "evaluation" / "student.json").write_text(content)
    assert compare(run, run).paired.rows == ()


def test_a_damaged_judgement_is_named_and_the_rest_is_compared(tmp_path):
    run = judged(tmp_path / "a", HARD)
    (run / "evaluation" / "torn.json").write_text('{"frames": [')
    found = compare(run, judged(tmp_path / "b", better())).paired
    assert len(found.rows) == 3
    assert len(found.notes) == 1
    assert "torn.json:1: damaged JSON" in found.notes[0]
