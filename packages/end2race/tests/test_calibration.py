import cv2
import numpy as np
import pytest
from end2race.data.calibration import (
    Calibration,
    Pose,
    level_camera,
    quaternion_of_rotation,
    read_calibration,
    rotation_of_quaternion,
    write_calibration,
)
from loom.errors import UserError
from scipy.spatial.transform import Rotation


def test_projection_agrees_with_opencv():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rotation = Rotation.random(random_state=rng).as_matrix()
        intrinsic = np.array([[300, 2, 160], [0, 280, 90], [0, 0, 1.0]])
        camera = Calibration(intrinsic, 320, 180, rotation, rng.normal(size=3))
        in_camera = rng.uniform([-2, -2, 0.5], [2, 2, 9], (50, 3))
        points = camera.pose.to_ego(in_camera)
        to_camera = rotation.T
        vector, _ = cv2.Rodrigues(to_camera)
        # cv2 ignores a skew, so it gets the matrix without one and the skew is added by hand.
        plain = intrinsic * (np.arange(9).reshape(3, 3) != 1)
        expected, _ = cv2.projectPoints(
            points, vector, -to_camera @ camera.translation, plain, np.zeros(4)
        )
        expected = expected[:, 0]
        expected[:, 0] += 2 * in_camera[:, 1] / in_camera[:, 2]
        pixels, depth = camera.project(points)
        np.testing.assert_allclose(pixels, expected, atol=1e-9)
        np.testing.assert_allclose(depth, in_camera[:, 2], atol=1e-12)


def test_a_level_camera_sees_left_on_the_left_and_up_above():
    camera = level_camera(128, 64, 60.0, (0.3, 0.0, 0.2))
    pixels, depth = camera.project(np.array([[2.3, 0, 0.2], [2.3, 1, 0.2], [2.3, 0, 1.2]]))
    np.testing.assert_allclose(pixels, [[64, 32], [64 - 30, 32], [64, 32 - 30]])
    np.testing.assert_allclose(depth, 2)


def test_quaternions_agree_with_scipy_at_every_angle():
    rng = np.random.default_rng(1)
    rotations = [Rotation.random(random_state=rng) for _ in range(50)]
    rotations += [Rotation.from_euler(axis, 180, degrees=True) for axis in "xyz"]
    for rotation in rotations:
        wxyz = np.roll(rotation.as_quat(), 1)
        mine = quaternion_of_rotation(rotation.as_matrix())
        assert abs(abs(mine @ wxyz) - 1) < 1e-12
        np.testing.assert_allclose(rotation_of_quaternion(mine), rotation.as_matrix(), atol=1e-12)


def test_a_written_calibration_is_read_again(tmp_path):
    rotation = Rotation.from_euler("zyx", [20, 5, -3], degrees=True).as_matrix()
    camera = Calibration(np.diag([50.0, 51.0, 1.0]), 64, 32, rotation, np.array([1.0, 2, 3]))
    lidar = Pose(rotation.T, np.array([0.1, 0.2, 0.3]))
    write_calibration(tmp_path / "c.json", camera, lidar)
    read_camera, read_lidar = read_calibration(tmp_path / "c.json")
    for written, read in ((camera.pose, read_camera.pose), (lidar, read_lidar)):
        np.testing.assert_allclose(read.rotation, written.rotation, atol=1e-12)
        np.testing.assert_array_equal(read.translation, written.translation)
    np.testing.assert_array_equal(read_camera.intrinsic, camera.intrinsic)


def test_a_quaternion_that_is_no_rotation_is_refused(tmp_path):
    path = tmp_path / "c.json"
    write_calibration(path, None, Pose(np.eye(3), np.zeros(3)))
    path.write_text(path.read_text().replace("1.0", "3.0"))
    with pytest.raises(UserError, match=r"lidar\.rotation .* unit quaternion"):
        read_calibration(path)
