import json

import numpy as np
import pytest
from loom.errors import UserError
from loom.evaluation.statistics import Interval, Undefined
from pinpad.boundary import report
from pinpad.boundary.detectors import Detection, Scores, largest_frame_delta, parse_anchor, periodic
from pinpad.boundary.evaluate import as_json, judge
from pinpad.boundary.recordings import Recording, read_recordings, recording
from pinpad.cli import app
from pinpad.data.collect import collect, record_episodes
from pinpad.data.players import parse_mix
from typer.testing import CliRunner

STEPS = 200


@pytest.fixture(scope="module")
def recordings():
    mix = parse_mix("babble,oracle:0.1")
    return [recording(e) for e in record_episodes("three", mix, 6, length=STEPS, size=16, seed=2)]


def write_scores(folder, recordings, make, kind="probability", **more):
    folder.mkdir(exist_ok=True)
    for each in recordings:
        rows = {name: value(each) for name, value in more.items()}
        path = folder / f"{each.name}-{len(each)}.npz"
        np.savez(path, allow_pickle=False, score=make(each), kind=np.array(kind), **rows)
    return folder


def estimate(value):
    assert isinstance(value, Interval), value
    return value.estimate


def test_a_detector_that_knows_the_truth_is_perfect(recordings, tmp_path):
    folder = write_scores(tmp_path / "s", recordings, lambda r: 0.9 * r.truth("sequence_append"))
    judged = judge(recordings, Scores("vta", folder), "sequence_append", permutations=999)
    for name in ("f1@0", "f1@5", "precision@0", "recall@0", "average_precision", "auc", "covering"):
        assert estimate(judged.metrics[name]) == 1, name
    assert estimate(judged.metrics["window_diff"]) == estimate(judged.metrics["p_k"]) == 0
    assert not isinstance(judged.chance, Undefined)
    assert judged.chance.p == judged.chance.floor == 1e-3
    assert judged.shape.count == judged.events
    assert judged.expected_count == pytest.approx(0.9 * judged.events)
    assert judged.shape.flags == ()


def test_segments_that_are_the_subtasks_share_all_information_with_them(recordings, tmp_path):
    def change_of_subtask(r):
        label = np.where(r.state["countdown"] > 0, -1, r.state["progress"])
        return np.append(False, label[1:] != label[:-1]) & (np.arange(len(r)) > 1)

    folder = write_scores(tmp_path / "s", recordings, lambda r: 1.0 * change_of_subtask(r))
    judged = judge(recordings, Scores("vta", folder), "progress", permutations=9)
    assert estimate(judged.metrics["subtask_nmi"]) == pytest.approx(1)
    clock = judge(recordings, periodic(), "progress", permutations=9)
    assert estimate(clock.metrics["subtask_nmi"]) < 0.95


def test_a_low_rate_detector_is_silent_by_map_and_right_by_rank(recordings, tmp_path):
    folder = write_scores(
        tmp_path / "s", recordings, lambda r: 0.1 + 0.3 * r.truth("sequence_append")
    )
    silent = judge(recordings, Scores("vta", folder), "sequence_append", permutations=9)
    assert silent.shape.flags == ("silent",)
    assert isinstance(silent.lift, Undefined)
    assert isinstance(silent.chance, Undefined)
    ranked = judge(recordings, Scores("vta", folder, "topk"), "sequence_append", permutations=9)
    assert estimate(ranked.metrics["f1@0"]) == 1
    drawn = judge(recordings, Scores("vta", folder, "sample"), "sequence_append", permutations=9)
    expected = drawn.expected_count
    assert expected is not None
    assert drawn.shape.count == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_the_reset_frame_counts_for_nobody(recordings, tmp_path):
    folder = write_scores(tmp_path / "s", recordings, lambda r: 1.0 * (np.arange(len(r)) == 0))
    judged = judge(recordings, Scores("vta", folder), "sequence_append", permutations=9)
    assert judged.shape.count == 0


def test_forced_boundaries_are_counted(recordings, tmp_path):
    def every(steps):
        return lambda r: np.arange(len(r)) % steps == 0

    folder = write_scores(
        tmp_path / "s", recordings, lambda r: 1.0 * every(30)(r), forced=every(20)
    )
    judged = judge(recordings, Scores("vta", folder), "sequence_append", permutations=9)
    assert judged.forced_share == pytest.approx(0.5)
    assert judged.shape.flags == ("clock",)
    assert judge(recordings, periodic(), "reward", permutations=9).forced_share is None


