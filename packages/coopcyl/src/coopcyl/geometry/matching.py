"""Matches between two views: from a similarity, or from the truth as an oracle.

A view is cut into tokens, the centre pixels of square patches. A network gives similarities between
the tokens of two views; `mutual_matches` turns them into matches. The oracle knows where each
token's point is in the world and matches nearest neighbours: the best that tokens of this size can
do, and the first step of the ladder that tells where an error comes from.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from coopcyl.geometry.alignment import MatchedPoints
from coopcyl.geometry.carla import transform
from coopcyl.geometry.covisibility import relative_pose
from coopcyl.geometry.view import View

MOST_MATCHES = 400
_ACROSS_SHARE = 0.35
_ACROSS_LEAST_M = 0.1
_NEAR_M, _NEAR_SHARE = 0.3, 0.07
_FLATTER = 0.6  # of similarities round a match; chosen on pairs that nothing is judged on
_SAME_SURFACE = 0.5  # largest difference of log ranges within a mean; beyond, there is an edge


class Tokens(NamedTuple):
    """The centre pixels of a view's patches that have a range.

    Attributes:
        origins: `(n, 3)` of the rays, rig frame.
        rays: `(n, 3)` unit directions.
        range_m: `(n,)`.
        width_rad: Angle between neighbouring tokens.
    """

    origins: np.ndarray
    rays: np.ndarray
    range_m: np.ndarray
    width_rad: float

    def points(self) -> np.ndarray:
        """Return the points `(n, 3)` in the rig frame."""
        return self.origins + self.range_m[:, None] * self.rays

    def at(self, index: np.ndarray) -> "Tokens":
        """Return those at some indices, in that order."""
        return Tokens(self.origins[index], self.rays[index], self.range_m[index], self.width_rad)


def tokens_of(view: View, stride: int, max_range_m: float = 60.0) -> Tokens:
    """Return the tokens of a view's patches of `stride` x `stride` pixels.

    The range is that of the centre pixel: an average over a patch lies on no surface.
    """
    middle = slice(stride // 2, None, stride)
    range_m = view.range_m[middle, middle].astype(np.float64)
    chosen = view.depth_valid[middle, middle] & (range_m < max_range_m)
    return Tokens(
        view.ray_origins()[middle, middle][chosen].astype(np.float64),
        view.table.directions[middle, middle][chosen].astype(np.float64),
        range_m[chosen],
        2 * np.pi * stride / view.table.panorama.width,
    )


def mutual_matches(
    similarity: np.ndarray,
    visible0: np.ndarray,
    visible1: np.ndarray,
    most: int = MOST_MATCHES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match tokens that prefer each other under a dual softmax.

    The confidence of a pair is `softmax over rows x softmax over columns x visible0 x visible1`
    (Sun et al. 2021, LoFTR).

    Args:
        similarity: `(n0, n1)`, already divided by its temperature.
        visible0: `(n0,)` probability that a token of the first view is seen by the second.
        visible1: `(n1,)` the same the other way round.
        most: Only the best so many are kept.

    Returns:
        Indices into the first and second view, and confidences, falling.
    """
    rows = np.exp(similarity - similarity.max(axis=1, keepdims=True))
    columns = np.exp(similarity - similarity.max(axis=0, keepdims=True))
    confidence = rows / rows.sum(axis=1, keepdims=True) * columns / columns.sum(axis=0)
    confidence *= visible0[:, None] * visible1
    best1 = confidence.argmax(axis=1)
    mutual = confidence.argmax(axis=0)[best1] == np.arange(len(best1))
    index0 = np.nonzero(mutual)[0]
    value = confidence[index0, best1[index0]]
    order = np.argsort(-value, kind="stable")[:most]
    order = order[value[order] > 0]
    return index0[order], best1[index0[order]], value[order]


