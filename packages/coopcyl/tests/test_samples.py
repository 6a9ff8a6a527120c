"""Samples and their changes: the truth moves with the world, whoever computes it."""

import numpy as np
import pytest
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.sampler import SetSampler
from coopcyl.data.samples import (
    Augmentation,
    SetSample,
    augmented,
    mirrored,
    read_sample,
    sample_of,
)
from coopcyl.data.tree import read_tree
from coopcyl.geometry.carla import transform
from coopcyl.geometry.panorama import Panorama
from loom.sampling import Shard

PANORAMA = Panorama(128, 32, "equirect_band", -42, 42)
EVERYTHING = Augmentation(1.0, 1.0, 0.2, 0.1, 0.2, 0.05)


@pytest.fixture(scope="module")
def reader() -> PanoramaReader:
    return PanoramaReader(PANORAMA, DepthSource("npy"), 60.0, supersample=2)


@pytest.fixture(scope="module")
def sample(small_root, reader) -> SetSample:
    frame = max(read_tree(small_root, "train").frames, key=lambda each: len(each.agents))
    return sample_of([reader.read(agent) for agent in frame.agents], np.random.default_rng(0))


def points_in_first(sample: SetSample, i: int) -> np.ndarray:
    own = sample.origins[i] + sample.range_m[i][..., None] * sample.rays[i]
    return transform(sample.poses[i], own[sample.range_m[i] > 0].astype(float))


def sorted_rows(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.round(points, 4).T)]


def test_the_mirrored_world_is_the_world_in_a_mirror(sample):
    other = mirrored(sample)
    for i in range(len(sample.rgb)):
        expected = points_in_first(sample, i) * [-1, 1, 1]
        np.testing.assert_allclose(
            sorted_rows(points_in_first(other, i)), sorted_rows(expected), atol=2e-4
        )
        assert np.linalg.det(other.poses[i][:3, :3]) == pytest.approx(1)
        np.testing.assert_array_equal(other.rgb[i], sample.rgb[i][:, ::-1])
    twice = mirrored(other)
    np.testing.assert_array_equal(twice.rgb, sample.rgb)
    np.testing.assert_allclose(twice.poses, sample.poses)


def test_a_mirrored_panorama_has_the_rays_of_its_pixels(sample):
    np.testing.assert_allclose(mirrored(sample).rays[0], PANORAMA.directions(), atol=1e-6)


def test_colours_change_and_geometry_does_not(sample):
    changed = augmented(sample, np.random.default_rng(3), EVERYTHING)
    changed = mirrored(changed)
    for name in ("rays", "origins", "range_m", "surface", "covered"):
        np.testing.assert_allclose(getattr(changed, name), getattr(sample, name), atol=1e-6)
    assert np.abs(changed.rgb - sample.rgb).mean() > 0.02
    assert changed.rgb.min() >= 0
    assert changed.rgb.max() <= 1


def test_a_sample_depends_on_its_position_and_not_on_the_process(small_root, reader):
    frames = read_tree(small_root, "train").frames
    sampler = SetSampler(frames, seed=5, global_batch=2)
    whole = [read_sample(c, reader.read, 5, EVERYTHING) for c in sampler.sets(3)]
    parts = [
        read_sample(c, reader.read, 5, EVERYTHING)
        for rank in range(2)
        for c in sampler.sets(3, Shard(rank, 2))
    ]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.poses, other.poses)
        np.testing.assert_array_equal(one.keys, other.keys)


def test_finer_colours_are_averaged_and_ranges_are_not(small_root):
    frame = read_tree(small_root, "train").frames[0].agents[0]
    coarse, fine = (
        PanoramaReader(panorama, DepthSource("npy"), 60.0, supersample=factor).read(frame)
        for panorama, factor in ((PANORAMA, 4), (Panorama(512, 128, "equirect_band", -42, 42), 1))
    )
    averaged = fine.rgb.reshape(32, 4, 128, 4, 3).astype(float).mean(axis=(1, 3))
    inner = fine.coverage.reshape(32, 4, 128, 4).all(axis=(1, 3))
    assert np.abs(averaged - coarse.rgb)[inner].max() <= 1
    assert not coarse.rgb[~coarse.coverage].any()
    plain = PanoramaReader(PANORAMA, DepthSource("npy"), 60.0).read(frame)
    np.testing.assert_array_equal(coarse.range_m, plain.range_m)
