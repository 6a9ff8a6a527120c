import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from end2race import race_day as race_day_module
from end2race.cli import app
from end2race.data.calibration import level_camera
from end2race.data.dataset import open_dataset
from end2race.doctor import checks
from end2race.driver import Driver
from end2race.embedded import default_dataset
from end2race.film import Film, bird_view, map_view
from end2race.race_day import (
    Setting,
    baselines,
    networks,
    race_day,
    scores,
    write_results,
)
from end2race.restore import ModelFile, build, camera_file
from end2race.sim import closed_loop
from end2race.sim.closed_loop import ExpertDriver, LapResult, drive, entries, unseen_tracks
from end2race.sim.score import score
from end2race.sim.sensors import camera, lidar, see
from loom.errors import UserError
from loom.film import write_film
from PIL import Image
from typer.testing import CliRunner


def lap(**changes):
    whole = LapResult("a", 0, True, 1.0, 0, 12.0, 10.0, 80.0, 0.1, 20.0)
    return LapResult(**vars(whole) | changes)


def test_a_score_counts_laps_kilometres_and_ratios_by_hand():
    crash = lap(completed=False, progress=0.25, collisions=1, lap_s=None, distance_m=20.0)
    found = score([lap(), lap(lap_s=11.0), crash])
    assert (found.laps, found.races) == (2, 3)
    assert found.progress == pytest.approx(0.75)
    assert found.collisions_per_km == pytest.approx(1 / 0.18)
    assert found.lap_ratio == pytest.approx((1.2 + 1.1) / 2)
    assert 0.2 < found.interval[0] < 2 / 3 < found.interval[1] < 0.95


def test_drivers_are_compared_on_the_same_starts_and_the_file_holds_every_race(tmp_path):
    results = race_day(baselines(), Setting(tracks=2, seeds=(0, 1)))
    expected = [(r.track, r.seed, r.expert_lap_s) for r in results["expert"].results]
    for heat in results.values():
        assert [(r.track, r.seed, r.expert_lap_s) for r in heat.results] == expected
    write_results(tmp_path / "r.json", results)
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["expert"]["score"]["laps"] == 4
    assert len(written["copycat"]["races"]) == 4
    assert scores(results)["constant"].laps == 0


def test_a_run_that_is_called_like_a_baseline_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.setattr("end2race.driver.Driver.load", lambda path, mode: path)
    found = networks([tmp_path / "expert", tmp_path / "kd", tmp_path / "x" / "kd"], "window")
    assert list(found) == ["expert (2)", "kd", "kd (2)"]


def test_points_lie_in_the_bird_view_where_the_axes_say():
    cloud = np.array([[3.0, 2.0, 0, 0.8], [100.0, 0, 0, 0.8]])
    picture = bird_view(cloud, 120)  # 10 pixels a metre, 9 m ahead
    blue = np.argwhere((picture == (120, 220, 255)).all(axis=2))
    assert [60, 40] in blue.tolist()
    assert len(blue) == 4


def test_the_map_shows_the_car_where_it_is():
    track = unseen_tracks(1)[0]
    for index in (0, 200, 400):
        x, y, _ = track.pose(index)
        picture = map_view(track, [(x, y)], 300)
        red = np.argwhere((picture == (255, 70, 60)).all(axis=2)).mean(axis=0)
        rows, columns = track.field.values.shape
        expected_row = (1 - (y - track.field.y0) / ((rows - 1) * 0.1)) * 299
        expected_column = (x - track.field.x0) / ((columns - 1) * 0.1) * (picture.shape[1] - 1)
        assert red == pytest.approx([expected_row, expected_column], abs=1.5)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_video_has_one_frame_for_each_step(tmp_path, suffix):
    film = Film()
    drive(ExpertDriver(), entries(unseen_tracks(1), [0]), limit_s=0.6, watch=film)
    path = write_film(tmp_path / f"race{suffix}", film.frames, 10.0)
    with Image.open(path) as video:
        assert video.n_frames == 6
        assert video.size == film.frames[0].shape[1::-1]


def test_the_embedded_dataset_is_recorded_once_and_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("end2race.embedded.TRACKS", {"train": 1, "valid": 1})
    monkeypatch.setattr("end2race.embedded.DRIVES", 2)
    monkeypatch.setattr("end2race.embedded.FRAMES", 3)
    folder = tmp_path / "data/racing"
    (tmp_path / "data/racing.unfinished/train").mkdir(parents=True)  # as a killed process leaves it
    said = []
    assert default_dataset(said.append, folder) == folder
    assert len(open_dataset(folder).segments) == 4
    default_dataset(said.append, folder)
    assert len(said) == 1
    assert not folder.with_name("racing.unfinished").exists()


