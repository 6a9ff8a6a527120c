"""Metrics in units, against known errors, brute force and scipy."""

import cv2
import numpy as np
import pytest
from coopcyl import metrics
from coopcyl.geometry.carla import pose_from_cords, to_opencv
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation


def pose(yaw: float = 0.0, pitch: float = 0.0, **shift: float) -> np.ndarray:
    x, y, z = (shift.get(axis, 0.0) for axis in "xyz")
    return to_opencv(pose_from_cords([x, y, z, 0, yaw, pitch]))


def test_known_errors_come_out_in_their_units():
    true = pose(yaw=170, x=10, y=2)
    moved = pose(yaw=173, x=13, y=6)
    assert metrics.trans_err_m(moved, true) == pytest.approx(5)
    assert metrics.rot_err_deg(moved, true) == pytest.approx(3)
    assert metrics.yaw_err_deg(moved, true) == pytest.approx(3)
    assert metrics.yaw_err_deg(pose(yaw=-179), pose(yaw=179)) == pytest.approx(2)
    tilted = pose(yaw=170, pitch=4, x=10, y=2)
    assert metrics.rot_err_deg(tilted, true) == pytest.approx(4)
    assert metrics.yaw_err_deg(tilted, true) == pytest.approx(0, abs=1e-9)


def test_direction_errors_and_their_sign():
    assert metrics.direction_err_deg(pose(x=3), pose(x=-5)) == pytest.approx(180)
    assert metrics.direction_err_deg(pose(x=3), pose(x=-5), either_sign=True) == pytest.approx(0)
    assert metrics.direction_err_deg(pose(x=3), pose(y=5)) == pytest.approx(90)
    assert metrics.direction_err_deg(pose(), pose(y=5)) == 90
    assert metrics.direction_err_deg(pose(), pose()) == 0


@pytest.mark.parametrize("limit", [5, 15, 30])
def test_auc_is_the_area_under_the_recall_curve(limit):
    errors = np.random.default_rng(0).exponential(10, 200)
    thresholds = (np.arange(200_000) + 0.5) / 200_000 * limit
    recall = np.searchsorted(np.sort(errors), thresholds) / len(errors)
    assert metrics.pose_auc(errors, limit) == pytest.approx(recall.mean(), abs=1e-5)


def test_auc_at_known_errors():
    assert metrics.pose_auc(np.zeros(3), 5) == 1
    assert metrics.pose_auc(np.array([5.0, 99]), 5) == 0
    assert metrics.pose_auc(np.array([0.0, 2.5]), 5) == pytest.approx(0.75)


