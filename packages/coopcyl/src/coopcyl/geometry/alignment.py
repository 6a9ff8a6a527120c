"""The pose between two sets of matched points, many of them wrong.

1. Hypotheses from two matches each. Vehicles stand upright, so a yaw and a translation are enough:
   `P0 = Ry(yaw) P1 + t`. The one with the best soft count of inliers wins.
2. Gauss-Newton in all six degrees of freedom from there. A point is well known across its ray and
   badly along it: match i has the covariance `C0 + R C1 R^T`, where each C is long along the ray.
   Weights are those of Geman and McClure, `(c^2 / (c^2 + m^2))^2` of the Mahalanobis distance m,
   with c falling to its final value. Weak priors hold relative tilt and height difference.

Of hypothesis and refined pose the one is kept that more of the matches' weight agrees with, by the
same Mahalanobis distance. A count by plain distances would prefer the hypothesis nearly always: it
cannot tell an error along a ray, which is expected, from one across it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_TIES = 1e-12


@dataclass(frozen=True)
class SolverOptions:
    """Settings of the solver, in metres and degrees.

    Attributes:
        hypotheses: Pairs of matches that are tried.
        least_baseline_m: Smallest horizontal distance between the two matches of a pair.
        iterations: Of Gauss-Newton.
        cutoff: c of the Geman-McClure weights, in standard deviations.
        tilt_deg: Standard deviation of the prior on the relative tilt.
        height_m: Standard deviation of the prior on the height difference.
    """

    hypotheses: int = 500
    least_baseline_m: float = 3.0
    iterations: int = 12
    cutoff: float = 1.5
    tilt_deg: float = 3.0
    height_m: float = 1.0


DEFAULT_SOLVER = SolverOptions()


class MatchedPoints(NamedTuple):
    """Matches between two views, each side in its own rig frame (OpenCV axes).

    Attributes:
        points0: `(n, 3)` in the reference view.
        points1: `(n, 3)` in the other view.
        rays0: `(n, 3)` unit directions of the rays that the points lie on.
        rays1: The same in the other view.
        along0: `(n,)` standard deviation along the ray, metres.
        along1: The same in the other view.
        across0: `(n,)` standard deviation across the ray, metres.
        across1: The same in the other view.
        weights: `(n,)` how far each match is trusted, positive.
    """

    points0: np.ndarray
    points1: np.ndarray
    rays0: np.ndarray
    rays1: np.ndarray
    along0: np.ndarray
    along1: np.ndarray
    across0: np.ndarray
    across1: np.ndarray
    weights: np.ndarray


class Alignment(NamedTuple):
    """A solved pose.

    Attributes:
        pose: 4x4, maps points of the other view to the reference view.
        inlier_share: Share of the matches' weight that agrees, in [0, 1]: a confidence.
        refined: Whether Gauss-Newton improved on the best hypothesis.
    """

    pose: np.ndarray
    inlier_share: float
    refined: bool


def align(
    matches: MatchedPoints,
    rng: np.random.Generator,
    options: SolverOptions = DEFAULT_SOLVER,
) -> Alignment | None:
    """Solve for the pose that maps `points1` to `points0`; None with fewer than three matches.

    Args:
        matches: The matches.
        rng: Draws the pairs of the hypotheses.
        options: The settings.
    """
    if len(matches.weights) < 3:
        return None
    start = best_hypothesis(matches, rng, options)
    if start is None:
        return None
    refined = refine(matches, start, options)
    shares = [agreeing_share(matches, pose, options.cutoff) for pose in (start, refined)]
    better = shares[1] >= shares[0]
    return Alignment(refined if better else start, max(shares), better)


def kabsch(points0: np.ndarray, points1: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the 4x4 pose with the least weighted squares of `points0 - (R points1 + t)`.

    Kabsch 1976; the sign of the determinant is corrected after Umeyama 1991.
    """
    share = weights / weights.sum()
    middle0, middle1 = share @ points0, share @ points1
    u, _, vt = np.linalg.svd((points0 - middle0).T @ (share[:, None] * (points1 - middle1)))
    sign = np.diag([1.0, 1.0, np.linalg.det(u) * np.linalg.det(vt)])
    pose = np.eye(4)
    pose[:3, :3] = u @ sign @ vt
    pose[:3, 3] = middle0 - pose[:3, :3] @ middle1
    return pose


def soft_inliers(matches: MatchedPoints, poses: np.ndarray) -> np.ndarray:
    """Return the soft share of inliers of poses `(k, 4, 4)`, `(k,)`.

    Distances are taken relative to the two points' longest standard deviation, which is cheap for
    many poses; a match counts `1 / (1 + d^2)`.
    """
    scale = np.sqrt(matches.along0**2 + matches.along1**2 + matches.across0**2 + matches.across1**2)
    moved = np.einsum("kij,nj->kni", poses[:, :3, :3], matches.points1) + poses[:, None, :3, 3]
    squared = ((matches.points0 - moved) ** 2).sum(-1) / scale**2
    return (matches.weights / (1 + squared)).sum(-1) / matches.weights.sum()


def agreeing_share(matches: MatchedPoints, pose: np.ndarray, cutoff: float) -> float:
    """Return the share of the matches' weight that agrees with a pose.

    A match counts `c^2 / (c^2 + m^2)` with its Mahalanobis distance m: what Gauss-Newton maximises.
    """
    _, _, _, squared = _residuals(matches, pose, *_covariances(matches))
    agreeing = matches.weights * (cutoff**2 / (cutoff**2 + squared))
    return float(agreeing.sum() / matches.weights.sum())


