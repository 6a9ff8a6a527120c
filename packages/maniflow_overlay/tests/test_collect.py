"""Demonstrations in RoboTwin's layout, and the paths that are drawn for them."""

import h5py
import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.data import robotwin_writer
from maniflow_overlay.data.robotwin import find_episodes, read_episode
from maniflow_overlay.gripper_path import GripperPath
from maniflow_overlay.paths.oracle import NOISE, TOLERANCE, oracle_path, tip_positions
from maniflow_overlay.paths.table import read_paths
from maniflow_overlay.sim.collect import Collection, collect, mixed_quality
from maniflow_overlay.sim.expert import expert
from maniflow_overlay.sim.path_source import QUALITIES, PathSource
from maniflow_overlay.sim.planar import Planar
from maniflow_overlay.sim.scene import (
    STEPS,
    Situation,
    draw_layout,
    hidden,
    project_relative,
    success,
    vector_of,
)

EPISODES = 12


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected") / "c"
    wanted = Collection(("pick_place", "pick_place_marked"), EPISODES, "planar")
    assert collect(wanted, folder, lambda count: None) == 2 * EPISODES
    return wanted, folder


def distance_to(points, line):
    """Largest distance of any point from a polygonal line, by brute force."""
    dense = np.concatenate(
        [
            a + np.linspace(0, 1, 200)[:, None] * (b - a)
            for a, b in zip(line[:-1], line[1:], strict=True)
        ]
    )
    return max(np.linalg.norm(dense - point, axis=1).min() for point in points)


def changes(path):
    """The states of the gripper in order, without repetition, up to the last letting go."""
    states = path.gripper.tolist()
    return [g for k, g in enumerate(states) if k == 0 or g != states[k - 1]]


def test_the_reader_of_robotwin_reads_what_was_collected(collection):
    wanted, folder = collection
    files = find_episodes(folder, ["pick_place"])
    assert [file.number for file in files] == list(range(EPISODES))
    table = Planar()
    for file in files[:4]:
        episode = read_episode(file)
        situation = wanted.situation(file.task, file.number)
        first = table.reset(situation.seed, occluded=situation.occluded)
        np.testing.assert_array_equal(episode.state[0], first.state)
        assert np.abs(episode.picture_rgb(0).astype(int) - first.rgb).mean() < 4  # JPEG
        np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
        left, _ = episode.arms
        np.testing.assert_allclose(tip_positions(left), episode.state[:, :3], atol=1e-6)
        np.testing.assert_allclose(episode.camera.intrinsic[0], table.camera.intrinsic())
        np.testing.assert_array_equal(left.opening, episode.state[:, 6])


def test_following_the_recorded_actions_solves_the_episode(collection):
    wanted, folder = collection
    table = Planar()
    for file in find_episodes(folder):
        episode = read_episode(file)
        situation = wanted.situation(file.task, file.number)
        table.reset(situation.seed, occluded=situation.occluded, marked=situation.marked)
        for action in episode.action:
            table.step(action)
        assert success(table)


def test_a_planned_path_is_the_one_that_is_then_taken(collection):
    _, folder = collection
    planned = {row.key: row.path for row in read_paths(folder / "paths" / "perfect.jsonl")}
    for file in find_episodes(folder, ["pick_place"]):
        episode = read_episode(file)
        last = len(episode.state) - 1
        for row in range(0, last - 2, 3):
            taken = oracle_path(episode, row, (128, 128))
            plan = planned["pick_place", file.number, row]
            assert distance_to(taken.points, plan.points) < 2 * TOLERANCE
            assert changes(taken) == changes(plan)


def test_every_row_has_a_path_of_every_quality(collection):
    _, folder = collection
    rows = {
        (file.task, file.number, row)
        for file in find_episodes(folder)
        for row in range(len(read_episode(file).state))
    }
    for quality in (*QUALITIES, "mixed"):
        listed = read_paths(folder / "paths" / f"{quality}.jsonl")
        assert {tuple(row.key) for row in listed} == rows
        assert all(row.path is not None for row in listed)


def test_mixed_paths_are_those_of_each_quality_in_turn(collection):
    _, folder = collection
    by_quality = {
        quality: {row.key: row.path for row in read_paths(folder / "paths" / f"{quality}.jsonl")}
        for quality in (*QUALITIES, "mixed")
    }
    met = set()
    for key, path in by_quality["mixed"].items():
        assert path == by_quality[mixed_quality(key.episode)][key]
        met.add((mixed_quality(key.episode), key.episode % 2))
    assert len(met) == 2 * len(QUALITIES)