def test_rate_matched_anchors_fire_as_often_as_there_are_events(recordings):
    for text in ("random", "periodic", "frame_delta"):
        for each in recordings:
            count = int(each.truth("sequence_append")[1:].sum())
            found = parse_anchor(text).detect(each, count, np.random.default_rng(0))
            assert found.boundary.sum() == count, text
            assert found.boundary.shape == (len(each),)


def test_anchors_with_a_rate_of_their_own_keep_it(recordings):
    rng = np.random.default_rng(0)
    ticks = parse_anchor("periodic:30").detect(recordings[0], 1, rng).boundary
    assert np.flatnonzero(ticks).tolist() == [30, 60, 90, 120, 150, 180]
    chance = [parse_anchor("random:0.3").detect(r, 1, rng).boundary.mean() for r in recordings * 4]
    assert np.mean(chance) == pytest.approx(0.3, abs=0.03)


def test_anchors_at_chance_have_a_lift_near_one():
    rng = np.random.default_rng(0)
    many = [
        Recording(
            name=str(i),
            delta=rng.random(2_000),
            reward=np.zeros(2_000),
            events={"sequence_append": rng.random(2_000) < rate},
            state={},
        )
        # Episodes differ in their rate, which must not look like skill.
        for i, rate in enumerate([0.005, 0.02, 0.1, 0.2] * 3)
    ]
    for detector in (parse_anchor("random"), periodic(), largest_frame_delta()):
        judged = judge(many, detector, "sequence_append", permutations=499)
        assert judged.lift == pytest.approx(1, abs=0.15), detector.name
        assert not isinstance(judged.chance, Undefined)
        assert judged.chance.p > 0.01
        assert isinstance(judged.metrics["subtask_nmi"], Undefined)
    assert judge(many, periodic(), "sequence_append", permutations=9).shape.flags == ("clock",)


def test_intervals_hold_the_mean_over_episodes(recordings):
    judged = judge(recordings, largest_frame_delta(), "pad_enter", permutations=9)
    interval = judged.metrics["f1@0"]
    assert isinstance(interval, Interval)
    assert interval.low < interval.estimate < interval.high
    assert interval.n == len(recordings)


def test_a_judgement_is_plain_json(recordings):
    nothing = parse_anchor("random:0")
    content = json.loads(json.dumps(as_json(judge(recordings, nothing, "reward")), allow_nan=False))
    assert content["lift"] == {
        "value": None,
        "reason": "no episode has both boundaries and events",
    }
    assert content["chance"] == {"value": None, "reason": "no boundaries"}
    assert content["shape"]["flags"] == ["silent"]
    assert content["compat"][0]["perm_p_value"] is None
    full = as_json(judge(recordings, largest_frame_delta(), "pad_enter", permutations=99))
    assert full["metrics"]["f1@0"].keys() == {"estimate", "low", "high", "confidence", "n"}
    assert full["chance"]["n_permutations"] == 99


@pytest.mark.parametrize("text", ["periodic:0", "periodic:x", "random:2", "vta", "frame_delta:3"])
def test_unknown_anchors_are_named(text):
    with pytest.raises(UserError, match=text):
        parse_anchor(text)


def test_wrong_scores_are_named(recordings, tmp_path):
    one, rng = recordings[0], np.random.default_rng(0)
    path = tmp_path / f"{one.name}-{len(one)}.npz"
    detector = Scores("vta", tmp_path)

    def complaint(message, selection=None, **arrays):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message):
            Scores("vta", tmp_path, selection).detect(one, 3, rng)

    with pytest.raises(UserError, match="no scores of episode 0000"):
        detector.detect(one, 3, rng)
    (tmp_path / "online").mkdir()
    (tmp_path / "online" / path.name).touch()
    with pytest.raises(UserError) as caught:
        detector.detect(one, 3, rng)
    assert caught.value.hint == f"name one kind of score: {tmp_path / 'online'}"
    good = np.full(len(one), 0.25)
    complaint("needs `score` and `kind`", score=good)
    complaint(r"score has shape \(200,\)", score=good[:-1], kind="probability")
    complaint(r"forced has shape", score=good, kind="probability", forced=np.zeros(3, bool))
    complaint(r"score\[7\] is nan", score=np.where(np.arange(201) == 7, np.nan, 0), kind="value")
    complaint("probabilities in", score=good * 8, kind="probability")
    complaint("`map` has no meaning", "map", score=good * 8, kind="value")
    found = Scores("rssm", tmp_path).detect(one, 3, rng)
    assert isinstance(found, Detection)
    assert found.boundary.sum() == 3


