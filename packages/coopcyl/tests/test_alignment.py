"""The pose solver and the matches it takes, against scipy, slow loops and known poses."""

import numpy as np
import pytest
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.tree import read_tree
from coopcyl.geometry.alignment import (
    MatchedPoints,
    SolverOptions,
    agreeing_share,
    align,
    best_hypothesis,
    kabsch,
    refine,
)
from coopcyl.geometry.carla import inverse, pose_from_cords, to_opencv, transform
from coopcyl.geometry.covisibility import relative_pose
from coopcyl.geometry.matching import (
    Tokens,
    matched_points,
    mutual_matches,
    oracle_matches,
    partners_between_tokens,
    tokens_of,
    true_matches,
)
from coopcyl.geometry.panorama import Panorama
from coopcyl.metrics import rot_err_deg, trans_err_m
from coopcyl.models.predict import lengthening
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

TRUE = to_opencv(pose_from_cords([14.0, -6.0, 0.3, 1.0, 165.0, -0.8]))


def made_up(
    rng: np.random.Generator,
    n: int = 300,
    wrong: float = 0.0,
    range_noise: float = 0.0,
    true: np.ndarray = TRUE,
) -> MatchedPoints:
    """Points round two vehicles, 4 to 45 m away, with relative range noise and wrong matches."""
    away = rng.uniform(4, 45, n)
    azimuth = rng.uniform(-np.pi, np.pi, n)
    points1 = np.stack(
        [away * np.sin(azimuth), rng.uniform(-6, 1.9, n), away * np.cos(azimuth)], axis=-1
    )
    points0 = transform(true, points1)
    reach0, reach1 = (np.linalg.norm(p, axis=-1) for p in (points0, points1))
    rays0, rays1 = points0 / reach0[:, None], points1 / reach1[:, None]
    points0 = points0 + rays0 * (reach0 * rng.normal(0, range_noise, n))[:, None]
    points1 = points1 + rays1 * (reach1 * rng.normal(0, range_noise, n))[:, None]
    shuffled = rng.random(n) < wrong
    points0[shuffled] = rng.permutation(points0[shuffled])
    rays0 = points0 / np.linalg.norm(points0, axis=-1, keepdims=True)
    sigma = max(range_noise, 0.01)
    across = np.full(n, 0.1)
    return MatchedPoints(
        points0, points1, rays0, rays1, sigma * reach0, sigma * reach1, across, across, np.ones(n)
    )


