import io
import json

import numpy as np
import pytest
from loom.errors import UserError
from PIL import Image
from pinpad.boundary import canvas
from pinpad.boundary.canvas import Panel
from pinpad.data.collect import record_episodes, write_new
from pinpad.data.players import parse_mix
from pinpad.figures import (
    FIRED,
    GRID,
    INTERNAL,
    Traced,
    busiest,
    draw_fired,
    draw_grid,
    draw_internal,
    draw_run,
    trace,
    write_report,
)


@pytest.fixture
def episode():
    return next(record_episodes("three", parse_mix("oracle"), 1, length=120, size=16, seed=0))


def traced(episode, rows, **scores):
    boundary = np.zeros(len(episode), bool)
    boundary[list(rows)] = True
    return Traced(episode, scores or {"posterior": 0.9 * boundary}, boundary, "a rule")


def has_color(picture, color):
    return (picture == np.array(color)).all(-1)


def test_the_strip_begins_where_most_happens():
    happens = np.zeros(100, bool)
    happens[[0, 1, 2, 40, 45, 59]] = True
    assert busiest(happens, 20) == 40
    assert busiest(np.ones(10, bool), 20) == 1
    assert busiest(np.zeros(30, bool), 20) == 1


def test_read_frames_have_a_red_border_and_the_others_a_blue_one(episode):
    def borders(rows):
        picture = draw_grid(traced(episode, rows), begin=10)
        return has_color(picture, canvas.READ).sum(), has_color(picture, canvas.COPY).sum()

    none_red, all_blue = borders([])
    one_red, less_blue = borders([15])
    three_red, least_blue = borders([15, 16, 29])
    assert none_red == 0
    assert one_red > 0
    assert all_blue == 20 * one_red
    assert (less_blue, three_red, least_blue) == (19 * one_red, 3 * one_red, 17 * one_red)
    assert borders([9, 30]) == (0, all_blue)  # outside of the strip


def test_bars_are_as_long_as_their_share():
    frames = np.zeros((3, 80, 80, 3), np.uint8)
    bars = canvas.with_bars(frames, np.array([0.0, 0.25, 7.0]))[:, 80:]
    assert has_color(bars[:, 5], canvas.INK).sum(1).tolist() == [0, 20, 80]


def test_enlarged_frames_keep_every_pixel(episode):
    large = canvas.enlarged(episode.image[:2], 80)
    assert large.shape == (2, 80, 80, 3)
    np.testing.assert_array_equal(large[:, ::5, ::5], episode.image[:2])
    np.testing.assert_array_equal(large[:, 4::5, 4::5], episode.image[:2])


def test_every_boundary_is_a_thumbnail_and_true_ones_are_green(episode):
    true = np.flatnonzero(episode.events["sequence_append"])
    wrong = [t for t in (7, 8, 9) if t not in true]
    picture = draw_fired(traced(episode, [*true[:2], *wrong]))
    green, red = (has_color(picture, c).sum() for c in (canvas.EVENT, canvas.READ))
    assert green / red == pytest.approx(2 / len(wrong), abs=0.02)
    silent = draw_fired(traced(episode, []))
    assert has_color(silent, canvas.READ).sum() == 0
    assert has_color(silent, (255, 255, 255)).mean() > 0.9
    assert (silent < 100).any()  # it says so in words


def test_a_curve_stands_at_its_value():
    values = np.repeat([0.0, 1.0, 0.5], 100)
    width, height = 300, 130
    picture = canvas.panels([Panel("y", {"y": values}, limits=(0.0, 1.0))], width=width)
    lower, upper = height - 10, 24
    for begin, row in ((0, lower), (100, upper), (200, (lower + upper) / 2)):
        left = canvas.LEFT + (begin + 20) * (width - canvas.RIGHT - canvas.LEFT) / 299
        rows = np.flatnonzero(has_color(picture[:, round(left)], canvas.READ))
        assert rows.mean() == pytest.approx(row, abs=1), begin


def test_marks_stand_at_their_steps():
    marks = np.zeros(101, bool)
    marks[[0, 50, 100]] = True
    panel = Panel("y", {"y": np.zeros(101)}, {"": marks})
    picture = canvas.panels([panel], width=canvas.LEFT + canvas.RIGHT + 200)
    columns = np.flatnonzero(has_color(picture[112], canvas.EVENT))
    assert columns.tolist() == [canvas.LEFT, canvas.LEFT + 100, canvas.LEFT + 200]


