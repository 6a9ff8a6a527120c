"""The demo on a few frames: every stage runs and the page holds what it says."""

import json

import pytest
from end2race.cli import app
from loom.files import read_json
from typer.testing import CliRunner


@pytest.fixture
def tiny_world(tmp_path, monkeypatch):
    """An embedded dataset of 48 frames, in a working directory of its own."""
    monkeypatch.setattr("end2race.embedded.TRACKS", {"train": 2, "valid": 1})
    monkeypatch.setattr("end2race.embedded.DRIVES", 2)
    monkeypatch.setattr("end2race.embedded.FRAMES", 8)
    monkeypatch.setattr("end2race.embedded.TEACHER_SETTINGS", ("train.max_steps=2",))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_leaves_table_video_and_page(tiny_world):
    arguments = ["demo", "student_steps=2", "tracks=1", "--run-dir", "out"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for name in ("copycat", "constant", "BC", "KD", "teacher", "expert"):
        assert f"[drive] {name}:" in done.output
    laps = json.loads((tiny_world / "out/laps.json").read_text())
    assert laps["expert"]["score"]["laps"] == 1
    assert (tiny_world / "out/race.webp").stat().st_size > 1000
    page = (tiny_world / "out/report.html").read_text()
    assert "The same moment through all eyes" in page
    config = read_json(tiny_world / "out/kd/run.json")["config"]
    assert config["kd"]["cache_dir"] == "out/cache"
    assert config["labelled_segments"] == ["segment_0000", "segment_0001"]
