import numpy as np
import pytest
import torch
from pinpad.data.players import parse_mix
from pinpad.data.replay import Replay
from pinpad.envs.vector import PinPadVectorEnv
from pinpad.rooms import Rooms, fill


def memory(capacity=200, rooms=4, **changed):
    settings = {
        "size": 16, "batch_size": 12, "batch_length": 6, "reward_windows": 0.25, "seed": 0
    }  # fmt: skip
    return Replay("three", rooms, capacity, **(settings | changed))


def played(steps=150, rooms=4, length=40, player="oracle:0.1", **changed):
    replay = memory(rooms=rooms, **changed)
    seats = Rooms("three", rooms, size=replay.size, length=length, seed=3)
    fill(replay, seats, parse_mix(player), steps * rooms, np.random.default_rng(0))
    return replay, seats


@pytest.mark.parametrize("size", [16, 64])
def test_a_remembered_frame_is_the_one_that_was_shown(size):
    envs = PinPadVectorEnv(3, "three", size=size, length=30)
    image, _ = envs.reset(seed=0)
    replay, rng = memory(rooms=3, size=size), np.random.default_rng(0)
    shown, acts, paid, begun = [image], [np.zeros(3)], [np.zeros(3)], [np.ones(3, bool)]
    replay.add(envs, np.zeros(3, np.int64), np.zeros(3), begun[0])
    for _ in range(120):
        action = rng.integers(0, 5, 3)
        image, reward, _, _, info = envs.step(action)
        replay.add(envs, action, reward, info["is_first"])
        shown.append(image)
        acts.append(np.where(info["is_first"], 0, action))
        paid.append(reward)
        begun.append(info["is_first"])
    steps = np.arange(121)[:, None]
    for room in range(3):
        found = replay.windows(steps, np.array([room]))
        assert np.array_equal(found.image[:, 0], np.stack(shown)[:, room])
        assert np.array_equal(found.action[:, 0], np.stack(acts)[:, room])
        assert np.array_equal(found.reward[:, 0], np.stack(paid)[:, room])
        assert np.array_equal(found.is_first[:, 0], np.stack(begun)[:, room])
    assert len(replay) == 3 * 121


def test_frames_for_statistics_leave_nothing_behind():
    replay, _ = played()
    replay.batch(0)
    held = dict(replay._painters)
    assert replay.frames(500).shape == (500, 16, 16, 3)
    assert replay._painters == held  # at 64 x 64 a painter of 20,000 frames has 245 MB


def test_windows_are_a_pure_function_of_the_step_and_follow_the_time():
    replay, _ = played()
    one, again, other = replay.batch(5), replay.batch(5), replay.batch(6)
    assert np.array_equal(one.image, again.image)
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (6, 12, 16, 16, 3)
    parts = [replay.batch(5, shard).image for shard in _shards(3)]
    assert np.array_equal(np.concatenate(parts, axis=1), one.image)


def _shards(count):
    from loom.sampling import Shard

    return [Shard(rank, count) for rank in range(count)]


def test_a_share_of_the_windows_holds_a_reward_at_a_uniform_place():
    replay, _ = played(reward_windows=1.0)
    assert replay.rewards > 5
    places = []
    for step in range(200):
        paid = replay.batch(step).reward > 0
        assert paid.any(0).all()
        places += paid.argmax(0).tolist()
    share = np.bincount(places, minlength=6) / len(places)
    np.testing.assert_allclose(share, 1 / 6, atol=0.05)


def test_a_share_of_the_windows_is_of_the_newest_steps():
    plain, _ = played()
    replay, _ = played(recent_windows=0.5, recent_steps=20)
    by_frame = {
        replay.windows(np.array([[t]]), np.array([r])).image.tobytes()
        for t in range(130, 150)
        for r in range(4)
    }
    for step in range(20):
        batch, before = replay.batch(step), plain.batch(step)
        for window in range(6, 12):
            assert all(frame.tobytes() in by_frame for frame in batch.image[:, window])
        assert np.array_equal(batch.image[:, :6], before.image[:, :6])
    short, _ = played(recent_windows=1.0, recent_steps=2)
    last = short.windows(np.tile(np.arange(144, 150)[:, None], 4), np.arange(4)).image
    found = short.batch(0).image
    assert {w.tobytes() for w in found.swapaxes(0, 1)} <= {w.tobytes() for w in last.swapaxes(0, 1)}


def test_the_oldest_steps_are_forgotten_with_their_rewards():
    replay, _ = played(capacity=50, steps=150, reward_windows=1.0)
    whole, _ = played(capacity=150, steps=150)
    assert len(replay) == 50 * 4
    last = np.arange(100, 150)[:, None], np.array([2])
    assert np.array_equal(whole.windows(*last).image, replay.windows(*last).image)
    assert 0 < replay.rewards < whole.rewards
    for step in range(50):
        assert (replay.batch(step).reward > 0).any(0).all()
    late = [whole.windows(np.arange(100, 150)[:, None], np.array([room])) for room in range(4)]
    earned = np.concatenate([windows.reward for windows in late])
    assert replay.mean_reward(0) == pytest.approx(earned.mean())


def test_a_memory_goes_on_from_its_state():
    replay, seats = played(capacity=60, steps=100)
    other = memory(capacity=60)
    other.load_state_dict(replay.state_dict())
    for each in (replay, other):
        each.add(seats.envs, np.ones(4, np.int64), np.full(4, 10.0), np.zeros(4, bool))
    for step in range(3):
        one, two = replay.batch(step), other.batch(step)
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.reward, two.reward)
    assert other.rewards == replay.rewards
    assert all(isinstance(v, torch.Tensor | int) for v in replay.state_dict().values())


def test_rooms_go_on_from_a_snapshot():
    seats = Rooms("four", 5, size=16, length=25, seed=1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        seats.step(rng.integers(0, 5, 5))
    saved = seats.envs.snapshot()
    actions = rng.integers(0, 5, (60, 5))
    first = [(seats.step(a).copy(), seats.image.copy()) for a in actions]
    other = PinPadVectorEnv(5, "four", size=16, length=25)
    other.restore(saved)
    for action, (reward, image) in zip(actions, first, strict=True):
        shown, paid, *_ = other.step(action)
        assert np.array_equal(paid, reward)
        assert np.array_equal(shown, image)
    with pytest.raises(ValueError, match="cell is int16"):
        PinPadVectorEnv(4, "four", size=16).restore(saved)
