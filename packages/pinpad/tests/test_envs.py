import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from loom.errors import UserError
from pinpad.envs.core import PinPad
from pinpad.envs.events import EVENTS
from pinpad.envs.layouts import LAYOUTS, layout_name, room
from pinpad.envs.oracle import oracle_actions, routes
from pinpad.envs.single import PinPadEnv
from pinpad.envs.vector import PinPadVectorEnv

IDS = [f"Pinpad-{name.capitalize()}-v0" for name in LAYOUTS]


def walk(layout, rng, steps):
    """Actions that win often: the oracle's way with noise, chosen by the room itself."""
    pinpad = PinPad(layout, size=16, length=400)
    for _ in range(steps):
        plan = oracle_actions(
            layout,
            np.array([pinpad.cell]),
            np.array([pinpad.progress]),
            np.array([pinpad.countdown]),
        )
        noisy = pinpad.countdown > 0 or rng.random() < 0.2
        yield pinpad, int(rng.integers(5)) if noisy else int(plan[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_room_follows_the_written_rules_at_every_step(layout, slow_pinpad):
    rng = np.random.default_rng(1)
    slow = slow_pinpad(layout, length=400)
    seen = dict.fromkeys(EVENTS, 0)
    begun = False
    for step, (fast, action) in enumerate(walk(layout, rng, 2_000)):
        if not begun or fast.over:
            spawn = int(rng.integers(168))
            fast.reset(spawn)
            slow.reset(spawn)
            begun = True
        else:
            spawn = int(rng.integers(168))
            events = fast.step(action, lambda s=spawn: s)._asdict()
            assert events == slow.step(action, lambda s=spawn: s), step
            for name in EVENTS:
                seen[name] += events[name]
        assert (fast.position, fast.countdown) == (slow.player, slow.countdown), step
        assert fast.sequence == [int(pad) for pad in slow.history], step
        assert (fast.progress, fast.over) == (slow.matched(), slow.steps >= 400), step
        if step % 5 == 0 or fast.countdown:
            np.testing.assert_array_equal(fast.image(), slow.image(16), str(step))
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_of_64_pixels_is_drawn_as_the_rules_say(layout, slow_pinpad):
    fast, slow = PinPad(layout), slow_pinpad(layout, length=2000)
    fast.reset(3)
    slow.reset(3)
    for action in [0, 1, 1, 3, 3, 3, 3]:
        fast.step(action, lambda: 0)
        slow.step(action, lambda: 0)
    np.testing.assert_array_equal(fast.image(), slow.image())
    assert fast.image().shape == (64, 64, 3)


def test_a_bump_on_a_pad_writes_nothing_and_a_wait_does():
    corner = 0  # x 1, y 1: on pad 1, walls above and to the left
    pinpad = PinPad("three", size=16)
    pinpad.reset(corner)
    assert pinpad.sequence == []
    assert pinpad.step(2, lambda: 0).wall_bump
    assert pinpad.sequence == []
    assert pinpad.step(0, lambda: 0).sequence_append
    assert pinpad.sequence == [1]


@pytest.mark.parametrize("size", [16, 64])
def test_a_batch_equals_64_single_rooms_with_the_same_spawns(size):
    steps = 300 if size == 16 else 60
    batch = PinPadVectorEnv(64, "three", size=size, length=100)
    singles = [PinPadEnv("three", size=size, length=100) for _ in range(64)]
    images, info = batch.reset(seed=7)
    expected = [env.reset(seed=7 + i) for i, env in enumerate(singles)]
    rng = np.random.default_rng(0)
    respawns = wins = 0
    for step in range(steps):
        np.testing.assert_array_equal(images, np.stack([image for image, _ in expected]))
        for name, values in info.items():
            if not name.startswith("_"):
                np.testing.assert_array_equal(values, [each[name] for _, each in expected], name)
        plan = oracle_actions("three", batch.cell, batch.progress, batch.countdown)
        random = rng.integers(0, 5, 64)
        actions = np.where((rng.random(64) < 0.2) | (batch.countdown > 0), random, plan)
        over = batch.over.copy()
        images, rewards, ended, cut, info = batch.step(actions)
        assert not ended.any()
        expected = []
        for i, env in enumerate(singles):
            if over[i]:
                image, one = env.reset()
                outcome = (0.0, False)
            else:
                image, reward, _, truncated, one = env.step(actions[i])
                outcome = (reward, truncated)
            assert (rewards[i], cut[i]) == outcome, (step, i)
            expected.append((image, one))
        respawns += int(info["event_respawn"].sum())
        wins += int(info["event_reward"].sum())
    assert respawns > 0
    assert wins > 0


def test_gymnasium_s_own_vector_of_single_rooms_gives_the_same_episodes():
    ours = PinPadVectorEnv(3, "five", size=16, length=20)
    theirs = SyncVectorEnv([lambda: PinPadEnv("five", size=16, length=20)] * 3)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert ours.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert (ours.observation_space, ours.action_space) == (
        theirs.observation_space,
        theirs.action_space,
    )
    left, info = ours.reset(seed=3)
    right, their_info = theirs.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(70):
        np.testing.assert_array_equal(left, right)
        assert info.keys() == their_info.keys()
        for name in info:
            np.testing.assert_array_equal(info[name], their_info[name], name)
        actions = rng.integers(0, 5, 3)
        left, *mine, info = ours.step(actions)
        right, *other, their_info = theirs.step(actions)
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", IDS)
def test_every_registered_room_passes_gymnasium_s_checker(name):
    env = gymnasium.make(name, size=16)
    with warnings.catch_warnings():
        # The checker asks for a render mode that `make` was not given; nothing else may be amiss.
        warnings.filterwarnings("ignore", message=".*not within the.*render", append=False)
        check_env(env.unwrapped, skip_render_check=True)
    assert env.reset(seed=0)[0].shape == (16, 16, 3)
    env.close()


def test_a_registered_room_is_made_in_a_batch():
    envs = gymnasium.make_vec("Pinpad-Four-v0", num_envs=5, size=16)
    assert isinstance(envs.unwrapped, PinPadVectorEnv)
    first, _ = envs.reset(seed=4)
    again, _ = envs.reset(seed=4)
    np.testing.assert_array_equal(first, again)
    assert envs.observation_space.contains(first)


def test_rendering_gives_the_observation():
    env = gymnasium.make("Pinpad-Six-v0", render_mode="rgb_array")
    image, _ = env.reset(seed=1)
    np.testing.assert_array_equal(env.render(), image)


def test_images_are_the_caller_s_own_unless_asked_otherwise():
    kept = PinPadVectorEnv(2, "three", size=16)
    before, _ = kept.reset(seed=0)
    snapshot = before.copy()
    kept.step(np.array([1, 1]))
    np.testing.assert_array_equal(before, snapshot)
    shared = PinPadVectorEnv(2, "three", size=16, copy=False)
    first, _ = shared.reset(seed=0)
    assert shared.step(np.array([1, 1]))[0] is first


# Per 2,000 steps: the score of the written rules' greedy player, measured over 2 million steps.
ORACLE = {"three": 556, "four": 398, "five": 342, "six": 287, "seven": 217, "eight": 197}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_oracle_earns_what_the_shortest_ways_allow(layout):
    envs = PinPadVectorEnv(128, layout, size=16, copy=False)
    envs.reset(seed=0)
    total = 0.0
    for _ in range(1_000):
        actions = oracle_actions(layout, envs.cell, envs.progress, envs.countdown)
        total += envs.step(actions)[1].sum()
    # Half an episode; its first win is not preceded by a pause, which adds half of one.
    expected = ORACLE[layout] / 2
    assert total / 128 == pytest.approx(expected, rel=0.06)


def test_random_play_on_three_earns_little_but_not_nothing():
    envs = PinPadVectorEnv(256, "three", size=16, copy=False)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    total = sum(envs.step(rng.integers(0, 5, 256))[1].sum() for _ in range(2_000))
    assert 6 <= total / 256 <= 14


@pytest.mark.parametrize("layout", LAYOUTS)
def test_routes_are_shortest_ways_that_touch_no_other_pad(layout):
    tables, found = room(layout), routes(layout)
    for pad in range(1, tables.pads + 1):
        distance = found.distance[pad].astype(int)
        assert (distance >= 0).all()
        for cell in range(tables.cells):
            ends = tables.next_cell[cell, 1:]
            allowed = np.isin(tables.pad[ends], [0, pad]) | (tables.pad[ends] == tables.pad[cell])
            if tables.pad[cell] == pad:
                assert distance[cell] == 0
                continue
            # Bellman's equation has one solution: the lengths of the shortest ways.
            assert distance[cell] == 1 + distance[ends[allowed]].min()
            step = tables.next_cell[cell, found.action[pad, cell]]
            assert distance[step] == distance[cell] - 1


@pytest.mark.parametrize("task", ["three", "pinpad_three", "Pinpad-Three-v0", "PINPAD-THREE"])
def test_a_layout_is_known_by_each_of_its_names(task):
    assert layout_name(task) == "three"


def test_an_unknown_layout_and_a_broken_size_are_named():
    with pytest.raises(UserError, match="pinpad_sevn") as error:
        room("pinpad_sevn")
    assert "seven" in error.value.hint
    with pytest.raises(UserError, match="size is 40"):
        PinPad("three", size=40)


def test_wrong_actions_are_refused():
    env = PinPadEnv("three", size=16)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="-1"):
        env.step(-1)
    envs = PinPadVectorEnv(2, "three", size=16)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[0, 5\]"):
        envs.step(np.array([0, 5]))
    with pytest.raises(ValueError, match="shape"):
        envs.step(np.array([0]))
