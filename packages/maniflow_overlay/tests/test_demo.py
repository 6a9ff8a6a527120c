"""The whole job, at a size that teaches nothing."""

import json

from maniflow_overlay import demo, embedded
from maniflow_overlay.cli import app
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.sim import choice
from typer.testing import CliRunner


def test_the_demo_goes_from_episodes_to_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choice.graphics, "missing", lambda: "not asked for here")
    monkeypatch.setattr(embedded, "EPISODES", 6)
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "EPISODES", 2)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 0, done.output
    assert "[scene] planar, since MuJoCo cannot draw" in done.output
    store = FrameStore(tmp_path / "data/maniflow_overlay/planar/store")
    assert len(store.episodes) == 6
    (folder,) = (tmp_path / "runs/maniflow_overlay").iterdir()
    assert {path.name for path in folder.iterdir()} == {*demo.ARMS, "matrix"}
    summary = json.loads((folder / "matrix/evaluation/matrix.json").read_text("utf-8"))
    arms = {rate["arm"] for rate in summary["rates"]}
    assert arms == {"expert", "replay (blind)", "random", "none", "initial+current A"}
    assert len(summary["comparisons"]) == 6
    page = (folder / "matrix/report.html").read_text("utf-8")
    assert page.count("data:image/png") >= 20
    assert "initial+current A" in done.output
    assert "CPU-seconds in all" in done.output
    said = []
    assert embedded.embedded_store(said.append) == store.folder.relative_to(tmp_path)
    assert not any("recording" in line for line in said)
