"""Streamed errors against the textbook formulas on whole arrays, and the guard against a leak."""

import numpy as np
import pytest
import torch
from end2race.evaluate import ActionErrors, OpenLoop, constant, copycat, open_loop_errors
from loom import distributed
from loom.errors import UserError


def samples(count=301, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.normal(offset, (6.0, 1.2), (count, 2))
    return targets + rng.normal(0.1, 0.5, (count, 2)), targets


def whole_array_metrics(actions, targets):
    """The definitions, in one go."""
    found, error = {}, actions - targets
    for index, name in enumerate(("steer", "speed")):
        squared = np.mean(error[:, index] ** 2)
        found[f"{name}_mse"] = squared
        found[f"{name}_mae"] = np.mean(np.abs(error[:, index]))
        found[f"{name}_rmse"] = np.sqrt(squared)
        found[f"{name}_max_error"] = np.max(np.abs(error[:, index]))
        found[f"{name}_r2"] = 1 - squared / np.var(targets[:, index])
    found["mse_mean"] = np.mean(error**2)
    found["mae_mean"] = np.mean(np.abs(error))
    found["overall_weighted_mse"] = found["steer_mse"] + 0.05 * found["speed_mse"]
    return found


def streamed(actions, targets, sizes):
    errors, begin = ActionErrors(), 0
    for size in sizes:
        errors.update(actions[begin : begin + size], targets[begin : begin + size])
        begin += size
    assert begin == len(targets)
    return errors


@pytest.mark.parametrize("sizes", [[301], [1] * 301, [7, 0, 100, 1, 193]])
def test_streamed_errors_are_those_of_whole_arrays(sizes):
    actions, targets = samples()
    found = streamed(actions, targets, sizes).metrics()
    assert found == pytest.approx(whole_array_metrics(actions, targets), rel=1e-9)


def test_a_large_offset_keeps_its_r2():
    actions, targets = samples(offset=1e6)
    found = streamed(actions, targets, [50, 251]).metrics()
    expected = whole_array_metrics(actions, targets)
    assert found["speed_r2"] == pytest.approx(expected["speed_r2"], rel=1e-6)
    single = targets[:, 1].astype(np.float32)  # what sums of squares in float32 would give
    naive = float(np.mean(np.square(single)) - np.square(np.mean(single)))
    assert abs(naive - np.var(targets[:, 1])) > 0.1


def test_constant_targets_have_no_r2():
    errors = ActionErrors()
    errors.update(np.ones((4, 2)), np.zeros((4, 2)))
    assert errors.metrics()["steer_r2"] is None


def test_windows_of_frames_count_every_frame():
    actions, targets = samples(count=300)
    errors = ActionErrors()
    errors.update(actions.reshape(60, 5, 2), targets.reshape(60, 5, 2))
    assert errors.count == 300
    assert errors.metrics() == pytest.approx(whole_array_metrics(actions, targets), rel=1e-9)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_any_number_of_processes_merges_to_the_same_errors(world, monkeypatch):
    actions, targets = samples()
    assert len(targets) % world, "an even split would not show padding"
    parts = []
    for rank in range(world):
        own = list(distributed.sharded_indices(len(targets), distributed.Shard(rank, world)))
        parts.append(streamed(actions[own], targets[own], [len(own)]))
    rows = []
    monkeypatch.setattr(distributed, "gather", lambda row: rows.append(row) or row)
    for part in parts:
        part.merged()
    monkeypatch.setattr(distributed, "gather", lambda row: torch.cat(rows))
    expected = whole_array_metrics(actions, targets)
    for part in parts:
        merged = part.merged()
        assert merged.count == 301
        assert merged.metrics() == pytest.approx(expected, rel=1e-9)


def test_the_overall_error_is_a_weighted_sum_not_a_mean():
    actions, targets = samples()
    errors = streamed(actions, targets, [301])
    found = errors.metrics(("angle", "velocity"), (2.0, 3.0))
    assert found["overall_weighted_mse"] == pytest.approx(
        2 * found["angle_mse"] + 3 * found["velocity_mse"]
    )


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [(("steer",), (1.0, 0.05), "action_names has 1"), (("a", "b"), (1.0,), "overall_weights has")],
)
def test_names_and_weights_must_be_as_many_as_components(names, weights, message):
    errors = streamed(*samples(), [301])
    with pytest.raises(UserError, match=message):
        errors.metrics(names, weights)


def test_no_sample_is_an_error():
    with pytest.raises(UserError, match="no sample"):
        ActionErrors().metrics()


def speed_drivers(target, speed, steer=0.0):
    """Drivers that see nothing, on given target speeds and present speeds."""
    targets = np.stack([np.full_like(target, steer), target], -1)
    blind = ActionErrors()
    blind.update(np.stack([np.zeros_like(speed), speed], -1), targets)
    return OpenLoop({"blanked": blind, "copycat": blind})


def test_a_label_that_is_its_own_input_shows_as_a_leak():
    speed = np.random.default_rng(0).normal(4, 1, 500)
    assert speed_drivers(speed, speed).leak == pytest.approx(0.0)
    assert speed_drivers(np.roll(speed, 7), speed).leak > 0.5
    assert speed_drivers(np.full(500, 4.0), speed).leak is None
    assert "LEAK" in speed_drivers(speed, speed).leak_line
    assert "no leak" in speed_drivers(np.roll(speed, 7), speed).leak_line
    assert "constant" in speed_drivers(np.full(500, 4.0), speed).leak_line


def test_trivial_drivers_do_what_their_names_say(small):
    from end2race.data.batches import BatchReader
    from end2race.data.dataset import open_dataset
    from end2race.data.windows import windows

    dataset = open_dataset(small())
    reader = BatchReader(dataset, windows(dataset, "train", 3), images=False, points=False)
    batch = reader.read(range(len(reader)))
    followed = copycat(batch)
    assert torch.equal(followed[..., 0:1], batch.steering_input)
    assert torch.equal(followed[..., 1:2], batch.speed)
    mean = batch.actions.flatten(0, 1).mean(0).numpy()
    found = open_loop_errors(constant(mean), reader, batch_size=3)
    assert found.metrics()["steer_r2"] == pytest.approx(0.0, abs=1e-5)
