import dataclasses

import numpy as np
import pytest
from loom.errors import UserError
from loom.sampling import Shard
from pinpad.data.episodes import Episode
from pinpad.data.planted import PALETTE, planted_episodes
from pinpad.data.windows import WindowSampler


def episode(name, frames, paid=()):
    """An episode whose frames can be told: the image holds the episode and the step."""
    image = np.zeros((frames, 2, 2, 3), np.uint8)
    image[..., 0], image[..., 1] = int(name), np.arange(frames)[:, None, None]
    reward = np.zeros(frames, np.float32)
    reward[list(paid)] = 10
    first, last = np.zeros(frames, bool), np.zeros(frames, bool)
    first[0], last[-1] = True, True
    action = (np.arange(frames) % 5).astype(np.int8)
    return Episode(name, image, action, reward, first, last)


def sampler(episodes, batch_size=40, reward_windows=0.25):
    return WindowSampler(
        episodes,
        batch_size=batch_size,
        batch_length=8,
        reward_windows=reward_windows,
        seed=3,
    )


def test_a_window_is_a_stretch_of_one_episode():
    windows = sampler([episode("1", 30, [4]), episode("2", 9), episode("3", 8)]).batch(0)
    assert windows.image.shape == (8, 40, 2, 2, 3)
    number, step = windows.image[:, :, 0, 0, 0], windows.image[:, :, 0, 0, 1].astype(int)
    assert (number == number[0]).all()
    np.testing.assert_array_equal(np.diff(step, axis=0), 1)
    np.testing.assert_array_equal(windows.action, step % 5)
    np.testing.assert_array_equal(windows.is_first, step == 0)
    assert set(number[0].tolist()) == {1, 2, 3}


def test_every_start_is_drawn():
    one = sampler([episode("1", 12)])
    starts = np.concatenate([one.starts(step) for step in range(20)])
    assert set(starts.tolist()) == {0, 1, 2, 3, 4}


def test_the_asked_share_holds_a_reward_at_a_uniform_place():
    one = sampler([episode("1", 200, [100])], batch_size=400)
    windows = one.batch(0)
    places = np.argmax(windows.reward[:, :100] > 0, axis=0)
    assert (windows.reward[:, :100] > 0).any(axis=0).all()
    counts = np.bincount(places, minlength=8)
    assert counts.min() > 2
    assert (windows.reward[:, 100:] > 0).any(axis=0).mean() < 0.15


def test_a_reward_at_an_end_is_reached_within_its_episode():
    windows = sampler([episode("1", 9, [8]), episode("2", 9, [0])], reward_windows=1.0).batch(5)
    assert (windows.reward > 0).any(axis=0).all()
    assert (windows.image[:, :, 0, 0, 0] == windows.image[:1, :, 0, 0, 0]).all()


def test_without_rewards_nothing_is_prioritised():
    assert sampler([episode("1", 30)]).batch(0).reward.sum() == 0


def test_a_batch_is_a_function_of_its_step_and_shards_are_its_parts():
    one = sampler([episode("1", 60, [9])])
    again = sampler([episode("1", 60, [9])])
    whole = one.batch(7)
    np.testing.assert_array_equal(whole.image, again.batch(7).image)
    assert not np.array_equal(whole.image, one.batch(8).image)
    parts = [one.batch(7, Shard(rank, 2)).image for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole.image)


def test_episodes_that_are_too_short_or_differ_are_named():
    with pytest.raises(UserError, match="no episode has 8 frames, the longest has 7"):
        sampler([episode("1", 7)])
    other = dataclasses.replace(episode("2", 9), image=np.zeros((9, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="images of"):
        sampler([episode("1", 9), other])


def test_planted_changes_are_where_the_colour_changes_and_nowhere_else():
    changes, frames = 0, 0
    for one in planted_episodes(20, length=200, rate=0.075, seed=1):
        background = np.median(one.image[:, 0] / 255, axis=1)  # the dot is one pixel of eight
        color = np.abs(background[:, None] - PALETTE[None]).sum(-1).argmin(-1)
        np.testing.assert_array_equal(
            np.flatnonzero(one.events["planted"]), 1 + np.flatnonzero(np.diff(color))
        )
        dot = (one.image[:, 0].min(axis=-1) / 255).argmax(-1)
        moved = (dot[1:] - dot[:-1]) % 8
        expected = np.array([0, 1, 7, 1, 7])[one.action[1:]]
        np.testing.assert_array_equal(moved, expected)
        changes += one.events["planted"].sum()
        frames += 200
    assert changes / frames == pytest.approx(0.075, abs=0.013)
