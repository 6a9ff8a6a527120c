import numpy as np
import pytest
from loom.errors import UserError
from pinpad.cli import app
from pinpad.data.collect import record_episodes, write_whole
from pinpad.data.episodes import read_episode, write_episode
from pinpad.data.players import Players, assign, parse_mix, parse_player
from pinpad.envs.core import PinPad
from pinpad.envs.events import EVENTS
from pinpad.envs.layouts import room
from pinpad.envs.vector import PinPadVectorEnv
from typer.testing import CliRunner


def play(player, layout="three", rooms=64, steps=1_000):
    envs = PinPadVectorEnv(rooms, layout, size=16, copy=False)
    envs.reset(seed=0)
    players = Players([parse_player(player)] * rooms, envs, np.random.default_rng(0))
    rows = []
    for _ in range(steps):
        actions = players.act()
        _, reward, _, _, info = envs.step(actions)
        rows.append((actions, reward, info["event_sequence_append"], info["sequence"]))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_uniform_draws_every_action_equally():
    actions, *_ = play("uniform", rooms=16)
    counts = np.bincount(actions.ravel(), minlength=5)
    expected = actions.size / 5
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-squared, 4 degrees, p = .001


def test_sticky_changes_its_action_as_often_as_it_says():
    actions, *_ = play("sticky", rooms=16)
    changed = (actions[1:] != actions[:-1]).mean()
    assert changed == pytest.approx(0.15 * 4 / 5, abs=0.01)  # a draw may repeat the action


def test_babble_writes_many_pads_and_no_order_of_them():
    _, reward, appended, sequence = play("babble")
    assert appended.mean() > 0.08
    followed = sequence[-1]
    assert len(np.unique(followed, axis=0)) > 6
    _, oracle_reward, _, _ = play("oracle:0.1")
    assert 0 < reward.mean() < 0.6 * oracle_reward.mean()


def test_babble_without_noise_never_touches_a_pad_on_the_way():
    envs = PinPadVectorEnv(32, "four", size=16, copy=False)
    envs.reset(seed=0)
    players = Players([parse_player("babble:0")] * 32, envs, np.random.default_rng(0))
    for _ in range(300):
        actions = players.act()
        goal = players._goal.copy()
        _, _, _, _, info = envs.step(actions)
        written = info["event_sequence_append"] & ~info["event_respawn"]
        entered = written & info["event_pad_enter"]
        np.testing.assert_array_equal(envs.last[entered], goal[entered])


def test_a_mixture_is_read_and_seated_by_its_shares():
    mix = parse_mix("uniform=2,sticky=1,oracle:0.3=1")
    assert [(str(s.player), s.share) for s in mix] == [
        ("uniform", 0.5),
        ("sticky", 0.25),
        ("oracle:0.3", 0.25),
    ]
    assert [str(player) for player in assign(mix, 5)] == ["uniform"] * 3 + ["sticky", "oracle:0.3"]
    assert len(assign(parse_mix("uniform,sticky,babble"), 64)) == 64


@pytest.mark.parametrize(
    ("text", "named"),
    [("greedy", "greedy"), ("sticky=0", "share"), ("oracle:2", "noise"), ("oracle:x=1", "noise")],
)
def test_a_wrong_mixture_is_named(text, named):
    with pytest.raises(UserError, match=named):
        parse_mix(text)


def test_an_episode_is_what_its_actions_make_of_its_first_frame(slow_pinpad):
    episodes = list(
        record_episodes("three", parse_mix("oracle:0.2"), 3, length=120, size=16, seed=4)
    )
    for i, episode in enumerate(episodes):
        assert episode.image.shape == (121, 16, 16, 3)
        stream = np.random.Generator(np.random.PCG64(4 + i))

        def draw(stream=stream):
            return int(stream.integers(168))

        slow = slow_pinpad("three", length=120)
        slow.reset(draw())
        np.testing.assert_array_equal(episode.image[0], slow.image(16))
        for t in range(1, 121):
            events = slow.step(int(episode.action[t]), draw)
            np.testing.assert_array_equal(episode.image[t], slow.image(16))
            assert {name: bool(episode.events[name][t]) for name in EVENTS} == events
            assert episode.reward[t] == 10.0 * events["reward"]
            assert (episode.state["progress"][t], episode.state["countdown"][t]) == (
                slow.matched(),
                slow.countdown,
            )
    assert sum(episode.reward.sum() for episode in episodes) > 0


