"""Diagnosis: each fault is planted on ray-traced bricks, and the healthy student stays healthy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from featdistill.data import bricks
from featdistill.data.bricks import Boxes, BrickModel, BrickScene
from featdistill.data.renders import write_frame
from featdistill.data.rgba import BLACK, WHITE, composite
from featdistill.diagnose import REMEDIES, Diagnosis, Finding, diagnose, diagnose_folders
from featdistill.hypotheses import Trial
from loom.errors import UserError
from scipy.ndimage import gaussian_filter

SCENE = BrickScene(width=40, train=13, test=13)


class Planted(NamedTuple):
    """References, and a student of them that is good but not perfect."""

    wanted: np.ndarray  # premultiplied [n, 40, 40, 4]
    student: np.ndarray
    train: np.ndarray

    def diagnose(self, student: np.ndarray, background=WHITE, **options) -> Diagnosis:
        return diagnose(composite(student, background), composite(self.wanted, WHITE), **options)


def imperfect(rgba: np.ndarray) -> np.ndarray:
    """A little blur and noise: about 30 dB."""
    noise = np.random.default_rng(0).normal(0, 0.02, rgba.shape)
    blurred = gaussian_filter(rgba, (0, 0.25, 0.25, 0))
    return np.clip(blurred + noise * blurred[..., 3:], 0, 1)


@pytest.fixture(scope="module")
def planted() -> Planted:
    model = bricks.build_model(SCENE.seed)
    wanted = bricks.trace(model, bricks.test_cameras(SCENE), supersampling=2)
    train = bricks.trace(model, bricks.train_cameras(SCENE), supersampling=2)
    return Planted(wanted, imperfect(wanted), imperfect(train))


def test_a_good_student_is_healthy_and_no_hypothesis_explains_its_error(planted: Planted):
    found = planted.diagnose(planted.student, references_rgba=planted.wanted)
    assert found.verdict == "healthy", found.lines()
    assert 25 < found.psnr_db < 40
    assert max(trial.explained for trial in found.trials) < 0.3
    assert planted.diagnose(planted.wanted).verdict == "healthy"  # a perfect one, too


@pytest.mark.parametrize("opacity", [0.0, 0.015, 0.05])
@pytest.mark.parametrize("background", [WHITE, BLACK])
def test_a_student_that_shows_almost_nothing_is_blank(planted: Planted, opacity, background):
    found = planted.diagnose(planted.student * opacity, background)
    assert found.verdict == "blank"
    if background is WHITE:
        assert found.psnr_db - found.blank_psnr_db < 1
        stated = found.findings[0].statement.split()[-4]
        assert float(stated.rstrip("%")) / 100 == pytest.approx(opacity, abs=0.002)


def test_a_translucent_student_is_faint(planted: Planted):
    found = planted.diagnose(planted.student * 0.4)
    assert found.verdict == "faint"
    assert "40% of the references' opacity" in found.findings[0].statement


@pytest.mark.parametrize(
    ("axes", "words"),
    [((1,), "flipped vertically"), ((2,), "flipped horizontally"), ((1, 2), "180 degrees")],
)
def test_flipped_renders_are_named_with_their_axis(planted: Planted, axes, words):
    found = planted.diagnose(np.flip(planted.student, axes))
    assert found.verdict == "flipped"
    assert words in found.findings[0].statement
    assert (found.findings[0].explained or 0) > 0.9


def orders(n: int) -> list[tuple[str, list[int]]]:
    by_name = sorted(range(n), key=str)
    return [
        ("by name (0, 1, 10, 2)", by_name),
        ("by name on the other side", [by_name.index(i) for i in range(n)]),
        ("reversed", list(range(n))[::-1]),
        ("early by 1", [*range(1, n), 0]),
        ("late by 3", [n - 3, n - 2, n - 1, *range(n - 3)]),
        ("shuffled", np.random.default_rng(4).permutation(n).tolist()),
    ]


@pytest.mark.parametrize(("words", "order"), orders(13), ids=lambda value: str(value)[:12])
def test_frames_in_the_wrong_order_are_named_with_their_order(planted: Planted, words, order):
    found = planted.diagnose(planted.student[order])  # file i holds the view of frame order[i]
    assert found.verdict == "order"
    assert words in found.findings[0].statement
    assert (found.findings[0].explained or 0) > 0.9


def test_the_views_of_another_split_are_named(planted: Planted):
    others = {"train": composite(planted.train, WHITE)}
    found = planted.diagnose(planted.train, other_splits=others)
    assert found.verdict == "split"
    assert "views of train" in found.findings[0].statement
    assert planted.diagnose(planted.student, other_splits=others).verdict == "healthy"


def test_views_of_unknown_cameras_are_recognised_as_such(planted: Planted):
    found = planted.diagnose(planted.train)
    assert found.verdict == "cameras", found.lines()


def test_the_wrong_background_is_named_with_both_colours(planted: Planted):
    found = planted.diagnose(planted.student, BLACK)
    assert found.verdict == "background"
    assert "is (0.00, 0.00, 0.00), the references have (1.00, 1.00, 1.00)" in (
        found.findings[0].statement
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda c, a: c / np.maximum(a, 1e-6) * (a > 0) + 1 - a, "straight colours"),
        (lambda c, a: c + 2 * (1 - a), "background twice"),
        (lambda c, a: a * c + 1 - a, "premultiplied twice"),
    ],
)
def test_wrong_compositing_is_found_on_soft_edges(planted: Planted, wrong, words):
    colour, alpha = planted.student[..., :3], planted.student[..., 3:]
    renders = np.rint(255 * np.clip(wrong(colour, alpha), 0, 1)).astype(np.uint8)
    found = diagnose(renders, composite(planted.wanted, WHITE), references_rgba=planted.wanted)
    assert found.verdict == "compositing", found.lines()
    assert words in found.findings[0].statement


def resized_model(factor: float) -> BrickModel:
    model = bricks.build_model(SCENE.seed)
    boxes = model.boxes._replace(low=model.boxes.low * factor, high=model.boxes.high * factor)
    studs = model.studs
    return BrickModel(
        boxes,
        studs._replace(
            centre=studs.centre * factor,
            bottom=studs.bottom * factor,
            top=studs.top * factor,
            radius=studs.radius * factor,
        ),
    )


@pytest.mark.parametrize("factor", [0.7, 0.85, 1.15])
def test_a_scene_of_the_wrong_scale_is_named_with_its_factor(planted: Planted, factor):
    cameras = bricks.test_cameras(SCENE)
    student = imperfect(bricks.trace(resized_model(factor), cameras, supersampling=2))
    found = planted.diagnose(student)
    assert found.verdict == "scale", found.lines()
    trial = max(found.trials, key=lambda trial: trial.explained)
    assert float(trial.name.split()[-1]) == pytest.approx(factor, abs=0.04)


def clipped_model(axis: int, limit: float) -> BrickModel:
    """The bricks below a limit along an axis; studs beyond it are gone."""
    model = bricks.build_model(SCENE.seed)
    boxes, studs = model.boxes, model.studs
    kept = boxes.low[:, axis] < limit
    high = boxes.high[kept].copy()
    high[:, axis] = np.minimum(high[:, axis], limit)
    place = np.column_stack([studs.centre, studs.top])[:, axis]
    inside = place < limit
    return BrickModel(
        Boxes(boxes.low[kept], high, boxes.colour[kept]),
        type(studs)(*(values[inside] for values in studs)),
    )


@pytest.mark.parametrize(("axis", "limit"), [(0, 0.55), (2, 0.25)])
def test_an_object_cut_off_at_the_box_is_recognised(planted: Planted, axis, limit):
    cameras = bricks.test_cameras(SCENE)
    student = imperfect(bricks.trace(clipped_model(axis, limit), cameras, supersampling=2))
    found = planted.diagnose(student, references_rgba=planted.wanted)
    assert found.verdict == "box", found.lines()


def test_two_faults_are_undone_one_after_the_other(planted: Planted):
    shuffled = np.random.default_rng(4).permutation(13)
    found = planted.diagnose(planted.student[shuffled], BLACK)
    assert [finding.kind for finding in found.findings] == ["background", "order"]
    found = planted.diagnose(np.flip(planted.student, 1), BLACK)
    assert [finding.kind for finding in found.findings] == ["background", "flipped"]


def test_noise_is_not_explained_away(planted: Planted):
    noise = np.random.default_rng(2).random(planted.student.shape)
    noise[..., 3] = 1
    noise[:, [0, -1]] = 0
    noise[:, :, [0, -1]] = 0
    assert planted.diagnose(noise).verdict == "unexplained"


def test_the_table_states_the_gain_of_each_hypothesis(planted: Planted):
    lines = planted.diagnose(np.flip(planted.student, 1)).lines()
    assert "blank:" in lines[0]
    assert lines[1].startswith("flipped: ")
    assert "OpenGL" in lines[2]
    (row,) = [line for line in lines if line.startswith("flipped vertically")]
    assert row.split()[-1].endswith("%")
    assert float(row.split()[-2]) > 10  # dB
    assert len(lines) > 10
    assert all(len(line) < 200 for line in lines)


def test_the_columns_of_the_table_stand_below_each_other():
    names = ("late by 1", "straight colours taken as premultiplied")
    trials = tuple(Trial("order", name, "", 20.0, 1.0, 0.2) for name in names)
    found = Diagnosis((Finding("healthy", "fine"),), 19.0, 9.0, trials)
    head, *rows = found.lines()[-3:]
    assert head.startswith("if it were")
    assert len({len(line) for line in (head, *rows)}) == 1


def test_a_diagnosis_is_strict_json_of_figures_only(planted: Planted):
    found = planted.diagnose(np.flip(planted.wanted, 1))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["verdict"] == "flipped"
    assert content["findings"][0]["remedy"] == REMEDIES["flipped"]
    assert all(trial.corrected is None for trial in found.trials)
    assert len(content["trials"]) == len(found.trials)
    perfect = planted.diagnose(planted.wanted).to_json()
    assert perfect["psnr_db"] == "inf"


def test_every_kind_has_a_remedy_but_health():
    assert [kind for kind, remedy in REMEDIES.items() if not remedy] == ["healthy"]


def test_folders_are_diagnosed_like_arrays(planted: Planted, tmp_path: Path):
    flipped = np.flip(planted.student, 1)
    for number in range(len(flipped)):
        write_frame(tmp_path / "student", number, flipped[number])
        write_frame(tmp_path / "teacher", number, planted.wanted[number])
        write_frame(tmp_path / "train", number, planted.train[number])
    found = diagnose_folders(tmp_path / "student", tmp_path / "teacher" / "renders")
    expected = planted.diagnose(flipped)
    assert found.verdict == "flipped"
    assert found.psnr_db == pytest.approx(expected.psnr_db, abs=0.05)
    assert found.notes == ()  # the teacher's rgba_npz was found, so edges were checked
    found = diagnose_folders(
        tmp_path / "train", tmp_path / "teacher", other_splits={"train": tmp_path / "train"}
    )
    assert found.verdict == "split"
    # The pictures as they are, not the RGBA beside them: that is how a background shows.
    for number in range(len(flipped)):
        write_frame(tmp_path / "dark", number, planted.student[number], background="black")
    assert diagnose_folders(tmp_path / "dark", tmp_path / "teacher").verdict == "background"
    (tmp_path / "teacher" / "rgba_npz" / "00004.npz").unlink()
    with pytest.raises(UserError, match="lacks frames 00004"):
        diagnose_folders(tmp_path / "student", tmp_path / "teacher")


def test_frames_that_do_not_fit_are_refused(planted: Planted, tmp_path: Path):
    with pytest.raises(UserError, match="references"):
        diagnose(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 9, 3), np.uint8))
    with pytest.raises(UserError, match="at least one|references"):
        diagnose(np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8))
    write_frame(tmp_path / "a", 3, planted.student[0])
    write_frame(tmp_path / "b", 3, planted.student[0, :30])
    with pytest.raises(UserError, match="frame 00003 is 40x40, its reference 40x30"):
        diagnose_folders(tmp_path / "a", tmp_path / "b")


def test_holes_inside_the_object_are_not_taken_for_the_box(planted: Planted):
    student = planted.student.copy()
    student[:, 17:26, 15:25] = 0  # the middle of the object
    found = planted.diagnose(student)
    assert max(found.trials, key=lambda trial: trial.explained).kind == "box"  # explains it, but
    assert found.verdict != "box"
