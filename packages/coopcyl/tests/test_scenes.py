"""Pages of scenes: whole in one file, drawn by a real browser, true to the views."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from coopcyl.cli import app
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.tree import read_tree
from coopcyl.geometry.panorama import Panorama
from coopcyl.looking import see
from coopcyl.models.cylnet import CylNet
from coopcyl.models.inputs import stack, view_input
from coopcyl.models.options import CylNetOptions
from coopcyl.models.predict import predict
from coopcyl.render import map_picture, warnings, write_scene
from typer.testing import CliRunner

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PANORAMA = Panorama(128, 32, "equirect_band", -42, 42)
TINY = CylNetOptions(widths=(8, 8, 8), token_width=8, descriptor=4, range_bins=8)


@pytest.fixture(scope="module")
def page(small_root, tmp_path_factory) -> Path:
    """A time with three vehicles as its files have it, and poses that are wrong by 5 m."""
    frame = max(read_tree(small_root, "train").frames, key=lambda each: len(each.agents))
    reader = PanoramaReader(PANORAMA, DepthSource("npy"), 60.0)
    folder = tmp_path_factory.mktemp("scene")
    return write_scene(frame, [see(agent, reader) for agent in frame.agents], folder)


def embedded(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    match = re.search(r'<script id="scene" type="application/json">(.*?)</script>', text, re.S)
    assert match
    return json.loads(match[1])


def test_a_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text


def test_a_page_holds_every_vehicle_with_its_cameras_and_points(page):
    scene = embedded(page)
    summary = json.loads(page.with_name(f"{page.stem}_summary.json").read_text())
    assert scene["poses"] == ["gt"]
    assert {view["agent"] for view in scene["views"]} == summary["vehicles"].keys()
    for view in scene["views"]:
        assert len(view["cameras"]) == 4
        assert view["poses"]["gt"] == summary["vehicles"][view["agent"]]["poses"]["gt"][:3]
    tails = ["rgb.png", "depth.png", "mask.png", "cloud.png", "depth_true.npy", "mask_true.npy"]
    for agent in summary["vehicles"]:
        for tail in tails:
            assert (page.parent / "views" / f"{page.stem}_{agent}_{tail}").is_file()


def test_points_on_the_page_are_those_of_the_view_to_the_centimetre(page, small_root):
    scene = embedded(page)
    frame = max(read_tree(small_root, "train").frames, key=lambda each: len(each.agents))
    view = PanoramaReader(PANORAMA, DepthSource("npy"), 60.0).read(frame.agents[0])
    codes = np.frombuffer(base64.b64decode(scene["views"][0]["points"]), "<i2").reshape(-1, 3)
    np.testing.assert_allclose(codes / 100, view.points()[view.non_ambiguous], atol=0.0051)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_the_points(page, tmp_path):
    assert CHROMIUM
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=900,900",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    drawn = re.search(r'data-drawn="(\d+)" data-pose="gt"', done.stdout)
    assert drawn, done.stderr[-500:]
    assert int(drawn[1]) > 1000
    assert done.stdout.count('type="checkbox"') == len(embedded(page)["views"])


def test_the_map_shows_what_is_ahead_above_the_middle():
    picture = map_picture(
        np.array([[0.0, 0.0, 20.0], [0.0, -2.0, 20.0]]), np.array([[9] * 3, [99] * 3])
    )
    row, column = 128, 256
    assert picture[row - 1 : row + 1, column].max() == 99  # the higher point is on top
    assert (picture != 17).any(-1).sum() == 1


def test_warnings_say_where_to_look():
    said = warnings({"7": {"pred_mask_mean": 0.01, "trans_err_m": 12.0}, "8": {"trans_err_m": 1.0}})
    assert len(said) == 2
    assert "mask holds 0.010" in said[0]
    assert "12.0 m off" in said[1]


def test_the_summary_has_the_errors_of_the_poses_on_the_page(small_root, tmp_path):
    frame = read_tree(small_root, "train").frames[0]
    reader = PanoramaReader(PANORAMA, DepthSource("npy"), 60.0)
    seen = [see(agent, reader) for agent in frame.agents[:2]]
    model = CylNet(TINY, 32, 128, torch.Generator().manual_seed(0)).eval()
    found = predict(model, stack([view_input(each.view) for each in seen]))
    page = write_scene(frame, seen, tmp_path, found)
    scene, summary = (
        embedded(page),
        json.loads((tmp_path / f"{page.stem}_summary.json").read_text()),
    )
    assert scene["poses"] == ["pred", "gt"]
    second = summary["vehicles"][str(frame.agents[1].agent)]
    away = np.array(second["poses"]["pred"]) - np.array(second["poses"]["gt"])
    assert second["trans_err_m"] == pytest.approx(np.linalg.norm(away[:3, 3]))
    assert summary["vehicles"][str(frame.agents[0].agent)]["trans_err_m"] == 0
    points = np.load(tmp_path / "views" / f"{page.stem}_{frame.agents[1].agent}_points.npy")
    assert points.shape == (32, 128, 3)


def test_a_scene_without_any_surface_in_range_still_has_a_summary(small_root, tmp_path):
    frame = read_tree(small_root, "train").frames[0]
    reader = PanoramaReader(PANORAMA, DepthSource("npy"), 0.5)
    seen = [see(agent, reader) for agent in frame.agents]
    model = CylNet(TINY, 32, 128, torch.Generator().manual_seed(0)).eval()
    page = write_scene(
        frame, seen, tmp_path, predict(model, stack([view_input(each.view) for each in seen]))
    )
    summary = json.loads((tmp_path / f"{page.stem}_summary.json").read_text())
    for facts in summary["vehicles"].values():
        assert facts["gt_mask_mean"] == 0
        assert "bce_over_entropy" not in facts


def test_viz_writes_the_page_of_a_time(small_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["viz", "--root", str(small_root), "panorama.width=64", "panorama.height=16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "scenes").glob("*.html"))) == 1


def test_a_recording_without_rerun_says_what_to_install(small_root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    arguments = ["viz", "--rerun", "--root", str(small_root), "-o", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "panorama.width=64", "panorama.height=16"])
    assert result.exit_code == 2
    assert "uv pip install rerun-sdk" in result.stderr


def test_a_recording_holds_each_vehicle(small_root, tmp_path):
    rerun = pytest.importorskip("rerun")
    frame = read_tree(small_root, "train").frames[0]
    reader = PanoramaReader(PANORAMA, DepthSource("npy"), 60.0)
    seen = [see(agent, reader) for agent in frame.agents]
    page = write_scene(frame, seen, tmp_path, rerun=True)
    content = page.with_suffix(".rrd").read_bytes()
    assert content.startswith(b"RRF2")
    assert rerun.__version__
    for agent in frame.agents:
        assert f"/gt/{agent.agent}/points".encode() in content
