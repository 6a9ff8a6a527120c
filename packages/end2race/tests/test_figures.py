import numpy as np
import torch
from end2race.demo import OPEN_LOOP_COLUMNS, open_loop_rows
from end2race.figures import glance, lap_matrix, paths, view_picture
from end2race.models.presets import preset
from end2race.models.student import CameraBEVStudent
from end2race.models.teacher import LiDARBEVTeacher
from end2race.race_day import Setting, baselines, race_day
from end2race.restore import ModelFile, camera_file, save_model
from end2race.sim.sensors import camera
from loom.files import write_json


def test_a_view_is_drawn_forward_upwards_and_left_to_the_left():
    view = torch.zeros(2, 8, 8)
    view[1, 7, 6] = 3.0  # far to the left (y), far ahead (x)
    picture = view_picture(view, 80).astype(int).sum(axis=2)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row // 10, column // 10) == (1, 0)
    assert (picture == picture.max()).sum() == 100


def test_a_glance_shows_the_moment_through_all_eyes(tmp_path):
    sizes, file = preset("racing"), ModelFile(kind="teacher", preset="racing", seq_len=5)
    save_model(tmp_path / "teacher.pt", LiDARBEVTeacher(sizes), file)
    student = ModelFile(kind="student", preset="racing", seq_len=5, camera=camera_file(camera()))
    save_model(tmp_path / "student.pt", CameraBEVStudent(sizes, camera()), student)
    (start,) = Setting(tracks=1).entries()
    shown = glance(start, tmp_path / "teacher.pt", tmp_path / "student.pt")
    assert [picture.shape for _, picture in shown] == [(192, 384, 3), *[(192, 192, 3)] * 3]
    assert all(picture.std() > 1 for _, picture in shown)


def test_laps_and_paths_say_who_came_how_far():
    heats = race_day(baselines(), Setting(tracks=1))
    rows = dict(lap_matrix(heats))
    assert rows["expert"].endswith(" s")
    assert rows["constant"] == f"{heats['constant'].results[0].progress:.0%}"
    captions = [caption for caption, _ in paths(heats, 0)]
    assert captions[-1] == "expert: 100% of the lap"


def test_trivial_drivers_stand_once_beside_all_trained_ones(tmp_path):
    errors = dict.fromkeys(OPEN_LOOP_COLUMNS, 1.0)
    drivers = dict.fromkeys(("model", "blanked", "copycat", "constant"), errors)
    for name in ("a", "b"):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        write_json(tmp_path / name / "evaluation/open_loop.json", {"drivers": drivers})
    names = [row[0] for row in open_loop_rows({"A": tmp_path / "a", "B": tmp_path / "b"})]
    assert names == ["A", "A, blanked", "copycat", "constant", "B", "B, blanked"]
