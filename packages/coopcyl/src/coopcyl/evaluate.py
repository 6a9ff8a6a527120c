"""How good the predicted poses, ranges and masks are, in units and beside the trivial answers.

Each view of a set but the first is one row: its predicted pose, its true pose, the pose by GPS, and
the metrics of its ranges and mask. Several processes take disjoint sets and share their rows, so
the result does not depend on their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from loom import distributed

from coopcyl.baselines import gps_pose
from coopcyl.data.errors import DataError
from coopcyl.data.samples import SetSample, sample_of
from coopcyl.data.tree import AgentFrame, Frame
from coopcyl.geometry.alignment import DEFAULT_SOLVER, SolverOptions
from coopcyl.geometry.view import View
from coopcyl.metrics import mask_metrics, pose_baselines, pose_metrics, range_metrics, trans_err_m
from coopcyl.models.inputs import as_input
from coopcyl.models.predict import (
    Network,
    Oracle,
    OracleKind,
    SetPrediction,
    predict,
    range_along_rays,
)

VIEW_METRICS = (
    "absrel",
    "delta_1.25",
    "scale_ratio",
    "range_rmse_m",
    "iou",
    "iou_constant",
    "balanced_accuracy",
    "pred_mask_mean",
    "gt_mask_mean",
    "bce_over_entropy",
    "valid_mask_ratio",
)
_POSE = 16


@dataclass(frozen=True)
class EvaluationSet:
    """Vehicles of one time that are judged together, the reference first."""

    agents: tuple[AgentFrame, ...]

    def __str__(self) -> str:
        first = self.agents[0]
        return f"{first.scenario}/{first.time}/{'+'.join(str(a.agent) for a in self.agents)}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rows of all views but the first of each set.

    Attributes:
        poses: `(rows, 4, 4)` predicted.
        truths: `(rows, 4, 4)`.
        gps: `(rows, 4, 4)`, NaN where there is none.
        confidence: `(rows,)`.
        sets: `(rows,)` position of the set.
        views: Name -> `(views,)` of every view, first ones included; NaN where not measured.
    """

    poses: np.ndarray
    truths: np.ndarray
    gps: np.ndarray
    confidence: np.ndarray
    sets: np.ndarray
    views: dict[str, np.ndarray]

    def metrics(self) -> dict[str, float]:
        """Return pose metrics over the rows, and the means over the views."""
        found = pose_metrics(list(self.poses), list(self.truths))
        for name, values in self.views.items():
            known = values[np.isfinite(values)]
            if known.size:
                found[name] = float(known.mean())
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return the metrics of identity, mean translation and GPS on the same rows."""
        known = np.isfinite(self.gps).all()
        return pose_baselines(list(self.truths), list(self.gps) if known else None)

    def trans_err_m(self) -> np.ndarray:
        """Return the position error of each row, `(rows,)`."""
        pairs = zip(self.poses, self.truths, strict=True)
        return np.array([trans_err_m(pose, true) for pose, true in pairs])


def evaluation_sets(
    frames: Sequence[Frame], views: tuple[int, int], most: int | None
) -> list[EvaluationSet]:
    """Return one set per time, evenly spread: the ego vehicle first, then the others by id.

    Raises:
        DataError: No time has so many vehicles.
    """
    least, largest = views
    usable = [f for f in frames if len(f.agents) >= least and f.agents[0].agent >= 0]
    if not usable:
        raise DataError(
            f"none of {len(frames)} times has {least} vehicles to judge on",
            hint="lower dataset.val.views, or take a split with more vehicles per scenario",
        )
    count = min(most or len(usable), len(usable))
    chosen = np.linspace(0, len(usable) - 1, count).round().astype(int)
    return [EvaluationSet(usable[i].agents[:largest]) for i in chosen]


def evaluate(
    model: Network,
    sets: Sequence[EvaluationSet],
    read: Callable[[AgentFrame], View],
    solver: SolverOptions = DEFAULT_SOLVER,
    oracle: frozenset[OracleKind] = frozenset(),
) -> Evaluation:
    """Predict every set and compare with the truth.

    Args:
        model: In evaluation mode.
        sets: To judge.
        read: Reads one view.
        solver: Settings of the pose solver.
        oracle: Stages that are replaced by the truth.
    """
    rows, views = [], []
    for index in distributed.sharded_indices(len(sets)):
        sample = sample_of([read(agent) for agent in sets[index].agents], np.random.default_rng(0))
        found = predict_sample(model, sample, solver, oracle)
        rows.append(_pose_rows(found, sample, sets[index], index))
        views.append(_view_rows(found, sample))
    width = 3 * _POSE + 2
    joined = _gathered(rows, width)
    by_view = _gathered(views, len(VIEW_METRICS))
    poses, truths, gps = (
        joined[:, i * _POSE : (i + 1) * _POSE].reshape(-1, 4, 4) for i in range(3)
    )
    return Evaluation(
        poses,
        truths,
        gps,
        joined[:, -2],
        joined[:, -1].astype(int),
        {name: by_view[:, i] for i, name in enumerate(VIEW_METRICS)},
    )


def predict_sample(
    model: Network,
    sample: SetSample,
    solver: SolverOptions = DEFAULT_SOLVER,
    oracle: frozenset[OracleKind] = frozenset(),
) -> SetPrediction:
    """Predict a sample; its truth is passed on only where an oracle asks for it."""
    device = next(model.parameters()).device
    inputs = as_input(sample.rgb, sample.rays, sample.origins, sample.covered).to(device)
    truth = Oracle(oracle, sample.range_m, sample.poses) if oracle else None
    return predict(model, inputs, solver, truth)


def confidence_curve(found: Evaluation, shares: Sequence[float]) -> list[tuple[float, float]]:
    """Return the median position error of the most confident share of the rows."""
    order = np.argsort(-found.confidence, kind="stable")
    errors = found.trans_err_m()[order]
    counts = [max(1, round(share * len(errors))) for share in shares]
    return [(share, float(np.median(errors[:n]))) for share, n in zip(shares, counts, strict=True)]


def _pose_rows(
    found: SetPrediction, sample: SetSample, chosen: EvaluationSet, index: int
) -> np.ndarray:
    rows = []
    for i, agent in enumerate(chosen.agents[1:], 1):
        gps = gps_pose(chosen.agents[0], agent)
        rows.append(
            np.concatenate(
                [
                    found.poses[i].ravel(),
                    sample.poses[i].ravel(),
                    np.full(_POSE, np.nan) if gps is None else gps.ravel(),
                    [found.confidence[i], index],
                ]
            )
        )
    return np.array(rows).reshape(len(rows), 3 * _POSE + 2)


def _view_rows(found: SetPrediction, sample: SetSample) -> np.ndarray:
    rows = []
    for i, view in enumerate(found.views):
        true, covered = sample.range_m[i], sample.covered[i]
        row = range_metrics(range_along_rays(view, sample.origins[i]), true, true > 0)
        if sample.surface_known[i]:
            chance = view["non_ambiguous_mask_logits"][0].sigmoid().cpu().numpy()
            row |= mask_metrics(chance[covered], sample.surface[i][covered])
        row["valid_mask_ratio"] = float((true > 0).mean())
        rows.append([row.get(name, np.nan) for name in VIEW_METRICS])
    return np.array(rows)


def _gathered(rows: list[np.ndarray], width: int) -> np.ndarray:
    """Join the rows of all processes."""
    own = np.concatenate(rows) if rows else np.zeros((0, width))
    return distributed.gather(torch.from_numpy(own)).numpy()