def best_hypothesis(
    matches: MatchedPoints, rng: np.random.Generator, options: SolverOptions
) -> np.ndarray | None:
    """Return the best upright pose of many pairs of matches; None if every pair is too close."""
    chance = matches.weights / matches.weights.sum()
    first, second = rng.choice(len(chance), (2, options.hypotheses), p=chance)
    apart0 = matches.points0[second] - matches.points0[first]
    apart1 = matches.points1[second] - matches.points1[first]
    far = np.minimum(*(np.hypot(a[:, 0], a[:, 2]) for a in (apart0, apart1)))
    usable = far > options.least_baseline_m
    if not usable.any():
        return None
    first, second = first[usable], second[usable]
    apart0, apart1 = apart0[usable], apart1[usable]
    yaw = np.arctan2(apart0[:, 0], apart0[:, 2]) - np.arctan2(apart1[:, 0], apart1[:, 2])
    poses = np.tile(np.eye(4), (len(yaw), 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
    middle0 = (matches.points0[first] + matches.points0[second]) / 2
    middle1 = (matches.points1[first] + matches.points1[second]) / 2
    poses[:, :3, 3] = middle0 - np.einsum("kij,kj->ki", poses[:, :3, :3], middle1)
    return poses[soft_inliers(matches, poses).argmax()]


def refine(matches: MatchedPoints, start: np.ndarray, options: SolverOptions) -> np.ndarray:
    """Improve a pose by anisotropic Gauss-Newton; see the module."""
    pose = start.copy()
    covariance0, covariance1 = _covariances(matches)
    for iteration in range(options.iterations):
        share = iteration / max(1, options.iterations - 1)
        cutoff = options.cutoff * 4 ** max(0.0, 1 - 2 * share)  # 4c at first, c from halfway on
        step = _step(matches, pose, covariance0, covariance1, cutoff, options)
        pose = _exponential(step) @ pose
    return pose


def _step(
    matches: MatchedPoints,
    pose: np.ndarray,
    covariance0: np.ndarray,
    covariance1: np.ndarray,
    cutoff: float,
    options: SolverOptions,
) -> np.ndarray:
    """Return the step (rotation vector, translation), applied from the left."""
    moved, error, information, squared = _residuals(matches, pose, covariance0, covariance1)
    weight = matches.weights * (cutoff**2 / (cutoff**2 + squared)) ** 2
    jacobian = np.concatenate(
        [_cross(moved), np.broadcast_to(-np.eye(3), (len(moved), 3, 3))], axis=-1
    )
    weighted = np.einsum("nij,nik->njk", jacobian, information) * weight[:, None, None]
    hessian = np.einsum("njk,nkl->jl", weighted, jacobian)
    gradient = np.einsum("njk,nk->j", weighted, error)
    for row, value, sigma in _priors(pose, options):
        hessian += np.outer(row, row) / sigma**2
        gradient += row * value / sigma**2
    return -np.linalg.solve(hessian + _TIES * np.eye(6), gradient)


def _residuals(
    matches: MatchedPoints, pose: np.ndarray, covariance0: np.ndarray, covariance1: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return moved points and errors `(n, 3)`, information `(n, 3, 3)`, Mahalanobis^2 `(n,)`."""
    rotation = pose[:3, :3]
    moved = matches.points1 @ rotation.T + pose[:3, 3]
    error = matches.points0 - moved
    information = np.linalg.inv(covariance0 + rotation @ covariance1 @ rotation.T)
    return moved, error, information, np.einsum("ni,nij,nj->n", error, information, error)


def _covariances(matches: MatchedPoints) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariances `(n, 3, 3)` of both sides' points, each in its own frame."""
    return (
        _ray_covariance(matches.rays0, matches.along0, matches.across0),
        _ray_covariance(matches.rays1, matches.along1, matches.across1),
    )


def _priors(pose: np.ndarray, options: SolverOptions) -> list[tuple[np.ndarray, float, float]]:
    """Return (jacobian, value, sigma) of the tilt about two axes and of the height difference."""
    down, shift = pose[:3, 1], pose[:3, 3]
    tilt = np.concatenate([-_cross(down), np.zeros((3, 3))], axis=1)
    height = np.concatenate([-_cross(shift), np.eye(3)], axis=1)
    sigma = np.radians(options.tilt_deg)
    return [
        (tilt[0], down[0], sigma),
        (tilt[2], down[2], sigma),
        (height[1], shift[1], options.height_m),
    ]


def _ray_covariance(rays: np.ndarray, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Return `(n, 3, 3)` covariances that are long along their rays."""
    outer = rays[:, :, None] * rays[:, None, :]
    wide = across[:, None, None] ** 2
    return wide * np.eye(3) + (along[:, None, None] ** 2 - wide) * outer


def _cross(vectors: np.ndarray) -> np.ndarray:
    """Return the matrices `[v]` with `[v] w = v x w`, `(..., 3, 3)`."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _exponential(step: np.ndarray) -> np.ndarray:
    """Return a pose with the rotation vector and translation of a step (Rodrigues)."""
    angle = np.linalg.norm(step[:3])
    matrix = _cross(step[:3])
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    pose = np.eye(4)
    pose[:3, :3] += first * matrix + second * matrix @ matrix
    pose[:3, 3] = step[3:]
    return pose