@pytest.fixture
def judged_run(tmp_path):
    """What `boundaries eval` leaves of two episodes, of which the second has more events."""
    run, folder = tmp_path / "run", tmp_path / "episodes"
    run.mkdir()
    (run / "run.json").write_text("{}")
    write_new(folder, record_episodes("three", parse_mix("uniform,oracle"), 2, length=90, size=16,
                                      seed=0))  # fmt: skip
    for kind in ("posterior", "surprise"):
        (run / "evaluation" / "scores" / kind).mkdir(parents=True)
        for name in ("0000-91", "0001-91"):
            row = np.linspace(0, 1 if kind == "posterior" else 40, 91)
            scored = {"score": row, "kind": "probability" if kind == "posterior" else "value"}
            np.savez(run / "evaluation" / "scores" / kind / f"{name}.npz", **scored)
    judgement = {
        "detector": "posterior",
        "event": "reward",
        "events": 4,
        "metrics": {n: {"estimate": 0.5} for n in ("f1@0", "f1@1", "average_precision", "auc")},
        "lift": {"value": None, "reason": "no boundaries"},
        "chance": {"value": None, "reason": "no boundaries"},
        "shape": {"count": 3, "interval_cv": 0.25, "flags": ["clock"]},
    }
    content = {"folder": str(folder), "judgements": [judgement]}
    (run / "evaluation" / "boundary_eval.json").write_text(json.dumps(content))
    return run


def test_a_judged_run_is_drawn_and_the_json_says_what_is_shown(judged_run):
    paths = draw_run(judged_run)
    assert paths == [judged_run / name for name in (GRID, INTERNAL, FIRED)]
    for path in paths:
        assert Image.open(io.BytesIO(path.read_bytes())).format == "PNG"
    shown = json.loads((judged_run / "evaluation" / "boundary_figures.json").read_text())
    assert shown["episode"] == "0001"
    assert shown["rule"] == "P(READ) > 0.5"
    assert shown["boundaries"] == list(range(46, 91))
    assert len(shown["events"]["sequence_append"]) >= 3
    draw_run(judged_run, 0)
    assert (
        json.loads((judged_run / "evaluation" / "boundary_figures.json").read_text())["episode"]
        == "0000"
    )
    with pytest.raises(UserError, match="there are 2 episodes"):
        draw_run(judged_run, 2)


def test_an_episode_without_scores_is_named(judged_run):
    for path in (judged_run / "evaluation" / "scores").glob("*/0001-91.npz"):
        path.unlink()
    with pytest.raises(UserError, match="no scores of episode 0001"):
        draw_run(judged_run)


def test_where_a_model_fires_follows_from_what_it_has(judged_run, episode):
    folder = judged_run / "evaluation" / "scores"
    events = int(episode.events["sequence_append"][1:].sum())

    def scored(**kinds):
        for kind, score in kinds.items():
            named = "value" if kind == "surprise" else "probability"
            np.savez(folder / kind / f"0000-{len(episode)}.npz", score=score, kind=named)
        return trace(judged_run, episode)

    rising = np.linspace(0, 1, len(episode))
    assert scored(surprise=rising).boundary.nonzero()[0].tolist() == list(
        range(len(episode) - events, len(episode))
    )
    silent = scored(posterior=0.4 * rising)
    assert "none is above 0.5" in silent.rule
    assert silent.boundary.sum() == events
    reset = scored(posterior=1 - rising)
    assert not reset.boundary[0]
    assert reset.boundary[1]


def test_surprise_is_shown_by_level_where_a_model_has_two(judged_run, episode):
    total = np.full(len(episode), 5.0)
    one = draw_internal(traced(episode, [], surprise=total))
    assert not has_color(one[:, canvas.LEFT + 5 : 400], canvas.COPY).any()
    above = np.where(np.arange(len(episode)) % 2, 4.0, 0.0)
    two = draw_internal(traced(episode, [], surprise=total, abs_surprise=above))
    assert has_color(two[:, canvas.LEFT + 5 : 400], canvas.COPY).any()

    folder = judged_run / "evaluation" / "scores"
    np.savez(folder / "posterior" / f"0000-{len(episode)}.npz", score=total / 10, forced=total > 9,
             kind="probability", abs_surprise=above)  # fmt: skip
    np.savez(folder / "surprise" / f"0000-{len(episode)}.npz", score=total, kind="value")
    np.testing.assert_array_equal(trace(judged_run, episode).scores["abs_surprise"], above)


def test_a_run_that_was_not_judged_says_how(tmp_path):
    with pytest.raises(UserError, match=r"has no evaluation/boundary_eval\.json"):
        draw_run(tmp_path)


def test_a_folder_without_a_run_gets_no_page(tmp_path):
    with pytest.raises(UserError, match="is no run's directory"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_of_a_run_holds_table_and_pictures(judged_run):
    page = write_report(judged_run).read_text(encoding="utf-8")
    assert "Boundaries against reward: 4 events" in page
    assert "clock" in page
    assert page.count("data:image/png") == 3
    assert "Every frame at which the model fired: green where an event truly happened." in page