def test_processes_that_start_together_record_the_embedded_dataset_once(tmp_path, monkeypatch):
    monkeypatch.setattr("end2race.embedded.TRACKS", {"train": 1})
    monkeypatch.setattr("end2race.embedded.DRIVES", 2)
    monkeypatch.setattr("end2race.embedded.FRAMES", 3)
    said = []
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(default_dataset, said.append, tmp_path / "racing") for _ in range(3)]
        assert {each.result() for each in asked} == {tmp_path / "racing"}
    assert len(said) == 1
    assert len(open_dataset(tmp_path / "racing").segments) == 2


def test_the_checks_of_the_doctor_pass_here():
    assert [check.run().level for check in checks()] == ["ok", "ok"]


def test_the_commands_collect_and_drive(tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "set"
    small = ["sim-collect", "--out", str(out), "--tracks", "1", "--frames", "4", "--drives", "1"]
    done = run(app, [*small, "--camera", "32x16", "--beams", "2"])
    assert done.exit_code == 0, done.output
    assert len(open_dataset(out).segments[0]) == 4
    done = run(app, [*small, "--camera", "wide"])
    assert done.exit_code == 2
    assert "--camera wide is no size" in done.output
    json_path, video = tmp_path / "laps.json", tmp_path / "v.webp"
    done = run(app, ["drive", "--tracks", "1", "--json-path", str(json_path)])
    assert done.exit_code == 0, done.output
    assert "copycat" in done.output
    assert json.loads(json_path.read_text())["expert"]["score"]["laps"] == 1
    short = ["drive", "--tracks", "1", "--limit-s", "1"]
    done = run(app, [*short, "--video", str(video), "--json"])
    assert done.exit_code == 0, done.output
    assert {row["driver"] for row in json.loads(done.stdout)} == {"copycat", "constant", "expert"}
    assert f"video of copycat: {video}" in done.stderr
    assert video.exists()
    done = run(app, ["drive", "--video", "x.avi"])
    assert done.exit_code == 2


def student(camera):
    """An untrained student that is calibrated for a camera."""
    torch.manual_seed(0)
    file = ModelFile(kind="student", preset="racing", seq_len=2, camera=camera_file(camera))
    return Driver(build(file), seq_len=2)


def test_a_student_looks_through_its_own_camera():
    """Of another size, or of the same size and another lens; the car's own is not asked."""
    for eye in (camera(64, 32), camera(field_of_view_deg=60)):
        driver, seen = student(eye), []
        assert driver.eye.sha256 == eye.sha256
        (start,) = Setting(tracks=1).entries()
        drive(driver, [start], limit_s=1, watch=lambda _, found, seen=seen: seen.append(found))
        (start,) = Setting(tracks=1).entries()
        rng = np.random.default_rng((start.seed, 0xD21E))
        expected = see(start.race.track.field, start.race.look, eye, start.race.pose, rng)
        assert np.array_equal(seen[0].images[0], expected)
        (heat,) = race_day({"it": driver}, Setting(tracks=1, limit_s=1), film="it").values()
        assert len(heat.film.frames) == heat.entries[0].race.steps


@pytest.mark.parametrize(
    ("turn", "position", "reason"),
    [
        (0.1, (0.2, 0.0, 0.3), "turned in the car"),
        (0.0, (0.2, 0.0, 1.4), "1.4 m above the ground"),
    ],
)
def test_a_camera_that_the_simulator_does_not_have_is_refused(turn, position, reason):
    level = level_camera(64, 32, 30.0, position)
    cos, sin = np.cos(turn), np.sin(turn)
    down = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    with pytest.raises(UserError, match=reason):
        drive(
            student(replace(level, rotation=down @ level.rotation)), entries(unseen_tracks(1), [0])
        )


def test_the_cars_lidar_has_the_beams_that_are_asked_for(monkeypatch):
    asked = []
    original = race_day_module.race_day
    monkeypatch.setattr(
        race_day_module,
        "race_day",
        lambda drivers, setting, **rest: (
            asked.append(setting) or original(drivers, setting, **rest)
        ),
    )
    done = CliRunner().invoke(app, ["drive", "--tracks", "1", "--limit-s", "1", "--beams", "3"])
    assert done.exit_code == 0, done.output
    assert len(asked[0].scanner.elevations_rad) == 3


def teacher(beams):
    """An untrained teacher."""
    torch.manual_seed(0)
    return Driver(build(ModelFile(kind="teacher", preset="racing", seq_len=2)), 2, beams=beams)


@pytest.mark.parametrize(("known", "given", "used"), [(3, None, 3), (None, None, 8), (3, 5, 5)])
def test_a_teacher_drives_with_the_beams_that_it_learned_from(monkeypatch, known, given, used):
    turns, said = [], []

    def sweep(field, scanner, pose, rng):
        turns.append(scanner.beams)
        return np.zeros((0, 4), np.float32)

    monkeypatch.setattr(closed_loop, "sweep", sweep)
    scanner = None if given is None else lidar(given)
    race_day({"it": teacher(known)}, Setting(1, limit_s=0.2, scanner=scanner), say=said.append)
    assert set(turns) == {used}
    told = "[lidar] it learned from 3 beams and drives with 5"
    assert (told in said) == (given is not None)