def test_pose_metrics_count_successes_and_show_baselines():
    truths = [pose(x=10), pose(x=14), pose(x=12, yaw=90)]
    found = [pose(x=10.5), pose(x=15.5), pose(x=20, yaw=90)]
    result = metrics.pose_metrics(found, truths)
    assert result["trans_err_m_median"] == pytest.approx(1.5)
    assert result["trans_err_m_mean"] == pytest.approx(10 / 3)
    assert [result[f"success_{m}_m"] for m in (1, 2, 5)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert result["auc_30_deg"] == pytest.approx(1)
    rows = metrics.pose_baselines(truths, gps=found)
    assert rows["identity"]["trans_err_m_median"] == pytest.approx(12)
    assert rows["mean translation"]["trans_err_m_mean"] == pytest.approx(4 / 3)
    assert rows["gps"] == result


def test_trajectory_errors_agree_with_a_general_optimiser():
    rng = np.random.default_rng(4)
    truths = rng.normal(size=(12, 3)) * 10
    turn = Rotation.from_rotvec([0.1, 0.7, -0.2])
    positions = turn.apply(truths) * 0.8 + [3, -2, 1] + rng.normal(size=(12, 3)) * 0.3

    def residual(p: np.ndarray, scale: float) -> np.ndarray:
        return (scale * Rotation.from_rotvec(p[:3]).apply(positions) + p[3:6] - truths).ravel()

    start = np.zeros(6)
    rigid = least_squares(lambda p: residual(p, 1.0), start).fun
    similar = least_squares(lambda p: residual(p, p[6]), np.append(start, 1.0)).fun
    for align, expected in (("rigid", rigid), ("similarity", similar)):
        rms = np.sqrt((expected.reshape(-1, 3) ** 2).sum(1).mean())
        assert metrics.trajectory_error_m(positions, truths, align=align) == pytest.approx(rms)
    plain = np.sqrt(((positions - truths) ** 2).sum(1).mean())
    assert metrics.trajectory_error_m(positions, truths) == pytest.approx(plain)
    with pytest.raises(ValueError, match="affine"):
        metrics.trajectory_error_m(positions, truths, align="affine")


def test_aligned_trajectory_errors_are_those_of_opencv_and_scipy():
    rng = np.random.default_rng(5)
    for count in (4, 12, 60):
        truths = rng.normal(size=(count, 3)) * 10
        turn = Rotation.from_rotvec(rng.normal(size=3))
        positions = turn.apply(truths) * rng.uniform(0.5, 2) + rng.normal(size=(count, 3))
        matrix, scale = cv2.estimateAffine3D(positions, truths, force_rotation=True)  # Umeyama
        moved = scale * positions @ matrix[:, :3].T + matrix[:, 3]
        similar = np.sqrt(((moved - truths) ** 2).sum(axis=1).mean())
        centred = [points - points.mean(axis=0) for points in (truths, positions)]
        rigid = Rotation.align_vectors(*centred)[1] / np.sqrt(count)
        for align, expected in (("rigid", rigid), ("similarity", similar)):
            found = metrics.trajectory_error_m(positions, truths, align=align)
            assert found == pytest.approx(expected, rel=1e-9)


def test_relative_pose_errors_are_those_of_scipys_rotations():
    rng = np.random.default_rng(6)
    for _ in range(50):
        found, true = (
            pose(*rng.uniform(-180, 180, 1), *rng.uniform(-20, 20, 1), x=rng.normal(), y=1.0)
            for _ in range(2)
        )
        turned = Rotation.from_matrix(true[:3, :3]).inv() * Rotation.from_matrix(found[:3, :3])
        assert metrics.rot_err_deg(found, true) == pytest.approx(
            np.degrees(turned.magnitude()), rel=1e-9
        )
        apart = np.linalg.inv(true) @ found  # the error as evo's RPE has it
        assert metrics.trans_err_m(found, true) == pytest.approx(np.linalg.norm(apart[:3, 3]))


def test_range_metrics_only_look_where_the_truth_is_valid():
    true = np.array([10.0, 20.0, 40.0, 0.0])
    found = np.array([11.0, 30.0, 40.0, 77.0])
    result = metrics.range_metrics(found, true, true > 0)
    assert result["absrel"] == pytest.approx((0.1 + 0.5) / 3)
    assert result["delta_1.25"] == pytest.approx(2 / 3)
    assert result["scale_ratio"] == pytest.approx(1.1)
    assert result["range_rmse_m"] == pytest.approx(np.sqrt(101 / 3))
    assert metrics.range_metrics(found, true, true < 0) == {}


def test_a_constant_mask_learned_nothing_whatever_its_loss_looks_like():
    """With a third of the mask true: entropy 0.635; all zeros at logit -5 cost 1.66."""
    truth = np.arange(1000) < 331
    constant = metrics.mask_metrics(np.full(1000, 0.331), truth)
    assert constant["bce"] == pytest.approx(0.635, abs=1e-3)
    assert constant["bce_over_entropy"] == pytest.approx(1)
    assert constant["balanced_accuracy"] == pytest.approx(0.5)
    zeros = metrics.mask_metrics(np.full(1000, 1 / (1 + np.exp(5))), truth)
    assert zeros["bce"] == pytest.approx(1.66, abs=5e-3)
    assert zeros["iou"] == 0
    perfect = metrics.mask_metrics(truth.astype(float), truth)
    assert (perfect["iou"], perfect["balanced_accuracy"]) == (1, 1)
    assert perfect["bce_over_entropy"] < 1e-3
    assert perfect["gt_mask_mean"] == perfect["pred_mask_mean"] == pytest.approx(0.331)


def test_mask_overlap_and_balance_of_a_known_case():
    truth = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    found = np.array([0.9, 0.8, 0.1, 0.7, 0.2, 0.2, 0.2, 0.2])
    result = metrics.mask_metrics(found, truth)
    assert result["iou"] == pytest.approx(2 / 4)
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 4 / 5) / 2)