def partners_between_tokens(
    tokens: Tokens, index: np.ndarray, similarity: np.ndarray, columns: int
) -> Tokens:
    """Return the partner of each match, where between the tokens it lies.

    A token is wide (5.6 degrees at 64 to a turn), and the centre of one seldom lies on the centre
    of another. So ray and log range are means over the matched token and its eight neighbours,
    weighted by a softmax of what they are alike; neighbours on another surface are left out.

    Args:
        tokens: All of a view, row by row; the rows run once round the azimuth.
        index: `(k,)` the matched ones.
        similarity: `(k, n)` of their matches to all tokens, divided by its temperature.
        columns: Tokens in a row.

    Returns:
        `k` of them, in the order of the matches.
    """
    row, column = np.divmod(index, columns)
    by_row, by_column = (step.ravel() for step in np.mgrid[-1:2, -1:2])
    rows = row[:, None] + by_row
    inside = (rows >= 0) & (rows < len(tokens.rays) // columns)
    near = np.where(inside, rows, row[:, None]) * columns + (column[:, None] + by_column) % columns
    log_range = np.log(tokens.range_m)
    inside &= np.abs(log_range[near] - log_range[index][:, None]) < _SAME_SURFACE
    alike = np.where(inside, _FLATTER * np.take_along_axis(similarity, near, axis=1), -np.inf)
    share = np.exp(alike - alike.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    rays = np.einsum("kn,knd->kd", share, tokens.rays[near])
    return Tokens(
        np.einsum("kn,knd->kd", share, tokens.origins[near]),
        rays / np.linalg.norm(rays, axis=1, keepdims=True),
        np.exp((share * log_range[near]).sum(axis=1)),
        tokens.width_rad,
    )


def oracle_matches(
    points0: np.ndarray, points1_in_0: np.ndarray, range1_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match points that are each other's nearest and closer than a token is wide.

    Args:
        points0: `(n0, 3)`.
        points1_in_0: `(n1, 3)` of the other view, in the frame of the first.
        range1_m: `(n1,)`, on which the allowed distance depends.

    Returns:
        Indices into the first and the second.
    """
    if not len(points0) or not len(points1_in_0):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distance, nearest0 = KDTree(points0).query(points1_in_0)
    _, nearest1 = KDTree(points1_in_0).query(points0)
    index1 = np.arange(len(points1_in_0))
    chosen = (nearest1[nearest0] == index1) & (distance < _NEAR_M + _NEAR_SHARE * range1_m)
    return nearest0[chosen], index1[chosen]


def true_matches(first: View, second: View, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the oracle's matches between the tokens of two views, by their true poses."""
    tokens0, tokens1 = tokens_of(first, stride), tokens_of(second, stride)
    moved = transform(relative_pose(first, second), tokens1.points())
    return oracle_matches(tokens0.points(), moved, tokens1.range_m)


def matched_points(
    tokens0: Tokens,
    tokens1: Tokens,
    index0: np.ndarray,
    index1: np.ndarray,
    weights: np.ndarray,
    range_sigma0: float | np.ndarray = 0.02,
    range_sigma1: float | np.ndarray = 0.02,
) -> MatchedPoints:
    """Put matches into the form that the solver takes.

    Args:
        tokens0: Of the reference view.
        tokens1: Of the other view.
        index0: Into the first.
        index1: Into the second.
        weights: Of the matches.
        range_sigma0: Relative standard deviation of the first view's ranges; for all or per token.
        range_sigma1: The same of the second view's.
    """
    along, across = [], []
    for tokens, index, sigma in (
        (tokens0, index0, range_sigma0),
        (tokens1, index1, range_sigma1),
    ):
        reach = tokens.range_m[index]
        relative = np.broadcast_to(sigma, tokens.range_m.shape)[index]
        along.append(np.hypot(relative * reach, _ACROSS_LEAST_M))
        across.append(np.hypot(_ACROSS_SHARE * tokens.width_rad * reach, _ACROSS_LEAST_M))
    return MatchedPoints(
        tokens0.points()[index0],
        tokens1.points()[index1],
        tokens0.rays[index0],
        tokens1.rays[index1],
        along[0],
        along[1],
        across[0],
        across[1],
        weights,
    )