def test_kabsch_agrees_with_scipy():
    rng = np.random.default_rng(0)
    points0, points1 = rng.normal(size=(2, 20, 3)) * 10
    weights = rng.uniform(0.1, 1, 20)
    pose = kabsch(points0, points1, weights)
    middles = [np.average(p, axis=0, weights=weights) for p in (points0, points1)]
    expected, _ = Rotation.align_vectors(points0 - middles[0], points1 - middles[1], weights)
    np.testing.assert_allclose(pose[:3, :3], expected.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(pose[:3, 3], middles[0] - expected.as_matrix() @ middles[1])


def test_kabsch_never_mirrors_flat_point_sets():
    flat = np.random.default_rng(1).normal(size=(10, 3)) * [5, 5, 0]
    for mirrored in (flat * [-1, 1, 1], flat):
        assert np.linalg.det(kabsch(mirrored, flat, np.ones(10))[:3, :3]) == pytest.approx(1)


def test_exact_matches_give_the_exact_pose():
    free = SolverOptions(tilt_deg=1e3, height_m=1e3)
    result = align(made_up(np.random.default_rng(0)), np.random.default_rng(1), free)
    assert result is not None
    np.testing.assert_allclose(result.pose, TRUE, atol=1e-5)
    assert result.inlier_share > 0.999


@pytest.mark.parametrize("wrong", [0.5, 0.7, 0.8])
def test_most_matches_may_be_wrong(wrong):
    rng = np.random.default_rng(3)
    result = align(made_up(rng, 400, wrong, 0.05), rng)
    assert result is not None
    assert trans_err_m(result.pose, TRUE) < 0.5
    assert rot_err_deg(result.pose, TRUE) < 1.0
    matches = made_up(np.random.default_rng(3), 400, wrong, 0.05)
    blind = kabsch(matches.points0, matches.points1, matches.weights)
    assert rot_err_deg(blind, TRUE) > 3 * rot_err_deg(result.pose, TRUE)


def test_noise_along_rays_costs_little_because_the_solver_knows_its_direction():
    errors = {"kabsch": [], "aware": [], "unaware": []}
    for seed in range(8):
        matches = made_up(np.random.default_rng(seed), 200, 0.0, 0.1)
        blunt = matches._replace(across0=matches.along0, across1=matches.along1)
        errors["kabsch"].append(
            trans_err_m(kabsch(matches.points0, matches.points1, matches.weights), TRUE)
        )
        for name, given in (("aware", matches), ("unaware", blunt)):
            result = align(given, np.random.default_rng(0))
            assert result is not None
            errors[name].append(trans_err_m(result.pose, TRUE))
    medians = {name: np.median(values) for name, values in errors.items()}
    assert medians["aware"] < 0.6 * medians["kabsch"]
    assert medians["aware"] < 0.9 * medians["unaware"]


def test_ranges_that_err_by_a_factor_do_not_draw_vehicles_together():
    """Most matches are wrong here, as a network's are; without lengthening distances are short."""
    ahead = TRUE[:3, 3] / np.linalg.norm(TRUE[:3, 3])
    sigma, short, kept = 0.15, [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        exact = made_up(rng, 300, wrong=0.7)
        reach0, reach1 = (np.linalg.norm(p, axis=1) for p in (exact.points0, exact.points1))
        factors = np.exp(sigma * rng.normal(size=(2, 300)))
        for errors, by in ((short, 1.0), (kept, float(lengthening(np.array(sigma))))):
            found0, found1 = by * factors[0] * reach0, by * factors[1] * reach1
            result = align(
                exact._replace(
                    points0=found0[:, None] * exact.rays0,
                    points1=found1[:, None] * exact.rays1,
                    along0=sigma * found0,
                    along1=sigma * found1,
                ),
                np.random.default_rng(0),
            )
            assert result is not None
            errors.append((result.pose[:3, 3] - TRUE[:3, 3]) @ ahead)
    assert np.mean(short) < -0.3
    assert abs(np.mean(kept)) < 0.5 * abs(np.mean(short))


def test_refinement_ends_at_the_minimum_that_scipy_finds():
    """With round covariances the cost is a plain function of the pose."""
    options = SolverOptions(iterations=60, cutoff=2.0, tilt_deg=1.5, height_m=0.4)
    matches = made_up(np.random.default_rng(5), 80, 0.2, 0.03)
    round_ones = matches._replace(
        along0=matches.across0 * 4,
        along1=matches.across1 * 4,
        across0=matches.across0 * 4,
        across1=matches.across1 * 4,
    )
    sigma2 = 2 * 0.4**2

    def pose_of(step: np.ndarray) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_rotvec(step[:3]).as_matrix() @ TRUE[:3, :3]
        pose[:3, 3] = TRUE[:3, 3] + step[3:]
        return pose

    def cost(step: np.ndarray) -> float:
        pose = pose_of(step)
        squared = ((round_ones.points0 - transform(pose, round_ones.points1)) ** 2).sum(-1) / sigma2
        robust = (4.0 * squared / (4.0 + squared)).sum()
        tilt = (pose[0, 1] ** 2 + pose[2, 1] ** 2) / np.radians(1.5) ** 2
        return robust + tilt + (pose[1, 3] / 0.4) ** 2

    best = minimize(cost, np.zeros(6), method="BFGS", options={"gtol": 1e-9})
    found = refine(round_ones, TRUE, options)
    np.testing.assert_allclose(found, pose_of(best.x), atol=2e-4)


def test_agreement_is_that_of_a_slow_loop_over_mahalanobis_distances():
    matches = made_up(np.random.default_rng(2), 20, 0.3, 0.05)
    rotation, agreeing = TRUE[:3, :3], 0.0
    for i in range(20):
        covariances = []
        for ray, along, across in (
            (matches.rays0[i], matches.along0[i], matches.across0[i]),
            (matches.rays1[i], matches.along1[i], matches.across1[i]),
        ):
            side = np.linalg.svd(ray[None])[2][1:]  # two directions across the ray
            axes = np.vstack([ray, side])
            covariances.append(axes.T @ np.diag([along**2, across**2, across**2]) @ axes)
        error = matches.points0[i] - rotation @ matches.points1[i] - TRUE[:3, 3]
        both = covariances[0] + rotation @ covariances[1] @ rotation.T
        agreeing += 4 / (4 + error @ np.linalg.solve(both, error)) / 20
    assert agreeing_share(matches, TRUE, 2.0) == pytest.approx(agreeing, rel=1e-9)


def test_of_hypothesis_and_refined_pose_the_one_is_kept_that_more_matches_agree_with():
    options, kept, apart = SolverOptions(), [], []
    for seed in range(8):
        matches = made_up(np.random.default_rng(seed), 150, 0.6, 0.1)
        start = best_hypothesis(matches, np.random.default_rng(0), options)
        result = align(matches, np.random.default_rng(0), options)
        assert start is not None
        assert result is not None
        shares = [agreeing_share(matches, p, options.cutoff) for p in (start, result.pose)]
        assert result.inlier_share == pytest.approx(shares[1])
        assert shares[1] >= shares[0]
        kept.append(result.refined)
        apart.append(trans_err_m(start, TRUE) - trans_err_m(result.pose, TRUE))
    assert np.mean(kept) > 0.9  # by plain distances the hypothesis would win
    assert np.median(apart) > 0.1


def test_too_few_or_too_close_matches_give_no_pose():
    rng = np.random.default_rng(0)
    two = MatchedPoints(*(field[:2] for field in made_up(rng)))
    assert align(two, rng) is None
    heap = made_up(rng, 20)
    close = heap._replace(points1=heap.points1 * 0.01, points0=heap.points0 * 0.01)
    assert align(close, rng) is None


# Matches -----------------------------------------------------------------------------------------


def test_mutual_matches_are_those_of_a_slow_loop():
    rng = np.random.default_rng(2)
    similarity = rng.normal(size=(15, 12)) * 3
    visible0, visible1 = rng.random(15), rng.random(12)
    confidence = np.empty((15, 12))
    for i in range(15):
        for j in range(12):
            row = np.exp(similarity[i, j]) / np.exp(similarity[i]).sum()
            column = np.exp(similarity[i, j]) / np.exp(similarity[:, j]).sum()
            confidence[i, j] = row * column * visible0[i] * visible1[j]
    expected = {
        (i, j): confidence[i, j]
        for i in range(15)
        for j in range(12)
        if confidence[i, j] == confidence[i].max() == confidence[:, j].max()
    }
    index0, index1, value = mutual_matches(similarity, visible0, visible1)
    assert dict(zip(zip(index0, index1, strict=True), value, strict=True)) == pytest.approx(
        expected
    )
    assert (np.diff(value) <= 0).all()
    assert len(mutual_matches(similarity, visible0, visible1, most=2)[0]) == 2
    assert len(mutual_matches(similarity, np.zeros(15), visible1)[0]) == 0


def test_partners_between_tokens_are_those_of_a_slow_loop():
    rng = np.random.default_rng(4)
    rows, columns = 4, 6
    count = rows * columns
    rays = rng.normal(size=(count, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    tokens = Tokens(rng.normal(size=(count, 3)), rays, rng.choice([5.0, 6.0, 20.0], count), 0.1)
    index = np.array([0, 5, 8, 23, 8])  # two corners, where the rows join; one token twice
    similarity = 4 * rng.normal(size=(len(index), count))
    found = partners_between_tokens(tokens, index, similarity, columns)
    for k, at in enumerate(index):
        weight, origin, ray, log_range = 0.0, np.zeros(3), np.zeros(3), 0.0
        for row in range(max(0, at // columns - 1), min(rows, at // columns + 2)):
            for shift in (-1, 0, 1):
                other = row * columns + (at % columns + shift) % columns
                if abs(np.log(tokens.range_m[other] / tokens.range_m[at])) < 0.5:
                    share = np.exp(0.6 * similarity[k, other])
                    weight += share
                    origin += share * tokens.origins[other]
                    ray += share * tokens.rays[other]
                    log_range += share * np.log(tokens.range_m[other])
        np.testing.assert_allclose(found.origins[k], origin / weight, atol=1e-12)
        np.testing.assert_allclose(found.rays[k], ray / np.linalg.norm(ray), atol=1e-12)
        assert found.range_m[k] == pytest.approx(np.exp(log_range / weight))


def test_oracle_matches_are_nearest_both_ways_and_close():
    first = np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0]])
    second = np.array([[0.2, 0, 0], [0.4, 0, 0], [13, 0, 0], [20.1, 0, 0]])
    index0, index1 = oracle_matches(first, second, np.full(4, 10.0))
    assert list(zip(index0.tolist(), index1.tolist(), strict=True)) == [(0, 0), (2, 3)]
    assert len(oracle_matches(first, np.zeros((0, 3)), np.zeros(0))[0]) == 0


@pytest.fixture(scope="module")
def pairs(pairs_root):
    """Views of two vehicles each, through the files."""
    reader = PanoramaReader(Panorama(252, 64), DepthSource("npy"), 60.0)
    frames = read_tree(pairs_root, "train").frames
    return [tuple(map(reader.read, frame.agents)) for frame in frames]


def test_true_ranges_and_matches_give_poses_to_decimetres_through_the_files(pairs):
    """The floor of the ladder: what tokens of 4x4 pixels can do."""
    errors, blind = [], []
    for first, second in pairs:
        tokens = tokens_of(first, 4), tokens_of(second, 4)
        index0, index1 = true_matches(first, second, 4)
        assert len(index0) > 20
        matches = matched_points(*tokens, index0, index1, np.ones(len(index0)))
        result = align(matches, np.random.default_rng(0))
        assert result is not None
        truth = relative_pose(first, second)
        errors.append(trans_err_m(result.pose, truth))
        blind.append(trans_err_m(kabsch(matches.points0, matches.points1, matches.weights), truth))
    assert np.median(errors) < 0.15
    assert np.median(errors) < np.median(blind)


def test_matched_points_lie_where_the_tokens_are(pairs):
    first, second = pairs[0]
    tokens = tokens_of(first, 4), tokens_of(second, 4)
    index0, index1 = true_matches(first, second, 4)
    sigma = np.linspace(0.01, 0.2, len(tokens[1].range_m))
    matches = matched_points(*tokens, index0, index1, np.ones(len(index0)), 0.05, sigma)
    reach = tokens[1].range_m[index1]
    np.testing.assert_allclose(matches.along1, np.hypot(sigma[index1] * reach, 0.1))
    np.testing.assert_allclose(
        matches.points1, tokens[1].origins[index1] + reach[:, None] * tokens[1].rays[index1]
    )
    in_first = transform(relative_pose(first, second), matches.points1)
    assert np.linalg.norm(in_first - matches.points0, axis=-1).max() < 0.3 + 0.07 * 60
    back = transform(inverse(relative_pose(first, second)), in_first)
    np.testing.assert_allclose(back, matches.points1, atol=1e-9)
