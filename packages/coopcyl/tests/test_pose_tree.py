"""Chains of pairs: the most trusted ones, composed in the right order."""

from itertools import combinations, permutations

import numpy as np
import pytest
from coopcyl.geometry.carla import inverse
from coopcyl.geometry.pose_tree import PairPose, chain_poses
from scipy.spatial.transform import Rotation


def poses(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
        pose[:3, 3] = rng.normal(0, 10, 3)
        result.append(pose)
    return result


def pairs(world: list[np.ndarray], trust: dict[tuple[int, int], float]) -> dict:
    return {
        (i, j): PairPose(inverse(world[i]) @ world[j], trust.get((i, j), 0.1), 9)
        for i, j in combinations(range(len(world)), 2)
    }


def test_exact_pairs_give_exact_poses_along_any_tree():
    world = poses(5, 0)
    rng = np.random.default_rng(1)
    for _ in range(10):
        trust = {pair: rng.random() for pair in combinations(range(5), 2)}
        found, _ = chain_poses(pairs(world, trust), 5)
        for pose, true in zip(found, world, strict=True):
            np.testing.assert_allclose(pose, inverse(world[0]) @ true, atol=1e-9)


def test_a_bad_pair_is_gone_round():
    world = poses(3, 2)
    given = pairs(world, {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.2})
    given[0, 2] = given[0, 2]._replace(pose=np.eye(4))
    found, sure = chain_poses(given, 3)
    np.testing.assert_allclose(found[2], inverse(world[0]) @ world[2], atol=1e-9)
    np.testing.assert_array_equal(sure, [1, 0.9, 0.8])


@pytest.mark.parametrize("seed", range(5))
def test_each_chain_has_the_best_possible_weakest_link(seed):
    rng = np.random.default_rng(seed)
    world = poses(5, seed)
    trust = {pair: rng.random() for pair in combinations(range(5), 2)}
    _, sure = chain_poses(pairs(world, trust), 5)
    for view in range(1, 5):
        best = 0.0
        for count in range(4):
            for between in permutations([v for v in range(1, 5) if v != view], count):
                chain = (0, *between, view)
                links = [trust[min(e), max(e)] for e in zip(chain, chain[1:], strict=False)]
                best = max(best, min(links))
        assert sure[view] == best