def test_events_that_a_file_does_not_know_are_named(recordings):
    bare = Recording("a", np.arange(50.0), np.zeros(50), {}, {})
    assert bare.truth("delta").sum() == 5
    assert bare.truth("reward").sum() == 0
    with pytest.raises(UserError, match="knows no `pad_enter`"):
        bare.truth("pad_enter")
    with pytest.raises(UserError, match="knows no `background`"):
        bare.truth("background")
    planted = Recording("a", np.arange(9.0), np.zeros(9), {"planted": np.zeros(9, bool)}, {})
    with pytest.raises(UserError) as raised:
        planted.truth("sequence_append")
    assert raised.value.hint.endswith("planted, delta, reward")
    with pytest.raises(UserError, match="'pads' is no event"):
        recordings[0].truth("pads")


def test_the_background_changes_where_pixels_beside_player_and_sequence_do():
    (episode,) = record_episodes("three", parse_mix("oracle:0.1"), 1, length=300, size=16, seed=0)
    room = episode.image[:, :14].astype(int)
    player = (room == 0).all(-1)
    changed = (room[1:] != room[:-1]).any(-1) & ~player[1:] & ~player[:-1]
    truth = recording(episode).truth("background")
    assert not truth[0]
    np.testing.assert_array_equal(truth[1:], changed.any((1, 2)))
    assert truth.sum() > episode.events["sequence_append"].sum() > 10


def run(*arguments):
    return CliRunner().invoke(app, ["boundaries", "eval", *map(str, arguments)])


def test_the_command_judges_stored_scores_beside_the_anchors(tmp_path):
    episodes = tmp_path / "episodes"
    collect(episodes, "three", parse_mix("babble"), 3, length=100, size=16, seed=0)
    found = read_recordings(episodes)
    scores = write_scores(tmp_path / "s", found, lambda r: 1.0 * r.truth("pad_enter"))
    output = tmp_path / "out" / "boundary_eval.json"
    done = run(
        episodes, "--scores", f"mine={scores}", "--event", "pad_enter", "--permutations", 99,
        "--output", output,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "3 episodes; intervals want 20" in done.output
    content = json.loads(output.read_text(encoding="utf-8"))
    names = [each["detector"] for each in content["judgements"]]
    assert names == ["mine", "random", "periodic", "frame_delta"]
    assert content["judgements"][0]["metrics"]["f1@0"]["estimate"] == 1
    assert len(content["judgements"][0]["compat"]) == 3
    assert (output.parent / content["folder"]).resolve() == episodes.resolve()
    assert content["folder"] == "../episodes"  # holds from any working directory
    page = output.with_suffix(".html").read_text(encoding="utf-8")
    assert "mine" in page
    assert "Warning" in page


@pytest.mark.parametrize("name", ["b.json", "b.html", "b"])
def test_figures_and_page_lie_side_by_side_however_they_are_named(recordings, name, tmp_path):
    judged = [judge(recordings, parse_anchor("periodic"), "reward", permutations=9)]
    page = report.write(judged, tmp_path / name, {"folder": "f", "episodes": 6})
    assert page == tmp_path / "b.html"
    assert json.loads((tmp_path / "b.json").read_text())["episodes"] == 6
    assert "<table" in page.read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "b.json").read_text())["judgements"][0]
    (row,) = report.rows(judged, "reward")
    assert report.stored_row(stored) == row
    assert dict(zip(report.COLUMNS, row, strict=True))["flags"] == "clock"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scores", "mine"], "names no scores"),
        (["--scores", "mine=/nowhere"], "no folder of scores"),
        (["--detector", "periodic", "--detector", "periodic"], "one name"),
        (["--detector", "oracle"], "is no detector"),
        (["--event", "pads"], "is no event"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, arguments, message):
    episodes = tmp_path / "episodes"
    collect(episodes, "three", parse_mix("babble"), 1, length=20, size=16, seed=0)
    done = run(episodes, "--output", tmp_path / "b.json", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (tmp_path / "b.json").exists()


def test_an_empty_folder_is_named(tmp_path):
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "no episodes" in done.output