def test_an_episode_survives_its_file(tmp_path):
    (episode,) = record_episodes("five", parse_mix("babble"), 1, length=40, size=16, seed=0)
    path = write_episode(tmp_path, episode)
    assert path.name == "0000-41.npz"
    back = read_episode(path)
    assert (back.name, back.layout, back.player) == ("0000", "five", "babble")
    for name in ("image", "action", "reward", "is_first", "is_last"):
        np.testing.assert_array_equal(getattr(back, name), getattr(episode, name))
        assert getattr(back, name).dtype == getattr(episode, name).dtype
    for name in EVENTS:
        np.testing.assert_array_equal(back.events[name], episode.events[name])


def test_an_episode_of_another_port_is_read(tmp_path):
    path = tmp_path / "0a1b-6.npz"
    np.savez(
        path,
        image=np.zeros((6, 64, 64, 3), np.uint8),
        action=np.eye(5, dtype=np.float32)[[0, 1, 4, 2, 0, 3]],
        reward=np.zeros(6, np.float64),
        discount=np.ones(6),
    )
    episode = read_episode(path)
    assert episode.name == "0a1b"
    assert episode.action.tolist() == [0, 1, 4, 2, 0, 3]
    assert episode.is_first.tolist() == [True] + [False] * 5
    assert episode.events == {}


def test_damaged_episodes_are_named(tmp_path):
    path = tmp_path / "a.npz"
    image = np.zeros((6, 16, 16, 3), np.uint8)
    np.savez(path, image=image, action=np.zeros(6, int))
    with pytest.raises(UserError, match="without reward"):
        read_episode(path)
    np.savez(path, image=image, action=np.zeros(6, int), reward=np.zeros(5))
    with pytest.raises(UserError, match=r"reward has shape \(5,\), but there are 6 frames"):
        read_episode(path)
    np.savez(path, image=image.astype(float), action=np.zeros(6, int), reward=np.zeros(6))
    with pytest.raises(UserError, match="image is float64"):
        read_episode(path)
    for wrong, message in ((5, r"action\[3\] is 5, expected 0 to 4"), (300, "is 300"), (-1, "-1")):
        action = np.zeros(6, int)
        action[3] = wrong
        np.savez(path, image=image, action=action, reward=np.zeros(6))
        with pytest.raises(UserError, match=message):
            read_episode(path)
    for name in ("action", "reward", "is_last", "event_reward", "countdown"):
        rows = {"action": np.zeros(6, int), "reward": np.zeros(6), name: np.full(6, "x")}
        np.savez(path, image=image, **rows)
        with pytest.raises(UserError, match=f"{name} holds <U1"):
            read_episode(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable"):
        read_episode(path)


def test_collect_writes_a_folder_once(tmp_path):
    folder = tmp_path / "episodes"
    arguments = ["collect", str(folder), "--task", "pinpad_eight", "--episodes", "4"]
    arguments += ["--length", "30", "--size", "16", "--players", "uniform=1,oracle=1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == [f"000{i}-31.npz" for i in range(4)]
    assert "oracle" in done.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "holds episodes already" in again.output


def test_the_same_seed_records_the_same_episodes():
    first, again, other = (
        next(iter(record_episodes("six", parse_mix("sticky"), 1, length=50, size=16, seed=seed)))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.action, other.action)
    assert room("six").pads == 6
    assert PinPad("six", size=16).room is room("six")


def test_a_folder_of_episodes_is_complete_or_not_there(tmp_path):
    recorded = list(record_episodes("three", parse_mix("uniform"), 3, length=5, size=16, seed=0))

    def cut_short():
        yield recorded[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "episodes", cut_short())
    assert not (tmp_path / "episodes").exists()
    assert write_whole(tmp_path / "episodes", recorded)
    assert len(list((tmp_path / "episodes").glob("*.npz"))) == 3
    assert not write_whole(tmp_path / "episodes", [])  # it is there: nothing is drawn or written
    assert [path.name for path in tmp_path.iterdir()] == ["episodes"]
