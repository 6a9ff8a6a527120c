"""The memory bank: means, confidence, and what must not be recalled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from end2race.cache.export import Exporter
from end2race.cache.keys import parse_key
from end2race.cache.store import TeacherCache
from end2race.memory import descriptors
from end2race.memory.bank import MemoryBank
from end2race.memory.descriptors import camera_descriptor, edge_histograms, fit_space
from loom.errors import UserError

from packages.end2race.tests.fake_teacher import FakeReader, FakeTeacher, T, info_for, window_keys

KEYS = window_keys(segments=3, frames=22)


def new_cache(folder, teacher=None):
    teacher = teacher or FakeTeacher()
    cache = TeacherCache.create(folder, info_for(teacher))
    Exporter(teacher, FakeReader(KEYS), KEYS, 8).fill(cache)
    return cache


@pytest.fixture
def cache(tmp_path):
    return new_cache(tmp_path / "cache")


def described(cache):
    vectors = cache.read(KEYS, ["bev_vec"])["bev_vec"]
    return dict(zip(KEYS, descriptors.teacher_descriptor(vectors), strict=True))


@pytest.fixture
def bank(cache):
    return MemoryBank.build(cache, described(cache), "teacher")


def test_a_recall_is_the_softmax_weighted_mean_of_the_nearest_windows(bank):
    queries = bank.space.unit(np.random.default_rng(0).standard_normal((5, 6)))
    recall = bank.recall(queries, k=4, tau=0.3, fields=("actions", "gru_out"))
    for m, query in enumerate(queries):
        cosines = np.array([float(query.astype(np.float64) @ v) for v in bank.vectors])
        rows = sorted(range(len(cosines)), key=lambda row: (-cosines[row], row))[:4]
        weights = np.exp(cosines[rows] / 0.3)
        weights /= weights.sum()
        assert recall.rows[m].tolist() == rows
        assert np.allclose(recall.weights[m], weights, atol=1e-5)
        windows = [bank.windows[row] for row in rows]
        for name in ("actions", "gru_out"):
            values = bank.cache.read(windows, [name])[name]
            mean = sum(w * v for w, v in zip(weights, values, strict=True))
            assert np.allclose(recall.fields[name][m], mean, atol=1e-5)
        angles = bank.cache.read(windows, ["actions"])["actions"][..., 0]
        mean = (weights[:, None] * angles).sum(axis=0)
        variance = (weights[:, None] * (angles - mean) ** 2).sum(axis=0).mean()
        assert recall.variance[m] == pytest.approx(variance, rel=1e-4)
        assert recall.confidence[m] == pytest.approx(1 / (1 + variance / bank.variance_scale))
    assert np.allclose(recall.weights.sum(axis=1), 1)


def test_a_window_does_not_recall_its_neighbours_in_time(bank):
    recall = bank.recall(bank.vectors, asking=bank.windows, k=8)
    unguarded = bank.recall(bank.vectors, k=1)
    assert np.array_equal(unguarded.rows[:, 0], np.arange(len(bank.windows)))
    for asking, rows in zip(bank.windows, recall.rows, strict=True):
        own = parse_key(asking)
        for row in rows:
            found = parse_key(bank.windows[row])
            assert found.segment != own.segment or abs(found.frame - own.frame) >= T


def test_only_what_is_too_near_is_left_out(bank):
    recall = bank.recall(bank.vectors, asking=bank.windows, k=len(bank.windows))
    for asking, rows in zip(bank.windows, recall.rows, strict=True):
        own = parse_key(asking)
        allowed = {
            row
            for row, key in enumerate(bank.windows)
            if (place := parse_key(key)).segment != own.segment or abs(place.frame - own.frame) >= T
        }
        assert set(rows[rows >= 0].tolist()) == allowed


def test_a_radius_beyond_the_segment_leaves_the_whole_segment_out(bank):
    recall = bank.recall(bank.vectors, asking=bank.windows, k=30, exclude_frames=10**6)
    for asking, rows in zip(bank.windows, recall.rows, strict=True):
        found = {parse_key(bank.windows[row]).segment for row in rows}
        assert parse_key(asking).segment not in found


def test_a_window_of_other_data_that_asks_excludes_nothing(bank):
    asking = ["valid/segment_0000:3"] * 2
    recall = bank.recall(bank.vectors[:2], asking=asking, k=1)
    assert recall.rows[:, 0].tolist() == [0, 1]


def test_without_neighbours_there_is_no_confidence(cache):
    some = {key: value for key, value in described(cache).items() if "segment_0000" in key}
    bank = MemoryBank.build(cache, some, "teacher")
    recall = bank.recall(bank.vectors[:2], asking=bank.windows[:2], exclude_frames=10**6)
    assert (recall.rows == -1).all()
    assert not recall.confidence.any()
    assert not recall.weights.any()
    assert not recall.fields["actions"].any()
    assert np.isinf(recall.variance).all()


def test_confidence_falls_with_noise_on_the_remembered_angles(tmp_path):
    found = []
    for noise in (0.0, 0.5, 1.0, 2.0, 4.0):

        def noisy(batch, noise=noise):
            answers = FakeTeacher()(batch)
            rows = [int(parse_key(window[0]).frame) for window in batch.windows]
            jitter = np.array([np.random.default_rng(row).standard_normal(T) for row in rows])
            answers["actions"] = np.array(answers["actions"])
            answers["actions"][..., 0] = 0.1 * answers["actions"][..., 0] + noise * jitter
            return answers

        cache = TeacherCache.create(tmp_path / str(noise), info_for(FakeTeacher()))
        Exporter(noisy, FakeReader(KEYS), KEYS, 8).fill(cache)
        bank = MemoryBank.build(cache, described(cache), "teacher")
        recall = bank.recall(bank.vectors, asking=bank.windows)
        found.append(recall)
        assert np.median(recall.confidence) == pytest.approx(0.5, abs=1e-3)
    spread = [float(np.median(recall.variance)) for recall in found]
    assert spread == sorted(spread)
    # On the scale of the clean bank, more noise is less confidence.
    shown = [float(np.median(1 / (1 + recall.variance / spread[0]))) for recall in found]
    assert all(more < less for less, more in zip(shown, shown[1:], strict=False))


def test_variance_tells_where_the_recall_is_wrong(tmp_path):
    """Half of the situations are ambiguous: the same place was driven in two ways."""
    rng = np.random.default_rng(0)
    place = {key: rng.integers(8) for key in KEYS}

    def two_ways(batch):
        answers = FakeTeacher()(batch)
        actions = np.zeros_like(answers["actions"])
        for row, window in enumerate(batch.windows):
            start = place[window[0]]
            ambiguous = start % 2 == 1
            side = np.random.default_rng(parse_key(window[0]).frame).choice([-5.0, 5.0])
            actions[row, :, 0] = start + (side if ambiguous else 0.0)
        answers["actions"] = actions
        return answers

    cache = TeacherCache.create(tmp_path / "cache", info_for(FakeTeacher()))
    Exporter(two_ways, FakeReader(KEYS), KEYS, 8).fill(cache)
    codes = np.eye(8, dtype=np.float32)
    bank = MemoryBank.build(cache, {key: codes[place[key]] for key in KEYS}, "teacher")
    recall = bank.recall(bank.vectors, asking=bank.windows, k=6)
    truth = cache.read(bank.windows, ["actions"])["actions"][..., 0]
    error = np.square(recall.fields["actions"][..., 0] - truth).mean(axis=1)
    sure = recall.confidence >= np.median(recall.confidence)
    assert error[sure].mean() < 0.2 * error[~sure].mean()


def test_a_bank_comes_back_from_disk_and_answers_the_same(bank, tmp_path):
    bank.save(tmp_path / "memory")
    again = MemoryBank.open(tmp_path / "memory")
    queries = np.random.default_rng(1).standard_normal((4, 6))
    was = bank.recall(bank.space.unit(queries), fields=("bev_vec",))
    now = again.recall(again.space.unit(queries), fields=("bev_vec",))
    assert np.array_equal(was.rows, now.rows)
    assert np.array_equal(was.fields["bev_vec"], now.fields["bev_vec"])
    assert np.array_equal(was.confidence, now.confidence)
    with pytest.raises(UserError, match="is not empty"):
        bank.save(tmp_path / "memory")
    (tmp_path / "cache").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is no teacher cache"):
        MemoryBank.open(tmp_path / "memory")
    assert MemoryBank.open(tmp_path / "memory", tmp_path / "moved").windows == bank.windows


def test_a_bank_of_another_teacher_or_of_absent_windows_is_refused(bank, tmp_path):
    bank.save(tmp_path / "memory")
    other = new_cache(tmp_path / "other", FakeTeacher(seed=1))
    with pytest.raises(UserError, match="is of teacher 0000"):
        MemoryBank.open(tmp_path / "memory", other.directory)
    empty = TeacherCache.create(tmp_path / "empty", info_for(FakeTeacher()))
    with pytest.raises(UserError, match="nothing on 60 windows"):
        MemoryBank.open(tmp_path / "memory", empty.directory)
    with pytest.raises(UserError, match="nothing on 60 windows"):
        MemoryBank.build(empty, described(bank.cache), "teacher")


def test_a_damaged_bank_is_refused(bank, tmp_path):
    folder = tmp_path / "memory"
    bank.save(folder)
    path = folder / "memory.json"
    whole = json.loads(path.read_text())
    changes = [
        {"windows": whole["windows"][::-1]},
        {"windows": ["../x"]},
        {"windows": 3},
        {"kind": "lidar"},
        {"mean": [0.0]},
        {"mean": "x"},
        {"variance_scale": None},
        {"vectors_sha256": "0" * 64},
        {"version": 2},
        {"cache": None, "teacher_sha256": None, "scale": None},
    ]
    for change in changes:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(UserError, match="damaged memory"):
            MemoryBank.open(folder)
    path.write_text(json.dumps(whole))
    (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match="differs from its SHA-256"):
        MemoryBank.open(folder)
    path.unlink()
    with pytest.raises(UserError, match="is no memory bank"):
        MemoryBank.open(folder)


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 64, 128, 3), dtype=np.uint8)


def test_edges_do_not_tell_a_picture_from_its_negative_or_from_a_dimmer_one():
    images = pictures(3)[:, 0] // 2 * 2
    edges = edge_histograms(images)
    assert np.allclose(edge_histograms(255 - images), edges, atol=1e-6)
    assert np.allclose(edge_histograms(images // 2), edges, atol=1e-6)
    assert np.allclose(np.linalg.norm(edges, axis=1), 1, atol=1e-6)
    assert not edge_histograms(np.full((1, 64, 128, 3), 77, np.uint8)).any()


def test_edges_know_their_place_and_direction():
    image = np.zeros((1, 64, 128, 3), np.uint8)
    image[:, :, 64:] = 200  # one upright edge in the middle
    counts = edge_histograms(image).reshape(6, 12, 4)
    assert set(np.argwhere(counts > 0)[:, 1]) <= {5, 6}
    assert set(np.argwhere(counts > 0)[:, 2]) == {0}
    lying = edge_histograms(image.transpose(0, 2, 1, 3)[:, :64].repeat(2, axis=2)[:, :, :128])
    assert not lying.any() or set(np.argwhere(lying.reshape(6, 12, 4) > 0)[:, 2]) == {2}


def test_speeds_and_edges_have_the_shares_they_are_given():
    rng = np.random.default_rng(0)
    speed = rng.normal(3, 2, (200, 2, 1))
    steering = rng.normal(0, 9, (200, 2, 1))
    table = camera_descriptor(pictures(200), speed, steering)
    space = fit_space(table, "camera")
    scaled = (table - space.mean) * space.scale
    edges = descriptors.ROWS * descriptors.COLUMNS * descriptors.DIRECTIONS
    ego = scaled[:, edges:].var(axis=0)
    assert np.allclose(ego, ego[0], rtol=1e-3)
    assert ego.sum() / scaled.var(axis=0).sum() == pytest.approx(descriptors.EGO_WEIGHT, rel=1e-3)
    still = camera_descriptor(pictures(9), np.ones((9, 2, 1)), np.zeros((9, 2, 1)))
    assert np.isfinite(fit_space(still, "camera").unit(still)).all()


def test_a_bank_needs_two_windows_and_finite_descriptors(cache):
    some = described(cache)
    with pytest.raises(UserError, match="a memory of 1 windows"):
        MemoryBank.build(cache, {KEYS[0]: some[KEYS[0]]}, "teacher")
    some[KEYS[1]] = some[KEYS[1]] * np.nan
    with pytest.raises(UserError, match="not finite"):
        MemoryBank.build(cache, some, "teacher")


@pytest.mark.parametrize(("k", "tau"), [(0, 0.1), (3, 0.0), (3, float("nan"))])
def test_senseless_settings_are_refused(bank, k, tau):
    with pytest.raises(UserError, match="must be positive"):
        bank.recall(bank.vectors[:1], k=k, tau=tau)
