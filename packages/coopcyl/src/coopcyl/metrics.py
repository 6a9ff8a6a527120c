"""What is measured, in units: metres, degrees, shares. Nothing here is a loss.

Poses are 4x4 and map the other view's rig frame to the reference's. A vehicle's position error is
the distance of the two translations: no scale is fitted, no frame is aligned.
"""

from collections.abc import Sequence

import numpy as np

from coopcyl.geometry.alignment import kabsch
from coopcyl.geometry.carla import rotation_angle_deg

AUC_DEG = (5, 15, 30)
SUCCESS_M = (1.0, 2.0, 5.0)


def trans_err_m(pose: np.ndarray, true: np.ndarray) -> float:
    """Return the distance between two positions."""
    return float(np.linalg.norm(pose[:3, 3] - true[:3, 3]))


def rot_err_deg(pose: np.ndarray, true: np.ndarray) -> float:
    """Return the angle between two orientations."""
    return rotation_angle_deg(pose[:3, :3] @ true[:3, :3].T)


def yaw_err_deg(pose: np.ndarray, true: np.ndarray) -> float:
    """Return the angle between two headings, in the reference's horizontal plane."""
    heading, wanted = (np.arctan2(p[0, 2], p[2, 2]) for p in (pose, true))
    return float(np.degrees(abs(np.angle(np.exp(1j * (heading - wanted))))))


def direction_err_deg(pose: np.ndarray, true: np.ndarray, *, either_sign: bool = False) -> float:
    """Return the angle between two translations; 0 where there is none to compare with.

    Args:
        pose: The pose to judge.
        true: The truth.
        either_sign: Accept the opposite direction, as methods without a metric scale need.
    """
    a, b = pose[:3, 3], true[:3, 3]
    sizes = np.linalg.norm(a) * np.linalg.norm(b)
    if sizes == 0:
        return 0.0 if np.linalg.norm(b) == 0 else 90.0
    sine = np.linalg.norm(np.cross(a, b))
    cosine = abs(a @ b) if either_sign else a @ b
    return float(np.degrees(np.arctan2(sine, cosine)))


def pose_auc(errors_deg: np.ndarray, limit_deg: float) -> float:
    """Return the area under the recall curve up to a limit, in [0, 1].

    An error e contributes to recall at every threshold beyond it: `mean(max(0, 1 - e / limit))`.
    """
    return float(np.clip(1 - np.asarray(errors_deg) / limit_deg, 0, None).mean())


def pose_metrics(poses: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Return all pose metrics of pairs of views."""
    pairs = list(zip(poses, truths, strict=True))
    metres = np.array([trans_err_m(*pair) for pair in pairs])
    degrees = np.array([rot_err_deg(*pair) for pair in pairs])
    yaw = np.array([yaw_err_deg(*pair) for pair in pairs])
    worst = np.maximum(degrees, [direction_err_deg(*pair) for pair in pairs])
    return {
        "trans_err_m_median": float(np.median(metres)),
        "trans_err_m_mean": float(metres.mean()),
        "trans_err_m_p90": float(np.percentile(metres, 90)),
        "rot_err_deg_median": float(np.median(degrees)),
        "yaw_err_deg_median": float(np.median(yaw)),
        **{f"auc_{limit}_deg": pose_auc(worst, limit) for limit in AUC_DEG},
        **{f"success_{limit:g}_m": float((metres < limit).mean()) for limit in SUCCESS_M},
    }


def pose_baselines(
    truths: Sequence[np.ndarray], gps: Sequence[np.ndarray] | None = None
) -> dict[str, dict[str, float]]:
    """Return the metrics of what needs no learning; always shown beside a result.

    Args:
        truths: The true poses.
        gps: The poses that the vehicles' own localisation gives, where there are any.
    """
    mean = np.eye(4)
    mean[:3, 3] = np.mean([true[:3, 3] for true in truths], axis=0)
    rows = {
        "identity": pose_metrics([np.eye(4)] * len(truths), truths),
        "mean translation": pose_metrics([mean] * len(truths), truths),
    }
    if gps is not None:
        rows["gps"] = pose_metrics(gps, truths)
    return rows


def trajectory_error_m(positions: np.ndarray, truths: np.ndarray, *, align: str = "none") -> float:
    """Return the root mean square distance of positions `(n, 3)` from the truth.

    Args:
        positions: To judge.
        truths: Where they are.
        align: `none`; `rigid` moves and turns the positions first; `similarity` scales them too,
            which hides an error of the metric scale.
    """
    moved = positions
    if align in {"rigid", "similarity"}:
        pose = kabsch(truths, positions, np.ones(len(positions)))
        centred = (positions - positions.mean(axis=0)) @ pose[:3, :3].T
        wanted = truths - truths.mean(axis=0)
        scale = 1.0
        if align == "similarity":
            scale = float((centred * wanted).sum() / (centred**2).sum())
        moved = scale * centred + truths.mean(axis=0)
    elif align != "none":
        raise ValueError(f"align {align!r}: none, rigid or similarity")
    return float(np.sqrt(((moved - truths) ** 2).sum(axis=1).mean()))


def range_metrics(range_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Return the metrics of predicted ranges where the truth is valid."""
    if not valid.any():
        return {}
    found, true = range_m[valid].astype(np.float64), true_m[valid].astype(np.float64)
    ratio = found / true
    return {
        "absrel": float(np.abs(ratio - 1).mean()),
        "delta_1.25": float((np.maximum(ratio, 1 / np.maximum(ratio, 1e-12)) < 1.25).mean()),
        "scale_ratio": float(np.median(ratio)),
        "range_rmse_m": float(np.sqrt(((found - true) ** 2).mean())),
    }


def mask_metrics(probability: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the metrics of a predicted mask, each with what a constant would reach.

    `bce_over_entropy` is the cross-entropy over that of the best constant, the truth's own share:
    1 means that nothing was learned, whatever the loss looks like.
    """
    chosen, wanted = probability > 0.5, truth.astype(bool)
    share = float(wanted.mean())
    both, either = (chosen & wanted).sum(), (chosen | wanted).sum()
    sides = [m.mean() for m in (chosen[wanted], ~chosen[~wanted]) if m.size]
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    bce = float(-(np.log(p) * wanted + np.log(1 - p) * ~wanted).mean())
    entropy = -sum(q * np.log(q) for q in (share, 1 - share) if q > 0)
    return {
        "iou": float(both / either) if either else 1.0,
        "iou_constant": share,
        "balanced_accuracy": float(np.mean(sides)),
        "pred_mask_mean": float(probability.mean()),
        "gt_mask_mean": share,
        "bce": bce,
        "bce_over_entropy": bce / entropy if entropy > 0 else float("inf"),
    }
