"""From panoramas to metric poses, ranges and masks: the one way that every command takes.

The network looks at the views, the dual softmax turns similarities into matches, the solver turns
matches and ranges into the pose of each pair, and the pairs are chained. The result has the keys of
MapAnything's `forward`, in metres and in the frame of the first view.

An `Oracle` replaces one stage by the truth, which tells where an error comes from. Without one no
ground truth is passed in, so none can leak.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import torch
from loom.errors import UserError
from scipy.spatial.transform import Rotation
from torch import Tensor

from coopcyl.geometry.alignment import DEFAULT_SOLVER, SolverOptions, align
from coopcyl.geometry.carla import transform
from coopcyl.geometry.matching import (
    Tokens,
    matched_points,
    mutual_matches,
    oracle_matches,
    partners_between_tokens,
)
from coopcyl.geometry.pose_tree import Pair, PairPose, chain_poses
from coopcyl.models.cylnet import STRIDE, CylNet, TokenMaps
from coopcyl.models.inputs import ViewInput
from coopcyl.models.mapanything import MapAnythingAdapter

OracleKind = Literal["depth", "match", "pose"]
_SIGMA_LIMITS = (0.015, 0.25)
_SIGMA_SHARE = 0.5  # of the bins' standard deviation, which has a second peak and the bins' width
_SIGMA_LEAST = 0.02
_TRUE_SIGMA = 0.02
_LENGTHENING = 1.5
_WIDEST = 0.5  # standard deviation of a log range beyond which a range is not lengthened further
_MATCH_RANGE_M = 60.0


@dataclass(frozen=True, eq=False)
class Oracle:
    """The truth in place of a stage.

    Attributes:
        kinds: `depth`: true ranges; `match`: true matches; `pose`: true poses.
        range_m: `(v, h, w)` true ranges, 0 where there is none.
        poses: `(v, 4, 4)` from each view to the first.
    """

    kinds: frozenset[OracleKind]
    range_m: np.ndarray
    poses: np.ndarray


class ViewTokens(NamedTuple):
    """One view as the solver sees it, all tokens in the order of the grid.

    Attributes:
        tokens: Rays, and ranges for least squares.
        sigma: `(t,)` relative standard deviation of the range.
        visible: `(t,)` chance that another view sees the token.
        descriptors: `(t, d)`.
        columns: Tokens in a row of the grid.
    """

    tokens: Tokens
    sigma: np.ndarray
    visible: np.ndarray
    descriptors: Tensor
    columns: int


@dataclass(frozen=True, eq=False)
class SetPrediction:
    """What is predicted for the views of one time.

    Attributes:
        poses: `(v, 4, 4)` from each view to the first.
        confidence: `(v,)` of each pose, 1 for the first view.
        pairs: The pose of each pair.
        views: For each view MapAnything's keys, each with a batch of one.
    """

    poses: np.ndarray
    confidence: np.ndarray
    pairs: dict[Pair, PairPose]
    views: list[dict[str, Tensor]]


Network = CylNet | MapAnythingAdapter


@torch.no_grad()
def predict(
    model: Network,
    views: ViewInput,
    solver: SolverOptions = DEFAULT_SOLVER,
    oracle: Oracle | None = None,
) -> SetPrediction:
    """Predict the poses, ranges and masks of the views of one time, the reference first.

    Args:
        model: In evaluation mode.
        views: All views of the set.
        solver: Settings of the pose solver.
        oracle: The truth in place of a stage; only for measuring.
    """
    if isinstance(model, MapAnythingAdapter):
        return _predict_by_pose(model, views, oracle)
    maps = model(views, len(views.image))
    tokens = view_tokens(maps, views)
    if oracle is not None and "depth" in oracle.kinds:
        tokens = _with_true_ranges(tokens, oracle.range_m)
    pairs = {
        (i, j): _solve_pair(model, tokens, i, j, solver, oracle)
        for i, j in combinations(range(len(tokens)), 2)
    }
    poses, confidence = chain_poses(pairs, len(tokens))
    if oracle is not None and "pose" in oracle.kinds:
        poses, confidence = oracle.poses, np.ones(len(tokens))
    return SetPrediction(poses, confidence, pairs, forward_keys(maps, views, poses))


def _predict_by_pose(
    model: MapAnythingAdapter, views: ViewInput, oracle: Oracle | None
) -> SetPrediction:
    """Predict with a network that gives poses itself: there are no matches, and no pairs."""
    if oracle is not None and oracle.kinds != {"pose"}:
        raise UserError(
            "MapAnything has neither tokens nor matches to replace", hint="--oracle pose only"
        )
    found = model(views, len(views.image))
    poses = model.poses(found) if oracle is None else oracle.poses
    sure = [float((1 - 1 / view["conf"]).mean()) for view in found]
    return SetPrediction(poses, np.array([1.0, *sure[1:]]), {}, found)


def view_tokens(maps: TokenMaps, views: ViewInput) -> list[ViewTokens]:
    """Return the tokens of each view for the solver; those that no camera sees are invisible."""
    middle = slice(STRIDE // 2, None, STRIDE)

    def at_tokens(tensor: Tensor) -> np.ndarray:
        chosen = tensor[..., middle, middle].flatten(-2).cpu().numpy()
        return np.moveaxis(chosen, 1, -1) if chosen.ndim == 3 else chosen

    origins, rays, covered = map(at_tokens, (views.origins, views.rays, views.covered))
    range_m = maps.log_range.exp().flatten(1).double().cpu().numpy()
    range_m *= lengthening(maps.sigma.flatten(1).double().cpu().numpy())
    spread = _SIGMA_SHARE * maps.sigma.flatten(1).double().cpu().numpy()
    sigma = spread.clip(*_SIGMA_LIMITS) + _SIGMA_LEAST
    visible = (maps.covisible_logits.sigmoid() * maps.surface_logits.sigmoid()).flatten(1)
    visible = np.where(covered, visible.cpu().numpy(), 0)
    width_rad = 2 * np.pi * STRIDE / views.image.shape[-1]
    return [
        ViewTokens(
            Tokens(origins[i].astype(float), rays[i].astype(float), range_m[i], width_rad),
            sigma[i],
            visible[i],
            maps.descriptors[i],
            views.image.shape[-1] // STRIDE,
        )
        for i in range(len(range_m))
    ]


def lengthening(sigma: np.ndarray) -> np.ndarray:
    """Return by what ranges are multiplied, so that the solver keeps distances.

    A range errs by a factor `e^n` with a normal n of standard deviation sigma. A match counts by
    the inverse square of its measured range, so what is taken for near counts most, and distances
    come out short by about `e^(-sigma^2)`. Wrong matches, which lie on all sides, draw vehicles
    together as well; 1.5 instead of 1 was chosen on pairs that nothing is judged on.

    Args:
        sigma: Standard deviations of log ranges, any shape.
    """
    return np.exp(_LENGTHENING * sigma.clip(max=_WIDEST) ** 2)


def forward_keys(maps: TokenMaps, views: ViewInput, poses: np.ndarray) -> list[dict[str, Tensor]]:
    """Return what MapAnything's `forward` returns, for each view with a batch of one.

    `pts3d (1, h, w, 3)` in the frame of the first view and `pts3d_cam` in the own one, metres;
    `ray_directions (1, h, w, 3)`; `depth_along_ray (1, h, w, 1)` from the origin of each ray, which
    `ray_origins (1, h, w, 3)` adds, since the panorama has no centre; `cam_trans (1, 3)` and
    `cam_quats (1, 4)` (xyzw) from the own frame to the first; `metric_scaling_factor (1, 1)`, which
    is already in the lengths; `conf (1, h, w)`, at least 1; `non_ambiguous_mask (1, h, w)` and
    `non_ambiguous_mask_logits`.
    """
    depth = maps.pixel_log_range.exp().float()
    sigma = maps.sigma.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    rays, origins = (tensor.permute(0, 2, 3, 1) for tensor in (views.rays, views.origins))
    points = origins + depth[..., None] * rays
    found = []
    for i, pose in enumerate(poses):
        exact = torch.as_tensor(pose, dtype=points.dtype, device=points.device)
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
        logits = maps.pixel_surface_logits[i : i + 1]
        found.append(
            {
                "pts3d": points[i : i + 1] @ exact[:3, :3].T + exact[:3, 3],
                "pts3d_cam": points[i : i + 1],
                "ray_directions": rays[i : i + 1],
                "ray_origins": origins[i : i + 1],
                "depth_along_ray": depth[i : i + 1, ..., None],
                "cam_trans": exact[None, :3, 3],
                "cam_quats": torch.as_tensor(quaternion[None], dtype=points.dtype),
                "metric_scaling_factor": maps.log_scale[i : i + 1, None].exp(),
                "conf": 1 / sigma[i : i + 1].clamp(_SIGMA_LEAST, 1),
                "non_ambiguous_mask": (logits > 0) & views.covered[i : i + 1],
                "non_ambiguous_mask_logits": logits,
            }
        )
    return found


def range_along_rays(view: Mapping[str, Tensor], origins: np.ndarray) -> np.ndarray:
    """Return `(h, w)` how far each point of a prediction is from the camera that shows it.

    That is what ranges of the data are. `CylNet`'s depth starts there; MapAnything's starts at the
    origin of the rig.

    Args:
        view: Of `SetPrediction.views`.
        origins: `(h, w, 3)` of the rays.
    """
    if "ray_origins" in view:
        return view["depth_along_ray"][0, ..., 0].cpu().numpy()
    return np.linalg.norm(view["pts3d_cam"][0].cpu().numpy() - origins, axis=-1)


def _with_true_ranges(tokens: Sequence[ViewTokens], range_m: np.ndarray) -> list[ViewTokens]:
    """Give tokens their true ranges; those without one become invisible."""
    middle = slice(STRIDE // 2, None, STRIDE)
    result = []
    for view, true in zip(tokens, range_m[:, middle, middle], strict=True):
        known = true.ravel() > 0
        exact = np.where(known, true.ravel(), view.tokens.range_m).astype(float)
        result.append(
            view._replace(
                tokens=view.tokens._replace(range_m=exact),
                sigma=np.full_like(view.sigma, _TRUE_SIGMA),
                visible=np.where(known, view.visible, 0),
            )
        )
    return result


def _solve_pair(
    model: CylNet,
    tokens: Sequence[ViewTokens],
    i: int,
    j: int,
    solver: SolverOptions,
    oracle: Oracle | None,
) -> PairPose:
    """Match two views and solve; the identity with confidence 0 where that is impossible."""
    if oracle is not None and "match" in oracle.kinds:
        index0, index1, confidence = _true_matches(tokens, i, j, oracle)
        partners = tokens[j].tokens.at(index1)
    else:
        alike = model.similarity(tokens[i].descriptors, tokens[j].descriptors)
        similarity = alike.float().cpu().numpy()
        matches = mutual_matches(similarity, tokens[i].visible, tokens[j].visible)
        index0, index1, confidence = matches
        partners = partners_between_tokens(
            tokens[j].tokens, index1, similarity[index0], tokens[j].columns
        )
    points = matched_points(
        tokens[i].tokens,
        partners,
        index0,
        np.arange(len(index0)),
        np.sqrt(confidence.astype(float)),  # the mean of both directions; the product is too sure
        tokens[i].sigma,
        tokens[j].sigma[index1],
    )
    solved = align(points, np.random.default_rng([i, j]), solver)
    if solved is None:
        return PairPose(np.eye(4), 0.0, len(index0))
    return PairPose(solved.pose, solved.inlier_share, len(index0))


def _true_matches(
    tokens: Sequence[ViewTokens], i: int, j: int, oracle: Oracle
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match tokens whose true points are each other's nearest."""
    middle = slice(STRIDE // 2, None, STRIDE)
    kept, points = [], []
    for k in (i, j):
        true = oracle.range_m[k][middle, middle].ravel().astype(float)
        kept.append(np.nonzero((true > 0) & (true < _MATCH_RANGE_M))[0])
        exact = tokens[k].tokens._replace(range_m=true).points()[kept[-1]]
        points.append(transform(oracle.poses[k], exact))
    index0, index1 = oracle_matches(
        points[0], points[1], oracle.range_m[j][middle, middle].ravel()[kept[1]]
    )
    return kept[0][index0], kept[1][index1], np.ones(len(index0))
