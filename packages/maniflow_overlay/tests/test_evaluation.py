"""The closed loop: who is shown what, what is counted, and what is said about it."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from loom.config import resolve
from loom.errors import UserError
from loom.run import Run
from maniflow_overlay.arms import Arm
from maniflow_overlay.cli import app
from maniflow_overlay.data.commands import attach_command, convert_command
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.path_layers import PathLayers
from maniflow_overlay.data.windows import Batches, Windows, WindowShape
from maniflow_overlay.evaluation.actors import Expert, PolicyActor, Random, Replay
from maniflow_overlay.evaluation.config import MatrixConfig
from maniflow_overlay.evaluation.film import Film
from maniflow_overlay.evaluation.judgement import rates
from maniflow_overlay.evaluation.matrix import CELLS, conditions_for, read_cells
from maniflow_overlay.evaluation.page import FOLDER, rate_table, write_page
from maniflow_overlay.evaluation.rollout import Condition, Episode, Outcome, play
from maniflow_overlay.evaluation.run import arm_name, play_matrix
from maniflow_overlay.sim.collect import Collection, collect
from maniflow_overlay.sim.expert import expert
from maniflow_overlay.sim.path_source import PathSource
from maniflow_overlay.sim.planar import Planar
from maniflow_overlay.sim.scene import STEPS, hidden, vector_of
from PIL import Image
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from made_up_cells import CLEAR, NOISY, made_cell

SIZE = (64, 64)
ARMS = [
    Arm("none"),
    *(
        Arm(mode, fuse)
        for mode in ("initial", "current", "initial_current")
        for fuse in ("overlay", "concat6")
    ),
]


class Recorded:
    """A policy that stays where it is and keeps what it was shown."""

    observation_steps, image_size, tasks = 2, SIZE, ("pick_place", "pick_place_marked")

    def __init__(self, arm, chunk=3):
        self.mode, self.fuse, self.chunk = arm.mode, arm.fuse, chunk
        self.calls = []

    def act(self, images, state, task, *, initial=None, seeds=None, instructions=None):
        self.calls.append((images, state, task, initial, seeds))
        self.instructions = instructions
        return np.repeat(state[:, -1:], self.chunk, axis=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("collected")
    collect(Collection(("pick_place",), 4, "planar"), root / "e", lambda count: None)
    convert_command(root / "e", root / "store", [], "head", "64x64")
    attach_command(root / "store", root / "e" / "paths" / "noisy.jsonl")
    return FrameStore(root / "store")


@pytest.mark.parametrize("arm", ARMS, ids=arm_name)
def test_an_arm_sees_at_the_table_what_it_is_trained_on(arm, store):
    """Pictures differ by JPEG only, and not at all where the path is drawn."""
    layers = PathLayers(store)
    windows = Windows(store.begins, store.ends, WindowShape(observed=2, before=1))
    batches = Batches(store, layers, windows, show=arm.mode, fuse=arm.fuse)
    starts = np.flatnonzero(windows.rows(np.arange(len(windows)))[0][:, 0] == store.begins[2])[:1]
    trained = batches.samples(starts)
    wanted = Collection(("pick_place",), 4, "planar").situation("pick_place", 2)
    policy = Recorded(arm)
    actor = PolicyActor("a", policy)
    play(actor, [Planar()], [wanted.seed], NOISY)
    images, state, _, initial, _ = policy.calls[0]
    np.testing.assert_array_equal(state[0], trained.state[0])
    assert (initial is None) == (trained.initial is None)
    shown = [(images[0, -1], trained.current[0, -1], arm.draws_current)]
    if initial is not None:
        shown.append((initial[0], trained.initial[0], True))
    for ours, theirs, drawn in shown:
        frame = ours[..., :3].astype(int)
        assert np.abs(frame - theirs[0].astype(int)).mean() < 4
        layer = layers.read(int(store.begins[2]))
        if drawn and arm.channels == 6:
            np.testing.assert_array_equal(ours[..., 3:], theirs[1])
        elif drawn:
            rows, columns = np.divmod(layer.index.astype(int), 64)
            np.testing.assert_array_equal(ours[rows, columns], layer.value)
            np.testing.assert_array_equal(ours[rows, columns], theirs[0][rows, columns])
        elif arm.channels == 6:
            assert not ours[..., 3:].any()


def test_all_arms_meet_the_same_episodes_paths_and_noise():
    """As long as two policies do the same, only the drawing tells their inputs apart."""
    met = []
    for arm in ARMS:
        policy = Recorded(arm)
        condition = CLEAR if arm.mode == "none" else NOISY
        play(PolicyActor("a", policy), [Planar(), Planar()], [3, 4, 5], condition)
        met.append([(state.tobytes(), tuple(seeds)) for _, state, _, _, seeds in policy.calls])
    assert all(other == met[0] for other in met)
    both = [Recorded(Arm("current", fuse)) for fuse in ("overlay", "concat6")]
    for policy in both:
        play(PolicyActor("a", policy), [Planar()], [3], NOISY)
    for (over, *_), (beside, *_) in zip(both[0].calls, both[1].calls, strict=True):
        path = beside[..., 3:]
        drawn = path.max(axis=-1, keepdims=True) > 0
        np.testing.assert_array_equal(over, np.where(drawn, path, beside[..., :3]))


def test_a_policy_is_told_the_sentence_of_the_demonstrations(store):
    policy = Recorded(Arm("none"))
    play(PolicyActor("a", policy), [Planar(), Planar()], [3, 4], CLEAR)
    (told,) = {text for episode in store.episodes for text in episode.instructions}
    assert policy.instructions == [told] * len(policy.instructions)
    marked = replace(CLEAR, task="pick_place_marked")
    play(PolicyActor("a", policy), [Planar()], [3], marked)
    assert set(policy.instructions).isdisjoint({told})


@pytest.mark.parametrize(("mode", "often"), [("none", 0), ("initial", 1), ("current", 5)])
def test_nobody_is_asked_for_more_paths_than_the_arm_looks_at(monkeypatch, mode, often):
    asked = []
    original = PathSource.ask
    monkeypatch.setattr(PathSource, "ask", lambda self: asked.append(1) or original(self))
    actor = PolicyActor("a", Recorded(Arm(mode)))
    episode = Episode(Planar(), 3, CLEAR if mode == "none" else NOISY, actor)
    for _ in range(4):
        episode.step(vector_of(np.array([0.0, 0.0, 0.1]), 1.0))
    assert len(asked) == often


def test_a_policy_sees_the_two_newest_pictures_and_the_first_one_stays():
    policy = Recorded(Arm("initial_current"), chunk=1)
    seen = []
    play(
        PolicyActor("a", policy), [Planar()], [1], replace(NOISY, occluded=True), watch=seen.append
    )
    first = policy.calls[0][3]
    for before, after in pairwise(policy.calls):
        np.testing.assert_array_equal(after[0][0, 0], before[0][0, 1])
        np.testing.assert_array_equal(after[3], first)
    assert hidden(seen[-1].scene)
    assert (policy.calls[-1][0][0, -1] != first[0]).mean() > 0.5  # the curtain is on the new one


def test_episodes_do_not_depend_on_how_many_are_played_at_a_time():
    seeds = list(range(7))
    for actor in (Expert(), Replay(), Random(), PolicyActor("a", Recorded(Arm("current")))):
        condition = NOISY if actor.asks_always else CLEAR
        found, ways = [], []
        for count in (1, 3, 7):
            way: dict[int, list[bytes]] = {seed: [] for seed in seeds}
            scenes = [Planar() for _ in range(count)]
            found.append(
                play(
                    actor,
                    scenes,
                    seeds,
                    condition,
                    watch=lambda e, way=way: way[e.seed].append(e.scene.tip_m.tobytes()),
                )
            )
            ways.append(way)
        assert found[0] == found[1] == found[2]
        assert ways[0] == ways[1] == ways[2]  # those who fail anyway fail in the same way
        assert [outcome.seed for outcome in found[0]] == seeds


def test_baselines_stand_in_their_order():
    scenes, seeds = [Planar() for _ in range(10)], range(20)
    solved = {
        actor.name: sum(outcome.success for outcome in play(actor, scenes, seeds, CLEAR))
        for actor in (Expert(), Replay(), Random())
    }
    assert solved["expert"] >= 19
    assert solved["replay (blind)"] <= 2
    assert solved["random"] == 0


def test_an_outcome_tells_the_right_block_from_another():
    class Misled:
        name, remembers, asks_first, asks_always = "misled", 1, False, False

        def act(self, episodes):
            chosen = []
            for episode in episodes:
                layout = episode.scene.layout
                episode.scene.layout = layout._replace(target=(layout.target + 1) % 3)
                chosen.append(expert(episode.scene)[None])
                episode.scene.layout = layout
            return np.stack(chosen)

    for outcome in play(Misled(), [Planar()], range(4), CLEAR):
        assert outcome == Outcome(outcome.seed, False, False, True, STEPS)
    for outcome in play(Expert(), [Planar()], range(4), CLEAR):
        assert outcome.success
        assert outcome.picked
        assert not outcome.mistaken
        assert outcome.steps < STEPS


def test_an_episode_ends_with_its_success_whatever_the_chunk_still_holds():
    class Long(Expert):
        def act(self, episodes):
            return np.repeat(super().act(episodes), 3, axis=1)

    watched = []
    play(Long(), [Planar()], [0], CLEAR, watch=lambda episode: watched.append(episode.success))
    assert watched.count(True) == 1
    assert watched[-1]


def test_without_a_path_there_is_one_condition_for_all_qualities():
    def count(actor):
        return len(conditions_for(actor, ("pick_place",), (False, True), ("perfect", "noisy")))

    assert count(PolicyActor("a", Recorded(Arm("none")))) == 2
    assert count(PolicyActor("a", Recorded(Arm("initial")))) == 4
    assert count(Expert()) == 2


def test_a_cell_is_read_as_it_was_written(tmp_path):
    cells = [
        made_cell("current A", "s0", NOISY, [1, 0]),
        made_cell("none", "", Condition("pick_place_marked", True, None), [0, 0, 1]),
    ]
    (tmp_path / CELLS).write_text("".join(cell.to_json() + "\n" for cell in cells))
    for ours, theirs in zip(cells, read_cells(tmp_path / CELLS), strict=True):
        assert ours.key == theirs.key
        assert ours.outcomes == theirs.outcomes


def test_damaged_cells_are_named_by_line(tmp_path):
    good = json.loads(made_cell("none", "", CLEAR, [1, 0]).to_json())
    damages = [
        {"seed": [1]},
        {"seed": [], "success": [], "picked": [], "mistaken": [], "steps": []},
        {"quality": "good"},
        {"task": 3},
        {"occluded": "no"},
        {"arm": None},
        {"steps": None},
        {"success": ["x", 1]},
    ]
    lines = [json.dumps({**good, **damage}) for damage in damages]
    lines += ["", "[]", "3", json.dumps(good)[:-9], "\x00"]
    for line in lines:
        (tmp_path / CELLS).write_text(json.dumps(good) + "\n" + line + "\n", "utf-8")
        with pytest.raises(UserError, match=f"{CELLS}:2: not a cell"):
            read_cells(tmp_path / CELLS)


def settings(**changes):
    config = {
        "episodes": 4,
        "scene": "planar",
        "at_a_time": 2,
        "shown": 1,
        "baselines": ["expert", "random"],
    }
    return resolve(MatrixConfig, flags={**config, **changes})


def open_matrix(directory, resume=False, **changes):
    return Run.open(
        "maniflow_overlay",
        MatrixConfig,
        settings(**changes),
        directory=directory,
        resume=resume,
        quiet=True,
    )


def test_a_matrix_that_was_stopped_goes_on_with_the_cells_that_are_missing(tmp_path, monkeypatch):
    from maniflow_overlay.evaluation import run as module

    with open_matrix(tmp_path / "whole") as run:
        play_matrix(run.config, run)
    played = []
    original = module.run_cell

    def counted(actor, *rest, **named):
        if len(played) == 3 and "stop" not in played:
            played.append("stop")
            raise UserError("stopped")
        played.append(actor.name)
        return original(actor, *rest, **named)

    monkeypatch.setattr(module, "run_cell", counted)
    with pytest.raises(UserError, match="stopped"), open_matrix(tmp_path / "cut") as run:
        play_matrix(run.config, run)
    with open_matrix(tmp_path / "cut", resume=True) as run:
        play_matrix(run.config, run)
    assert played == ["expert", "expert", "random", "stop", "random"]
    whole, cut = (tmp_path / name / FOLDER / CELLS for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_a_matrix_that_grows_keeps_its_cells_and_plays_the_new_ones_on_the_same_episodes(tmp_path):
    with open_matrix(tmp_path / "m", baselines=["expert"]) as run:
        play_matrix(run.config, run)
    before = read_cells(tmp_path / "m" / FOLDER / CELLS)
    grown = {"baselines": ["random"], "tasks": ["pick_place", "pick_place_marked"]}
    with open_matrix(tmp_path / "m", resume=True, **grown) as run:
        play_matrix(run.config, run)
    after = read_cells(tmp_path / "m" / FOLDER / CELLS)
    assert [cell.key for cell in after[: len(before)]] == [cell.key for cell in before]
    assert [cell.arm for cell in after] == ["expert"] * 2 + ["random"] * 4
    assert len({tuple(outcome.seed for outcome in cell.outcomes) for cell in after}) == 1
    with pytest.raises(UserError, match="episodes"):
        open_matrix(tmp_path / "m", resume=True, episodes=5)


def test_the_page_shows_every_rate_and_a_film_of_each_cell(tmp_path):
    with open_matrix(tmp_path / "m", tasks=["pick_place", "pick_place_marked"]) as run:
        play_matrix(run.config, run)
    page = write_page(tmp_path / "m").read_text(encoding="utf-8")
    assert page.count(">100 % [51, 100]<") == 4
    assert page.count(">0 % [0, 49]<") == 4
    assert page.count("data:image/png") == 8
    assert "4 episodes a cell and training in the planar scene, the same in all cells" in page
    assert "random: pick_place, clear, no path, seed 0" in page
    summary = json.loads((tmp_path / "m" / FOLDER / "matrix.json").read_text("utf-8"))
    assert len(summary["rates"]) == 8
    printed = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "m"), "--json"])
    assert json.loads(printed.stdout) == summary
    films = sorted((tmp_path / "m" / FOLDER / "rollouts").glob("*.webp"))
    assert len(films) == 8
    cells = read_cells(tmp_path / "m" / FOLDER / CELLS)
    steps = next(cell.outcomes[0].steps for cell in cells if cell.arm == "random")
    with Image.open(next(film for film in films if "random" in film.name)) as film:
        assert film.n_frames == steps + 1


def test_a_matrix_s_page_is_written_again_by_either_command_and_a_training_is_none(tmp_path):
    with open_matrix(tmp_path / "m", baselines=["random"]) as run:
        play_matrix(run.config, run)
    pages = []
    for words in (["report"], ["eval", "report"]):
        (tmp_path / "m/report.html").unlink(missing_ok=True)
        done = CliRunner().invoke(app, [*words, str(tmp_path / "m")])
        assert done.exit_code == 0, done.output
        pages.append((tmp_path / "m/report.html").read_text(encoding="utf-8"))
    assert all("right block lifted" in page for page in pages)
    (tmp_path / "training").mkdir()
    done = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "training")])
    assert done.exit_code == 2
    assert "is no matrix" in done.stderr


def test_a_film_of_an_occluded_episode_shows_the_table_below():
    film = Film({2})
    play(Expert(), [Planar()], [2, 3], replace(CLEAR, occluded=True), watch=film.watch)
    last = film.frames(2)[-1]
    top, bottom = np.split(last, 2)
    plain = Film({2})
    play(Expert(), [Planar()], [2], CLEAR, watch=plain.watch)
    np.testing.assert_array_equal(bottom, plain.frames(2)[-1])
    assert (top != bottom).mean() > 0.5


def test_an_arm_without_a_path_stands_in_every_quality_of_the_table():
    cells = [
        made_cell("none", "s", CLEAR, [1, 0]),
        made_cell("current A", "s", NOISY, [1, 1]),
        made_cell("current A", "s", replace(NOISY, quality="perfect"), [0, 0]),
    ]
    columns = [NOISY, replace(NOISY, quality="perfect"), replace(NOISY, occluded=True)]
    table = rate_table(rates(cells), columns)
    assert table[0][1] == table[0][2] == "50 % [9, 91]"
    assert table[1][1] == "100 % [34, 100]"
    assert table[1][3] is table[0][3] is None


def test_two_trainings_of_one_name_are_refused_because_they_could_not_be_told_apart():
    for runs in (["a/policy", "b/policy"], ["a/policy", "a/policy/"]):
        with pytest.raises(UserError, match="two runs are called 'policy'"):
            settings(runs=runs)
    assert len(settings(runs=["a/policy", "a/other"]).config.runs) == 2


def test_a_policy_that_tells_other_tasks_apart_is_not_asked_about_this_one():
    policy = Recorded(Arm("none"))
    marked = replace(CLEAR, task="pick_place_marked")
    for tasks, number in ((("pick_place", "pick_place_marked"), 1), (("click_bell",), 0), ((), 0)):
        policy.tasks = tasks
        play(PolicyActor("a", policy), [Planar()], [3], marked)
        assert policy.calls[-1][2].tolist() == [number]
    policy.tasks = ("click_bell", "turn_switch")
    with pytest.raises(UserError, match="click_bell, turn_switch apart, not pick_place_marked"):
        play(PolicyActor("a", policy), [Planar()], [3], marked)


def test_evaluation_may_not_reach_into_the_layouts_of_training():
    with pytest.raises(UserError, match="reach into those"):
        resolve(MatrixConfig, flags={"seed": 999_900, "episodes": 200})
    with pytest.raises(UserError, match="nobody acts"):
        play_matrix(settings(baselines=[]).config, None)
