"""The demo at a small size: every stage runs, and a missed gate is an exit code."""

from dataclasses import replace

import pytest
from coopcyl import demo, embedded
from coopcyl.cli import app
from loom.errors import GateMissed
from typer.testing import CliRunner

SMALL = (
    "name=demo",
    "panorama.width=64",
    "panorama.height=32",
    "model.widths=[8, 8, 16]",
    "model.token_width=16",
    "model.range_bins=12",
    "train_params.warmup_steps=1",
    "train_params.epochs=1",
    "train_params.steps_per_epoch=2",
    "train_params.global_batch=2",
    "solver.hypotheses=50",
    "gates=[]",
)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A town of three crossings, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    splits = {
        name: replace(options, scenarios=count, width=64, lidar=(8, 120))
        for (name, options), count in zip(embedded.TOWN_SPLITS.items(), (2, 1), strict=True)
    }
    monkeypatch.setattr(embedded, "TOWN_SPLITS", splits)
    monkeypatch.setattr(demo, "SETTINGS", SMALL)


def test_the_demo_goes_from_nothing_to_errors_in_metres_and_two_pages(tmp_path):
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    for words in ("frames were written", "hold", "median m", "identity", "CPU-seconds in all"):
        assert words in result.output
    (run,) = (tmp_path / "runs" / "coopcyl").iterdir()
    assert (run / "report.html").is_file()
    assert len(list((run / "scenes").glob("*.html"))) == 1


def test_a_missed_gate_is_exit_code_three(monkeypatch):
    def miss(*arguments, **more) -> None:
        raise GateMissed("metric/share_of_identity = 0.9 is not <= 0.3")

    monkeypatch.setattr(demo, "run_training", miss)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 3
    assert "share_of_identity = 0.9" in result.stderr


def test_a_town_that_contradicts_itself_is_not_trained_on(monkeypatch):
    train = replace(embedded.TOWN_SPLITS["train"], vehicles=(1, 1))
    monkeypatch.setitem(embedded.TOWN_SPLITS, "train", train)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 3
    assert "vehicles per time" in result.stdout