def test_an_interrupted_collection_goes_on_and_another_one_is_refused(tmp_path, monkeypatch):
    wanted = Collection(("pick_place",), 3, "planar", seed=4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    collect(wanted, whole, lambda count: None)

    class Killed(Exception):
        pass

    def kill(count):
        if count == 2:
            raise Killed

    with pytest.raises(Killed):
        collect(wanted, cut, kill)
    texts = cut / "pick_place/demo_clean/instructions/episode2.json"
    monkeypatch.setattr(robotwin_writer, "write_atomic", lambda *rest, **named: kill(2))
    with pytest.raises(Killed):
        collect(wanted, cut, lambda count: None)
    assert texts.is_file()  # written before the episode, which would not be written again
    monkeypatch.undo()
    assert collect(wanted, cut, lambda count: None) == 1
    for file in find_episodes(whole):
        other = cut / file.path.relative_to(whole.absolute())
        with h5py.File(file.path) as a, h5py.File(other) as b:
            np.testing.assert_array_equal(
                a["joint_action/vector"][()], b["joint_action/vector"][()]
            )
    assert (whole / "paths/mixed.jsonl").read_bytes() == (cut / "paths/mixed.jsonl").read_bytes()
    with pytest.raises(UserError, match="another collection"):
        collect(Collection(("pick_place",), 4, "planar", seed=4), cut, lambda count: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="not empty"):
        collect(wanted, tmp_path / "full", lambda count: None)
    with pytest.raises(UserError, match="'stack'"):
        collect(Collection(("stack",), 1, "planar"), tmp_path / "new", lambda count: None)


def test_an_episode_is_the_situation_of_its_task_and_number():
    wanted = Collection(("pick_place", "pick_place_marked"), 4, "planar", seed=2)
    for number in range(4):
        seed, occluded = 3_000_000 + number, number in (1, 3)
        for task, marked in (("pick_place", False), ("pick_place_marked", True)):
            assert wanted.situation(task, number) == Situation(seed, occluded, marked)


def test_recorded_pictures_are_those_of_the_situation_to_the_end(collection):
    """The curtain of every second episode, and the marks of the marked task, are seen in them."""
    _, folder = collection
    table = Planar()
    for file in find_episodes(folder):
        if file.number > 2:
            continue
        episode = read_episode(file)
        marked = file.task == "pick_place_marked"
        seen = table.reset(1_000_000 + file.number, occluded=file.number == 1, marked=marked)
        for row, action in enumerate(episode.action):
            assert np.abs(episode.picture_rgb(row).astype(int) - seen.rgb).mean() < 4  # JPEG
            seen = table.step(action)


def test_an_episode_is_recorded_until_the_hand_has_risen_from_the_goal(collection):
    _, folder = collection
    for file in find_episodes(folder):
        action = read_episode(file).action
        lowered = np.flatnonzero(action[:, 2] < 0.03)[-1]
        assert action[lowered, 6] == 1  # where it lets go
        assert action[-1, 2] > 0.09
        assert len(action) < STEPS


def test_collections_of_two_seeds_share_no_layout_and_none_with_evaluation():
    seeds = [
        Collection(("pick_place",), 5, "planar", seed=seed).situation("pick_place", n).seed
        for seed in (0, 1)
        for n in range(1000)
    ]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 1_000_000


def asked(seed, quality, **variant):
    """The paths of a whole expert episode, and whether the curtain was there."""
    table = Planar()
    table.reset(seed, **variant)
    source = PathSource(table, quality)
    paths, curtain = [source.ask()], [hidden(table)]
    while table.steps < STEPS and not success(table):
        table.step(expert(table))
        paths.append(source.ask())
        curtain.append(hidden(table))
    return table, paths, curtain


def ends_at(table, path: GripperPath, place):
    """How far the place where the block is let go lies from a place on the table."""
    opened = np.flatnonzero(np.diff(path.gripper.astype(int)) == 1)
    wanted = project_relative([[*place, 0.02]], table.camera)[0]
    return np.linalg.norm(path.points[opened[-1] + 1] - wanted)


def test_noise_has_the_deviation_that_is_said():
    gaps = []
    for seed in range(20):
        _, exact, _ = asked(seed, "perfect")
        _, noisy, _ = asked(seed, "noisy")
        inside = [(a, b) for a, b in zip(exact, noisy, strict=True) if a.points.min() > 0.05]
        gaps += [(b.points - a.points).ravel() for a, b in inside if a.points.max() < 0.95]
    gaps = np.concatenate(gaps)
    assert len(gaps) > 600
    assert gaps.std() == pytest.approx(NOISE, rel=0.1)
    assert abs(gaps.mean()) < 0.001


def test_behind_the_curtain_a_degraded_path_is_wrong_in_half_of_the_episodes_and_else_held():
    wrong = 0
    for seed in range(60):
        table, paths, curtain = asked(seed, "degraded", occluded=True)
        goal = draw_layout(seed).goal
        assert ends_at(table, paths[0], goal) < 5 * NOISE
        first = curtain.index(True)
        before, behind = paths[first - 1], paths[first:-1]
        if all(path == before for path in behind):
            continue
        wrong += 1
        assert all(path != before for path in behind)
        assert ends_at(table, behind[0], goal) > 0.06
    assert 18 <= wrong <= 42  # of 60 at one half: within three deviations


def test_a_degraded_path_in_the_open_is_held_one_time_in_five_and_never_wrong():
    held = asked_for = 0
    for seed in range(60):
        table, paths, _ = asked(seed, "degraded")
        for before, path in zip(paths[:4], paths[1:5], strict=False):
            held += path == before
            asked_for += 1
            assert ends_at(table, path, draw_layout(seed).goal) < 10 * NOISE
    assert held / asked_for == pytest.approx(0.2, abs=0.08)


def test_answers_do_not_depend_on_who_acts_before():
    """Two policies in the same state at the same step get the same path."""
    table = Planar()
    for quality in QUALITIES:
        answers = []
        for detour in (False, True):
            table.reset(6, occluded=True)
            source = PathSource(table, quality)
            source.ask()
            start = table.tip_m
            table.step(vector_of(start + [0.03 * detour, 0, 0], 1.0))
            source.ask()
            table.step(vector_of(start, 1.0))
            answers.append(source.ask())
        if quality != "degraded":  # which may hold an earlier path
            np.testing.assert_allclose(answers[0].points, answers[1].points, atol=1e-6)


def test_an_unknown_quality_is_refused():
    table = Planar()
    with pytest.raises(UserError, match="'good'"):
        PathSource(table, "good")
